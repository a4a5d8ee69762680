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

impl Finding {
    /// A finding on this field of this object.
    pub fn new(
        object: impl Into<String>,
        field: impl Into<String>,
        value: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self { object: object.into(), field: field.into(), value: value.into(), reason: reason.into() }
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
