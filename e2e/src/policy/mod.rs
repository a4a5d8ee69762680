//! Policies judged by packets: probers inside pods, and a small cluster whose whole truth table they fill.

mod cluster;
mod prober;

pub use cluster::{Cluster, POD_NAMES};
pub use prober::{Ask, Prober, helper};
