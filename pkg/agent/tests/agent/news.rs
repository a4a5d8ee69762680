//! What the mesh's loop tells the enforcer: ways and owners of addresses.

use std::collections::BTreeSet;

use ipnet::IpNet;
use kilo_agent::mesh_facts;
use kilo_mesh::{Config, Encapsulate, Node, Peer, plan};
use kilo_policy::{MeshFacts, Owner};
use kilo_testkit::{Objects, cluster};

/// The facts of a node of a cluster of 20 nodes in two locations, the even ones in the first, of which node-00000 leads.
fn facts(objects: &Objects, hostname: &str, encapsulate: Encapsulate) -> MeshFacts {
    let config = Config { hostname: hostname.to_owned(), encapsulate, ..objects.config() };
    let mut machine = objects.facts();
    if hostname != "node-00000" {
        let host = &mut machine.host;
        host.public_key = Some(kilo_testkit::key(hostname));
        host.internal_ip = "172.16.0.2/24".parse().ok();
        host.external_ip = "198.18.0.3/15".parse().ok();
    }
    let nodes: Vec<Node> =
        objects.nodes.iter().map(|object| Node::from_object(object, &config.topology_label).0).collect();
    let peers: Vec<Peer> = objects.peers.iter().map(|object| Peer::from_object(object).0).collect();
    let plan = plan(&config, &nodes.iter().collect::<Vec<_>>(), &peers.iter().collect::<Vec<_>>(), &machine);
    let mesh = plan.mesh.unwrap_or_else(|| panic!("no mesh: {:?}", plan.error));
    mesh_facts(&mesh, &config, &machine.host)
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

#[test]
fn each_address_is_somebodys_and_other_locations_come_by_wireguard() {
    let objects = cluster(20, 3);
    let facts = facts(&objects, "node-00000", Encapsulate::Always);
    assert!(facts.leader);
    assert_eq!(facts.bindings[&net("10.5.0.2/32")], Owner::Peer("peer-00001".into()));
    assert_eq!(facts.bindings[&net("172.16.0.2/32")], Owner::Node("node-00002".into()));
    assert_eq!(facts.bindings[&net("172.16.1.1/32")], Owner::Node("node-00001".into()));
    assert_eq!(facts.own_pods, BTreeSet::from([net("10.64.0.0/24")]));
    assert_eq!(facts.all_pods.len(), 20);
    // Node 1 is elsewhere, node 2 here.
    assert!(facts.segments.contains(&net("10.64.1.0/24")) && !facts.segments.contains(&net("10.64.2.0/24")));
    assert!(facts.plain.is_empty(), "{:?}", facts.plain);
    assert_eq!(facts.leaders.iter().map(ToString::to_string).collect::<Vec<_>>(), ["172.16.0.1"]);
    assert!(
        facts.own.contains(&net("172.16.0.1/24")) && facts.own.contains(&net("10.64.0.1/32")),
        "{:?}",
        facts.own
    );
    assert!(facts.links.wireguard.contains("kilo0") && facts.links.tunnels.contains("tunl0"));
}

#[test]
fn what_comes_plain_is_what_the_strategy_sends_plain() {
    let objects = cluster(20, 3);
    let leader = facts(&objects, "node-00000", Encapsulate::Never);
    assert!(leader.plain.contains(&net("10.64.2.0/24")) && !leader.plain.contains(&net("10.64.1.0/24")));
    assert!(!leader.plain.contains(&net("10.5.0.1/32")), "nobody but the leader brings peers");
    let member = facts(&objects, "node-00002", Encapsulate::Never);
    assert!(!member.leader);
    for relayed in ["10.64.0.0/24", "10.64.1.0/24", "10.5.0.1/32"] {
        assert!(member.plain.contains(&net(relayed)), "{relayed}: {:?}", member.plain);
    }
    assert!(!member.plain.contains(&net("10.64.2.0/24")), "one's own pods do not come from outside");
    assert!(member.links.tunnels.is_empty());
    // All of a location are in one network here.
    let near = facts(&objects, "node-00002", Encapsulate::CrossSubnet);
    assert_eq!(near.plain, member.plain);
}
