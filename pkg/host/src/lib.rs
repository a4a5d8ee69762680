//! This machine: the agent's seam to the kernel's links, addresses, routes, rules, nftables and WireGuard, to
//! kernel parameters, and to the files of key and CNI. Nothing here decides what should be; it reads what is
//! and carries out operations.
#![deny(unsafe_code)]

mod apply;
mod cni;
mod config;
mod discover;
mod error;
mod facts;
pub mod firewall;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod host;
mod iptables_forward;
mod iptables_legacy;
mod key;
mod leftovers;
mod netlink;
mod observe;
pub mod pods;
mod probe;
mod resolve;
mod sysctl;
mod watch;
pub mod wireguard;

pub use config::HostConfig;
pub use host::LinuxHost;
pub use key::{KeyFileError, generate, load, load_or_create};
