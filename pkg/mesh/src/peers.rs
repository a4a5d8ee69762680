//! Which Peers take part, and with which of their ranges: one Peer for each key, one Peer for each range,
//! and nothing that belongs to a node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;

use ipnet::IpNet;
use kilo_wireguard::PublicKey;

use crate::claims::{Claims, Owned};
use crate::endpoint::{resolve, unresolved};
use crate::ranges::RangeSet;
use crate::topology::MeshPeer;
use crate::{Config, Facts, Finding, Node, Peer, order};

/// Which of several Peers has the range that they all name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precedence {
    /// The first by name, as upstream agents have it.
    Name,
    /// The oldest; of equally old ones the first by name.
    Age,
}

/// The Peers of a topology.
pub(crate) struct Chosen {
    pub(crate) peers: Vec<MeshPeer>,
    pub(crate) ranges: Vec<IpNet>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) claims: Claims,
}

/// What sorts Peers by age, the oldest first. One whose age is not known counts as young.
fn age(peer: &Peer) -> (bool, Option<&str>) {
    (peer.created.is_none(), peer.created.as_deref())
}

/// Drops all but one of the Peers with the same key: the oldest stays, of equally old ones the first by
/// name. The answer is all keys there are, sorted.
fn one_for_each_key(
    peers: &mut Vec<&Peer>,
    of_nodes: &[&PublicKey],
    findings: &mut Vec<Finding>,
) -> Vec<PublicKey> {
    // Nodes come before Peers, and ready Peers have keys.
    let nodes = of_nodes.len();
    let keys: Vec<&PublicKey> =
        of_nodes.iter().copied().chain(peers.iter().filter_map(|p| p.public_key.as_ref())).collect();
    let order = order::of_keys(&keys);
    let mut refused = vec![false; peers.len()];
    for group in order.chunk_by(|&a, &b| keys[a as usize] == keys[b as usize]) {
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
    order.into_iter().map(|i| *keys[i as usize]).collect()
}

/// For each range of each Peer, in order, whether the Peer keeps it: not if one that comes before it has it, and not
/// if a node does. Beside it all the ranges, sorted, each once for each Peer that names it.
fn kept(
    all: &[(IpNet, u32)],
    owned: &Owned,
    peers: &[&Peer],
    precedence: Precedence,
    findings: &mut Vec<Finding>,
) -> (Vec<bool>, Vec<IpNet>) {
    let peer_of = |i: u32| peers[all[i as usize].1 as usize];
    let order = order::of_nets(all.iter().map(|(net, _)| *net));
    let mut keep = vec![true; all.len()];
    let mut claimed = Vec::with_capacity(all.len());
    for group in order.chunk_by(|&a, &b| all[a as usize].0 == all[b as usize].0) {
        let first = match precedence {
            // Places in the list go by name.
            Precedence::Name => None,
            Precedence::Age => group.iter().copied().min_by_key(|&i| (age(peer_of(i)), i)),
        };
        let first = first.unwrap_or(group[0]);
        let (net, owner) = all[first as usize];
        let of_node = owned.has(net);
        // Of equal ranges those of one Peer stand together.
        let peers_of_it = group.chunk_by(|&a, &b| all[a as usize].1 == all[b as usize].1).count();
        claimed.extend(std::iter::repeat_n(net, peers_of_it));
        for &i in group.iter().filter(|&&i| of_node || i != first) {
            keep[i as usize] = false;
            let peer = peer_of(i);
            if of_node || all[i as usize].1 != owner {
                let whose = if of_node {
                    format!("it belongs to {}", owned.whose(net))
                } else {
                    format!("Peer/{} has it already", peers[owner as usize].name)
                };
                let object = format!("Peer/{}", peer.name);
                let reason = format!("{whose}; the peer goes without");
                findings.push(Finding::new(object, "spec.allowedIPs", net.to_string(), reason));
            }
        }
    }
    (keep, claimed)
}

/// Chooses from all Peers, in any order, those that take part.
pub(crate) fn choose(
    config: &Config,
    segments: usize,
    nodes: &[&Node],
    peers: &[&Peer],
    precedence: Precedence,
    facts: &Facts,
) -> Chosen {
    let mut findings = Vec::new();
    let owned = Owned::new(config.subnet, segments, nodes, &config.service_cidrs);
    let mut ready: Vec<&Peer> = peers.iter().copied().filter(|p| p.ready()).collect();
    ready.sort_by(|a, b| a.name.cmp(&b.name));
    let of_nodes: Vec<&PublicKey> = nodes.iter().filter_map(|n| n.key.as_ref()).collect();
    let keys = one_for_each_key(&mut ready, &of_nodes, &mut findings);

    let all: Vec<(IpNet, u32)> =
        (0..).zip(&ready).flat_map(|(i, p)| p.allowed_ips.iter().map(move |n| (n.trunc(), i))).collect();
    let (keep, claimed) = kept(&all, &owned, &ready, precedence, &mut findings);
    let mut keep = keep.into_iter();
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
        chosen.extend(MeshPeer::new(peer, endpoint_addr, start..ranges.len() as u32));
    }
    let claims = Claims {
        owned,
        keys,
        ranges: claimed,
        behind_locations: RangeSet::default(),
        seen_by_others: BTreeMap::new(),
    };
    Chosen { peers: chosen, ranges, findings, claims }
}

impl MeshPeer {
    /// The Peer with these places of its ranges; none without a key.
    pub(crate) fn new(peer: &Peer, endpoint_addr: Option<SocketAddr>, ranges: Range<u32>) -> Option<Self> {
        Some(Self {
            name: peer.name.clone(),
            public_key: peer.public_key?,
            preshared_key: peer.preshared_key.clone(),
            endpoint: peer.endpoint.clone(),
            endpoint_addr,
            persistent_keepalive: peer.persistent_keepalive,
            ranges,
        })
    }
}
