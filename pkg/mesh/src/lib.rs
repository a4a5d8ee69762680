//! From Node and Peer objects to a topology, and from a topology to what one host's network should be.
//! Pure: time, resolved names and the machine come in as [`Facts`].
#![forbid(unsafe_code)]

mod config;
mod facts;
mod finding;
mod object;
mod read;

pub use config::{Compatibility, Config, Encapsulate, Granularity, Mtu};
pub use facts::{DeviceFact, Facts, HostFacts, Interfaces};
pub use finding::Finding;
pub use object::{DnsOrIp, Metadata, NodeObject, NodeSpec, PeerEndpoint, PeerObject, PeerSpec, SecretText};
pub use read::{read_node, read_peer};

/// The prefix of every annotation of Kilo.
pub const PREFIX: &str = "kilo.squat.ai/";
