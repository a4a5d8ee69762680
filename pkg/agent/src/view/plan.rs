//! The plan of one node as a document.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use kilo_mesh::{
    Config, Deposed, Facts, Finding, Firewall, Interfaces, Mesh, MtuDecision, Node, NodeObject, Outcome,
    Peer, PeerObject, Plan, Segment, Topology, Watch,
};
use kilo_state::{Dev, MAIN_TABLE, Route, Rule};
use kilo_wireguard::{Conf, Endpoint, PublicKey};
use serde::Serialize;

use super::{InputView, TranslatedView};

/// What one node's network should be, and what that was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanView {
    /// Always `Plan`.
    pub kind: PlanKind,
    /// The local node.
    pub node: String,
    /// Seconds since 1970 (UTC).
    pub now: u64,
    /// `ok`, or why there is no topology.
    pub outcome: Outcome,
    /// What the outcome does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is wrong with objects, flags and the machine.
    pub findings: Vec<Finding>,
    /// The annotations that the local Node should have.
    pub annotations: BTreeMap<String, String>,
    /// The nodes that take part, sorted.
    pub ready_nodes: Vec<String>,
    /// The rest, which is there only when the outcome is `ok`.
    #[serde(flatten)]
    pub mesh: Option<MeshView>,
    /// All objects as they are understood.
    pub translated: TranslatedView,
    /// What the plan was made from.
    pub input: InputView,
}

/// The `kind` of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum PlanKind {
    /// The only one.
    #[default]
    Plan,
}

/// The mesh and this node's part in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshView {
    /// The local node's location, `location:<name>` or `node:<name>`.
    pub location: String,
    /// Whether the local node leads it.
    pub leader: bool,
    /// The leader's WireGuard address with the prefix length of the subnet; of others the subnet itself.
    #[serde(rename = "wireGuardCIDR")]
    pub wireguard_cidr: IpNet,
    /// The local node's private address.
    #[serde(rename = "privateIP", skip_serializing_if = "Option::is_none")]
    pub private_ip: Option<IpNet>,
    /// The local node's first pod range.
    pub subnet: IpNet,
    /// UDP port.
    pub listen_port: u16,
    /// Seconds, 0 for none.
    pub persistent_keepalive: u16,
    /// Endpoints that the device has seen.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub nat_endpoints: BTreeMap<PublicKey, SocketAddr>,
    /// Endpoints that anybody has seen.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub discovered_endpoints: BTreeMap<PublicKey, SocketAddr>,
    /// All segments, in the order of the topology.
    pub segments: Vec<SegmentView>,
    /// Nodes that do not lead because others report them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deposed: Vec<Deposed>,
    /// Nodes that this node looks after.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub watches: Vec<Watch>,
    /// The peers that take part, by name.
    pub peers: Vec<MeshPeerView>,
    /// The WireGuard configuration; a leader applies it.
    pub conf: ConfView,
    /// The local node's location as a peer of others.
    pub as_peer: WgPeerView,
    /// Routes, sorted.
    pub routes: Vec<RouteView>,
    /// Policy rules, sorted.
    pub rules: Vec<RuleView>,
    /// The address of the tunnel inside the location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel_address: Option<IpNet>,
    /// Masquerading, forwarding, and who may send IPIP.
    pub firewall: Firewall,
    /// The MTU of the WireGuard link.
    pub mtu: MtuDecision,
    /// The names of the links.
    pub interfaces: Interfaces,
}

/// A segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SegmentView {
    /// `location:<name>` or `node:<name>`.
    pub location: String,
    /// Its nodes, sorted; the lists below are parallel to this one.
    pub hostnames: Vec<String>,
    /// Pod ranges.
    pub cidrs: Vec<IpNet>,
    /// Private addresses.
    #[serde(rename = "privateIPs")]
    pub private_ips: Vec<Option<IpAddr>>,
    /// Addresses by which the CNI's own network reaches the nodes.
    #[serde(rename = "cniCompatibilityIPs")]
    pub cni_compatibility_ips: Vec<Option<IpNet>>,
    /// The index of the leader.
    pub leader: usize,
    /// The leader's key.
    pub key: PublicKey,
    /// The leader's endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// What the endpoint's name resolved to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_addr: Option<SocketAddr>,
    /// Seconds, 0 for none.
    pub persistent_keepalive: u16,
    /// The WireGuard address.
    #[serde(rename = "wireGuardIP")]
    pub wireguard_ip: IpAddr,
    /// Ranges of the segment's nodes.
    #[serde(rename = "allowedIPs")]
    pub allowed_ips: Vec<IpNet>,
    /// Ranges that are reached through the segment.
    #[serde(rename = "allowedLocationIPs")]
    pub allowed_location_ips: Vec<IpNet>,
}

/// A peer in the topology.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshPeerView {
    /// Its name.
    pub name: String,
    /// Who it is.
    pub public_key: PublicKey,
    /// Its ranges, without those that another peer has.
    #[serde(rename = "allowedIPs")]
    pub allowed_ips: Vec<IpNet>,
}

/// A WireGuard configuration without its secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfView {
    /// UDP port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// The peers: other segments in order, then peers in order.
    pub peers: Vec<WgPeerView>,
}

/// A peer of a WireGuard configuration without its secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WgPeerView {
    /// Who it is.
    pub public_key: PublicKey,
    /// Where it is reached, as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// What the endpoint's name resolved to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_addr: Option<SocketAddr>,
    /// Ranges.
    #[serde(rename = "allowedIPs")]
    pub allowed_ips: Vec<IpNet>,
    /// Seconds, 0 for none.
    pub persistent_keepalive: u16,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteView {
    /// Destination.
    pub dst: IpNet,
    /// Gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
    /// The link's name.
    pub dev: String,
    /// Preferred source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<IpAddr>,
    /// The gateway is taken to be on the link.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub onlink: bool,
    /// The table, if it is not the main one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The route follows from the mesh, and this host cannot have it.
    #[serde(rename = "leftOut", skip_serializing_if = "std::ops::Not::not")]
    pub left_out: bool,
}

/// A policy rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleView {
    /// Source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<IpNet>,
    /// Destination.
    pub dst: IpNet,
    /// The link packets come in by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    /// The table to look in.
    pub table: u32,
    /// The rule follows from the mesh, and this host cannot have it.
    #[serde(rename = "leftOut", skip_serializing_if = "std::ops::Not::not")]
    pub left_out: bool,
}

/// What a plan was made from: the arguments of [`kilo_mesh::plan`] and the objects behind them.
#[derive(Clone, Copy, Debug)]
pub struct PlanSource<'a> {
    /// The agent's settings.
    pub config: &'a Config,
    /// Nodes as objects.
    pub node_objects: &'a [&'a NodeObject],
    /// Peers as objects.
    pub peer_objects: &'a [&'a PeerObject],
    /// The same nodes, understood.
    pub nodes: &'a [&'a Node],
    /// The same peers, understood.
    pub peers: &'a [&'a Peer],
    /// Time, names and the machine.
    pub facts: &'a Facts,
    /// What is wrong with single objects.
    pub findings: &'a [Finding],
}

impl PlanView {
    /// The view of a plan that was made from this.
    pub fn new(plan: &Plan, source: &PlanSource<'_>) -> Self {
        let PlanSource { config, facts, .. } = *source;
        let mut findings: Vec<Finding> = source.findings.iter().chain(&plan.findings).cloned().collect();
        findings.sort_unstable();
        findings.dedup();
        Self {
            kind: PlanKind::Plan,
            node: config.hostname.clone(),
            now: facts.now,
            outcome: plan.outcome,
            error: plan.error.clone(),
            findings,
            annotations: plan.annotations.clone(),
            ready_nodes: plan.ready_nodes.iter().map(ToString::to_string).collect(),
            mesh: plan.mesh.as_ref().map(|mesh| MeshView::new(plan, mesh, &facts.host.interfaces)),
            translated: TranslatedView::new(
                source.nodes.iter().copied(),
                source.peers.iter().copied(),
                facts.now,
                config.node_expiry,
            ),
            input: InputView::new(
                config,
                source.node_objects.iter().copied(),
                source.peer_objects.iter().copied(),
            ),
        }
    }
}

impl MeshView {
    fn new(plan: &Plan, mesh: &Mesh, interfaces: &Interfaces) -> Self {
        let topology = &mesh.topology;
        Self {
            location: topology.local_segment().name.to_string(),
            leader: topology.leader,
            wireguard_cidr: topology.wireguard_cidr(),
            private_ip: topology.private_ip,
            subnet: topology.local().subnet,
            listen_port: topology.listen_port,
            persistent_keepalive: topology.persistent_keepalive,
            nat_endpoints: plan.nat_endpoints.clone(),
            discovered_endpoints: topology.discovered_endpoints.clone(),
            segments: topology.segments.iter().map(|segment| SegmentView::new(topology, segment)).collect(),
            deposed: topology.deposed.clone(),
            watches: topology.watches.clone(),
            peers: topology
                .peers
                .iter()
                .map(|peer| MeshPeerView {
                    name: peer.name.to_string(),
                    public_key: peer.public_key,
                    allowed_ips: topology.allowed_ips(peer).to_vec(),
                })
                .collect(),
            conf: ConfView::new(&topology.conf()),
            as_peer: WgPeerView::new(&topology.as_peer()),
            routes: routes(mesh, interfaces),
            rules: rules(mesh, interfaces),
            tunnel_address: mesh.tunnel_address,
            firewall: mesh.firewall.clone(),
            mtu: mesh.mtu.clone(),
            interfaces: interfaces.clone(),
        }
    }

    /// Whose keys they are: a segment's or a peer's.
    pub(super) fn names(&self) -> BTreeMap<PublicKey, String> {
        let segments = self.segments.iter().map(|segment| (segment.key, segment.location.clone()));
        let peers = self.peers.iter().map(|peer| (peer.public_key, peer.name.clone()));
        segments.chain(peers).collect()
    }
}

impl SegmentView {
    fn new(topology: &Topology, segment: &Segment) -> Self {
        let members = topology.members(segment);
        Self {
            location: segment.name.to_string(),
            hostnames: members.iter().map(|node| node.name.to_string()).collect(),
            cidrs: members.iter().map(|node| node.subnet).collect(),
            private_ips: members.iter().map(|node| node.private_ip).collect(),
            cni_compatibility_ips: members.iter().map(|node| node.cni_compatibility_ip).collect(),
            leader: segment.leader,
            key: segment.key,
            endpoint: segment.endpoint.clone(),
            endpoint_addr: resolved(segment.endpoint.as_ref(), segment.endpoint_addr),
            persistent_keepalive: segment.persistent_keepalive,
            wireguard_ip: segment.wireguard_ip,
            allowed_ips: topology.segment_ranges(segment).collect(),
            allowed_location_ips: segment.allowed_location_ips.to_vec(),
        }
    }
}

impl ConfView {
    fn new(conf: &Conf) -> Self {
        Self { listen_port: conf.listen_port, peers: conf.peers.iter().map(WgPeerView::new).collect() }
    }
}

impl WgPeerView {
    fn new(peer: &kilo_wireguard::Peer) -> Self {
        Self {
            public_key: peer.public_key,
            endpoint: peer.endpoint.clone(),
            endpoint_addr: resolved(peer.endpoint.as_ref(), peer.endpoint_addr),
            allowed_ips: peer.allowed_ips.clone(),
            persistent_keepalive: peer.persistent_keepalive.unwrap_or(0),
        }
    }
}

/// The routes that the host should have and those that it cannot have, sorted.
fn routes(mesh: &Mesh, interfaces: &Interfaces) -> Vec<RouteView> {
    let mut routes: Vec<(Route, bool)> = mesh.desired.routes.iter().map(|route| (*route, false)).collect();
    routes.extend(mesh.left_out.routes.iter().map(|route| (*route, true)));
    routes.sort_unstable();
    let view = |(route, left_out)| RouteView { left_out, ..RouteView::new(&route, interfaces) };
    routes.into_iter().map(view).collect()
}

/// The rules, in the same way.
fn rules(mesh: &Mesh, interfaces: &Interfaces) -> Vec<RuleView> {
    let mut rules: Vec<(Rule, bool)> = mesh.desired.rules.iter().map(|rule| (*rule, false)).collect();
    rules.extend(mesh.left_out.rules.iter().map(|rule| (*rule, true)));
    rules.sort_unstable();
    let view = |(rule, left_out)| RuleView { left_out, ..RuleView::new(&rule, interfaces) };
    rules.into_iter().map(view).collect()
}

impl RouteView {
    fn new(route: &Route, interfaces: &Interfaces) -> Self {
        Self {
            dst: route.dst,
            via: route.via,
            dev: link(route.dev, interfaces),
            src: route.src,
            onlink: route.onlink,
            table: (route.table != MAIN_TABLE).then_some(route.table),
            left_out: false,
        }
    }
}

impl RuleView {
    fn new(rule: &Rule, interfaces: &Interfaces) -> Self {
        Self {
            src: rule.src,
            dst: rule.dst,
            iif: rule.iif.map(|dev| link(dev, interfaces)),
            table: rule.table,
            left_out: false,
        }
    }
}

/// What a name resolved to; nothing of an endpoint that is an address already.
fn resolved(endpoint: Option<&Endpoint>, addr: Option<SocketAddr>) -> Option<SocketAddr> {
    endpoint.and_then(Endpoint::dns).and(addr)
}

/// The name of a link.
fn link(dev: Dev, interfaces: &Interfaces) -> String {
    match dev {
        Dev::WireGuard => interfaces.wireguard.clone(),
        Dev::Private => interfaces.private.clone(),
        Dev::Tunnel => interfaces.tunnel.clone(),
        Dev::Other(index) => format!("link {index}"),
    }
}
