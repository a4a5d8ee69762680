//! Objects of strangers: read, understood and planned for without a panic. The plan is the same in whatever order
//! they come, and what it wants of a host is wanted no more once it is there.
#![no_main]

use kilo_file::{Objects, read_objects};
use kilo_mesh::{Config, Facts, Node, Peer, plan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let objects: Objects = read_objects("fuzz", text).into_iter().collect();
    let config = Config { hostname: "a".into(), node_expiry: 0, ..Config::default() };
    let mut nodes: Vec<Node> =
        objects.nodes.iter().map(|object| Node::from_object(object, &config.topology_label).0).collect();
    let mut peers: Vec<Peer> = objects.peers.iter().map(|object| Peer::from_object(object).0).collect();
    // Names are unique where objects come from.
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes.dedup_by(|a, b| a.name == b.name);
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    peers.dedup_by(|a, b| a.name == b.name);
    let host = kilo_mesh::HostFacts {
        public_key: nodes.iter().find_map(|node| node.key),
        internal_ip: "10.1.0.1/24".parse().ok(),
        external_ip: "203.0.113.1/24".parse().ok(),
        ..Default::default()
    };
    let facts = Facts { now: 1_767_225_600, host, ..Facts::default() };
    let ordered = plan(&config, &nodes.iter().collect::<Vec<_>>(), &peers.iter().collect::<Vec<_>>(), &facts);
    let turned = plan(
        &config,
        &nodes.iter().rev().collect::<Vec<_>>(),
        &peers.iter().rev().collect::<Vec<_>>(),
        &facts,
    );
    assert_eq!(ordered, turned, "the order of objects makes a difference");
    let Some(mesh) = ordered.mesh else { return };
    let mut observed = kilo_state::Observed::default();
    for _ in 0..2 {
        for op in kilo_state::diff(&mesh.desired, &observed) {
            kilo_state::apply(&mut observed, &op);
        }
    }
    assert_eq!(kilo_state::diff(&mesh.desired, &observed), vec![], "a host is never as it should be");
});
