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
    ranges: Vec<(bool, u128, u128)>,
}

impl RangeSet {
    /// The outermost of these ranges. Ranges with a prefix length either hold one another or have nothing in
    /// common, so the rest adds nothing.
    pub(crate) fn new(nets: impl IntoIterator<Item = IpNet>) -> Self {
        let mut ranges: Vec<_> = nets.into_iter().map(bounds).collect();
        // Of ranges with one start the longest comes first.
        ranges.sort_unstable_by(|a, b| (a.0, a.1, b.2).cmp(&(b.0, b.1, a.2)));
        let mut end: Option<(bool, u128)> = None;
        ranges.retain(|&(v6, _, last)| {
            let inside = end.is_some_and(|(f, e)| f == v6 && last <= e);
            if !inside {
                end = Some((v6, last));
            }
            !inside
        });
        Self { ranges }
    }

    /// The last range that starts at or before this address.
    fn before(&self, v6: bool, n: u128) -> Option<(bool, u128, u128)> {
        let i = self.ranges.partition_point(|&(f, first, _)| (f, first) <= (v6, n));
        i.checked_sub(1).and_then(|i| self.ranges.get(i)).copied().filter(|r| r.0 == v6)
    }

    /// Whether one of the ranges holds all of this one.
    pub(crate) fn holds(&self, net: IpNet) -> bool {
        let (v6, first, last) = bounds(net);
        self.before(v6, first).is_some_and(|r| last <= r.2)
    }

    /// Whether one of the ranges holds this address.
    pub(crate) fn holds_addr(&self, ip: IpAddr) -> bool {
        let (v6, n) = parse::number(ip);
        self.before(v6, n).is_some_and(|r| n <= r.2)
    }

    /// Whether one of the ranges has an address in common with this one.
    pub(crate) fn overlaps(&self, net: IpNet) -> bool {
        let (v6, first, last) = bounds(net);
        self.before(v6, last).is_some_and(|r| first <= r.2)
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
