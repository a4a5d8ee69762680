//! The way a test says that it cannot run here.

/// A reason why a test cannot run on this machine; return it as the error of the test.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

impl Skip {
    /// An error for `?` that the runner counts as skipped.
    pub fn because(reason: impl Into<String>) -> anyhow::Error {
        Self(reason.into()).into()
    }
}
