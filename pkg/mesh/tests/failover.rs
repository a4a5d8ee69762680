//! Who runs an agent of ours, and who leads once leaders are reported.

use kilo_mesh::{Config, Facts, Node, NodeObject, Topology};
use serde_json::json;

const NOW: u64 = 1_767_225_600;

/// A node of a location; with a marker that fits, none, or one of an earlier check-in.
fn node(name: &str, n: u8, location: &str, marker: Option<u64>) -> NodeObject {
    let mut object: NodeObject = serde_json::from_value(json!({
        "metadata": {"name": name, "annotations": {
            "kilo.squat.ai/endpoint": format!("203.0.113.{n}:51820"),
            "kilo.squat.ai/internal-ip": format!("10.0.0.{n}/24"),
            "kilo.squat.ai/key": kilo_wireguard::PublicKey::from_bytes([n; 32]).to_string(),
            "kilo.squat.ai/last-seen": NOW.to_string(),
            "kilo.squat.ai/location": location,
        }},
        "spec": {"podCIDR": format!("10.42.{n}.0/24")},
    }))
    .expect("a Node");
    if let Some(time) = marker {
        let marker = kilo_mesh::marker(&time.to_string());
        object.metadata.annotations.insert("kilo.squat.ai/agent".into(), marker);
    }
    object
}

fn topology(local: &str, objects: &[NodeObject]) -> Topology {
    let nodes: Vec<Node> = objects.iter().map(|object| Node::from_object(object, "region").0).collect();
    let config = Config { hostname: local.into(), ..Config::default() };
    let facts = Facts { now: NOW, ..Facts::default() };
    Topology::new(&config, &nodes.iter().collect::<Vec<_>>(), &[], &facts).expect("a topology").0
}

#[test]
fn one_upstream_agent_that_is_there_makes_a_mesh_a_mixed_one() {
    let ours = [node("a1", 1, "a", Some(NOW)), node("b1", 2, "b", Some(NOW))];
    assert!(topology("a1", &ours).all_ours);
    let never = [ours[0].clone(), node("b1", 2, "b", None)];
    assert!(!topology("a1", &never).all_ours);
    let taken_over = [ours[0].clone(), node("b1", 2, "b", Some(NOW - 30))];
    assert!(!topology("a1", &taken_over).all_ours);
    // Who does not take part is nobody to agree with.
    let mut gone = node("b1", 2, "b", None);
    gone.metadata.annotations.insert("kilo.squat.ai/last-seen".into(), (NOW - 60).to_string());
    assert!(topology("a1", &[ours[0].clone(), gone]).all_ours);
}
