//! Placeholder.

pub mod wireguard;
