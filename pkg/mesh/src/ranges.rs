//! A set of ranges of addresses that answers "does any of these hold, or overlap, that one" by bisection.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::parse;

/// First and last address of a range as numbers.
pub(crate) fn bounds(net: IpNet) -> (bool, u128, u128) {
    let (v6, first) = parse::number(net.network());
    (v6, first, parse::number(net.broadcast()).1)
}

/// Ranges of which none holds another, sorted.
#[derive(Clone, Debug, Default)]
pub(crate) struct RangeSet {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

/// Drops ranges that another one holds. Ranges with a prefix length either hold one another or have nothing
/// in common, so what is left covers the same.
fn outermost<T: Ord + Copy>(ranges: &mut Vec<(T, T)>) {
    // Of ranges with one start the longest comes first.
    ranges.sort_unstable_by(|a, b| (a.0, b.1).cmp(&(b.0, a.1)));
    let mut end: Option<T> = None;
    ranges.retain(|&(_, last)| {
        let inside = end.is_some_and(|end| last <= end);
        if !inside {
            end = Some(last);
        }
        !inside
    });
}

/// The end of the last range that starts at or before this address.
fn end_before<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> Option<T> {
    let i = ranges.partition_point(|&(first, _)| first <= address);
    i.checked_sub(1).and_then(|i| ranges.get(i)).map(|r| r.1)
}

impl RangeSet {
    /// The set of these ranges.
    pub(crate) fn new(nets: impl IntoIterator<Item = IpNet>) -> Self {
        let mut set = Self::default();
        for net in nets {
            match net {
                IpNet::V4(net) => set.v4.push((net.network().into(), net.broadcast().into())),
                IpNet::V6(net) => set.v6.push((net.network().into(), net.broadcast().into())),
            }
        }
        outermost(&mut set.v4);
        outermost(&mut set.v6);
        set
    }

    /// Whether one of the ranges holds all of this one.
    pub(crate) fn holds(&self, net: IpNet) -> bool {
        match net {
            IpNet::V4(net) => end_before(&self.v4, net.network().into())
                .is_some_and(|end| u32::from(net.broadcast()) <= end),
            IpNet::V6(net) => end_before(&self.v6, net.network().into())
                .is_some_and(|end| u128::from(net.broadcast()) <= end),
        }
    }

    /// Whether one of the ranges holds this address.
    pub(crate) fn holds_addr(&self, ip: IpAddr) -> bool {
        self.holds(parse::one(ip))
    }

    /// Whether one of the ranges has an address in common with this one.
    pub(crate) fn overlaps(&self, net: IpNet) -> bool {
        match net {
            IpNet::V4(net) => end_before(&self.v4, net.broadcast().into())
                .is_some_and(|end| u32::from(net.network()) <= end),
            IpNet::V6(net) => end_before(&self.v6, net.broadcast().into())
                .is_some_and(|end| u128::from(net.network()) <= end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(s: &str) -> IpNet {
        s.parse().expect("a range")
    }

    #[test]
    fn questions_are_answered_in_both_families() {
        let set = RangeSet::new(["10.0.0.0/8", "10.1.0.0/16", "192.168.0.0/24", "fd00::/64"].map(net));
        assert!(
            set.holds(net("10.1.2.0/24")) && set.holds(net("10.0.0.0/8")) && set.holds(net("fd00::1/128"))
        );
        assert!(
            !set.holds(net("10.0.0.0/7")) && !set.holds(net("192.168.0.0/23")) && !set.holds(net("::/0"))
        );
        assert!(
            set.overlaps(net("0.0.0.0/0"))
                && set.overlaps(net("::/0"))
                && set.overlaps(net("192.168.0.7/32"))
        );
        assert!(!set.overlaps(net("192.168.1.0/24")) && !set.overlaps(net("fd01::/64")));
        assert!(set.holds_addr("192.168.0.255".parse().expect("an address")));
        assert!(!set.holds_addr("::a00:1".parse().expect("an address")));
    }
}
