//! The built program, judged from outside.

#[cfg(feature = "cluster")]
mod cluster;
mod common;
mod plan;
mod show;
mod usage;
