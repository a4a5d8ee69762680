//! What could not be done, in the words of the agent's seam.

use std::error::Error;
use std::io;

use kilo_agent::{HostError, Severity};
use rustix::io::Errno;

use crate::netlink::socket::Refused;

/// An error that trying again may mend.
pub(crate) fn retry(action: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> HostError {
    HostError { action: action.into(), severity: Severity::Retry, source: source.into() }
}

/// An error that a person has to mend.
pub(crate) fn fatal(action: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> HostError {
    HostError { action: action.into(), severity: Severity::Fatal, source: source.into() }
}

/// Whether a person has to do something first: give a right, or a kernel that can do it.
fn severity(errno: Option<Errno>) -> Severity {
    match errno {
        Some(Errno::PERM | Errno::ACCESS | Errno::ROFS | Errno::OPNOTSUPP | Errno::AFNOSUPPORT) => {
            Severity::Fatal
        }
        _ => Severity::Retry,
    }
}

/// The kernel's refusal of an action.
pub(crate) fn refused(action: impl Into<String>) -> impl FnOnce(Refused) -> HostError {
    move |source| HostError {
        action: action.into(),
        severity: severity(Some(source.errno)),
        source: Box::new(source),
    }
}

/// A file or socket that cannot be worked with.
pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError {
        action: action.into(),
        severity: severity(source.raw_os_error().map(Errno::from_raw_os_error)),
        source: Box::new(source),
    }
}
