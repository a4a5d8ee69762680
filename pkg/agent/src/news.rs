//! What the mesh's loop tells the enforcer after each plan: whose each address is, and by which way it may come.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kilo_mesh::{Config, Encapsulate, Encapsulator, HostFacts, Mesh, Plan};
use kilo_policy::{Links, MeshFacts, Owner};
use tokio::sync::watch;

use crate::MeshNews;

/// How long an address counts as a leader's after it has ceased to be one: agents learn of a new leader one by one.
const FORMER_LEADERS: Duration = Duration::from_secs(300);

/// The bridge that our own CNI configuration makes.
pub const BRIDGE: &str = "kube-bridge";

/// Tells the enforcer about the mesh.
#[derive(Debug)]
pub(crate) struct News {
    sender: watch::Sender<Option<MeshNews<MeshFacts>>>,
    /// When an address was last seen to be a leader's of our location.
    leaders: BTreeMap<IpAddr, Instant>,
}

impl News {
    pub(crate) fn new(sender: watch::Sender<Option<MeshNews<MeshFacts>>>) -> Self {
        Self { sender, leaders: BTreeMap::new() }
    }

    /// Tells what a plan says, if that is news. Without a mesh the last one stays: its addresses are still nobody else's.
    pub(crate) fn tell(&mut self, plan: &Plan, config: &Config, host: &HostFacts, now: Instant) {
        let Some(mesh) = &plan.mesh else { return };
        let mut facts = mesh_facts(mesh, config, host);
        self.leaders.retain(|_, seen| now.duration_since(*seen) < FORMER_LEADERS);
        self.leaders.extend(facts.leaders.iter().map(|leader| (*leader, now)));
        facts.leaders.extend(self.leaders.keys());
        let nodes = &plan.ready_nodes;
        self.sender.send_if_modified(|last| {
            if last.as_ref().is_some_and(|last| last.mesh == facts && last.nodes == *nodes) {
                return false;
            }
            *last = Some(MeshNews { mesh: facts, nodes: nodes.clone() });
            true
        });
    }
}

/// What network policies need to know of a mesh, as the node sees it that the plan is for.
pub fn mesh_facts(mesh: &Mesh, config: &Config, host: &HostFacts) -> MeshFacts {
    let topology = &mesh.topology;
    let local = topology.local_segment();
    let mut facts = MeshFacts {
        leader: topology.leader,
        wireguard_port: topology.listen_port,
        subnets: [topology.subnet].into(),
        services: config.service_cidrs.iter().copied().collect(),
        own_pods: topology.local().subnets().collect(),
        links: links(mesh, config, host),
        own: own(mesh, host),
        ..MeshFacts::default()
    };
    for (at, segment) in topology.segments.iter().enumerate() {
        for member in topology.members(segment) {
            facts.all_pods.extend(member.subnets());
            let address = member.private_ip.map(IpNet::from);
            facts.bindings.extend(address.map(|ip| (ip, Owner::Node(member.name.to_string()))));
        }
        if let Some(leader) = topology.leader_of(segment) {
            facts.bindings.insert(segment.wireguard_ip.into(), Owner::Node(leader.name.to_string()));
        }
        if at != topology.local_segment {
            facts.segments.extend(topology.segment_ranges(segment).map(|net| net.trunc()));
            facts.segments.extend(segment.allowed_location_ips.iter().map(IpNet::trunc));
        }
    }
    // A Peer has no range that a node has.
    for peer in &topology.peers {
        let ranges = topology.allowed_ips(peer);
        facts.bindings.extend(ranges.iter().map(|net| (*net, Owner::Peer(peer.name.to_string()))));
    }
    facts.leaders.extend(topology.leader_of(local).and_then(|leader| leader.private_ip));
    facts.plain = plain(mesh);
    facts
}

fn links(mesh: &Mesh, config: &Config, host: &HostFacts) -> Links {
    let names = &host.interfaces;
    let tunnelled = mesh.inside.encapsulator != Encapsulator::Ipip
        || (mesh.inside.local && mesh.inside.strategy != Encapsulate::Never);
    Links {
        wireguard: [names.wireguard.clone()].into(),
        tunnels: tunnelled.then(|| names.tunnel.clone()).into_iter().collect(),
        underlay: [names.private.clone()].into(),
        pods: config.cni.then(|| BRIDGE.to_owned()).into_iter().collect(),
    }
}

/// This node's own addresses, as far as its part in the mesh tells them.
fn own(mesh: &Mesh, host: &HostFacts) -> BTreeSet<IpNet> {
    let topology = &mesh.topology;
    let leads = topology.leader.then(|| topology.local_segment().wireguard_ip);
    let tunnel = host.tunnel_addresses.iter().chain(&mesh.tunnel_address).map(IpNet::addr);
    // The bridge of pods has the first address of each range.
    let gateways = topology.local().subnets().filter_map(|net| net.hosts().next());
    let full = leads.into_iter().chain(tunnel).chain(gateways).map(IpNet::from);
    [topology.private_ip, host.internal_ip, host.external_ip].into_iter().flatten().chain(full).collect()
}

/// What other nodes of this location send without a tunnel. Behind a leader stand all other locations and the Peers.
fn plain(mesh: &Mesh) -> BTreeSet<IpNet> {
    let topology = &mesh.topology;
    let local = topology.local_segment();
    let near = |ip: IpAddr| match mesh.inside.strategy {
        Encapsulate::Never => true,
        Encapsulate::CrossSubnet => topology.private_ip.is_some_and(|own| own.contains(&ip)),
        Encapsulate::Always => false,
    };
    let mut plain = BTreeSet::new();
    for (at, member) in topology.members(local).iter().enumerate() {
        if member.name == topology.local().name || !member.private_ip.is_some_and(near) {
            continue;
        }
        plain.extend(member.subnets());
        if at == local.leader {
            let others = topology.segments.iter().filter(|segment| segment.name != local.name);
            plain.extend(
                others.clone().flat_map(|segment| topology.segment_ranges(segment)).map(|net| net.trunc()),
            );
            plain.extend(others.flat_map(|segment| segment.allowed_location_ips.iter().map(IpNet::trunc)));
            plain.extend(topology.peer_ranges());
            plain.insert(topology.subnet);
        }
    }
    plain
}
