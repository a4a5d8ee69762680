//! WireGuard's own vocabulary: keys, endpoints, peers and the configuration text of `wg(8)`.
//! No sockets, no names resolved, no clock: what a device should be, not how it is told.
#![forbid(unsafe_code)]

mod conf;
mod endpoint;
mod key;

pub use conf::{Conf, ConfError, Peer};
pub use endpoint::{Endpoint, EndpointError, Host, is_dns_name};
pub use key::{KeyError, PresharedKey, PrivateKey, PublicKey};

/// The UDP port of WireGuard where nothing else is said; Kilo's `--port`.
pub const DEFAULT_PORT: u16 = 51820;
