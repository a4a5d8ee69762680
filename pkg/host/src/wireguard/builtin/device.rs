//! The built-in device's state: every change goes through here, one peer at a time, so that nobody else's
//! session is touched.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use gotatun::device::{Device, DeviceBuilder, Peer};
use gotatun::x25519;
use ipnet::IpNet;
use ipnetwork::IpNetwork;
use kilo_state::DevicePeer;
use kilo_wireguard::{PresharedKey, PrivateKey, PublicKey};
use tokio::sync::mpsc;

use super::own::Own;
use super::{tun, udp};
use crate::wireguard::learned::{Entry, Learned, Write};
use crate::wireguard::status::{PeerStatus, SetDevice, SetPeer, Status};

/// The device over a UDP socket and a TUN link of ours.
pub(super) type Tunnel = Device<(udp::Factory, tun::Send, tun::Recv)>;

/// Why a change was refused.
#[derive(Debug, thiserror::Error)]
pub enum BuiltInError {
    /// A peer cannot be added before the device has a key.
    #[error("the device has no private key yet")]
    NoKey,
    /// There is no such peer.
    #[error("there is no such peer")]
    NoSuchPeer,
    /// The UDP port cannot be used.
    #[error("UDP port {port} cannot be used")]
    Bind {
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device failed otherwise.
    #[error("the userspace device failed")]
    Device(#[source] gotatun::device::Error),
    /// The TUN link cannot be made.
    #[error("the TUN link cannot be made")]
    Tun(#[source] io::Error),
    /// The configuration socket cannot be made.
    #[error("the configuration socket cannot be made")]
    Socket(#[source] io::Error),
}

/// What is known about a peer beside what gotatun keeps.
#[derive(Default)]
struct Known {
    ranges: Vec<IpNet>,
    configured: Option<SocketAddr>,
    /// Seconds since 1970; gotatun forgets a handshake with its session.
    handshake: u64,
}

/// The device and what gotatun does not keep about it.
pub(super) struct State {
    tunnel: Arc<Tunnel>,
    key: Option<PrivateKey>,
    port: u16,
    /// The UDP socket is bound and the tunnel's tasks run. Not so before there is a peer: an idle device
    /// wakes nobody up.
    running: bool,
    peers: BTreeMap<PublicKey, Known>,
    /// Who has a range. gotatun lets two peers believe so and gives the range to the one changed last.
    owners: BTreeMap<IpNet, PublicKey>,
    learned: Learned,
    sources: udp::Sources,
    own: Own,
    /// Peers to call at once.
    calls: mpsc::UnboundedSender<PublicKey>,
}

impl State {
    pub(super) async fn new(
        (tx, rx): (tun::Send, tun::Recv),
        own: Own,
        learned: Learned,
        calls: mpsc::UnboundedSender<PublicKey>,
    ) -> Result<Self, BuiltInError> {
        let sources = udp::Sources::default();
        let tunnel = DeviceBuilder::new()
            .suspended(true)
            .with_udp(udp::Factory::new(sources.clone(), own.clone()))
            .with_ip_pair(tx, rx)
            .build()
            .await
            .map_err(BuiltInError::Device)?;
        Ok(Self {
            tunnel: Arc::new(tunnel),
            key: None,
            port: 0,
            running: false,
            peers: BTreeMap::new(),
            owners: BTreeMap::new(),
            learned,
            sources,
            own,
            calls,
        })
    }

    pub(super) fn tunnel(&self) -> Arc<Tunnel> {
        Arc::clone(&self.tunnel)
    }

    pub(super) fn sources(&self) -> udp::Sources {
        self.sources.clone()
    }

    /// Carries out a change; the first thing that is refused ends it.
    pub(super) async fn set(&mut self, set: &SetDevice) -> Result<(), BuiltInError> {
        self.set_device(set).await?;
        if set.replace_peers {
            for key in self.peers.keys().copied().collect::<Vec<_>>() {
                self.remove(&key).await?;
            }
        }
        for peer in &set.peers {
            match self.set_peer(peer).await {
                // `wg set` of a peer that has gone meanwhile is no error.
                Err(BuiltInError::NoSuchPeer) => {}
                other => other?,
            }
        }
        Ok(())
    }

    async fn set_device(&mut self, set: &SetDevice) -> Result<(), BuiltInError> {
        let key = set.private_key.clone().flatten().filter(|k| self.key.as_ref() != Some(k));
        let port = set.listen_port.filter(|p| *p != self.port);
        if key.is_none() && port.is_none() {
            return Ok(());
        }
        let secret = key.as_ref().map(|k| x25519::StaticSecret::from(*k.secret_bytes()));
        let written = self
            .tunnel
            .write(async move |device| {
                if let Some(secret) = secret {
                    device.set_private_key(secret).await;
                }
                if let Some(port) = port {
                    device.set_listen_port(port);
                }
            })
            .await;
        if let Some(key) = key {
            self.key = Some(key);
        }
        if let Some(port) = port {
            self.port = port;
        }
        self.outcome(written).await
    }

    /// gotatun has no socket at all after it could not bind one: suspended, it can be tried again.
    async fn outcome<T>(&mut self, result: Result<T, gotatun::device::Error>) -> Result<T, BuiltInError> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                self.tunnel.suspend().await;
                self.running = false;
                if let gotatun::device::Error::Bind(source, _) = error {
                    Err(BuiltInError::Bind { port: self.port, source })
                } else {
                    Err(BuiltInError::Device(error))
                }
            }
        }
    }

    /// Starts the tunnel once there is somebody to talk to, stops it when there is nobody any more.
    pub(super) async fn run(&mut self) -> Result<(), BuiltInError> {
        let wanted = self.key.is_some() && !self.peers.is_empty();
        if wanted && !self.running {
            let resumed = self.tunnel.resume().await;
            self.outcome(resumed).await?;
            self.running = true;
            if self.port == 0 {
                self.port = self.tunnel.read(async |device| device.listen_port()).await;
            }
        } else if !wanted && self.running {
            self.tunnel.suspend().await;
            self.running = false;
        }
        Ok(())
    }

    /// Adds, changes or removes one peer.
    pub(super) async fn set_peer(&mut self, set: &SetPeer) -> Result<(), BuiltInError> {
        if set.remove {
            return self.remove(&set.public_key).await;
        }
        match (self.peers.contains_key(&set.public_key), set.update_only) {
            (true, _) => self.change(set).await,
            (false, true) => Err(BuiltInError::NoSuchPeer),
            (false, false) => self.add(set).await,
        }
    }

    async fn add(&mut self, set: &SetPeer) -> Result<(), BuiltInError> {
        if self.key.is_none() {
            return Err(BuiltInError::NoKey);
        }
        let key = set.public_key;
        let ranges = masked(&set.allowed_ips);
        self.own(key, &[], &ranges).await?;
        let restored = self.learned.take(&key, set.endpoint);
        let mut peer = Peer::new(public(&key)).with_allowed_ips(ranges.iter().map(network));
        peer.endpoint = restored.or(set.endpoint);
        peer.keepalive = set.persistent_keepalive.filter(|s| *s != 0);
        peer.preshared_key = set.preshared_key.as_ref().and_then(secret);
        let added = self.tunnel.add_peer(peer).await;
        self.outcome(added).await?;
        self.peers.insert(key, Known { ranges, configured: set.endpoint, handshake: 0 });
        self.run().await?;
        if restored.is_some() {
            // The receiver lives as long as the device; without it nobody is called.
            let _ = self.calls.send(key);
        }
        Ok(())
    }

    async fn change(&mut self, set: &SetPeer) -> Result<(), BuiltInError> {
        let key = set.public_key;
        let Some(known) = self.peers.get_mut(&key) else { return Err(BuiltInError::NoSuchPeer) };
        known.configured = set.endpoint.or(known.configured);
        let old = known.ranges.clone();
        let mut ranges = if set.replace_allowed_ips { Vec::new() } else { old.clone() };
        ranges.retain(|r| !set.remove_allowed_ips.iter().any(|gone| gone.trunc() == *r));
        ranges.extend(&set.allowed_ips);
        let ranges = masked(&ranges);
        let changed = ranges != old;
        if changed {
            self.own(key, &old, &ranges).await?;
            if let Some(known) = self.peers.get_mut(&key) {
                known.ranges.clone_from(&ranges);
            }
        }
        let psk = set.preshared_key.as_ref().map(secret);
        let (endpoint, keepalive) = (set.endpoint, set.persistent_keepalive);
        if !changed && psk.is_none() && endpoint.is_none() && keepalive.is_none() {
            return Ok(());
        }
        let id = public(&key);
        let modified = self
            .tunnel
            .write(async move |device| {
                device
                    .modify_peer(&id, |peer| {
                        if let Some(psk) = psk {
                            peer.set_preshared_key(psk);
                        }
                        if endpoint.is_some() {
                            peer.set_endpoint(endpoint);
                        }
                        if let Some(seconds) = keepalive {
                            peer.set_keepalive(Some(seconds).filter(|s| *s != 0));
                        }
                        if changed {
                            peer.clear_allowed_ips();
                            peer.add_allowed_ips(ranges.iter().map(network));
                        }
                    })
                    .await
            })
            .await;
        if self.outcome(modified).await? { Ok(()) } else { Err(BuiltInError::NoSuchPeer) }
    }

    async fn remove(&mut self, key: &PublicKey) -> Result<(), BuiltInError> {
        self.learned.forget(key);
        let Some(known) = self.peers.remove(key) else { return Ok(()) };
        for range in &known.ranges {
            self.owners.remove(range);
        }
        let removed = self.tunnel.remove_peer(&public(key)).await;
        self.outcome(removed).await?;
        self.run().await
    }

    /// Notes that `key` has `new` instead of `old` and takes those ranges away from whoever had them.
    async fn own(&mut self, key: PublicKey, old: &[IpNet], new: &[IpNet]) -> Result<(), BuiltInError> {
        for range in old {
            self.owners.remove(range);
        }
        let mut losers: BTreeMap<PublicKey, HashSet<IpNet>> = BTreeMap::new();
        for range in new {
            if let Some(loser) = self.owners.insert(*range, key).filter(|owner| *owner != key) {
                losers.entry(loser).or_default().insert(*range);
            }
        }
        for (loser, lost) in losers {
            let Some(known) = self.peers.get_mut(&loser) else { continue };
            known.ranges.retain(|r| !lost.contains(r));
            let left: Vec<IpNetwork> = known.ranges.iter().map(network).collect();
            let id = public(&loser);
            let modified = self
                .tunnel
                .write(async move |device| {
                    device
                        .modify_peer(&id, |peer| {
                            peer.clear_allowed_ips();
                            peer.add_allowed_ips(left);
                        })
                        .await
                })
                .await;
            self.outcome(modified).await?;
        }
        Ok(())
    }

    /// Reads the device. Handshakes are dated by `now`, in seconds since 1970.
    pub(super) async fn status(&mut self, now: u64) -> Status {
        let mut peers = Vec::with_capacity(self.peers.len());
        for p in self.tunnel.peers().await {
            let public_key = PublicKey::from_bytes(p.peer.public_key.to_bytes());
            let Some(known) = self.peers.get_mut(&public_key) else { continue };
            if let Some(age) = p.stats.last_handshake {
                let time = now.saturating_sub(age.as_secs());
                // An age is cut to seconds and read a moment after the clock, so that the same handshake seems
                // to move; it never moves back.
                if time > known.handshake + 1 {
                    known.handshake = time;
                }
            }
            peers.push(PeerStatus {
                peer: DevicePeer {
                    public_key,
                    preshared_key: p.peer.preshared_key.map(PresharedKey::from_bytes),
                    endpoint: p.peer.endpoint,
                    persistent_keepalive: p.peer.keepalive.unwrap_or(0),
                    allowed_ips: known.ranges.clone(),
                },
                latest_handshake: known.handshake,
                rx_bytes: p.stats.rx_bytes as u64,
                tx_bytes: p.stats.tx_bytes as u64,
            });
        }
        peers.sort_unstable_by_key(|p| p.peer.public_key);
        Status { private_key: self.key.clone(), public_key: None, listen_port: self.port, fwmark: 0, peers }
    }

    /// Notes where peers are, from a status just read. What is to be written to disk, if anything.
    pub(super) fn learn(&mut self, status: &Status) -> Option<Write> {
        let endpoints = status.peers.iter().filter_map(|p| p.peer.endpoint).collect();
        self.own.keep(&endpoints);
        self.sources.set_known(endpoints);
        let mut entries = BTreeMap::new();
        for p in &status.peers {
            if let (Some(endpoint), 1..) = (p.peer.endpoint, p.latest_handshake) {
                let configured = self.peers.get(&p.peer.public_key).and_then(|k| k.configured);
                entries.insert(p.peer.public_key, Entry { endpoint, configured, seen: p.latest_handshake });
            }
        }
        self.learned.update(entries)
    }

    /// What was learned could not be written.
    pub(super) fn not_written(&mut self) {
        self.learned.failed();
    }
}

pub(super) fn public(key: &PublicKey) -> x25519::PublicKey {
    x25519::PublicKey::from(*key.as_bytes())
}

fn secret(key: &Option<PresharedKey>) -> Option<[u8; 32]> {
    key.as_ref().map(|k| *k.secret_bytes())
}

fn masked(ranges: &[IpNet]) -> Vec<IpNet> {
    let mut ranges: Vec<IpNet> = ranges.iter().map(IpNet::trunc).collect();
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

fn network(range: &IpNet) -> IpNetwork {
    // An IpNet's prefix length fits its family; a host range stands in for what cannot be.
    IpNetwork::new(range.addr(), range.prefix_len()).unwrap_or_else(|_| IpNetwork::from(range.addr()))
}
