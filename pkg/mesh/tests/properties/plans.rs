//! What holds for plans of any objects: the order of the input does not matter, nothing panics, and a host
//! can have what is desired.

use std::collections::BTreeSet;

use ipnet::IpNet;
use kilo_mesh::{Config, Facts, Metadata, Node, NodeObject, NodeSpec, PREFIX, Peer, Plan};
use proptest::prelude::*;

use crate::random::{config, facts, make, objects};

fn ascending<T: Ord>(list: &[T]) -> bool {
    list.windows(2).all(|w| w[0] < w[1])
}

/// The kernel takes it as it is, and reading it back gives the same.
fn check_possible(plan: &Plan) {
    let Some(mesh) = &plan.mesh else { return };
    let d = &mesh.desired;
    assert!(ascending(&d.routes) && ascending(&d.rules), "{:?} {:?}", d.routes, d.rules);
    let mut identities = BTreeSet::new();
    for r in &d.routes {
        assert!(identities.insert((r.table, r.dst)), "twice: {r:?}");
        assert_eq!(r.dst, r.dst.trunc());
        assert!(r.via.into_iter().chain(r.src).all(|ip| ip.is_ipv4() == r.dst.addr().is_ipv4()), "{r:?}");
        assert!(!r.onlink || r.via.is_some(), "{r:?}");
    }
    for r in &d.rules {
        assert!(r.src.is_none_or(|s| s.addr().is_ipv4() == r.dst.addr().is_ipv4()), "{r:?}");
    }
    let device = d.device.as_ref().expect("a device");
    assert!(ascending(&device.peers.iter().map(|p| p.public_key).collect::<Vec<_>>()));
    let mut ranges = BTreeSet::new();
    for p in &device.peers {
        assert!(ascending(&p.allowed_ips));
        for net in &p.allowed_ips {
            assert_eq!(*net, net.trunc());
            assert!(ranges.insert(*net), "{net} is with two peers");
        }
    }
    let up = d.links.iter().any(|l| l.dev == kilo_state::Dev::WireGuard && l.up);
    assert_eq!(up, mesh.topology.leader);
    assert!(up || device.peers.is_empty());
}

/// No Peer has a range within one of a node's.
fn check_claims(plan: &Plan, nodes: &[Node]) {
    let Some(mesh) = &plan.mesh else { return };
    let mut owned: Vec<IpNet> = nodes.iter().flat_map(|n| n.subnets().collect::<Vec<_>>()).collect();
    owned.extend(mesh.topology.segments.iter().map(|s| IpNet::from(s.wireguard_ip)));
    for net in mesh.topology.peer_ranges() {
        assert!(!owned.iter().any(|o| o.contains(net)), "{net} belongs to a node");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_do_not_depend_on_the_order_of_objects(
        config in config(),
        (nodes, peers) in objects(),
        facts in facts(),
        turn in 0..6_usize,
    ) {
        let nodes: Vec<Node> = nodes.iter().map(|o| Node::from_object(o, "region").0).collect();
        let peers: Vec<Peer> = peers.iter().map(|o| Peer::from_object(o).0).collect();
        let first = make(&config, &nodes, &peers, &facts);
        check_possible(&first);
        check_claims(&first, &nodes);
        let (mut nodes, mut peers, mut facts) = (nodes, peers, facts);
        let by = |len: usize| if len == 0 { 0 } else { turn % len };
        let (n, p) = (by(nodes.len()), by(peers.len()));
        nodes.rotate_left(n);
        peers.rotate_left(p);
        peers.reverse();
        facts.host.device.sort_by_key(|p| p.public_key);
        let mut again = make(&config, &nodes, &peers, &facts);
        // Where a device has a key twice in the made-up facts, either may count.
        let keys: BTreeSet<_> = facts.host.device.iter().map(|p| p.public_key).collect();
        if keys.len() == facts.host.device.len() {
            prop_assert_eq!(format!("{first:?}"), format!("{again:?}"));
            again = make(&config, &nodes, &peers, &facts);
            prop_assert_eq!(first, again);
        }
    }

    #[test]
    fn any_annotation_is_understood_or_reported(name in "[a-z-]{1,24}", value in ".{0,64}") {
        for name in kilo_mesh::WRITTEN.iter().map(|n| (*n).to_owned()).chain([
            name, "force-endpoint".into(), "force-internal-ip".into(), "allowed-location-ips".into(), "persistent-keepalive".into(),
        ]) {
            let metadata = Metadata {
                name: "n0".into(),
                annotations: [(format!("{PREFIX}{name}"), value.clone())].into(),
                ..Metadata::default()
            };
            let object = NodeObject { metadata, spec: NodeSpec { pod_cidr: value.clone(), pod_cidrs: vec![value.clone()] } };
            let (node, findings) = Node::from_object(&object, &name);
            prop_assert!(node.subnet.is_some() || findings.iter().any(|f| f.field == "spec.podCIDR"));
            make(&Config { hostname: "n0".into(), ..Config::default() }, &[node], &[], &Facts::default());
        }
    }
}
