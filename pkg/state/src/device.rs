//! A WireGuard device as the kernel knows it: peers by key, addresses resolved.

use std::net::SocketAddr;

use ipnet::IpNet;
use kilo_wireguard::{PresharedKey, PublicKey};

/// A WireGuard device without its private key, which only the host holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The key that others know the device by; `None` for a device that has no key yet.
    pub public_key: Option<PublicKey>,
    /// UDP port.
    pub listen_port: u16,
    /// The peers, by key.
    pub peers: Vec<DevicePeer>,
}

/// A peer of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePeer {
    /// Who the peer is.
    pub public_key: PublicKey,
    /// The secret shared with it.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is. In a desired device, `None` leaves what the device has learned.
    pub endpoint: Option<SocketAddr>,
    /// Seconds, 0 for none.
    pub persistent_keepalive: u16,
    /// Ranges without host bits, sorted, none twice.
    pub allowed_ips: Vec<IpNet>,
}

/// What is to change about a peer; `None` leaves a thing as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerChange {
    /// Who the peer is.
    pub public_key: PublicKey,
    /// The new secret, or none at all.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// The new endpoint.
    pub endpoint: Option<SocketAddr>,
    /// Seconds, 0 for none.
    pub persistent_keepalive: Option<u16>,
    /// All the ranges it shall have.
    pub allowed_ips: Option<Vec<IpNet>>,
}
