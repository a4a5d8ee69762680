//! What an endpoint resolves to, and which endpoint a device is told for a peer, so that no live session is
//! sent astray.

use std::net::SocketAddr;

use kilo_wireguard::{Endpoint, PublicKey};

use crate::{DeviceFact, Facts, Finding, order};

/// Seconds after the last handshake during which a session may still be in use (WireGuard's
/// `REJECT_AFTER_TIME`).
const LIVE: u64 = 180;

/// What an endpoint's host resolves to: IPv4 where there is a choice.
pub(crate) fn resolve(endpoint: &Endpoint, facts: &Facts) -> Option<SocketAddr> {
    let Some(name) = endpoint.dns() else { return endpoint.addr() };
    let ips = facts.dns.get(name)?;
    let ip = ips.iter().find(|ip| ip.is_ipv4()).or_else(|| ips.first())?;
    Some(SocketAddr::new(ip.to_canonical(), endpoint.port))
}

/// A finding on the endpoint of this object, whose name does not resolve.
pub(crate) fn unresolved(object: String, field: String, endpoint: &Endpoint) -> Finding {
    Finding::new(
        object,
        field,
        endpoint.to_string(),
        "the name does not resolve; it is reached only once it calls",
    )
}

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
    (moved_by_mesh || !elsewhere || !live(known, now)).then_some(wanted)
}

/// Whether a live session of the peer is somewhere else than the mesh says. Only then does the decision above
/// depend on the time and on what the device was told; otherwise it stands as long as the peer in the device
/// is the same and the clock goes forward.
fn unsettled(wanted: Option<SocketAddr>, known: Option<&DeviceFact>, now: u64) -> bool {
    let (Some(wanted), Some(known)) = (wanted, known) else { return false };
    known.endpoint.is_some_and(|e| e != wanted) && live(known, now)
}

fn live(known: &DeviceFact, now: u64) -> bool {
    known.latest_handshake != 0 && now.saturating_sub(known.latest_handshake) < LIVE
}

/// The peers that the machine has in its device, found by key.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// Places in the facts, in the order of the keys.
    order: Vec<u32>,
}

impl Known {
    pub(crate) fn new(facts: &Facts) -> Self {
        let keys: Vec<&PublicKey> = facts.host.device.iter().map(|p| &p.public_key).collect();
        Self { order: order::of_keys(&keys) }
    }

    /// The peer of this key in the facts, which must be those of the beginning.
    pub(crate) fn get<'f>(&self, facts: &'f Facts, key: &PublicKey) -> Option<&'f DeviceFact> {
        let fact = |place: u32| facts.host.device.get(place as usize);
        let at = self.order.binary_search_by(|&i| fact(i).map(|p| &p.public_key).cmp(&Some(key))).ok()?;
        fact(self.order[at])
    }

    /// Where the device has seen the peer of this key, if there has been a handshake.
    pub(crate) fn seen(&self, facts: &Facts, key: &PublicKey) -> Option<SocketAddr> {
        let fact = self.get(facts, key).filter(|fact| fact.latest_handshake != 0)?;
        fact.endpoint.map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    }

    /// The endpoint that the device is told, and whether that may be another one without any change but of
    /// the time and of what the device was told.
    pub(crate) fn endpoint(
        &self,
        facts: &Facts,
        key: &PublicKey,
        wanted: Option<SocketAddr>,
    ) -> (Option<SocketAddr>, bool) {
        if wanted.is_none() {
            return (None, false);
        }
        let (known, programmed) = (self.get(facts, key), facts.host.programmed.get(key).copied());
        let endpoint = endpoint_for_device(wanted, programmed, known, facts.now);
        (endpoint, unsettled(wanted, known, facts.now))
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
