//! From Pods, Namespaces and NetworkPolicies to verdicts: who may open which connection, and which rule says so.
//! Pure. It says what policies mean; making a kernel do so is another matter.
#![forbid(unsafe_code)]

mod block;
mod compile;
mod evaluate;
mod index;
mod intern;
mod labels;
mod pod;
mod policy;
mod profile;
mod ranges;
mod read;
mod service;
mod snapshot;
mod table;
mod verdict;

pub use block::Block;
pub use compile::{
    Antispoof, Compiler, CompilerConfig, Explained, Links, LocalPod, LocalPods, MeshFacts, Mode, Owner,
    Reason, Stats,
};
pub use evaluate::{End, Evaluator, Options, PodEnd, Traffic, Who};
pub use index::Named;
pub use intern::Text;
pub use kilo_object::Finding;
pub use labels::{Asked, Labels, Selector, Term};
pub use pod::{NamedPort, Pod};
pub use policy::{Direction, Peer, Policy, Port, Protocol, Rule};
pub use profile::{Namespaces, Peers, PodSet, Ports, Profile, Profiles};
pub use ranges::Ranges;
pub use service::{Service, Slice};
pub use snapshot::{Applied, Kind, Snapshot};
pub use table::{Family, Probe, Row, Table};
pub use verdict::{Because, Connection, Verdict, word};
