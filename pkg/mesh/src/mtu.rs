//! The MTU of the WireGuard link, and why it is that.

use serde::Serialize;

use crate::{Facts, Mtu};

/// What WireGuard adds to a packet at most, over IPv6, in bytes.
pub const OVERHEAD: u32 = 80;
/// The MTU where that of the uplink is not known, in bytes: that of Ethernet less [`OVERHEAD`].
pub const DEFAULT: u32 = 1420;
/// What IPIP adds to a packet, in bytes.
pub const IPIP_OVERHEAD: u32 = 20;
/// The least MTU that IPv6 works with, in bytes.
const LEAST: u32 = 1280;

/// An MTU and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MtuDecision {
    /// Bytes.
    pub value: u32,
    /// For people.
    pub reason: String,
}

/// Decides on the MTU of the WireGuard link.
pub(crate) fn decide(mtu: Mtu, facts: &Facts) -> MtuDecision {
    let (value, reason) = match (mtu, facts.host.uplink_mtu) {
        (Mtu::Fixed(value), _) => (value, "--mtu says so".to_owned()),
        (Mtu::Auto, Some(uplink)) => {
            let value = uplink.saturating_sub(OVERHEAD);
            let warning =
                if value < LEAST { "; IPv6 needs 1280, so it will not work through the mesh" } else { "" };
            let reason =
                format!("the link of the default route has {uplink}, WireGuard takes {OVERHEAD}{warning}");
            (value, reason)
        }
        (Mtu::Auto, None) => {
            (DEFAULT, "there is no link with a default route; an Ethernet is assumed".to_owned())
        }
    };
    MtuDecision { value, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostFacts;

    #[test]
    fn uplink_decides_unless_told() {
        let facts =
            |uplink_mtu| Facts { host: HostFacts { uplink_mtu, ..HostFacts::default() }, ..Facts::default() };
        assert_eq!(decide(Mtu::Auto, &facts(Some(1500))).value, 1420);
        assert_eq!(decide(Mtu::Auto, &facts(Some(9001))).value, 8921);
        assert_eq!(decide(Mtu::Auto, &facts(None)).value, 1420);
        assert_eq!(decide(Mtu::Auto, &facts(Some(40))).value, 0);
        assert!(decide(Mtu::Auto, &facts(Some(1300))).reason.contains("1280"));
        assert_eq!(
            decide(Mtu::Fixed(1300), &facts(Some(1500))),
            MtuDecision { value: 1300, reason: "--mtu says so".into() }
        );
    }
}
