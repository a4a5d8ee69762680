//! The WireGuard device that a plan wants: one peer for each key, each range with one peer only.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ipnet::IpNet;
use kilo_state::{Device, DevicePeer};
use kilo_wireguard::PublicKey;

use crate::endpoint::Known;
use crate::topology::Topology;
use crate::{Facts, Finding, order};

fn peer(key: PublicKey, endpoint: Option<SocketAddr>, keepalive: u16, mut nets: Vec<IpNet>) -> DevicePeer {
    nets.sort_unstable();
    nets.dedup();
    DevicePeer {
        public_key: key,
        preshared_key: None,
        endpoint,
        persistent_keepalive: keepalive,
        allowed_ips: nets,
    }
}

/// The device of the local node. A node that does not lead has a device without peers: nothing reaches it
/// while its link is down, and none of them may stay longer than its Peer object does. Becoming leader again
/// costs each peer one handshake.
pub(crate) fn device(topology: &Topology, facts: &Facts, findings: &mut Vec<Finding>) -> Device {
    let public_key = facts.host.public_key;
    let mut peers = Vec::new();
    if topology.leader {
        let known = Known::new(facts);
        let keepalive = topology.persistent_keepalive;
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
                let endpoint = known.endpoint(&p.public_key, topology.peer_addr(p));
                let mut new = peer(p.public_key, endpoint, keepalive, topology.allowed_ips(p).to_vec());
                new.preshared_key.clone_from(&p.preshared_key);
                peers.push(new);
            } else if i != topology.local_segment {
                let segment = &topology.segments[i];
                let endpoint = known.endpoint(&segment.key, topology.segment_addr(segment));
                peers.push(peer(segment.key, endpoint, keepalive, topology.segment_allowed_ips(segment)));
            }
        }
        one_for_each_key(&mut peers, topology.local_segment().key, findings);
    }
    Device { public_key, listen_port: topology.listen_port, peers }
}

/// The kernel knows a peer by its key and none with its own.
fn one_for_each_key(peers: &mut Vec<DevicePeer>, own: PublicKey, findings: &mut Vec<Finding>) {
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
