//! What tests need and programs do not: fakes of the seams, builders of objects, and network namespaces.
#![forbid(unsafe_code)]

mod cluster;
mod fake_backend;
mod fake_firewall;
mod fake_host;
pub mod netns;

pub use cluster::{NOW, Objects, cluster, key, peer};
pub use fake_backend::{Cluster, FakeBackend};
pub use fake_firewall::{FakeFirewall, Ruleset};
pub use fake_host::{FakeHost, Machine};
