//! What a plan makes of what agents of Kilo and of its forks have left: annotations, and rules of
//! iptables-legacy.

use kilo_mesh::{Compatibility, Config, Facts, HostFacts, LegacyTable, Node, NodeObject, Plan, plan};
use serde_json::json;

const NOW: u64 = 1_767_225_600;
const OLD: &str = "kilo.squat.ai/cilium-internal-ip";
const NEW: &str = "kilo.squat.ai/cni-compatibility-ip";

/// A node with one annotation more than every agent writes.
fn node(n: u8, annotations: &[(&str, &str)]) -> Node {
    let mut object: NodeObject = serde_json::from_value(json!({
        "metadata": {"name": format!("n{n}"), "annotations": {
            "kilo.squat.ai/endpoint": format!("203.0.113.{n}:51820"),
            "kilo.squat.ai/internal-ip": format!("10.0.0.{n}/24"),
            "kilo.squat.ai/key": kilo_wireguard::PublicKey::from_bytes([n; 32]).to_string(),
            "kilo.squat.ai/last-seen": NOW.to_string(),
        }},
        "spec": {"podCIDR": format!("10.42.{n}.0/24")},
    }))
    .expect("a Node");
    for (name, value) in annotations {
        object.metadata.annotations.insert((*name).to_owned(), (*value).to_owned());
    }
    Node::from_object(&object, "region").0
}

fn plan_of_n1(nodes: &[Node], host: HostFacts) -> Plan {
    let config = Config { hostname: "n1".into(), compatibility: Compatibility::Cilium, ..Config::default() };
    let facts = Facts { now: NOW, host, ..Facts::default() };
    plan(&config, &nodes.iter().collect::<Vec<_>>(), &[], &facts)
}

fn cilium_host(text: &str) -> HostFacts {
    HostFacts {
        cni_compatibility_ip: Some(text.parse().expect("a range")),
        internal_ip: Some("10.0.0.1/24".parse().expect("a range")),
        ..HostFacts::default()
    }
}

/// An agent of a fork knows a neighbour's address inside Cilium only by the old annotation.
#[test]
fn the_old_annotation_follows_while_a_fork_is_there() {
    let nodes = [node(1, &[(OLD, "10.0.1.7")]), node(2, &[(OLD, "10.0.2.7")])];
    let plan = plan_of_n1(&nodes, cilium_host("10.0.1.8/32"));
    assert_eq!(plan.annotations[OLD], "10.0.1.8");
    assert_eq!(plan.annotations[NEW], "10.0.1.8/32");
    assert!(plan.withdrawn.is_empty());
}

#[test]
fn the_old_annotation_goes_with_the_last_fork() {
    // The other node has both: its agent has been replaced, too.
    let nodes = [node(1, &[(OLD, "10.0.1.7")]), node(2, &[(OLD, "10.0.2.7"), (NEW, "10.0.2.7/32")])];
    let plan = plan_of_n1(&nodes, cilium_host("10.0.1.8/32"));
    assert_eq!(plan.withdrawn, [OLD]);
    assert!(!plan.annotations.contains_key(OLD));
    // Where there is none, none is missed; and the other node's is not ours.
    let nodes = [node(1, &[]), node(2, &[(OLD, "10.0.2.7")])];
    let plan = plan_of_n1(&nodes, cilium_host("10.0.1.8/32"));
    assert!(plan.withdrawn.is_empty() && !plan.annotations.contains_key(OLD));
}

/// The gateway to a node of a fork is what its old annotation says.
#[test]
fn a_fork_is_reached_by_its_old_annotation() {
    let nodes = [node(1, &[]), node(2, &[(OLD, "10.0.2.7")])];
    let plan = plan_of_n1(&nodes, cilium_host("10.0.1.8/32"));
    let routes = &plan.mesh.expect("a mesh").desired.routes;
    let to_pods = routes.iter().find(|r| r.dst.to_string() == "10.42.2.0/24").expect("a route");
    assert_eq!(to_pods.via, Some("10.0.2.7".parse().unwrap()));
}

#[test]
fn a_table_of_iptables_legacy_is_told_with_its_command() {
    let left = |ipv6, table: &str, chains: &[&str]| LegacyTable {
        ipv6,
        table: table.to_owned(),
        rules: 12,
        chains: chains.iter().map(|chain| (*chain).to_owned()).collect(),
    };
    let legacy_leftovers = vec![left(false, "nat", &["KILO-NAT"]), left(true, "filter", &[])];
    let host = HostFacts { legacy_leftovers, ..cilium_host("10.0.1.8/32") };
    let plan = plan_of_n1(&[node(1, &[])], host);
    let told: Vec<_> = plan.findings.iter().filter(|f| f.field.ends_with("tables-legacy")).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!((told[0].field.as_str(), told[0].value.as_str()), ("ip6tables-legacy", "filter"));
    assert!(told[1].reason.ends_with(
        "run: { echo '*nat'; iptables-legacy-save -t nat | sed -n '/\"Kilo: /s/^-A/-D/p'; echo -X KILO-NAT; \
         echo COMMIT; } | iptables-legacy-restore --noflush"
    ), "{}", told[1].reason);
}
