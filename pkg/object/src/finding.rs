//! What is wrong with an object, in a form that can become a log line, a condition or a metric.

use serde::{Deserialize, Serialize};

/// One thing that is wrong with one field of one object, and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// Kind and name, `Peer/alice`; `Host` for the machine.
    pub object: String,
    /// The field, `spec.allowedIPs[2]` or an annotation's full name.
    pub field: String,
    /// What stands there; never a secret.
    pub value: String,
    /// What is wrong with it and what follows.
    pub reason: String,
}

/// Bytes of a value that are shown: whoever writes an object shall not write our log.
const SHOWN: usize = 200;

impl Finding {
    /// A finding on this field of this object. Of a long value only the beginning is kept.
    pub fn new(
        object: impl Into<String>,
        field: impl Into<String>,
        value: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        let mut value = value.into();
        let length = value.len();
        if length > SHOWN {
            value.truncate(value.floor_char_boundary(SHOWN));
            value.push_str(&format!("… ({length} bytes)"));
        }
        Self { object: object.into(), field: field.into(), value, reason: reason.into() }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.object, self.field)?;
        if !self.value.is_empty() {
            write!(f, " {:?}", self.value)?;
        }
        write!(f, ": {}", self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_is_cut_between_characters() {
        let finding = Finding::new("Peer/a", "spec.publicKey", "ä".repeat(1 << 20), "no key");
        assert!(
            finding.value.len() < 2 * SHOWN && finding.value.ends_with("ä… (2097152 bytes)"),
            "{}",
            finding.value
        );
        assert_eq!(Finding::new("Peer/a", "", "ä".repeat(SHOWN / 2), "").value, "ä".repeat(SHOWN / 2));
    }
}
