//! From ready nodes to segments: grouping, election, WireGuard addresses, ranges.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use kilo_wireguard::PublicKey;

use crate::claims::Claims;
use crate::endpoint::{resolve, unresolved};
use crate::failover::Electorate;
use crate::leader::{Candidate, succession};
use crate::peers::Precedence;
use crate::ranges::RangeSet;
use crate::topology::{Member, Segment, SegmentName, Topology, TopologyError};
use crate::{Config, Facts, Finding, Granularity, Node, PREFIX, Peer, alips, parse, peers};

/// Nodes in order of segments and names, each with its segment's name.
fn grouped<'a>(config: &Config, nodes: &[&'a Node]) -> Vec<(SegmentName, &'a Node)> {
    let by_node = config.granularity == Granularity::Full;
    let mut nodes = nodes.to_vec();
    nodes.sort_by(|a, b| (&a.name, a.last_seen, a.key).cmp(&(&b.name, b.last_seen, b.key)));
    nodes.dedup_by(|a, b| a.name == b.name);
    // Locations are numbered in their order, so that names are compared once for each location.
    let mut locations: Vec<&Arc<str>> = nodes.iter().map(|n| &n.location).collect();
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    locations.retain(|name| numbers.insert(name, 0).is_none());
    locations.sort_unstable();
    for (i, name) in (0..).zip(&locations) {
        numbers.insert(name, i);
    }
    let rank = |n: &Node| match numbers.get(&*n.location) {
        Some(&i) if !by_node && n.internal_ip.is_some() => i,
        _ => u32::MAX,
    };
    // The sort is stable: within a location, and after all locations, names stay in order.
    let mut ranked: Vec<(u32, &Node)> = nodes.into_iter().map(|n| (rank(n), n)).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let named = |(rank, n): (u32, &'a Node)| {
        // One text for all nodes of a location makes the comparisons to come cheap.
        let (node, name) = match locations.get(rank as usize) {
            Some(location) => (false, *location),
            None => (true, &n.name),
        };
        (SegmentName { node, name: Arc::clone(name) }, n)
    };
    ranked.into_iter().map(named).collect()
}

/// Gives out the addresses of the WireGuard subnet, beginning after the network's own.
struct Allocator {
    v6: bool,
    next: u128,
    last: u128,
}

impl Allocator {
    fn new(subnet: IpNet) -> Self {
        let (v6, first) = parse::number(subnet.network());
        Self { v6, next: first, last: parse::number(subnet.broadcast()).1 }
    }

    fn next(&mut self) -> Option<IpAddr> {
        self.next = self.next.checked_add(1).filter(|&n| n <= self.last)?;
        parse::address(self.v6, self.next)
    }
}

fn member(node: &Node, subnet: IpNet) -> Member {
    Member {
        name: node.name.clone(),
        subnet,
        further_subnets: node.further_subnets.clone(),
        private_ip: node.internal_ip.map(|n| n.addr()),
        cni_compatibility_ip: node.cni_compatibility_ip,
    }
}

/// The ranges that each segment claims as allowed-location-ips with the node that says so, by their text.
fn claimed(groups: &[&[(SegmentName, &Node)]]) -> Vec<Vec<(IpNet, u32)>> {
    let mut lists = Vec::with_capacity(groups.len());
    for group in groups {
        let mut list: Vec<(IpNet, u32)> = Vec::new();
        for (i, (_, node)) in (0..).zip(group.iter()) {
            list.extend(node.allowed_location_ips.iter().map(|&net| (net, i)));
        }
        if list.len() > 1 {
            list.sort_by_cached_key(|(net, i)| (net.to_string(), *i));
            list.dedup_by_key(|(net, _)| *net);
        }
        lists.push(list);
    }
    lists
}

impl Topology {
    /// Computes the mesh for the node that `config` names. Of the nodes and Peers, which may come in any
    /// order, those that are not ready take no part. Beside the topology stands what was found wrong.
    pub fn new(
        config: &Config,
        nodes: &[&Node],
        peers: &[&Peer],
        facts: &Facts,
    ) -> Result<(Self, Vec<Finding>), TopologyError> {
        Self::with_claims(config, nodes, peers, facts).map(|(topology, findings, _)| (topology, findings))
    }

    /// The same with what a change of one Peer is held against.
    pub(crate) fn with_claims(
        config: &Config,
        nodes: &[&Node],
        peers: &[&Peer],
        facts: &Facts,
    ) -> Result<(Self, Vec<Finding>, Claims), TopologyError> {
        let mut findings = Vec::new();
        let ready: Vec<&Node> =
            nodes.iter().copied().filter(|n| n.ready(facts.now, config.node_expiry)).collect();
        let list = grouped(config, &ready);
        let not_ready = || TopologyError::LocalNodeNotReady(config.hostname.clone());
        let at = list.iter().position(|(_, n)| *n.name == *config.hostname).ok_or_else(not_ready)?;
        let local = list[at].1;

        let groups: Vec<_> = list.chunk_by(|a, b| a.0 == b.0).collect();
        let mut allocator = Allocator::new(config.subnet);
        let mut segments = Vec::with_capacity(groups.len());
        let mut members: Vec<Member> = Vec::with_capacity(list.len());
        let mut local_segment = 0;
        let mut endpoints = Vec::with_capacity(list.len());
        let mut orders = Vec::with_capacity(groups.len());
        for group in &groups {
            let mut candidates = Vec::with_capacity(group.len());
            for (_, node) in *group {
                let endpoint_addr = node.endpoint.as_ref().and_then(|e| resolve(e, facts));
                candidates.push(Candidate { volunteer: node.leader, endpoint: endpoint_addr });
                if let (None, Some(endpoint)) = (endpoint_addr, &node.endpoint) {
                    let (object, field) = (format!("Node/{}", node.name), format!("{PREFIX}endpoint"));
                    findings.push(unresolved(object, field, endpoint));
                }
                // Ready nodes have a pod range.
                if let Some(subnet) = node.subnet {
                    members.push(member(node, subnet));
                }
            }
            endpoints.extend(candidates.iter().map(|c| c.endpoint));
            orders.push(succession(&candidates));
        }
        let electorate = Electorate::new(&groups, orders);
        let (leaders, deposed) = electorate.elect();
        let mut start = 0;
        for (group, &leader) in groups.iter().zip(&leaders) {
            let range = start..start + group.len();
            start = range.end;
            let (name, node) = &group[leader];
            if range.contains(&at) {
                local_segment = segments.len();
            }
            let Some(key) = node.key else { continue };
            segments.push(Segment {
                name: name.clone(),
                members: range.start as u32..range.end as u32,
                leader,
                key,
                endpoint: node.endpoint.clone(),
                endpoint_addr: endpoints[range.start + leader],
                persistent_keepalive: node.persistent_keepalive,
                behind_nat: node.behind_nat,
                wireguard_ip: allocator.next().ok_or_else(|| TopologyError::SubnetExhausted {
                    subnet: config.subnet,
                    segment: name.to_string(),
                })?,
                allowed_location_ips: Box::default(),
            });
        }
        let addresses: Vec<IpAddr> = segments.iter().map(|segment| segment.wireguard_ip).collect();
        let watches = electorate.watches(nodes, local, local_segment, &leaders, &deposed, &addresses);
        let all_ours = electorate.all_ours();
        let behind_locations = allowed_location_ips(config, &groups, &mut segments, peers, &mut findings);

        let precedence = if all_ours { Precedence::Age } else { Precedence::Name };
        let chosen = peers::choose(config, segments.len(), nodes, peers, precedence, facts);
        findings.extend(chosen.findings);
        let seen_by_others = seen_by_others(local, &list);
        // The local node's own view comes first.
        let mut discovered_endpoints = seen_by_others.clone();
        discovered_endpoints.extend(&local.discovered_endpoints);
        let claims = Claims { behind_locations, seen_by_others, ..chosen.claims };
        let leader = segments[local_segment].members.start as usize + segments[local_segment].leader == at;
        let topology = Self {
            segments,
            members,
            peers: chosen.peers,
            peer_ranges: chosen.ranges,
            local_segment,
            local_member: at as u32,
            leader,
            all_ours,
            deposed,
            watches,
            location: local.location.clone(),
            subnet: config.subnet.trunc(),
            private_ip: local.internal_ip,
            listen_port: local.endpoint.as_ref().map_or(config.port, |e| e.port),
            persistent_keepalive: local.persistent_keepalive,
            discovered_endpoints,
        };
        Ok((topology, findings, claims))
    }
}

/// What the other nodes have discovered: of each key the first in order.
fn seen_by_others(local: &Node, list: &[(SegmentName, &Node)]) -> BTreeMap<PublicKey, SocketAddr> {
    let mut map = BTreeMap::new();
    let others = list.iter().filter(|(_, n)| n.name != local.name);
    for (key, addr) in others.flat_map(|(_, n)| &n.discovered_endpoints) {
        map.entry(*key).or_insert(*addr);
    }
    map
}

/// Gives the segments their allowed-location-ips, and tells all that are claimed.
fn allowed_location_ips(
    config: &Config,
    groups: &[&[(SegmentName, &Node)]],
    segments: &mut [Segment],
    peers: &[&Peer],
    findings: &mut Vec<Finding>,
) -> RangeSet {
    let nodes = || groups.iter().flat_map(|g| g.iter().map(|(_, n)| *n));
    if nodes().all(|n| n.allowed_location_ips.is_empty()) {
        return RangeSet::default();
    }
    let mut lists = claimed(groups);
    let all = RangeSet::new(lists.iter().flatten().map(|&(net, _)| net));
    let taken = RangeSet::new(
        nodes().flat_map(|n| n.subnet.into_iter().chain(n.internal_ip.map(|ip| parse::one(ip.addr())))),
    );
    // Ranges of Peers count even where a Peer is refused: upstream agents know no refusal.
    let claimed_by_peers =
        RangeSet::new(peers.iter().filter(|p| p.ready()).flat_map(|p| p.allowed_ips.iter().copied()));
    alips::filter(&mut lists, &taken, &claimed_by_peers, config.subnet, |i, (net, node), reason| {
        findings.push(Finding::new(
            format!("Node/{}", groups[i][node as usize].1.name),
            format!("{PREFIX}allowed-location-ips"),
            net.to_string(),
            format!("{reason}; it is left out"),
        ));
    });
    for (segment, list) in segments.iter_mut().zip(lists) {
        segment.allowed_location_ips = list.into_iter().map(|(net, _)| net).collect();
    }
    all
}
