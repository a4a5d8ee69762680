//! What a compiler is told besides the objects of the cluster: how it shall work, and what is true of this node and of
//! the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

/// Whether network policies are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// There are none for us: no packet is judged by them.
    Off,
    /// They are evaluated, counted and logged, and nothing is dropped.
    Audit,
    /// They are kept.
    #[default]
    On,
}

/// Whether an address must come from where it was proved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Antispoof {
    /// Nobody asks.
    Off,
    /// What comes from elsewhere is counted and logged.
    Audit,
    /// It is dropped.
    #[default]
    Enforce,
}

/// How a compiler works. Constant for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompilerConfig {
    /// This node's name, as pods have it in `spec.nodeName`.
    pub node: String,
    /// Whether network policies are kept.
    pub mode: Mode,
    /// Whether sources are bound to where they come from.
    pub antispoof: Antispoof,
    /// Pods hang on our own bridge: their sources can be bound to their links, and a link that is in no class is
    /// none of a pod's.
    pub own_cni: bool,
    /// Echo requests are allowed to and from every pod that could be read.
    pub allow_icmp_echo: bool,
    /// The bits of the ct mark for the epoch, contiguous and at least two.
    pub epoch_mask: u32,
    /// The bit of the ct mark for TCP connections whose beginning nobody saw; not among those of the epoch.
    pub loose_bit: u32,
    /// The bit of the packet mark for an outer header that a leader sent.
    pub leader_bit: u32,
    /// The NFLOG group of denied packets.
    pub log_group: u16,
    /// Denied packets logged in a second, of each profile and reason; 0 for none.
    pub log_rate: u32,
    /// `NFT_TABLE_F_*` of our tables: owned and persistent where the kernel can.
    pub table_flags: u32,
}

impl Default for CompilerConfig {
    fn default() -> Self {
        Self {
            node: String::new(),
            mode: Mode::default(),
            antispoof: Antispoof::default(),
            own_cni: true,
            allow_icmp_echo: false,
            epoch_mask: 0x7f00_0000,
            loose_bit: 0x8000_0000,
            leader_bit: 0x0000_0200,
            log_group: 77,
            log_rate: 10,
            table_flags: 0,
        }
    }
}

/// Whose an address of the mesh is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The Peer of this name.
    Peer(String),
    /// The node of this name.
    Node(String),
}

/// Links by what a packet that comes in by them has proved. One that is in no class is taken for a way to the outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// The mesh's WireGuard links: WireGuard has checked the source.
    pub wireguard: BTreeSet<String>,
    /// Tunnels inside a location, `tunl0`, `flannel.1`: the outer header is not signed.
    pub tunnels: BTreeSet<String>,
    /// Links to the outside, `eth0`.
    pub underlay: BTreeSet<String>,
    /// Bridges of pods. The links of single pods that hang on no bridge come from [`LocalPods`].
    pub pods: BTreeSet<String>,
}

/// What the mesh says about addresses. Networks of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshFacts {
    /// Whose each address of the mesh is, for the sources that come by WireGuard here, conflicts resolved: Peers'
    /// allowed IPs, and nodes' own addresses.
    pub bindings: BTreeMap<IpNet, Owner>,
    /// What other locations may send by WireGuard here: the allowed IPs of their leaders.
    pub segments: BTreeSet<IpNet>,
    /// The networks of WireGuard addresses.
    pub subnets: BTreeSet<IpNet>,
    /// The outer addresses of this location's leaders, the present ones and those of the last minutes.
    pub leaders: BTreeSet<IpAddr>,
    /// This node is a leader: packets of Peers are judged here for the pods behind it.
    pub leader: bool,
    /// This node's links.
    pub links: Links,
    /// The UDP port of WireGuard here; 0 for none.
    pub wireguard_port: u16,
    /// This node's pod CIDRs. What of them belongs to no known pod is closed.
    pub own_pods: BTreeSet<IpNet>,
    /// The pod CIDRs of all nodes.
    pub all_pods: BTreeSet<IpNet>,
    /// Sources that come plain from other nodes of this location by the strategy: pod CIDRs of nodes without
    /// encapsulation and, where a leader is among them, what it relays.
    pub plain: BTreeSet<IpNet>,
    /// The Services' CIDRs.
    pub services: BTreeSet<IpNet>,
    /// This node's own addresses on all links, each with the length of its network; on links of pods, tunnels and
    /// WireGuard with the full length.
    pub own: BTreeSet<IpNet>,
    /// Services are translated by IPVS, which does not forward.
    pub ipvs: bool,
}

/// A pod of this node as CNI set it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID; empty where CNI did not say.
    pub uid: String,
    /// The end of its link on this node; empty where CNI did not say.
    pub link: String,
}

/// The pods of this node as CNI set them up, by address. It is known before the API server tells the address, and it
/// counts more.
pub type LocalPods = BTreeMap<IpAddr, LocalPod>;
