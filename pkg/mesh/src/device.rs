//! The WireGuard device that a plan wants: one peer for each key, each range with one peer only.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kilo_state::{Device, DevicePeer};
use kilo_wireguard::PublicKey;

use crate::endpoint::Known;
use crate::topology::{MeshPeer, Topology};
use crate::{Facts, Finding, order};

/// A peer without a secret. Ranges that a kernel without IPv6 does not take are left out.
fn peer(
    topology: &Topology,
    facts: &Facts,
    key: PublicKey,
    endpoint: Option<SocketAddr>,
    mut nets: Vec<IpNet>,
) -> DevicePeer {
    nets.retain(|net| net.addr().is_ipv4() || facts.host.ipv6 != Some(false));
    nets.sort_unstable();
    nets.dedup();
    DevicePeer {
        public_key: key,
        preshared_key: None,
        endpoint,
        persistent_keepalive: topology.persistent_keepalive,
        allowed_ips: nets,
    }
}

/// Whose endpoint may be another one without any change of the mesh.
#[derive(Clone, Debug)]
pub(crate) enum Unsettled {
    /// That of the leader of the segment at this place.
    Segment(usize),
    /// That of the Peer of this name.
    Peer(Arc<str>),
}

/// The device of the local node, and what of it depends on more than the mesh.
pub(crate) struct Drawn {
    pub(crate) device: Device,
    pub(crate) unsettled: Vec<Unsettled>,
    /// Two nodes have one key.
    pub(crate) twice: bool,
}

/// The device of the local node. A node that does not lead has a device without peers: nothing reaches it
/// while its link is down, and none of them may stay longer than its Peer object does. Becoming leader again
/// costs each peer one handshake.
pub(crate) fn device(
    topology: &Topology,
    facts: &Facts,
    known: &Known,
    findings: &mut Vec<Finding>,
) -> Drawn {
    let (mut peers, mut unsettled, mut twice) = (Vec::new(), Vec::new(), false);
    if topology.leader {
        let segments = topology.segments.len();
        let keys: Vec<&PublicKey> = topology
            .segments
            .iter()
            .map(|s| &s.key)
            .chain(topology.peers.iter().map(|p| &p.public_key))
            .collect();
        peers.reserve_exact(keys.len());
        // Of two segments with one key the first comes first.
        for i in order::of_keys(&keys) {
            let i = i as usize;
            if let Some(p) = i.checked_sub(segments).map(|i| &topology.peers[i]) {
                let (peer, open) = device_peer(topology, facts, known, p);
                peers.push(peer);
                unsettled.extend(open.then(|| Unsettled::Peer(p.name.clone())));
            } else if i != topology.local_segment {
                let segment = &topology.segments[i];
                let (endpoint, open) = known.endpoint(facts, &segment.key, topology.segment_addr(segment));
                let nets = topology.segment_allowed_ips(segment);
                peers.push(peer(topology, facts, segment.key, endpoint, nets));
                unsettled.extend(open.then_some(Unsettled::Segment(i)));
            }
        }
        twice = one_for_each_key(&mut peers, topology.local_segment().key, findings);
    }
    let device = Device { public_key: facts.host.public_key, listen_port: topology.listen_port, peers };
    Drawn { device, unsettled, twice }
}

/// A Peer as the device of a leader has it, and whether its endpoint is [`Unsettled`].
pub(crate) fn device_peer(
    topology: &Topology,
    facts: &Facts,
    known: &Known,
    p: &MeshPeer,
) -> (DevicePeer, bool) {
    let (endpoint, unsettled) = known.endpoint(facts, &p.public_key, topology.peer_addr(p));
    let nets = topology.allowed_ips(p).to_vec();
    let mut peer = peer(topology, facts, p.public_key, endpoint, nets);
    peer.preshared_key.clone_from(&p.preshared_key);
    (peer, unsettled)
}

/// The kernel knows a peer by its key and none with its own. Tells whether there was such a one.
fn one_for_each_key(peers: &mut Vec<DevicePeer>, own: PublicKey, findings: &mut Vec<Finding>) -> bool {
    let before = peers.len();
    let mut last = None;
    peers.retain(|p| {
        let twice = last == Some(p.public_key) || p.public_key == own;
        last = Some(p.public_key);
        if twice {
            let reason = "two nodes have this key; the later one is not reached";
            findings.push(Finding::new("Mesh", "kilo.squat.ai/key", p.public_key.to_string(), reason));
        }
        !twice
    });
    peers.len() < before
}

/// Leaves each range with the first peer in order of segments, because a device has it with one peer only.
pub(crate) fn one_for_each_range(device: &mut Device, topology: &Topology) {
    let order = topology.segments.iter().map(|s| s.key).chain(topology.peers.iter().map(|p| p.public_key));
    let mut seen = BTreeSet::new();
    for key in order {
        if let Ok(i) = device.peers.binary_search_by_key(&key, |p| p.public_key) {
            device.peers[i].allowed_ips.retain(|net| seen.insert(*net));
        }
    }
}
