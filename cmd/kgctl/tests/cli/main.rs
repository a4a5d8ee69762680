//! The built program, judged from outside.

mod bugs;
#[cfg(feature = "cluster")]
mod cluster;
mod common;
mod plan;
mod policy;
mod show;
mod usage;
