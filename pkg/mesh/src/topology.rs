//! The mesh as one agent computes it: segments, their leaders and WireGuard addresses, and the Peers.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use ipnet::IpNet;
use kilo_wireguard::{Endpoint, PresharedKey, PublicKey};

use crate::failover::{Deposed, Watch};
use crate::parse;

/// The name of a segment: `location:` and a location, or `node:` and the name of its only node. In this
/// order segments are numbered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentName {
    /// The segment is a node, not a location.
    pub node: bool,
    /// The location's or the node's name.
    pub name: Arc<str>,
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", if self.node { "node" } else { "location" }, self.name)
    }
}

/// A node of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The Node's name.
    pub name: Arc<str>,
    /// Its first pod range.
    pub subnet: IpNet,
    /// Its other pod ranges.
    pub further_subnets: Box<[IpNet]>,
    /// Its private address.
    pub private_ip: Option<IpAddr>,
    /// The address by which the CNI's own network reaches it.
    pub cni_compatibility_ip: Option<IpNet>,
}

impl Member {
    /// All pod ranges, the first one first.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> + '_ {
        std::iter::once(self.subnet).chain(self.further_subnets.iter().copied())
    }
}

/// Nodes that share one WireGuard endpoint, that of their leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its name.
    pub name: SegmentName,
    /// Where its nodes stand among the topology's members.
    pub(crate) members: Range<u32>,
    /// The leader's place among the segment's nodes.
    pub leader: usize,
    /// The leader's key.
    pub key: PublicKey,
    /// The leader's endpoint as it announces it.
    pub endpoint: Option<Endpoint>,
    /// The endpoint's address; none for a name that does not resolve.
    pub endpoint_addr: Option<SocketAddr>,
    /// The leader's keepalive in seconds, 0 for none.
    pub persistent_keepalive: u16,
    /// The leader is behind NAT.
    pub behind_nat: bool,
    /// Its address in the WireGuard subnet.
    pub wireguard_ip: IpAddr,
    /// Ranges that are reached through it, host bits kept, sorted by their text.
    pub allowed_location_ips: Box<[IpNet]>,
}

/// A Peer that takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshPeer {
    /// The Peer's name.
    pub name: Arc<str>,
    /// Who it is.
    pub public_key: PublicKey,
    /// The secret it shares with the nodes.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is reached.
    pub endpoint: Option<Endpoint>,
    /// The endpoint's address; none for a name that does not resolve.
    pub endpoint_addr: Option<SocketAddr>,
    /// Seconds, 0 for none.
    pub persistent_keepalive: u16,
    /// Where its ranges stand among all the ranges of Peers.
    pub(crate) ranges: Range<u32>,
}

/// The mesh as the agent of one node computes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The segments in order; the one at place `i` has the address `i + 1` of the WireGuard subnet.
    pub segments: Vec<Segment>,
    pub(crate) members: Vec<Member>,
    /// The Peers, by name.
    pub peers: Vec<MeshPeer>,
    pub(crate) peer_ranges: Vec<IpNet>,
    /// The place of the local node's segment.
    pub local_segment: usize,
    pub(crate) local_member: u32,
    /// The local node's location, also where its segment is the node itself.
    pub location: Arc<str>,
    /// Whether the local node leads its segment.
    pub leader: bool,
    /// All nodes that take part run agents of ours.
    pub all_ours: bool,
    /// The nodes that do not lead because others report them.
    pub deposed: Vec<Deposed>,
    /// The nodes that the local agent is to look after, by name.
    pub watches: Vec<Watch>,
    /// The WireGuard subnet, without host bits.
    pub subnet: IpNet,
    /// The local node's private address and network.
    pub private_ip: Option<IpNet>,
    /// The UDP port of the local device: that of the local node's own endpoint.
    pub listen_port: u16,
    /// The local node's keepalive in seconds; it holds for all its WireGuard peers.
    pub persistent_keepalive: u16,
    /// Endpoints of nodes and Peers behind NAT, by key.
    pub discovered_endpoints: BTreeMap<PublicKey, SocketAddr>,
}

/// Why there is no topology.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// The node that the topology is for takes no part in the mesh.
    #[error("node {0} is not ready: it needs an endpoint, a key, a pod range and a recent check-in")]
    LocalNodeNotReady(String),
    /// There are more segments than addresses.
    #[error(
        "the WireGuard subnet {subnet} has no address left for segment {segment}; a larger --subnet is needed"
    )]
    SubnetExhausted {
        /// `--subnet`.
        subnet: IpNet,
        /// The first segment without an address.
        segment: String,
    },
}

impl Topology {
    /// The nodes of a segment, by name.
    pub fn members(&self, segment: &Segment) -> &[Member] {
        let Range { start, end } = segment.members;
        self.members.get(start as usize..end as usize).unwrap_or_default()
    }

    /// The ranges of a Peer, without host bits, none that another Peer or a node has.
    pub fn allowed_ips(&self, peer: &MeshPeer) -> &[IpNet] {
        let Range { start, end } = peer.ranges;
        self.peer_ranges.get(start as usize..end as usize).unwrap_or_default()
    }

    /// All ranges of all Peers, in the order of the Peers.
    pub fn peer_ranges(&self) -> &[IpNet] {
        &self.peer_ranges
    }

    /// The local node's segment.
    pub fn local_segment(&self) -> &Segment {
        &self.segments[self.local_segment]
    }

    /// The local node.
    pub fn local(&self) -> &Member {
        &self.members[self.local_member as usize]
    }

    /// The leader of a segment.
    pub fn leader_of(&self, segment: &Segment) -> Option<&Member> {
        self.members(segment).get(segment.leader)
    }

    /// The address of the local WireGuard link, with the subnet's prefix length; the subnet itself on a node
    /// that does not lead.
    pub fn wireguard_cidr(&self) -> IpNet {
        if !self.leader {
            return self.subnet;
        }
        IpNet::new(self.local_segment().wireguard_ip, self.subnet.prefix_len()).unwrap_or(self.subnet)
    }

    /// What upstream calls the segment's allowed IPs: the pod ranges and the private address of each node,
    /// and last its WireGuard address. Pod ranges that upstream does not know come after each node's first.
    pub fn segment_ranges<'a>(&'a self, segment: &'a Segment) -> impl Iterator<Item = IpNet> + 'a {
        self.members(segment)
            .iter()
            .flat_map(|m| m.subnets().chain(m.private_ip.map(parse::one)))
            .chain([parse::one(segment.wireguard_ip)])
    }

    /// The endpoint of a peer, after what was discovered if the peer is behind NAT.
    pub(crate) fn discovered(&self, key: &PublicKey, behind_nat: bool) -> Option<SocketAddr> {
        if behind_nat { self.discovered_endpoints.get(key).copied() } else { None }
    }

    /// The address at which a segment's leader is reached, discovered endpoints included.
    pub(crate) fn segment_addr(&self, segment: &Segment) -> Option<SocketAddr> {
        self.discovered(&segment.key, segment.behind_nat).or(segment.endpoint_addr)
    }

    /// The address at which a Peer is reached, discovered endpoints included.
    pub(crate) fn peer_addr(&self, peer: &MeshPeer) -> Option<SocketAddr> {
        self.discovered(&peer.public_key, peer.persistent_keepalive != 0).or(peer.endpoint_addr)
    }
}
