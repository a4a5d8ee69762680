//! Who claims which key and which range, as far as a plan has to know before it gives them to a Peer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;
use kilo_wireguard::PublicKey;

use crate::ranges::RangeSet;
use crate::{Node, Peer, parse};

/// What nodes and services have, which no Peer may claim. Nodes that are not ready count: they may be back at any time.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    ranges: RangeSet,
    services: RangeSet,
    pool: IpNet,
    segments: u128,
}

impl Owned {
    pub(crate) fn new(pool: IpNet, segments: usize, nodes: &[&Node], services: &[IpNet]) -> Self {
        let private = |n: &Node| n.internal_ip.map(|ip| parse::one(ip.addr()));
        let ranges = RangeSet::new(nodes.iter().flat_map(|n| n.subnets().chain(private(n))));
        let services = RangeSet::new(services.iter().copied());
        Self { ranges, services, pool, segments: segments as u128 }
    }

    /// Whether the range lies within one that a node or services have. One that only contains such ranges may stay: the
    /// longer prefix wins.
    pub(crate) fn has(&self, net: IpNet) -> bool {
        self.is_wireguard_ip(net) || self.ranges.holds(net) || self.services.holds(net)
    }

    /// Whose such a range is.
    pub(crate) fn whose(&self, net: IpNet) -> &'static str {
        if self.is_wireguard_ip(net) || self.ranges.holds(net) { "a node" } else { "services" }
    }

    fn is_wireguard_ip(&self, net: IpNet) -> bool {
        let ((v6, first), (f, n)) = (parse::number(self.pool.network()), parse::number(net.addr()));
        net.prefix_len() == net.max_prefix_len() && f == v6 && n > first && n - first <= self.segments
    }
}

/// All claims that a plan was made from.
#[derive(Clone, Debug)]
pub(crate) struct Claims {
    pub(crate) owned: Owned,
    /// The keys of all nodes and of all Peers that are ready, sorted, each as often as it is claimed.
    pub(crate) keys: Vec<PublicKey>,
    /// The ranges of all Peers that have their key to themselves or were first, sorted, each as often as a
    /// Peer claims it.
    pub(crate) ranges: Vec<IpNet>,
    /// The allowed-location-ips of ready nodes, those that were left out included.
    pub(crate) behind_locations: RangeSet,
    /// The endpoints that other nodes have seen, of each key that which counts.
    pub(crate) seen_by_others: BTreeMap<PublicKey, SocketAddr>,
}

/// What one Peer that is ready claims.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) key: PublicKey,
    /// Its ranges without host bits in its own order, each once.
    pub(crate) ranges: Vec<IpNet>,
}

impl Claim {
    /// What this Peer claims, if it is ready.
    pub(crate) fn of(peer: &Peer) -> Option<Self> {
        let key = peer.public_key.filter(|_| peer.ready())?;
        let mut seen = BTreeSet::new();
        let ranges = peer.allowed_ips.iter().map(IpNet::trunc).filter(|net| seen.insert(*net)).collect();
        Some(Self { key, ranges })
    }
}

impl Claims {
    /// Adds a claim. If anybody else claims any of it, or the range decides about allowed-location-ips, it
    /// returns `None`, and the claims are no longer of use.
    pub(crate) fn add(&mut self, claim: &Claim) -> Option<()> {
        let at = self.keys.binary_search(&claim.key).err()?;
        self.keys.insert(at, claim.key);
        for net in &claim.ranges {
            let at = self.ranges.binary_search(net).err().filter(|_| !self.contested(*net))?;
            self.ranges.insert(at, *net);
        }
        Some(())
    }

    /// Removes a claim, with the same answer.
    pub(crate) fn remove(&mut self, claim: &Claim) -> Option<()> {
        remove_only(&mut self.keys, &claim.key)?;
        for net in &claim.ranges {
            remove_only(&mut self.ranges, net).filter(|()| !self.contested(*net))?;
        }
        Some(())
    }

    fn contested(&self, net: IpNet) -> bool {
        self.owned.has(net) || self.behind_locations.overlaps(net)
    }
}

/// Removes an item from a sorted list, if it is there once.
fn remove_only<T: Ord>(list: &mut Vec<T>, item: &T) -> Option<()> {
    let start = list.partition_point(|other| other < item);
    let mut same = list.get(start..)?.iter().take_while(|other| *other == item);
    same.next()?;
    if same.next().is_some() {
        return None;
    }
    list.remove(start);
    Some(())
}
