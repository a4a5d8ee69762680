//! Which endpoint a device is told for a peer, so that no live session is sent astray.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kilo_wireguard::PublicKey;

use crate::{DeviceFact, Facts};

/// Seconds after the last handshake during which a session may still be in use (WireGuard's
/// `REJECT_AFTER_TIME`).
const LIVE: u64 = 180;

/// Decides on the endpoint of one peer; `None` leaves the device what it has.
///
/// `wanted` is what the mesh says, `programmed` what this agent last told the device, `known` the peer in the
/// device as it is. WireGuard follows a peer that moves; telling the device the configured endpoint again would
/// send the peer's packets where it no longer is. So the device is told only
///
/// - if it does not know the peer, or
/// - if the mesh now says something else than what it was last told, or
/// - if the peer is somewhere else but has not been heard of for 180 seconds.
pub fn endpoint_for_device(
    wanted: Option<SocketAddr>,
    programmed: Option<SocketAddr>,
    known: Option<&DeviceFact>,
    now: u64,
) -> Option<SocketAddr> {
    let wanted = wanted?;
    let Some(known) = known else { return Some(wanted) };
    let moved_by_mesh = programmed.is_some_and(|p| p != wanted);
    let elsewhere = known.endpoint.is_some_and(|e| e != wanted);
    let live = known.latest_handshake != 0 && now.saturating_sub(known.latest_handshake) < LIVE;
    (moved_by_mesh || !elsewhere || !live).then_some(wanted)
}

/// What the machine says about the peers of its device, by key.
pub(crate) struct Known<'a> {
    device: Vec<&'a DeviceFact>,
    programmed: &'a BTreeMap<PublicKey, SocketAddr>,
    now: u64,
}

impl<'a> Known<'a> {
    pub(crate) fn new(facts: &'a Facts) -> Self {
        let mut device: Vec<&DeviceFact> = facts.host.device.iter().collect();
        device.sort_by_key(|p| p.public_key);
        Self { device, programmed: &facts.host.programmed, now: facts.now }
    }

    pub(crate) fn get(&self, key: &PublicKey) -> Option<&'a DeviceFact> {
        self.device.binary_search_by_key(key, |p| p.public_key).ok().map(|i| self.device[i])
    }

    pub(crate) fn endpoint(&self, key: &PublicKey, wanted: Option<SocketAddr>) -> Option<SocketAddr> {
        wanted?;
        endpoint_for_device(wanted, self.programmed.get(key).copied(), self.get(key), self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 10_000;

    fn at(text: &str) -> Option<SocketAddr> {
        Some(text.parse().expect("an address"))
    }

    fn decide(wanted: &str, programmed: Option<&str>, known: Option<(&str, u64)>) -> Option<SocketAddr> {
        let known = known.map(|(endpoint, latest_handshake)| DeviceFact {
            public_key: PublicKey::from_bytes([1; 32]),
            endpoint: endpoint.parse().ok(),
            latest_handshake,
        });
        endpoint_for_device(at(wanted), programmed.and_then(at), known.as_ref(), NOW)
    }

    #[test]
    fn a_new_peer_is_told() {
        assert_eq!(decide("1.1.1.1:1", None, None), at("1.1.1.1:1"));
        assert_eq!(decide("[fd00::1]:1", Some("[fd00::1]:1"), None), at("[fd00::1]:1"));
        assert_eq!(decide("1.1.1.1:1", None, Some(("", 0))), at("1.1.1.1:1"));
    }

    #[test]
    fn a_live_session_elsewhere_is_left_alone() {
        assert_eq!(decide("1.1.1.1:1", None, Some(("2.2.2.2:2", NOW - 179))), None);
        assert_eq!(decide("1.1.1.1:1", Some("1.1.1.1:1"), Some(("2.2.2.2:2", NOW))), None);
        assert_eq!(decide("[fd00::1]:1", None, Some(("[fd00::2]:1", NOW - 1))), None);
    }

    #[test]
    fn a_dead_session_elsewhere_is_told() {
        assert_eq!(decide("1.1.1.1:1", None, Some(("2.2.2.2:2", NOW - 180))), at("1.1.1.1:1"));
        assert_eq!(decide("1.1.1.1:1", Some("1.1.1.1:1"), Some(("2.2.2.2:2", 0))), at("1.1.1.1:1"));
    }

    #[test]
    fn a_changed_configuration_is_told_even_to_a_live_session() {
        assert_eq!(decide("3.3.3.3:3", Some("1.1.1.1:1"), Some(("1.1.1.1:1", NOW))), at("3.3.3.3:3"));
        assert_eq!(decide("3.3.3.3:3", Some("1.1.1.1:1"), Some(("2.2.2.2:2", NOW))), at("3.3.3.3:3"));
    }

    #[test]
    fn no_endpoint_never_clears_one() {
        assert_eq!(endpoint_for_device(None, at("1.1.1.1:1"), None, NOW), None);
    }
}
