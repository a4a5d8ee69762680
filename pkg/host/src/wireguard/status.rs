//! What a WireGuard device is and what is to change about it, the same for all three kinds of device.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use kilo_mesh::DeviceFact;
use kilo_state::{Device, DeviceChange, DevicePeer, Op, PeerChange};
use kilo_wireguard::{PresharedKey, PrivateKey, PublicKey};

/// A device as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Its own key; none on a device that has not been given one.
    pub private_key: Option<PrivateKey>,
    /// The public key, where a device tells it without the private one.
    pub public_key: Option<PublicKey>,
    /// UDP port, 0 for none.
    pub listen_port: u16,
    /// Mark of outgoing packets, 0 for none.
    pub fwmark: u32,
    /// The peers, in any order.
    pub peers: Vec<PeerStatus>,
}

/// A peer of a device as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// What it was told to be; the endpoint may be learned.
    pub peer: DevicePeer,
    /// Seconds since 1970 (UTC), 0 for never.
    pub latest_handshake: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// What is to change about a device; `None` leaves a thing as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetDevice {
    /// The new key; `Some(None)` takes it away.
    pub private_key: Option<Option<PrivateKey>>,
    /// UDP port, 0 for any.
    pub listen_port: Option<u16>,
    /// Mark of outgoing packets, 0 for none.
    pub fwmark: Option<u32>,
    /// All peers go first.
    pub replace_peers: bool,
    /// In this order.
    pub peers: Vec<SetPeer>,
}

/// What is to change about one peer; `None` leaves a thing as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetPeer {
    /// Who the peer is.
    pub public_key: PublicKey,
    /// The peer goes, and nothing else is looked at.
    pub remove: bool,
    /// Nothing is done when there is no such peer.
    pub update_only: bool,
    /// The new secret, or none at all.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// The new endpoint.
    pub endpoint: Option<SocketAddr>,
    /// Seconds, 0 for none.
    pub persistent_keepalive: Option<u16>,
    /// The ranges it has go first.
    pub replace_allowed_ips: bool,
    /// Ranges that it gets.
    pub allowed_ips: Vec<IpNet>,
    /// Ranges that it loses.
    pub remove_allowed_ips: Vec<IpNet>,
}

impl SetPeer {
    /// A change that changes nothing, but makes the peer when there is none.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
            remove_allowed_ips: Vec::new(),
        }
    }

    /// The change that an operation stands for; none where it is not about a peer.
    pub fn from_op(op: &Op) -> Option<Self> {
        if let Op::AddPeer(peer) = op {
            Some(Self::add(peer))
        } else if let Op::UpdatePeer(change) = op {
            Some(Self::update(change))
        } else if let Op::RemovePeer(key) = op {
            Some(Self { remove: true, update_only: true, ..Self::new(*key) })
        } else {
            None
        }
    }

    /// The change that makes this peer.
    pub fn add(peer: &DevicePeer) -> Self {
        Self {
            preshared_key: Some(peer.preshared_key.clone()),
            endpoint: peer.endpoint,
            persistent_keepalive: Some(peer.persistent_keepalive),
            replace_allowed_ips: true,
            allowed_ips: peer.allowed_ips.clone(),
            ..Self::new(peer.public_key)
        }
    }

    fn update(change: &PeerChange) -> Self {
        Self {
            update_only: true,
            preshared_key: change.preshared_key.clone(),
            endpoint: change.endpoint,
            persistent_keepalive: change.persistent_keepalive,
            replace_allowed_ips: change.allowed_ips.is_some(),
            allowed_ips: change.allowed_ips.clone().unwrap_or_default(),
            ..Self::new(change.public_key)
        }
    }

    /// What is done, for errors: `adding peer KEY`.
    pub fn action(&self) -> String {
        let verb = match (self.remove, self.update_only) {
            (true, _) => "removing",
            (false, true) => "changing",
            (false, false) => "adding",
        };
        format!("{verb} peer {}", self.public_key)
    }
}

impl SetDevice {
    /// The change of the device's own settings that an operation stands for; `key` is the key it may ask for.
    pub fn from_change(change: &DeviceChange, key: &PrivateKey) -> Self {
        Self {
            private_key: change.public_key.map(|_| Some(key.clone())),
            listen_port: change.listen_port,
            ..Self::default()
        }
    }
}

impl Status {
    /// The device and the facts about its peers, both sorted by key; ranges without host bits and sorted.
    pub fn into_observed(self) -> (Device, Vec<DeviceFact>) {
        let public_key = self.private_key.as_ref().map(PrivateKey::public_key).or(self.public_key);
        // A dump that changed under the reader may tell a peer twice: one of each.
        let mut peers: BTreeMap<PublicKey, PeerStatus> = BTreeMap::new();
        for peer in self.peers {
            peers
                .entry(peer.peer.public_key)
                .and_modify(|known| known.peer.allowed_ips.extend(&peer.peer.allowed_ips))
                .or_insert(peer);
        }
        let facts = peers.values().map(PeerStatus::fact).collect();
        let peers = peers.into_values().map(|p| normal(p.peer)).collect();
        (Device { public_key, listen_port: self.listen_port, peers }, facts)
    }
}

impl PeerStatus {
    fn fact(&self) -> DeviceFact {
        DeviceFact {
            public_key: self.peer.public_key,
            endpoint: self.peer.endpoint,
            latest_handshake: self.latest_handshake,
        }
    }
}

fn normal(mut peer: DevicePeer) -> DevicePeer {
    for net in &mut peer.allowed_ips {
        *net = net.trunc();
    }
    peer.allowed_ips.sort_unstable();
    peer.allowed_ips.dedup();
    peer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(key: u8, ranges: &[&str]) -> PeerStatus {
        PeerStatus {
            peer: DevicePeer {
                public_key: PublicKey::from_bytes([key; 32]),
                preshared_key: None,
                endpoint: None,
                persistent_keepalive: 0,
                allowed_ips: ranges.iter().map(|r| r.parse().expect("a range")).collect(),
            },
            latest_handshake: u64::from(key),
            rx_bytes: 0,
            tx_bytes: 0,
        }
    }

    #[test]
    fn observed_is_sorted_masked_and_folded() {
        let status = Status {
            peers: vec![
                peer(2, &["10.2.0.1/16", "10.1.0.0/16"]),
                peer(1, &[]),
                peer(2, &["10.1.0.0/16", "fd00::1/64"]),
            ],
            ..Status::default()
        };
        let (device, facts) = status.into_observed();
        let ranges: Vec<String> = device.peers[1].allowed_ips.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.1.0.0/16", "10.2.0.0/16", "fd00::/64"]);
        assert_eq!(device.peers.len(), 2);
        assert_eq!(facts.iter().map(|f| f.latest_handshake).collect::<Vec<_>>(), [1, 2]);
    }
}
