//! The cross-platform configuration protocol of WireGuard (`wg(8)`'s way to userspace devices): its text, a
//! client for devices of others, a server for our own.

mod client;
mod server;
pub(crate) mod text;

pub use client::Client;
pub use server::{Answer, Backend, Server};
pub use text::Errno;

/// Where sockets live unless said otherwise; `wg(8)` looks nowhere else.
pub const SOCKET_DIR: &str = "/var/run/wireguard";
