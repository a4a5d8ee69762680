//! The agent: events in, one plan, minimal operations out. It owns the two seams, [`Backend`] (the cluster)
//! and [`Host`] (this machine), and knows no implementation of either.
#![forbid(unsafe_code)]

mod backend;
mod host;
pub mod view;

pub use backend::{Backend, BackendError, Event, NodePatch, WatchKind, WatchState};
pub use host::{DiscoverConfig, Host, HostError, HostEvent, Severity};
