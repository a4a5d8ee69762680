//! A cluster of any size, the same at each call, for benchmarks and properties.
//!
//! Node `i` of `n` is in location `i mod n/10` (at least one), has pod range `i` of the /24s of 10.64.0.0/10,
//! a private address in its location's own /24 of 172.16.0.0/12 and an endpoint in 198.18.0.0/15. Peer `i` has
//! one address of 10.5.0.0/16. Everybody has checked in just now.

use std::net::Ipv4Addr;

use kilo_mesh::{Config, Facts, HostFacts, Metadata, NodeObject, NodeSpec, PREFIX, PeerObject, PeerSpec};
use kilo_wireguard::PublicKey;

/// The time at which the nodes of the cluster have checked in, in seconds since 1970 (UTC).
pub const NOW: u64 = 1_767_225_600;

/// The objects of a cluster, sorted by name.
#[derive(Clone, Debug)]
pub struct Objects {
    /// `node-00000` and so on.
    pub nodes: Vec<NodeObject>,
    /// `peer-00000` and so on.
    pub peers: Vec<PeerObject>,
}

/// The key of whoever has this name: the same at each call, and nobody knows a private key to it.
pub fn key(name: &str) -> PublicKey {
    // FNV-1a for the seed, SplitMix64 for the rest.
    let mut state =
        name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut bytes = [0; 32];
    for chunk in bytes.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        chunk.copy_from_slice(&(z ^ (z >> 31)).to_be_bytes());
    }
    PublicKey::from_bytes(bytes)
}

fn address(first: [u8; 4], offset: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::from(first)).wrapping_add(offset as u32))
}

fn node(i: usize, locations: usize) -> NodeObject {
    let name = format!("node-{i:05}");
    let location = i % locations;
    let private = address([172, 16, 0, 1], location * 256 + i / locations);
    let annotations = [
        ("cni-compatibility-ip", String::new()),
        ("discovered-endpoints", "{}".to_owned()),
        ("endpoint", format!("{}:51820", address([198, 18, 0, 1], i))),
        ("granularity", "location".to_owned()),
        ("internal-ip", format!("{private}/24")),
        ("key", key(&name).to_string()),
        ("last-seen", NOW.to_string()),
        ("location", format!("location-{location:04}")),
        ("wireguard-ip", String::new()),
    ];
    let pods = format!("{}/24", address([10, 64, 0, 0], i * 256));
    NodeObject {
        metadata: Metadata {
            name,
            annotations: annotations.into_iter().map(|(k, v)| (format!("{PREFIX}{k}"), v)).collect(),
            ..Metadata::default()
        },
        spec: NodeSpec { pod_cidr: pods.clone(), pod_cidrs: vec![pods] },
    }
}

/// The Peer of this number, for a cluster or beside it.
pub fn peer(i: usize) -> PeerObject {
    let name = format!("peer-{i:05}");
    let public_key = key(&name).to_string();
    let allowed_ips = vec![format!("{}/32", address([10, 5, 0, 1], i))];
    PeerObject {
        metadata: Metadata { name, ..Metadata::default() },
        spec: PeerSpec { allowed_ips, public_key, ..PeerSpec::default() },
    }
}

/// The cluster of this many nodes and Peers.
pub fn cluster(nodes: usize, peers: usize) -> Objects {
    let locations = (nodes / 10).max(1);
    Objects { nodes: (0..nodes).map(|i| node(i, locations)).collect(), peers: (0..peers).map(peer).collect() }
}

impl Objects {
    /// What the agent of the first node finds on its machine. It leads its location.
    pub fn facts(&self) -> Facts {
        let host = HostFacts {
            public_key: Some(key("node-00000")),
            internal_ip: "172.16.0.1/24".parse().ok(),
            external_ip: "198.18.0.1/15".parse().ok(),
            uplink_mtu: Some(1500),
            private_mtu: Some(1500),
            ..HostFacts::default()
        };
        Facts { now: NOW, host, ..Facts::default() }
    }

    /// The settings of the agent of the first node: upstream's defaults.
    pub fn config(&self) -> Config {
        Config { hostname: "node-00000".to_owned(), ..Config::default() }
    }
}
