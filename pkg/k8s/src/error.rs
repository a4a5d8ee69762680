//! What goes wrong with an API server, in one line each.

use std::time::Duration;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server says no.
    #[error("the API server answers {code} {reason}: {message}")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// One word.
        reason: String,
        /// A sentence.
        message: String,
    },
    /// It says nothing.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The definition of Peers is not installed.
    #[error(
        "the cluster has no CustomResourceDefinition {name}; install it with: kubectl apply -f manifests/crds.yaml",
        name = crate::CRD_NAME
    )]
    NoDefinition,
    /// The connection, mostly.
    #[error("the API server cannot be asked")]
    Client(#[source] Box<kube::Error>),
    /// A watch came apart.
    #[error("the watch broke")]
    Watch(#[source] Box<kube::runtime::watcher::Error>),
}

impl CallError {
    /// The HTTP status, if the server gave one.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Silent(_) | Self::NoDefinition | Self::Client(_) | Self::Watch(_) => None,
        }
    }

    fn refused(status: &kube::core::Status) -> Self {
        Self::Refused { code: status.code, reason: status.reason.clone(), message: status.message.clone() }
    }

    /// The error and what is behind it in one line; kube's own repeat their sources.
    pub fn line(&self) -> String {
        let mut last: &dyn std::error::Error = self;
        while let Some(source) = last.source() {
            last = source;
        }
        let (this, deepest) = (self.to_string(), last.to_string());
        if this == deepest { this } else { format!("{this}: {deepest}") }
    }
}

impl From<kube::Error> for CallError {
    fn from(error: kube::Error) -> Self {
        if let kube::Error::Api(status) = &error {
            return Self::refused(status);
        }
        Self::Client(Box::new(error))
    }
}

impl From<kube::runtime::watcher::Error> for CallError {
    fn from(error: kube::runtime::watcher::Error) -> Self {
        use kube::runtime::watcher::Error;
        match error {
            Error::InitialListFailed(error) | Error::WatchStartFailed(error) | Error::WatchFailed(error) => {
                error.into()
            }
            Error::WatchError(status) => Self::refused(&status),
            error @ Error::NoResourceVersion => Self::Watch(Box::new(error)),
        }
    }
}
