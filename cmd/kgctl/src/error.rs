//! Errors that have no cause but themselves.

/// An error of this text.
pub fn message(text: impl Into<String>) -> anyhow::Error {
    anyhow::Error::msg(text.into())
}
