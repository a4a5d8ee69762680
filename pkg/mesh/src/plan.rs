//! The plan of one node: from objects, settings and facts to what its network and its annotations should be.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kilo_state::{Desired, Route, Rule};
use kilo_wireguard::{Endpoint, PublicKey};
use serde::{Deserialize, Serialize};

use crate::claims::Claims;
use crate::device::Unsettled;
use crate::endpoint::Known;
use crate::firewall::Tunnel;
use crate::topology::{Topology, TopologyError};
use crate::{
    Compatibility, Config, Encapsulate, Encapsulator, Facts, Finding, Firewall, Inside, MtuDecision, Node,
    Peer, Routing, annotations, desired, firewall, mtu,
};

/// What became of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// There is a topology.
    Ok,
    /// The local node takes no part in the mesh; nothing of its network is to change.
    LocalNodeNotReady,
    /// There can be no topology; nothing is to change.
    TopologyError,
}

impl Outcome {
    /// The outcome's name, as documents have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::LocalNodeNotReady => "local-node-not-ready",
            Self::TopologyError => "topology-error",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The plan of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Whether there is a mesh.
    pub outcome: Outcome,
    /// Why not.
    pub error: Option<String>,
    /// What is wrong with the objects together and with the machine, sorted. What is wrong with an object by
    /// itself is told when it is translated.
    pub findings: Vec<Finding>,
    /// All of Kilo's annotations that the local Node should have, by full name.
    pub annotations: BTreeMap<String, String>,
    /// Kilo's annotations that the local Node should lose, by full name.
    pub withdrawn: Vec<String>,
    /// The nodes that take part, by name.
    pub ready_nodes: Vec<Arc<str>>,
    /// Endpoints of nodes and Peers behind NAT that the local device has seen, to be published.
    pub nat_endpoints: BTreeMap<PublicKey, SocketAddr>,
    /// What there is only when the outcome is [`Outcome::Ok`].
    pub mesh: Option<Mesh>,
}

/// The mesh and the local node's part in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Segments and Peers, and by its methods the WireGuard configurations and the graph.
    pub topology: Topology,
    /// How packets travel inside the location, after what the machine can do.
    pub inside: Inside,
    /// Who is masqueraded, forwarded and may send IPIP.
    pub firewall: Firewall,
    /// The address of the tunnel inside the location.
    pub tunnel_address: Option<IpNet>,
    /// The MTU of the WireGuard link.
    pub mtu: MtuDecision,
    /// What the host's network should be.
    pub desired: Desired,
    /// Routes and rules that follow from the mesh but cannot be: of two routes to one destination the lesser,
    /// those over links that the machine does not have, rules of two families.
    pub left_out: Routing,
}

impl Plan {
    /// Whether both want something of the host, and the same.
    pub fn wants_the_same(&self, other: &Self) -> bool {
        match (&self.mesh, &other.mesh) {
            (Some(a), Some(b)) => a.desired == b.desired,
            (None, _) | (_, None) => false,
        }
    }
}

impl Mesh {
    /// All routes that follow from the mesh, those left out included, sorted.
    pub fn routes(&self) -> Vec<Route> {
        let mut routes = self.desired.routes.clone();
        routes.extend_from_slice(&self.left_out.routes);
        routes.sort_unstable();
        routes
    }

    /// All rules that follow from the mesh, those left out included, sorted.
    pub fn rules(&self) -> Vec<Rule> {
        let mut rules = self.desired.rules.clone();
        rules.extend_from_slice(&self.left_out.rules);
        rules.sort_unstable();
        rules
    }
}

/// Plans for the node that `config` names. Nodes and Peers may come in any order.
pub fn plan(config: &Config, nodes: &[&Node], peers: &[&Peer], facts: &Facts) -> Plan {
    with_memory(config, nodes, peers, facts).0
}

/// What a plan has found out that a change of one Peer is held against.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub(crate) claims: Claims,
    pub(crate) known: Known,
    pub(crate) unsettled: Vec<Unsettled>,
    /// Two nodes have one key.
    pub(crate) key_twice: bool,
    /// The time of the plan, in seconds since 1970.
    pub(crate) now: u64,
}

/// Plans, and remembers what a change of one Peer needs to know where there is a mesh.
pub(crate) fn with_memory(
    config: &Config,
    nodes: &[&Node],
    peers: &[&Peer],
    facts: &Facts,
) -> (Plan, Option<Memory>) {
    let mut plan = Plan {
        outcome: Outcome::LocalNodeNotReady,
        error: None,
        findings: Vec::new(),
        annotations: BTreeMap::new(),
        withdrawn: Vec::new(),
        ready_nodes: Vec::new(),
        nat_endpoints: BTreeMap::new(),
        mesh: None,
    };
    let ready = |n: &Node| n.ready(facts.now, config.node_expiry);
    let is_local = |n: &Node| *n.name == *config.hostname;
    let of_that_name = nodes.iter().enumerate().filter(|(_, n)| is_local(n));
    let Some((at, node)) = of_that_name.min_by_key(|(_, n)| (n.last_seen, n.key)) else {
        plan.error = Some(format!("there is no node {}", config.hostname));
        plan.ready_nodes = names(nodes.iter().copied().filter(|n| ready(n)));
        return (plan, None);
    };
    let known = Known::new(facts);
    let mut local = settle(node, config, facts);
    let taking_part = ready(&local);
    let mut all: Vec<&Node> = nodes.iter().copied().filter(|n| !is_local(n)).collect();
    if taking_part {
        plan.nat_endpoints = nat_endpoints(all.iter().copied().filter(|n| ready(n)), peers, facts, &known);
        local.discovered_endpoints.clone_from(&plan.nat_endpoints);
    }
    // The local node where it stood: sorted input stays sorted.
    all.insert(at.min(all.len()), &local);
    plan.ready_nodes = names(all.iter().copied().filter(|n| ready(n)));
    let result = if taking_part {
        mesh(config, &all, peers, facts, known, &mut plan.findings)
    } else {
        Err(Failure::LocalNodeNotReady(missing(&local)))
    };
    let mut memory = None;
    match result {
        Ok((mesh, remembered)) => {
            memory = Some(remembered);
            let address = mesh.topology.leader.then(|| mesh.topology.wireguard_cidr());
            plan.annotations = annotations::settled(config, &local, address);
            plan.outcome = Outcome::Ok;
            plan.mesh = Some(mesh);
        }
        Err(failure) => {
            plan.annotations = annotations::settled(config, &local, None);
            let (outcome, error) = match failure {
                Failure::LocalNodeNotReady(error) => (Outcome::LocalNodeNotReady, error),
                Failure::Topology(error) => (Outcome::TopologyError, error),
            };
            (plan.outcome, plan.error) = (outcome, Some(error));
        }
    }
    plan.withdrawn.extend(annotations::settle_old_cni(&mut plan.annotations, &local, &all));
    plan.findings.sort_unstable();
    plan.findings.dedup();
    (plan, memory)
}

/// Why there is no mesh.
enum Failure {
    LocalNodeNotReady(String),
    Topology(String),
}

impl From<TopologyError> for Failure {
    fn from(error: TopologyError) -> Self {
        match error {
            TopologyError::LocalNodeNotReady(_) => Self::LocalNodeNotReady(error.to_string()),
            TopologyError::SubnetExhausted { .. } => Self::Topology(error.to_string()),
        }
    }
}

fn names<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<Arc<str>> {
    let mut names: Vec<Arc<str>> = nodes.map(|n| n.name.clone()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn missing(local: &Node) -> String {
    let mut what = Vec::new();
    for (there, name) in [
        (local.endpoint.is_some(), "an endpoint"),
        (local.key.is_some(), "a key"),
        (local.subnet.is_some(), "a pod range"),
    ] {
        if !there {
            what.push(name);
        }
    }
    format!("node {} is not ready: it lacks {}", local.name, what.join(" and "))
}

/// The local node as its agent sees it: what its annotations do not say, the machine does.
fn settle(node: &Node, config: &Config, facts: &Facts) -> Node {
    let host = &facts.host;
    let mut local = node.clone();
    if local.endpoint.is_none() {
        let ip = host.external_ip.map(|net| net.addr());
        local.endpoint = ip.map(|ip| Endpoint::from_addr(SocketAddr::new(ip, config.port)));
    }
    if local.internal_ip.is_none() && !local.no_internal_ip {
        local.internal_ip = host.internal_ip;
    }
    local.key = host.public_key.or(local.key);
    local.cni_compatibility_ip =
        host.cni_compatibility_ip.filter(|_| config.compatibility == Compatibility::Cilium);
    local.granularity = Some(config.granularity);
    local.last_seen = facts.now.cast_signed();
    local
}

/// The endpoints of nodes and Peers behind NAT from which the device has seen a handshake.
fn nat_endpoints<'a>(
    nodes: impl Iterator<Item = &'a Node>,
    peers: &[&Peer],
    facts: &Facts,
    known: &Known,
) -> BTreeMap<PublicKey, SocketAddr> {
    if facts.host.device.is_empty() {
        return BTreeMap::new();
    }
    let nodes = nodes.filter(|n| n.behind_nat).filter_map(|n| n.key);
    // Upstream counts every Peer: none of them is without a keepalive, be it 0.
    let peers = peers.iter().filter(|p| p.ready()).filter_map(|p| p.public_key);
    nodes.chain(peers).filter_map(|key| Some((key, known.seen(facts, &key)?))).collect()
}

/// How packets travel inside the location, given what the machine can do.
fn inside(config: &Config, facts: &Facts, findings: &mut Vec<Finding>) -> Result<Inside, Failure> {
    let encapsulator = match facts.host.internal_ip {
        Some(_) => Encapsulator::from(config.compatibility),
        None => Encapsulator::Noop,
    };
    let mut strategy = config.encapsulate;
    let needs_ipip = matches!(encapsulator, Encapsulator::Ipip | Encapsulator::Cilium);
    // A tunnel of Cilium's own is IPIP, whatever the kernel says of ours.
    let has_tunnel = encapsulator == Encapsulator::Cilium && facts.host.tunnel == Some(true);
    if needs_ipip && facts.host.ipip == Some(false) && !has_tunnel {
        match strategy {
            Encapsulate::Never => {}
            Encapsulate::CrossSubnet => {
                let reason = "the kernel has no IPIP tunnels: packets inside the location go without one";
                findings.push(Finding::new("Host", "--encapsulate", "crosssubnet", reason));
                strategy = Encapsulate::Never;
            }
            Encapsulate::Always => {
                let error = "the kernel has no IPIP tunnels, which --encapsulate=always needs: \
                             use --encapsulate=never or load the module ipip";
                return Err(Failure::Topology(error.to_owned()));
            }
        }
    }
    Ok(Inside { encapsulator, strategy, local: config.local })
}

fn mesh(
    config: &Config,
    nodes: &[&Node],
    peers: &[&Peer],
    facts: &Facts,
    known: Known,
    findings: &mut Vec<Finding>,
) -> Result<(Mesh, Memory), Failure> {
    let inside = inside(config, facts, findings)?;
    let (topology, found, claims) = Topology::with_claims(config, nodes, peers, facts)?;
    findings.extend(found);
    let tunnel = Tunnel::new(&topology, facts, inside);
    let (firewall, twice) = firewall::firewall(&topology, config, tunnel);
    findings.extend(firewall::legacy_findings(&firewall.forward, facts));
    findings.extend(firewall::leftover_findings(facts));
    let mtu = mtu::decide(config.mtu, facts);
    let routing = topology.routing(inside);
    let input = desired::Input {
        config,
        nodes,
        facts,
        known: &known,
        topology: &topology,
        inside,
        firewall: &firewall,
        mtu: &mtu,
        tunnel,
        twice,
    };
    let desired::Drawn { desired, left_out, unsettled, key_twice } =
        desired::desired(&input, routing, findings);
    let memory = Memory { claims, known, unsettled, key_twice, now: facts.now };
    let tunnel_address = if let Tunnel::Used(address) = tunnel { address } else { None };
    Ok((Mesh { topology, inside, firewall, tunnel_address, mtu, desired, left_out }, memory))
}
