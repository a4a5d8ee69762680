//! The agent: events in, one plan, minimal operations out. It owns the two seams, [`Backend`] (the cluster)
//! and [`Host`] (this machine), and knows no implementation of either.
#![forbid(unsafe_code)]

mod agent;
mod annotations;
mod apply;
mod backend;
mod backoff;
mod changes;
mod clock;
mod drift;
mod enforcer;
mod firewall;
mod health;
mod host;
mod machine;
mod names;
mod news;
mod plans;
mod pods;
mod presence;
mod probes;
mod report;
mod reporter;
mod store;
mod trim;
pub mod view;

pub use agent::{Agent, AgentError, Handle, Settings};
pub use annotations::CHECK_IN;
pub use backend::{
    Backend, BackendError, Event, NodePatch, PolicyEvent, PolicyFinding, WatchKind, WatchState,
};
pub use enforcer::{
    Compile, Enforcer, EnforcerSettings, EnforcerStats, EnforcerStatus, Explained, MeshNews, Policies,
    Programmed,
};
pub use firewall::{Committed, Counted, Firewall, FirewallEvent, Logged, LoggedAt, Packet};
pub use host::{DiscoverConfig, Host, HostError, HostEvent, Severity};
pub use kilo_mesh::Finding;
pub use kilo_policy::Kind;
pub use news::{BRIDGE, mesh_facts};
pub use pods::{AttachedPod, BridgeSight, PodCalls, Pods, PodsChanged};
pub use report::{DURATION_BUCKETS, Durations, ErrorEvent, Input, Query, Stats, Status, Summary};
pub use trim::Trim;
