//! Which Peers take part, and with which of their ranges: one Peer for each key, one Peer for each range,
//! and nothing that belongs to a node.

use ipnet::IpNet;
use kilo_wireguard::PublicKey;

use crate::ranges::RangeSet;
use crate::segments::{resolve, unresolved};
use crate::topology::MeshPeer;
use crate::{Facts, Finding, Node, Peer, order, parse};

/// The Peers of a topology.
pub(crate) struct Chosen {
    pub(crate) peers: Vec<MeshPeer>,
    pub(crate) ranges: Vec<IpNet>,
    pub(crate) findings: Vec<Finding>,
}

/// What nodes have, which no Peer may claim. Nodes that are not ready count: they may be back at any time.
struct Owned<'a> {
    ranges: RangeSet,
    keys: Vec<&'a PublicKey>,
    pool: IpNet,
    segments: u128,
}

impl<'a> Owned<'a> {
    fn new(pool: IpNet, segments: usize, nodes: &[&'a Node]) -> Self {
        let private = |n: &Node| n.internal_ip.map(|ip| parse::one(ip.addr()));
        let keys = nodes.iter().filter_map(|n| n.key.as_ref()).collect();
        let ranges = RangeSet::new(nodes.iter().flat_map(|n| n.subnets().chain(private(n))));
        Self { ranges, keys, pool, segments: segments as u128 }
    }

    /// Whether the range lies within one that a node has. One that only contains such ranges may stay: the
    /// longer prefix wins.
    fn has(&self, net: IpNet) -> bool {
        self.is_wireguard_ip(net) || self.ranges.holds(net)
    }

    fn is_wireguard_ip(&self, net: IpNet) -> bool {
        let ((v6, first), (f, n)) = (parse::number(self.pool.network()), parse::number(net.addr()));
        net.prefix_len() == net.max_prefix_len() && f == v6 && n > first && n - first <= self.segments
    }
}

/// Drops all but one of the Peers with the same key: the oldest stays, of equally old ones the first by
/// name. One whose age is not known counts as young.
fn one_for_each_key<'a>(peers: &mut Vec<&'a Peer>, owned: &Owned<'_>, findings: &mut Vec<Finding>) {
    let age = |p: &'a Peer| (p.created.is_none(), &p.created);
    // Nodes come before Peers, and ready Peers have keys.
    let nodes = owned.keys.len();
    let keys: Vec<&PublicKey> =
        owned.keys.iter().copied().chain(peers.iter().filter_map(|p| p.public_key.as_ref())).collect();
    let mut refused = vec![false; peers.len()];
    for group in order::of_keys(&keys).chunk_by(|&a, &b| keys[a as usize] == keys[b as usize]) {
        let of_node = (group[0] as usize) < nodes;
        if group.len() == 1 {
            continue;
        }
        // Places in the list go by name.
        let places = || group.iter().filter_map(|&i| (i as usize).checked_sub(nodes));
        let first = places().min_by_key(|&i| (age(peers[i]), i));
        for i in places().filter(|&i| of_node || Some(i) != first) {
            let key = peers[i].public_key.map(|k| k.to_string()).unwrap_or_default();
            let owner = match first {
                Some(first) if !of_node => format!("Peer/{} has this key already", peers[first].name),
                _ => "a node has this key".to_owned(),
            };
            let object = format!("Peer/{}", peers[i].name);
            findings.push(Finding::new(
                object,
                "spec.publicKey",
                key,
                format!("{owner}; the peer is left out"),
            ));
            refused[i] = true;
        }
    }
    let mut refused = refused.into_iter();
    peers.retain(|_| !refused.next().unwrap_or_default());
}

/// For each range of each Peer, in order, whether the Peer keeps it: not if an earlier one has it, and not if
/// a node does.
fn kept(all: &[(IpNet, u32)], owned: &Owned<'_>, peers: &[&Peer], findings: &mut Vec<Finding>) -> Vec<bool> {
    let order = order::of_nets(all.iter().map(|(net, _)| *net));
    let mut keep = vec![true; all.len()];
    for group in order.chunk_by(|&a, &b| all[a as usize].0 == all[b as usize].0) {
        let (net, owner) = all[group[0] as usize];
        let of_node = owned.has(net);
        let lost = if of_node { group } else { &group[1..] };
        for &i in lost {
            keep[i as usize] = false;
            let peer = peers[all[i as usize].1 as usize];
            if of_node || all[i as usize].1 != owner {
                let whose = if of_node {
                    "it belongs to a node".to_owned()
                } else {
                    format!("Peer/{} has it already", peers[owner as usize].name)
                };
                let object = format!("Peer/{}", peer.name);
                let reason = format!("{whose}; the peer goes without");
                findings.push(Finding::new(object, "spec.allowedIPs", net.to_string(), reason));
            }
        }
    }
    keep
}

/// Chooses from all Peers, in any order, those that take part.
pub(crate) fn choose(
    pool: IpNet,
    segments: usize,
    nodes: &[&Node],
    peers: &[&Peer],
    facts: &Facts,
) -> Chosen {
    let mut findings = Vec::new();
    let owned = Owned::new(pool, segments, nodes);
    let mut ready: Vec<&Peer> = peers.iter().copied().filter(|p| p.ready()).collect();
    ready.sort_by(|a, b| a.name.cmp(&b.name));
    one_for_each_key(&mut ready, &owned, &mut findings);

    let all: Vec<(IpNet, u32)> =
        (0..).zip(&ready).flat_map(|(i, p)| p.allowed_ips.iter().map(move |n| (n.trunc(), i))).collect();
    let mut keep = kept(&all, &owned, &ready, &mut findings).into_iter();
    let mut all = all.into_iter();
    let mut chosen = Vec::with_capacity(ready.len());
    let mut ranges = Vec::with_capacity(all.len());
    for peer in ready {
        let start = ranges.len() as u32;
        // `all` and `keep` run beside the Peers' own lists.
        for (net, _) in all.by_ref().take(peer.allowed_ips.len()) {
            if keep.next().unwrap_or_default() {
                ranges.push(net);
            }
        }
        let endpoint_addr = peer.endpoint.as_ref().and_then(|e| resolve(e, facts));
        if let (None, Some(endpoint)) = (endpoint_addr, &peer.endpoint) {
            let object = format!("Peer/{}", peer.name);
            findings.push(unresolved(object, "spec.endpoint.dnsOrIP.dns".into(), endpoint));
        }
        let Some(public_key) = peer.public_key else { continue };
        chosen.push(MeshPeer {
            name: peer.name.clone(),
            public_key,
            preshared_key: peer.preshared_key.clone(),
            endpoint: peer.endpoint.clone(),
            endpoint_addr,
            persistent_keepalive: peer.persistent_keepalive,
            ranges: start..ranges.len() as u32,
        });
    }
    Chosen { peers: chosen, ranges, findings }
}
