//! The WireGuard device: its own settings and its peers.
//!
//! An allowed range belongs to one peer of a device; given to another it moves. So peers that go or shrink
//! come before peers that grow or appear, and of two desired peers with the same range the later one, by key,
//! has it, as with `wg setconf`.

use ipnet::IpNet;
use kilo_wireguard::PublicKey;

use crate::merge::{Side, merge};
use crate::{Device, DeviceChange, DevicePeer, Op, PeerChange};

/// What makes a device what it should be; `None` for one that is only just made.
pub(crate) fn device_ops(want: &Device, now: Option<&Device>) -> Vec<Op> {
    let none = Device { public_key: None, listen_port: 0, peers: Vec::new() };
    let now = now.unwrap_or(&none);
    let mut ops = Vec::new();
    let change = DeviceChange {
        public_key: want.public_key.filter(|_| want.public_key != now.public_key),
        listen_port: Some(want.listen_port).filter(|&port| port != now.listen_port),
    };
    if change != (DeviceChange { public_key: None, listen_port: None }) {
        ops.push(Op::ConfigureDevice(change));
    }
    peer_ops(&want.peers, &now.peers, &mut ops);
    ops
}

fn peer_ops(want: &[DevicePeer], now: &[DevicePeer], ops: &mut Vec<Op>) {
    let (mut shrink, mut grow, mut add) = (Vec::new(), Vec::new(), Vec::new());
    let owners = Owners::of_new_ranges(want, now);
    for side in merge(want, now, |a, b| a.public_key.cmp(&b.public_key)) {
        match side {
            Side::Left(peer) => {
                let mut peer = peer.clone();
                peer.allowed_ips.retain(|range| owners.is(range, &peer.public_key));
                add.push(Op::AddPeer(peer));
            }
            Side::Right(peer) => ops.push(Op::RemovePeer(peer.public_key)),
            Side::Both(peer, before) => {
                let Some(change) = change(peer, before, &owners) else { continue };
                let grows = change.allowed_ips.iter().flatten().any(|r| !has(&before.allowed_ips, r));
                if grows { &mut grow } else { &mut shrink }.push(Op::UpdatePeer(change));
            }
        }
    }
    ops.append(&mut shrink);
    ops.append(&mut grow);
    ops.append(&mut add);
}

/// What differs about a peer, if anything does.
fn change(want: &DevicePeer, now: &DevicePeer, owners: &Owners) -> Option<PeerChange> {
    if want == now {
        return None;
    }
    let allowed_ips = if want.allowed_ips == now.allowed_ips {
        None
    } else {
        let own = |range: &&IpNet| has(&now.allowed_ips, range) || owners.is(range, &want.public_key);
        let ranges: Vec<IpNet> = want.allowed_ips.iter().filter(own).copied().collect();
        Some(ranges).filter(|ranges| *ranges != now.allowed_ips)
    };
    let preshared_key = (want.preshared_key != now.preshared_key).then(|| want.preshared_key.clone());
    let endpoint = want.endpoint.filter(|_| want.endpoint != now.endpoint);
    let persistent_keepalive =
        (want.persistent_keepalive != now.persistent_keepalive).then_some(want.persistent_keepalive);
    let nothing = preshared_key.is_none()
        && endpoint.is_none()
        && persistent_keepalive.is_none()
        && allowed_ips.is_none();
    (!nothing).then_some(PeerChange {
        public_key: want.public_key,
        preshared_key,
        endpoint,
        persistent_keepalive,
        allowed_ips,
    })
}

fn has(ranges: &[IpNet], range: &IpNet) -> bool {
    ranges.binary_search(range).is_ok()
}

/// The ranges that some desired peer does not have yet, each with the peer that shall have it.
struct Owners(Vec<(IpNet, PublicKey)>);

impl Owners {
    fn of_new_ranges(want: &[DevicePeer], now: &[DevicePeer]) -> Self {
        let mut new: Vec<(IpNet, PublicKey)> = Vec::new();
        for side in merge(want, now, |a, b| a.public_key.cmp(&b.public_key)) {
            let (peer, before) = match side {
                Side::Left(peer) => (peer, &[][..]),
                Side::Both(peer, before) if peer.allowed_ips != before.allowed_ips => {
                    (peer, &before.allowed_ips[..])
                }
                Side::Both(..) | Side::Right(_) => continue,
            };
            let ranges = peer.allowed_ips.iter().filter(|range| !has(before, range));
            new.extend(ranges.map(|&range| (range, peer.public_key)));
        }
        new.sort_unstable();
        // Of one range the greatest key comes last: it stays.
        new.reverse();
        new.dedup_by_key(|(range, _)| *range);
        new.reverse();
        let mut owners = Self(new);
        owners.later_holders(want);
        owners
    }

    /// Peers with a later key that have a new range already keep it.
    fn later_holders(&mut self, want: &[DevicePeer]) {
        if self.0.is_empty() {
            return;
        }
        for peer in want {
            for range in &peer.allowed_ips {
                if let Ok(i) = self.0.binary_search_by_key(range, |(range, _)| *range)
                    && let Some((_, owner)) = self.0.get_mut(i)
                {
                    *owner = (*owner).max(peer.public_key);
                }
            }
        }
    }

    /// Whether a new range shall be this peer's.
    fn is(&self, range: &IpNet, key: &PublicKey) -> bool {
        self.0.binary_search(&(*range, *key)).is_ok()
    }
}
