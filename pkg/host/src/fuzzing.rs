//! Doors for the fuzz targets to what reads bytes of others.

use crate::netlink::{address, link, nftables, parameter, route, rule, socket};
pub use crate::wireguard::kernel::fuzzing::wireguard;
use crate::wireguard::uapi::text::{Request, parse_request, parse_status, write_set, write_status};

/// Reads a datagram of the kernel's as every kind of message that is listened for.
pub fn netlink(datagram: &[u8]) {
    for message in socket::messages(datagram) {
        link::parse(message.payload);
        address::parse(&message);
        route::parse(&message);
        rule::parse(&message);
        parameter::parse(&message, |_| Some("eth0"));
        nftables::parse_event(&message);
        nftables::parse_end(&message);
    }
}

/// Reads a request and an answer of WireGuard's configuration protocol. What can be read is the same when it was
/// written and read again.
///
/// # Panics
/// When it is not.
pub fn uapi(text: &str) {
    if let Ok(Request::Set(set)) = parse_request(text) {
        let written = write_set(&set);
        assert_eq!(parse_request(&written), Ok(Request::Set(set)), "a request changes on its way");
    }
    if let Ok((status, _)) = parse_status(text, 0) {
        let written = write_status(&status);
        let again = parse_status(&written, 0).map(|(status, _)| status);
        assert_eq!(
            again.as_ref().map(|status| &status.peers),
            Ok(&status.peers),
            "an answer changes on its way"
        );
    }
}
