//! A plan that follows single Peers is the whole plan, and so are the operations that follow from it.

use std::cell::Cell;
use std::collections::BTreeMap;

use kilo_mesh::{
    Config, DeviceFact, DnsOrIp, Facts, HostFacts, Metadata, Node, NodeObject, NodeSpec, PREFIX, Peer,
    PeerChange, PeerEndpoint, PeerObject, PeerSpec, Plan, Planner, SecretText,
};
use kilo_state::{Desired, Observed, ObservedLink, ObservedRoute, Op, PROTOCOL, apply, diff, diff_touched};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::random::{NOW, config, facts, key, make, objects, peer};

/// A Peer that seldom gets in the way of others; its ranges adjoin and hold one another.
fn calm_peer(i: usize) -> impl Strategy<Value = PeerObject> {
    let range = prop_oneof![
        4 => (0..6_usize).prop_map(move |k| format!("10.100.0.{}/32", i * 6 + k)),
        3 => (0..3_usize, 30..=32_u8).prop_map(move |(k, len)| format!("10.100.1.{}/{len}", i * 16 + k * 4 + 1)),
        2 => (0..3_usize).prop_map(move |k| format!("fd10::{i}:{k}/{}", 112 + k)),
        1 => prop_oneof![Just("10.96.0.0/12"), Just("10.42.0.0/16"), Just("0.0.0.0/0"), Just("10.100.0.0/26"), Just("::/0")]
            .prop_map(str::to_owned),
    ];
    let endpoint = prop_oneof![
        3 => Just(None),
        1 => Just(Some(("known.example", ""))),
        1 => Just(Some(("", "203.0.113.77"))),
        1 => Just(Some(("unknown.example", ""))),
    ];
    let basics = (0..8_u8, prop::collection::vec(range, 1..4), prop_oneof![Just(0), Just(25)], any::<bool>());
    (basics, endpoint).prop_map(move |((turn, allowed_ips, keepalive, secret), endpoint)| PeerObject {
        metadata: Metadata { name: format!("p{i}"), ..Metadata::default() },
        spec: PeerSpec {
            allowed_ips,
            // The keys below 16 are those of others, and of peers that the device knows.
            public_key: key(if turn < 3 { 8 + i as u8 } else { 20 + 2 * i as u8 + turn % 2 }).to_string(),
            persistent_keepalive: Some(keepalive),
            preshared_key: secret.then(|| SecretText::new(key(200).to_string())),
            endpoint: endpoint.map(|(dns, ip)| PeerEndpoint {
                dns_or_ip: DnsOrIp { dns: dns.to_owned(), ip: ip.to_owned() },
                port: 51820,
            }),
        },
    })
}

/// Some Peers as they are from now on, and how many seconds have gone by.
type Step = (Vec<(usize, Option<PeerObject>)>, u64);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = (0..6_usize).prop_flat_map(|i| {
        let object = prop_oneof![
            2 => Just(None),
            6 => calm_peer(i).prop_map(Some),
            1 => peer(i).prop_map(Some),
        ];
        (Just(i), object)
    });
    let later = prop_oneof![3 => Just(0), 1 => 0..100_u64];
    prop::collection::vec((prop::collection::vec(change, 1..3), later), 1..12)
}

/// A kernel that is as planned.
fn as_planned(desired: &Desired) -> Observed {
    let links = desired.links.iter().map(|link| ObservedLink {
        dev: link.dev,
        name: link.name.clone(),
        index: 1,
        mtu: link.mtu.unwrap_or(1500),
        up: link.up,
        addresses: link.addresses.clone().unwrap_or_default(),
    });
    let mut sysctls = desired.sysctls.clone();
    sysctls.entry("net/ipv6/conf/all/forwarding".into()).or_insert("0".into());
    Observed {
        links: links.collect(),
        device: desired.device.clone(),
        routes: desired.routes.iter().map(|&route| ObservedRoute { route, protocol: PROTOCOL }).collect(),
        rules: desired.rules.clone(),
        table: desired.table.clone(),
        forward: desired.forward.clone(),
        leftovers: Vec::new(),
        sysctls,
        cni: desired.cni.clone(),
    }
}

fn desired(plan: &Plan) -> Option<&Desired> {
    plan.mesh.as_ref().map(|mesh| &mesh.desired)
}

/// Carries operations out, and keeps in mind what the device was told.
fn carry_out(ops: &[Op], observed: &mut Observed, facts: &mut Facts) {
    for op in ops {
        apply(observed, op);
        #[allow(clippy::wildcard_enum_match_arm, reason = "only peers have endpoints")]
        let told = match op {
            Op::AddPeer(peer) => Some((peer.public_key, peer.endpoint)),
            Op::UpdatePeer(change) if change.endpoint.is_some() => Some((change.public_key, change.endpoint)),
            Op::RemovePeer(key) => Some((*key, None)),
            _ => None,
        };
        match told {
            Some((key, Some(endpoint))) => drop(facts.host.programmed.insert(key, endpoint)),
            Some((key, None)) => drop(facts.host.programmed.remove(&key)),
            None => {}
        }
    }
}

/// Follows the steps; tells how many could be followed without a whole plan.
fn follow(
    config: &Config,
    nodes: &[Node],
    first: Vec<Peer>,
    mut facts: Facts,
    steps: Vec<Step>,
) -> Result<u32, TestCaseError> {
    let by_ref: Vec<&Node> = nodes.iter().collect();
    let mut peers: BTreeMap<String, Peer> = first.into_iter().map(|p| (p.name.to_string(), p)).collect();
    let mut planner = Planner::new(config, &by_ref, &peers.values().collect::<Vec<_>>(), &facts);
    let Some(mut observed) = desired(planner.plan()).map(as_planned) else { return Ok(0) };
    let mut simple = 0;
    for (changes, later) in steps {
        let ready = |now| nodes.iter().map(|n| n.ready(now, config.node_expiry)).collect::<Vec<_>>();
        let same_nodes = ready(facts.now) == ready(facts.now + later);
        facts.now += later;
        let before = peers.clone();
        let mut names: Vec<String> = Vec::new();
        for (i, object) in changes {
            let name = format!("p{i}");
            match object {
                Some(object) => drop(peers.insert(name.clone(), Peer::from_object(&object).0)),
                None => drop(peers.remove(&name)),
            }
            names.push(name);
        }
        names.sort();
        names.dedup();
        let changes: Vec<PeerChange<'_>> =
            names.iter().map(|name| PeerChange { old: before.get(name), new: peers.get(name) }).collect();
        let all: Vec<Peer> = peers.values().cloned().collect();
        let whole = make(config, nodes, &all, &facts);
        let followed = planner.clone().change(config, &facts, &changes).ok().filter(|_| same_nodes);
        let Some(want) = desired(&whole) else { return Ok(simple) };
        let all_ops = diff(want, &observed);
        planner = match followed {
            Some((planner, touched)) => {
                prop_assert_eq!(planner.plan(), &whole);
                prop_assert_eq!(&diff_touched(want, &observed, &touched), &all_ops);
                simple += 1;
                planner
            }
            None => Planner::new(config, &by_ref, &all.iter().collect::<Vec<_>>(), &facts),
        };
        carry_out(&all_ops, &mut observed, &mut facts);
        prop_assert_eq!(diff(want, &observed), vec![]);
    }
    Ok(simple)
}

#[test]
fn a_followed_plan_is_the_whole_plan() {
    let input = (config(), objects(), facts(), steps(), prop::option::of(Just("10.96.0.0/12")));
    let (simple, all) = (Cell::new(0), Cell::new(0));
    let settings = ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() };
    let result = TestRunner::new(settings).run(&input, |(config, (nodes, peers), facts, steps, services)| {
        let service_cidrs = services.iter().map(|net| net.parse().expect("a range")).collect();
        let config = Config { service_cidrs, ..config };
        let nodes: Vec<Node> = nodes.iter().map(|o| Node::from_object(o, "region").0).collect();
        let peers: Vec<Peer> = peers.iter().map(|o| Peer::from_object(o).0).collect();
        all.set(all.get() + steps.len() as u32);
        simple.set(simple.get() + follow(&config, &nodes, peers, facts, steps)?);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    eprintln!("{} of {} steps were followed", simple.get(), all.get());
    assert!(simple.get() > all.get() / 8, "{} of {} steps were followed", simple.get(), all.get());
}

/// A Peer that the device has seen goes and comes, while another node has seen it elsewhere.
#[test]
fn what_others_have_seen_counts_as_long_as_the_device_has_seen_nothing() {
    let node = |name: &str, n: u8, more: (&str, String)| {
        let annotations = [
            ("endpoint", format!("203.0.113.{n}:51820")),
            ("internal-ip", format!("10.0.{n}.1/24")),
            ("key", key(n).to_string()),
            ("location", format!("l{n}")),
            ("last-seen", NOW.to_string()),
            more,
        ];
        let annotations = annotations.map(|(k, v)| (format!("{PREFIX}{k}"), v)).into();
        let metadata = Metadata { name: name.into(), annotations, ..Metadata::default() };
        let spec = NodeSpec { pod_cidr: format!("10.42.{n}.0/24"), pod_cidrs: Vec::new() };
        Node::from_object(&NodeObject { metadata, spec }, "region").0
    };
    let seen = format!(r#"{{"{}":{{"IP":"203.0.113.50","Port":7}}}}"#, key(50));
    let nodes = [node("n0", 1, ("leader", String::new())), node("n1", 2, ("discovered-endpoints", seen))];
    let object = PeerObject {
        metadata: Metadata { name: "p".into(), ..Metadata::default() },
        spec: PeerSpec {
            allowed_ips: vec!["10.100.0.1/32".into()],
            public_key: key(50).to_string(),
            persistent_keepalive: Some(25),
            ..PeerSpec::default()
        },
    };
    let peer = Peer::from_object(&object).0;
    let config = Config { hostname: "n0".into(), ..Config::default() };
    let device = vec![DeviceFact {
        public_key: key(50),
        endpoint: "198.51.100.9:9".parse().ok(),
        latest_handshake: NOW - 10,
    }];
    let host = HostFacts { public_key: Some(key(1)), device, ..HostFacts::default() };
    let facts = Facts { now: NOW, host, ..Facts::default() };
    let by_ref: Vec<&Node> = nodes.iter().collect();
    let whole = |peers: &[&Peer]| Planner::new(&config, &by_ref, peers, &facts);
    let seen_at = |planner: &Planner| {
        let mesh = planner.plan().mesh.as_ref().expect("a mesh");
        mesh.topology.discovered_endpoints.get(&key(50)).map(ToString::to_string)
    };
    let go = PeerChange { old: Some(&peer), new: None };
    let (gone, _) = whole(&[&peer]).change(&config, &facts, &[go]).expect("a simple change");
    assert_eq!(seen_at(&gone).as_deref(), Some("203.0.113.50:7"));
    assert_eq!(gone.plan(), whole(&[]).plan());
    let come = PeerChange { old: None, new: Some(&peer) };
    let (back, _) = gone.change(&config, &facts, &[come]).expect("a simple change");
    assert_eq!(seen_at(&back).as_deref(), Some("198.51.100.9:9"));
    assert_eq!(back.plan(), whole(&[&peer]).plan());
}
