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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_is_not_tried_again() {
        let of = |errno: Errno| refused("adding a route")(errno.into()).severity;
        assert_eq!(of(Errno::PERM), Severity::Fatal);
        assert_eq!(of(Errno::NETUNREACH), Severity::Retry);
        assert_eq!(io("reading")(std::io::ErrorKind::UnexpectedEof.into()).severity, Severity::Retry);
    }

    #[test]
    fn the_kernels_words_are_the_cause() {
        let source = Refused { errno: Errno::INVAL, text: Some("Nexthop has invalid gateway".into()) };
        let error = refused("adding route 10.2.3.0/24 via kilo0")(source);
        assert_eq!(error.to_string(), "adding route 10.2.3.0/24 via kilo0");
        assert_eq!(error.source.to_string(), "Invalid argument (os error 22) (Nexthop has invalid gateway)");
    }
}
