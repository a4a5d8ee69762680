//! What a plan wants of a host, in small meshes that can be read: two locations, one of them with two nodes,
//! and a laptop; each in IPv4 and IPv6.

use std::collections::BTreeMap;

use kilo_mesh::{
    Config, DeviceFact, Encapsulate, Facts, Granularity, HostFacts, Node, NodeObject, Outcome, Peer,
    PeerObject, Plan, plan,
};
use kilo_state::{Dev, LinkKind};
use kilo_wireguard::PublicKey;
use serde_json::json;

const NOW: u64 = 1_767_225_600;

fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32])
}

/// Addresses of one family.
struct Family {
    pods: [&'static str; 3],
    private: [&'static str; 3],
    pool: &'static str,
    laptop: &'static str,
}

const V4: Family = Family {
    pods: ["10.42.0.0/24", "10.42.1.0/24", "10.42.2.0/24"],
    private: ["10.0.0.1/24", "10.0.0.2/24", "10.0.1.1/24"],
    pool: "10.4.0.0/16",
    laptop: "10.5.0.1/32",
};
const V6: Family = Family {
    pods: ["fd42:0:0:1::/64", "fd42:0:0:2::/64", "fd42:0:0:3::/64"],
    private: ["fd00:0:0:1::1/64", "fd00:0:0:1::2/64", "fd00:0:0:2::1/64"],
    pool: "fd04::/64",
    laptop: "fd05::1/128",
};

fn nodes(f: &Family) -> Vec<Node> {
    let node = |i: usize, location: &str, endpoint: &str| {
        let object: NodeObject = serde_json::from_value(json!({
            "metadata": {"name": format!("n{i}"), "annotations": {
                "kilo.squat.ai/endpoint": endpoint,
                "kilo.squat.ai/internal-ip": f.private[i],
                "kilo.squat.ai/key": key(i as u8 + 1).to_string(),
                "kilo.squat.ai/last-seen": NOW.to_string(),
                "kilo.squat.ai/location": location,
            }},
            "spec": {"podCIDR": f.pods[i]},
        }))
        .expect("a Node");
        Node::from_object(&object, "region").0
    };
    vec![
        node(0, "a", "203.0.113.1:51820"),
        node(1, "a", "203.0.113.2:51820"),
        node(2, "b", "203.0.113.3:51820"),
    ]
}

fn peer(name: &str, k: u8, ranges: &[&str]) -> Peer {
    let object: PeerObject = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"publicKey": key(k).to_string(), "allowedIPs": ranges, "persistentKeepalive": 10},
    }))
    .expect("a Peer");
    Peer::from_object(&object).0
}

fn config(f: &Family, hostname: &str) -> Config {
    Config { hostname: hostname.into(), subnet: f.pool.parse().expect("a range"), ..Config::default() }
}

fn facts(f: &Family, i: usize) -> Facts {
    let host = HostFacts {
        public_key: Some(key(i as u8 + 1)),
        internal_ip: f.private[i].parse().ok(),
        external_ip: "203.0.113.1/24".parse().ok(),
        uplink_mtu: Some(1500),
        private_mtu: Some(9000),
        ..HostFacts::default()
    };
    Facts { now: NOW, host, ..Facts::default() }
}

fn make(config: &Config, nodes: &[Node], peers: &[Peer], facts: &Facts) -> Plan {
    plan(config, &nodes.iter().collect::<Vec<_>>(), &peers.iter().collect::<Vec<_>>(), facts)
}

/// Everything that is desired, a line for each thing.
fn text(plan: &Plan) -> Vec<String> {
    let d = &plan.mesh.as_ref().expect("a mesh").desired;
    let mut out = Vec::new();
    for l in &d.links {
        let addresses =
            l.addresses.as_ref().map(|a| a.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
        let up = if l.up { "up" } else { "down" };
        out.push(format!(
            "link {} {:?} mtu {:?} {up} {}",
            l.name,
            l.kind,
            l.mtu,
            addresses.unwrap_or_default()
        ));
    }
    for p in &d.device.as_ref().expect("a device").peers {
        let nets: Vec<String> = p.allowed_ips.iter().map(ToString::to_string).collect();
        let at = p.endpoint.map_or_else(|| "-".to_owned(), |e| e.to_string());
        out.push(format!("peer {} {at} {}", p.public_key.as_bytes()[0], nets.join(",")));
    }
    for r in &d.routes {
        let via = r.via.map(|v| format!(" via {v}")).unwrap_or_default();
        let src = r.src.map(|v| format!(" src {v}")).unwrap_or_default();
        out.push(format!("route {} {}{via} dev {:?}{src}", r.table, r.dst, r.dev));
    }
    out
}

#[test]
fn a_leader_reaches_everybody() {
    for (f, expected) in [
        (
            V4,
            [
                "link kilo0 WireGuard mtu Some(1420) up 10.4.0.1/16",
                "peer 3 203.0.113.3:51820 10.0.1.1/32,10.4.0.2/32,10.42.2.0/24",
                "peer 9 - 10.5.0.1/32",
                "route 254 10.0.1.1/32 via 10.4.0.2 dev WireGuard src 10.0.0.1",
                "route 254 10.5.0.1/32 dev WireGuard src 10.0.0.1",
                "route 254 10.42.1.0/24 via 10.0.0.2 dev Private",
                "route 254 10.42.2.0/24 via 10.4.0.2 dev WireGuard src 10.0.0.1",
            ],
        ),
        (
            V6,
            [
                "link kilo0 WireGuard mtu Some(1420) up fd04::1/64",
                "peer 3 203.0.113.3:51820 fd00:0:0:2::1/128,fd04::2/128,fd42:0:0:3::/64",
                "peer 9 - fd05::1/128",
                "route 254 fd00:0:0:2::1/128 via fd04::2 dev WireGuard src fd00:0:0:1::1",
                "route 254 fd05::1/128 dev WireGuard src fd00:0:0:1::1",
                "route 254 fd42:0:0:2::/64 via fd00:0:0:1::2 dev Private",
                "route 254 fd42:0:0:3::/64 via fd04::2 dev WireGuard src fd00:0:0:1::1",
            ],
        ),
    ] {
        let config = Config { encapsulate: Encapsulate::Never, ..config(&f, "n0") };
        let plan = make(&config, &nodes(&f), &[peer("laptop", 9, &[f.laptop])], &facts(&f, 0));
        assert_eq!(text(&plan), expected);
        assert!(plan.findings.is_empty(), "{:?}", plan.findings);
        let sysctls = &plan.mesh.expect("a mesh").desired.sysctls;
        assert_eq!(sysctls.contains_key("net/ipv6/conf/all/forwarding"), f.laptop.contains(':'));
    }
}

#[test]
fn a_node_that_does_not_lead_has_an_empty_device_and_a_tunnel() {
    let plan = make(&config(&V4, "n1"), &nodes(&V4), &[peer("laptop", 9, &[V4.laptop])], &facts(&V4, 1));
    assert_eq!(
        text(&plan),
        [
            "link kilo0 WireGuard mtu Some(1420) down ",
            "link tunl0 Ipip mtu Some(8980) up 10.42.1.1/32",
            "route 254 10.0.1.1/32 via 10.0.0.1 dev Tunnel src 10.0.0.2",
            "route 254 10.4.0.1/32 via 10.0.0.1 dev Tunnel src 10.0.0.2",
            "route 254 10.4.0.2/32 via 10.0.0.1 dev Tunnel src 10.0.0.2",
            "route 254 10.5.0.1/32 via 10.0.0.1 dev Tunnel src 10.0.0.2",
            "route 254 10.42.0.0/24 via 10.0.0.1 dev Tunnel src 10.0.0.2",
            "route 254 10.42.2.0/24 via 10.0.0.1 dev Tunnel src 10.0.0.2",
            "route 1107 10.0.0.1/32 via 10.0.0.1 dev Tunnel src 10.0.0.2",
        ]
    );
}

#[test]
fn a_peer_cannot_take_what_is_a_nodes() {
    for f in [V4, V6] {
        let host = |net: &str| {
            format!(
                "{}/{}",
                net.split_once('/').expect("a range").0,
                if net.contains(':') { 128 } else { 32 }
            )
        };
        let wireguard = if f.pool.contains(':') { "fd04::2/128" } else { "10.4.0.2/32" };
        let all = if f.pool.contains(':') { "::/0" } else { "0.0.0.0/0" };
        let claims = [f.pods[2], &host(f.pods[2]), &host(f.private[2]), wireguard, all];
        let peers = [peer("mallory", 9, &claims), peer("mimic", 3, &[f.laptop])];
        let plan = make(&config(&f, "n0"), &nodes(&f), &peers, &facts(&f, 0));
        let t = &plan.mesh.as_ref().expect("a mesh").topology;
        assert_eq!(t.peers.iter().map(|p| &*p.name).collect::<Vec<_>>(), ["mallory"]);
        assert_eq!(t.peer_ranges().iter().map(ToString::to_string).collect::<Vec<_>>(), [all]);
        let of = |name: &str| plan.findings.iter().filter(|x| x.object == format!("Peer/{name}")).count();
        assert_eq!((of("mallory"), of("mimic")), (4, 1), "{:?}", plan.findings);
    }
}

#[test]
fn a_range_in_two_places_is_routed_to_the_own_location_or_the_first() {
    let mut nodes = nodes(&V4);
    // Two homes with the same private network.
    nodes[2].internal_ip = nodes[1].internal_ip;
    let plan = make(&config(&V4, "n0"), &nodes, &[], &facts(&V4, 0));
    let mesh = plan.mesh.as_ref().expect("a mesh");
    let stolen = |r: &&kilo_state::Route| r.dst.to_string() == "10.0.0.2/32" && r.dev == Dev::WireGuard;
    assert_eq!(mesh.desired.routes.iter().filter(stolen).count(), 0);
    assert_eq!(mesh.left_out.routes.iter().filter(stolen).count(), 1);
    assert_eq!(mesh.routes().len(), mesh.desired.routes.len() + 1);
    assert_eq!(plan.findings.len(), 1);
}

#[test]
fn a_kernel_without_ipip_stops_only_those_who_cannot_do_without() {
    let mut facts = facts(&V4, 0);
    facts.host.ipip = Some(false);
    let with = |encapsulate| {
        let config = Config { encapsulate, ..config(&V4, "n0") };
        make(&config, &nodes(&V4), &[], &facts)
    };
    let always = with(Encapsulate::Always);
    assert_eq!(always.outcome, Outcome::TopologyError);
    assert!(always.error.expect("an error").contains("--encapsulate=never"));
    assert!(!always.annotations.is_empty());
    let cross = with(Encapsulate::CrossSubnet);
    assert_eq!((cross.outcome, cross.findings.len()), (Outcome::Ok, 1));
    assert!(cross.mesh.expect("a mesh").desired.links.iter().all(|l| l.kind != LinkKind::Ipip));
    assert!(with(Encapsulate::Never).findings.is_empty());
}

/// A tunnel that is up lets in whom the firewall does not keep out.
#[test]
fn ipip_is_filtered_wherever_a_tunnel_of_ours_is_up() {
    let nodes = nodes(&V4);
    let with = |encapsulate, full: bool, local: bool, addresses: &[&str]| {
        let granularity = if full { Granularity::Full } else { Granularity::Location };
        let config = Config { encapsulate, granularity, local, ..config(&V4, "n0") };
        let mut facts = facts(&V4, 0);
        facts.host.tunnel_addresses = addresses.iter().map(|net| net.parse().expect("an address")).collect();
        let mesh = make(&config, &nodes, &[], &facts).mesh.expect("a mesh");
        let tunnel = mesh.desired.links.iter().find(|link| link.dev == Dev::Tunnel);
        let tunnel = tunnel.map(|link| (link.up, link.create, link.addresses.as_ref().map(Vec::len)));
        (tunnel, mesh.desired.table.expect("a table").chains.contains_key("input"))
    };
    let up = Some((true, true, Some(1)));
    assert_eq!(with(Encapsulate::Always, false, true, &[]), (up, true));
    assert_eq!(with(Encapsulate::Always, true, true, &[]), (up, true), "nobody of ours sends IPIP");
    let others = Some((true, true, None));
    assert_eq!(with(Encapsulate::Always, false, false, &[]), (others, false), "whoever manages the location");
    assert_eq!(with(Encapsulate::Never, false, true, &[]), (None, false));
    // What --encapsulate=always left behind: it goes, and the filter only after it.
    let gone = Some((false, false, Some(0)));
    assert_eq!(with(Encapsulate::Never, false, true, &["10.42.0.1/32"]), (gone, true));
    assert_eq!(with(Encapsulate::Never, false, false, &["10.42.0.1/32"]), (gone, true));
    for foreign in [&["10.42.0.1/24"][..], &["10.42.0.1/32", "192.168.9.1/32"], &["10.42.1.1/32"]] {
        assert_eq!(with(Encapsulate::Never, false, true, foreign), (None, false), "{foreign:?}");
    }
}

#[test]
fn a_roaming_peer_is_not_called_back() {
    let laptop = peer("laptop", 9, &[V4.laptop]);
    let mut facts = facts(&V4, 0);
    let seen = |latest_handshake| DeviceFact {
        public_key: key(3),
        endpoint: "198.51.100.7:4000".parse().ok(),
        latest_handshake,
    };
    let endpoint = |facts: &Facts| {
        let plan = make(&config(&V4, "n0"), &nodes(&V4), std::slice::from_ref(&laptop), facts);
        let device = plan.mesh.expect("a mesh").desired.device.expect("a device");
        device.peers.into_iter().find(|p| p.public_key == key(3)).expect("the other leader").endpoint
    };
    facts.host.device = vec![seen(NOW - 10)];
    assert_eq!(endpoint(&facts), None);
    facts.host.device = vec![seen(NOW - 1000)];
    assert_eq!(endpoint(&facts), "203.0.113.3:51820".parse().ok());
    facts.host.device = vec![seen(NOW - 10)];
    facts.host.programmed = BTreeMap::from([(key(3), "192.0.2.1:1".parse().expect("an address"))]);
    assert_eq!(endpoint(&facts), "203.0.113.3:51820".parse().ok());
}

#[test]
fn a_name_that_does_not_resolve_costs_only_that_endpoint() {
    let mut nodes = nodes(&V4);
    nodes[2].endpoint = "gone.example:51820".parse().ok();
    let plan = make(&config(&V4, "n0"), &nodes, &[], &facts(&V4, 0));
    assert_eq!(plan.outcome, Outcome::Ok);
    assert_eq!(plan.findings.iter().map(|f| f.object.as_str()).collect::<Vec<_>>(), ["Node/n2"]);
    let device = plan.mesh.expect("a mesh").desired.device.expect("a device");
    assert_eq!(device.peers.iter().map(|p| p.endpoint).collect::<Vec<_>>(), [None]);
}

#[test]
fn the_oldest_peer_has_a_key() {
    let of_age = |name: &str, created: Option<&str>| Peer {
        created: created.map(Into::into),
        ..peer(name, 9, &[V4.laptop])
    };
    let who = |peers: &[Peer]| {
        let plan = make(&config(&V4, "n0"), &nodes(&V4), peers, &facts(&V4, 0));
        plan.mesh.expect("a mesh").topology.peers.iter().map(|p| p.name.to_string()).collect::<Vec<_>>()
    };
    let (old, new) = (Some("2025-01-01T00:00:00Z"), Some("2026-01-01T00:00:00Z"));
    assert_eq!(who(&[of_age("a", new), of_age("b", old)]), ["b"]);
    assert_eq!(who(&[of_age("b", old), of_age("a", old)]), ["a"]);
    assert_eq!(who(&[of_age("a", None), of_age("b", new)]), ["b"]);
}
