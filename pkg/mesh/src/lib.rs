//! From Node and Peer objects to a topology, and from a topology to what one host's network should be.
//! Pure: time, resolved names and the machine come in as [`Facts`].
#![forbid(unsafe_code)]

mod alips;
mod annotations;
mod claims;
mod conf;
mod config;
mod desired;
mod device;
mod endpoint;
mod facts;
mod failover;
mod firewall;
mod graph;
mod leader;
mod mtu;
mod node;
mod object;
mod order;
mod outside;
mod parse;
mod peer;
mod peers;
mod plan;
mod planner;
mod ranges;
mod read;
mod routes;
mod segments;
mod shape;
mod svg;
mod table;
mod topology;

pub use annotations::{MARKER, REPORTS, UNREACHABLE, WRITTEN, marker};
pub use config::{Compatibility, Config, Encapsulate, Granularity, LeaderFailover, Mtu};
pub use endpoint::endpoint_for_device;
pub use facts::{DeviceFact, Facts, HostFacts, Interfaces, LegacyTable};
pub use failover::{Deposed, Watch, Way};
pub use firewall::{Firewall, Forward, Ipip, Masquerade};
pub use kilo_object::Finding;
pub use mtu::MtuDecision;
pub use node::Node;
pub use object::{DnsOrIp, Metadata, NodeObject, NodeSpec, PeerEndpoint, PeerObject, PeerSpec, SecretText};
pub use outside::Outsider;
pub use parse::is_public;
pub use peer::Peer;
pub use plan::{Mesh, Outcome, Plan, plan};
pub use planner::{NotSimple, PeerChange, Planner};
pub use read::{read_node, read_peer};
pub use routes::{Encapsulator, Inside, Routing};
pub use svg::{Layout, UnknownLayout, svg};
pub use table::TABLE_NAME;
pub use topology::{Member, MeshPeer, Segment, SegmentName, Topology, TopologyError};

/// The prefix of every annotation of Kilo.
pub const PREFIX: &str = "kilo.squat.ai/";
