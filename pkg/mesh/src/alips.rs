//! Which allowed-location-ips a segment keeps. The rule depends on the order of segments, as upstream's
//! does: every agent of a mesh must come to the same answer.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::parse;
use crate::ranges::{RangeSet, bounds};

/// Start and prefix length of a range, by family.
type Key = (bool, u128, u8);

/// The ranges that all segments but the one at hand claim at this moment.
#[derive(Default)]
struct Claims {
    count: BTreeMap<Key, u32>,
    lengths: BTreeSet<(bool, u8)>,
}

fn key(net: IpNet) -> Key {
    let (v6, first, _) = bounds(net);
    (v6, first, net.prefix_len())
}

impl Claims {
    fn add(&mut self, net: IpNet) {
        let key = key(net);
        *self.count.entry(key).or_default() += 1;
        self.lengths.insert((key.0, key.2));
    }

    fn remove(&mut self, net: IpNet) {
        let key = key(net);
        if let Some(n) = self.count.get_mut(&key) {
            *n -= 1;
            if *n == 0 {
                self.count.remove(&key);
            }
        }
    }

    fn overlap(&self, net: IpNet) -> bool {
        let (v6, first, last) = bounds(net);
        if self.count.range((v6, first, 0)..=(v6, last, u8::MAX)).next().is_some() {
            return true;
        }
        // What holds the range is its own prefix, cut to a length that occurs.
        self.lengths.range((v6, 0)..(v6, net.prefix_len())).any(|&(_, len)| {
            let bits = if v6 { 128 } else { 32 };
            let host = bits - u32::from(len);
            let start = if host >= 128 { 0 } else { first >> host << host };
            self.count.contains_key(&(v6, start, len))
        })
    }
}

/// Filters `claimed`, one list for each segment in their order, each range with the number of the node that
/// names it. `taken` holds the pod ranges (the first of
/// each node) and private addresses of all segments, `peers` all ranges of Peers; `pool` is the WireGuard
/// subnet, of which segment `i` has address `i + 1`. `dropped` is told the segment, the range and why.
pub(crate) fn filter(
    claimed: &mut [Vec<(IpNet, u32)>],
    taken: &RangeSet,
    peers: &RangeSet,
    pool: IpNet,
    mut dropped: impl FnMut(usize, (IpNet, u32), &'static str),
) {
    let mut claims = Claims::default();
    claimed.iter().flatten().for_each(|&(net, _)| claims.add(net));
    let (pool_v6, pool_first) = parse::number(pool.network());
    for (i, list) in claimed.iter_mut().enumerate() {
        // A location's own ranges may overlap.
        list.iter().for_each(|&(net, _)| claims.remove(net));
        list.retain(|&(net, node)| {
            // The address counts as it was written, host bits included.
            let (v6, addr) = parse::number(net.addr());
            let given_out = v6 == pool_v6 && addr > pool_first && addr - pool_first <= i as u128 + 1;
            let reason = if claims.overlap(net) {
                "it overlaps a range of another location"
            } else if given_out || taken.holds_addr(net.addr()) {
                "its address is in a range of a node"
            } else if peers.overlaps(net) {
                "it overlaps a range of a Peer"
            } else {
                return true;
            };
            dropped(i, (net, node), reason);
            false
        });
        list.iter().for_each(|&(net, _)| claims.add(net));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|s| s.parse().expect("a range")).collect()
    }

    fn check(claimed: &[&[&str]], kept: &[&[&str]]) {
        let number = |l: &&[&str]| nets(l).into_iter().map(|n| (n, 0)).collect::<Vec<_>>();
        let mut lists: Vec<_> = claimed.iter().map(number).collect();
        let taken = RangeSet::new(nets(&["10.2.1.0/24", "192.168.0.1/32"]));
        let peers = RangeSet::new(nets(&["10.5.0.0/24"]));
        filter(&mut lists, &taken, &peers, "10.4.0.0/16".parse().expect("a range"), |_, _, _| {});
        assert_eq!(lists, kept.iter().map(number).collect::<Vec<_>>());
    }

    #[test]
    fn of_two_locations_the_later_keeps_the_range() {
        check(&[&["192.168.178.4/32"], &["192.168.178.0/24"]], &[&[], &["192.168.178.0/24"]]);
        check(
            &[&["172.16.0.0/12"], &["172.16.1.0/24"], &["172.17.0.0/16"]],
            &[&[], &["172.16.1.0/24"], &["172.17.0.0/16"]],
        );
        check(&[&["fd00::/8", "fd01::/16"]], &[&["fd00::/8", "fd01::/16"]]);
    }

    #[test]
    fn only_wireguard_addresses_given_out_so_far_count() {
        check(&[&["10.4.0.1/32", "10.4.0.2/32"], &["10.4.0.2/32"]], &[&[], &[]]);
        check(&[&["10.4.0.2/32"], &[]], &[&["10.4.0.2/32"], &[]]);
    }

    #[test]
    fn ranges_of_nodes_count_by_address_and_those_of_peers_by_overlap() {
        check(&[&["10.2.0.0/16", "10.2.1.0/16", "192.168.0.1/24"]], &[&["10.2.0.0/16"]]);
        check(&[&["10.5.0.0/16", "10.5.0.7/32", "10.6.0.0/16"]], &[&["10.6.0.0/16"]]);
    }
}
