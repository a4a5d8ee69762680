//! Values and names in the words of findings.

use serde_json::Value;

/// The longest value that a finding shows, in characters.
const SHOWN: usize = 80;

/// The longest name that an object may have, in bytes.
const LONGEST_NAME: usize = 253;

/// The text, or as much of it as a finding shows.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A value as a finding shows it; nothing of lists and maps.
pub fn scalar(value: &Value) -> String {
    match value {
        Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
        Value::String(text) => shorten(text),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// The sort of a value, as the end of "must be text, not …".
pub fn called(value: Option<&Value>) -> &'static str {
    match value {
        None | Some(Value::Null) => "nothing",
        Some(Value::Bool(_)) => "true or false",
        Some(Value::Number(_)) => "this number",
        Some(Value::String(_)) => "text",
        Some(Value::Array(_)) => "a list",
        Some(Value::Object(_)) => "a map",
    }
}

/// Whether an object may have this name: a DNS name in lower case.
pub fn is_name(name: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    name.len() <= LONGEST_NAME && name.split('.').all(label)
}
