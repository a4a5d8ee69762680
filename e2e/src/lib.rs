//! The runner of the tests on real kernels: each test is a process of its own in fresh namespaces.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod crash;
pub mod mesh;
pub mod policy;
mod programs;
mod runner;
mod test;

pub use kilo_testkit::netns::{self, Ns, PingReport, Pinger, Pingers, Process, Skip, World, eventually};
pub use programs::program;
pub use runner::{figure, main};
pub use test::{Place, Test};
