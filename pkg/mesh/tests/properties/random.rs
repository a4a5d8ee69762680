//! Random settings, objects and facts out of few keys, names and addresses, so that they meet.

use kilo_mesh::{
    Compatibility, Config, DeviceFact, Encapsulate, Facts, Granularity, HostFacts, LeaderFailover, MARKER,
    Metadata, Node, NodeObject, NodeSpec, PREFIX, Peer, PeerEndpoint, PeerObject, PeerSpec, Plan, plan,
};
use kilo_wireguard::PublicKey;
use proptest::prelude::*;

pub const NOW: u64 = 1_767_225_600;

pub fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n.max(1); 32])
}

/// Values that make sense, from so few that they collide, and some that make none.
pub fn address() -> impl Strategy<Value = String> {
    prop_oneof![
        (0..4_u8, 1..4_u8).prop_map(|(a, b)| format!("10.0.{a}.{b}")),
        (1..4_u8).prop_map(|b| format!("203.0.113.{b}")),
        (1..4_u8).prop_map(|b| format!("fd00::{b}")),
        (1..4_u8).prop_map(|b| format!("::ffff:10.0.0.{b}")),
    ]
}

pub fn range() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (address(), 0..=128_u8).prop_map(|(ip, len)| format!("{ip}/{len}")),
        4 => address().prop_map(|ip| if ip.contains(':') { format!("{ip}/128") } else { format!("{ip}/32") }),
        1 => Just("10.4.0.1/32".to_owned()),
        1 => ".{0,12}",
    ]
}

fn pods() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (0..6_u8).prop_map(|n| format!("10.42.{n}.0/24")),
        2 => (0..6_u8).prop_map(|n| format!("fd42:{n}::/64")),
        1 => range(),
    ]
}

fn endpoint() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (address(), 1..4_u16).prop_map(|(ip, p)| if ip.contains(':') { format!("[{ip}]:{p}") } else { format!("{ip}:{p}") }),
        2 => prop_oneof![Just("known.example:51820".to_owned()), Just("unknown.example:51820".to_owned())],
        1 => ".{0,16}",
    ]
}

fn annotation() -> impl Strategy<Value = (String, String)> {
    prop_oneof![
        1 => endpoint().prop_map(|v| ("force-endpoint".to_owned(), v)),
        1 => range().prop_map(|v| ("force-internal-ip".to_owned(), v)),
        1 => Just(("force-internal-ip".to_owned(), "-".to_owned())),
        1 => Just(("leader".to_owned(), String::new())),
        1 => prop_oneof![Just("25".to_owned()), "-?[0-9]{1,22}", ".{0,4}"]
            .prop_map(|v| ("persistent-keepalive".to_owned(), v)),
        1 => prop::collection::vec(range(), 0..4).prop_map(|v| ("allowed-location-ips".to_owned(), v.join(","))),
        3 => (1..16_u8, address()).prop_map(|(k, e)| {
            ("discovered-endpoints".to_owned(), format!(r#"{{"{}":{{"IP":"{e}","Port":7}}}}"#, key(k)))
        }),
        1 => range().prop_map(|v| ("cilium-internal-ip".to_owned(), v)),
        1 => ("[a-z-]{1,24}", ".{0,24}"),
    ]
}

pub fn node(i: usize) -> impl Strategy<Value = NodeObject> {
    let basics =
        (endpoint(), range(), 1..12_u8, 0..3_u8, pods(), prop::collection::vec(pods(), 0..3), 0..70_u64);
    (basics, prop::collection::vec(annotation(), 0..4)).prop_map(move |(basics, more)| {
        let (endpoint, internal, k, location, pod_cidr, pod_cidrs, age) = basics;
        let mut annotations: Vec<(String, String)> = vec![
            ("endpoint".into(), endpoint),
            ("internal-ip".into(), internal),
            ("key".into(), key(k).to_string()),
            ("location".into(), format!("l{location}")),
            ("last-seen".into(), (NOW - age).to_string()),
        ];
        annotations.extend(more);
        NodeObject {
            metadata: Metadata {
                name: format!("n{i}"),
                annotations: annotations.into_iter().map(|(k, v)| (format!("{PREFIX}{k}"), v)).collect(),
                ..Metadata::default()
            },
            spec: NodeSpec { pod_cidr, pod_cidrs },
        }
    })
}

pub fn peer(i: usize) -> impl Strategy<Value = PeerObject> {
    let endpoint = prop::option::of((address(), -1..70_000_i64));
    (1..16_u8, prop::collection::vec(range(), 0..4), endpoint, prop::option::of(-2..70_000_i64), 0..3_u8)
        .prop_map(move |(k, allowed_ips, endpoint, persistent_keepalive, created)| PeerObject {
            metadata: Metadata {
                name: format!("p{i}"),
                creation_timestamp: (created > 0).then(|| format!("2026-01-0{created}T00:00:00Z")),
                ..Metadata::default()
            },
            spec: PeerSpec {
                allowed_ips,
                public_key: key(k).to_string(),
                persistent_keepalive,
                endpoint: endpoint.map(|(ip, port)| PeerEndpoint {
                    dns_or_ip: kilo_mesh::DnsOrIp { dns: String::new(), ip },
                    port,
                }),
                ..PeerSpec::default()
            },
        })
}

pub fn config() -> impl Strategy<Value = Config> {
    (
        any::<[bool; 5]>(),
        0..3_u8,
        0..3_u8,
        prop_oneof![Just("10.4.0.0/16"), Just("10.4.0.0/30"), Just("fd04::/64")],
    )
        .prop_map(|([full, local, cni, forward, never_expires], strategy, compatibility, subnet)| {
            Config {
                hostname: "n0".into(),
                granularity: if full { Granularity::Full } else { Granularity::Location },
                encapsulate: [Encapsulate::Never, Encapsulate::CrossSubnet, Encapsulate::Always]
                    [usize::from(strategy)],
                compatibility: [Compatibility::None, Compatibility::Flannel, Compatibility::Cilium]
                    [usize::from(compatibility)],
                local,
                cni,
                iptables_forward_rules: forward,
                node_expiry: if never_expires { 0 } else { 60 },
                subnet: subnet.parse().expect("a range"),
                ..Config::default()
            }
        })
}

pub fn facts() -> impl Strategy<Value = Facts> {
    let tri = || prop::option::of(any::<bool>());
    let device = prop::collection::vec((1..16_u8, endpoint(), 0..200_u64), 0..6);
    (prop::option::of(1..12_u8), prop::option::of(range()), tri(), tri(), tri(), device).prop_map(
        |(own, internal, ipip, tunnel, ipv6, device)| Facts {
            now: NOW,
            dns: [("known.example".to_owned(), vec!["198.51.100.1".parse().expect("an address")])].into(),
            host: HostFacts {
                public_key: own.map(key),
                internal_ip: internal.and_then(|t| t.parse().ok()),
                external_ip: "203.0.113.9/24".parse().ok(),
                ipip,
                tunnel,
                ipv6,
                device: device
                    .into_iter()
                    .map(|(k, e, age)| DeviceFact {
                        public_key: key(k),
                        endpoint: e.parse().ok(),
                        latest_handshake: if age == 0 { 0 } else { NOW - age },
                    })
                    .collect(),
                ..HostFacts::default()
            },
        },
    )
}

pub fn objects() -> impl Strategy<Value = (Vec<NodeObject>, Vec<PeerObject>)> {
    let nodes = (1..6_usize).prop_flat_map(|n| (0..n).map(node).collect::<Vec<_>>());
    let peers = (0..6_usize).prop_flat_map(|n| (0..n).map(peer).collect::<Vec<_>>());
    (nodes, peers, any::<bool>()).prop_map(|(mut nodes, peers, ours)| {
        if ours {
            nodes.iter_mut().for_each(mark);
        }
        (nodes, peers)
    })
}

/// Lets the node run an agent of ours.
pub fn mark(node: &mut NodeObject) {
    let annotations = &mut node.metadata.annotations;
    if let Some(time) = annotations.get(&format!("{PREFIX}last-seen")) {
        annotations.insert(format!("{PREFIX}{MARKER}"), kilo_mesh::marker(time, LeaderFailover::DataPath));
    }
}

pub fn make(config: &Config, nodes: &[Node], peers: &[Peer], facts: &Facts) -> Plan {
    plan(config, &nodes.iter().collect::<Vec<_>>(), &peers.iter().collect::<Vec<_>>(), facts)
}
