//! Who leads once leaders are reported, and who looks after whom.

use std::collections::BTreeMap;

use kilo_mesh::{Config, Facts, LeaderFailover, Node, NodeObject, Topology, Way, marker};
use proptest::prelude::*;
use serde_json::json;

const NOW: u64 = 1_767_225_600;

/// A node whose location is the first letter of its name, with an agent of ours. Its addresses end in what its name is
/// in base 16: `a1` has 161.
fn node(name: &str) -> NodeObject {
    let n = u8::from_str_radix(name, 16).expect("a letter and a digit");
    let mut object: NodeObject = serde_json::from_value(json!({
        "metadata": {"name": name, "annotations": {
            "kilo.squat.ai/endpoint": format!("203.0.113.{n}:51820"),
            "kilo.squat.ai/internal-ip": format!("10.0.0.{n}/24"),
            "kilo.squat.ai/key": kilo_wireguard::PublicKey::from_bytes([n; 32]).to_string(),
            "kilo.squat.ai/last-seen": NOW.to_string(),
            "kilo.squat.ai/location": &name[..1],
        }},
        "spec": {"podCIDR": format!("10.42.{n}.0/24")},
    }))
    .expect("a Node");
    set(&mut object, "agent", &marker(&NOW.to_string(), LeaderFailover::DataPath));
    object
}

fn set(object: &mut NodeObject, annotation: &str, value: &str) {
    object.metadata.annotations.insert(format!("kilo.squat.ai/{annotation}"), value.to_owned());
}

/// The nodes of a mesh, some of which report others: `a2>a1`.
fn mesh(names: &str, reports: &str) -> Vec<NodeObject> {
    let mut told: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (by, whom) in reports.split_whitespace().filter_map(|report| report.split_once('>')) {
        told.entry(by).or_default().push(whom);
    }
    let mut objects: Vec<NodeObject> = names.split_whitespace().map(node).collect();
    for object in &mut objects {
        if let Some(whom) = told.get(object.metadata.name.as_str()) {
            set(object, "unreachable", &whom.join(","));
        }
    }
    objects
}

fn topology(local: &str, objects: &[NodeObject]) -> Topology {
    let nodes: Vec<Node> = objects.iter().map(|object| Node::from_object(object, "region").0).collect();
    let config = Config { hostname: local.into(), ..Config::default() };
    let facts = Facts { now: NOW, ..Facts::default() };
    Topology::new(&config, &nodes.iter().collect::<Vec<_>>(), &[], &facts).expect("a topology").0
}

fn leaders(topology: &Topology) -> Vec<String> {
    let leader = |segment| topology.leader_of(segment).expect("a leader").name.to_string();
    topology.segments.iter().map(leader).collect()
}

/// The leader of the first segment as everybody sees it.
fn leader(objects: &[NodeObject]) -> String {
    let local = &objects[0].metadata.name;
    leaders(&topology(local, objects)).remove(0)
}

#[test]
fn one_upstream_agent_that_is_there_makes_a_mesh_a_mixed_one() {
    let ours = mesh("a1 b1", "");
    assert!(topology("a1", &ours).all_ours);
    let mut never = ours.clone();
    never[1].metadata.annotations.remove("kilo.squat.ai/agent");
    assert!(!topology("a1", &never).all_ours);
    let mut taken_over = ours;
    set(&mut taken_over[1], "agent", &marker(&(NOW - 30).to_string(), LeaderFailover::DataPath));
    assert!(!topology("a1", &taken_over).all_ours);
    // Who does not take part is nobody to agree with.
    set(&mut never[1], "last-seen", &(NOW - 60).to_string());
    assert!(topology("a1", &never).all_ours);
}

#[test]
fn most_of_the_witnesses_depose_a_leader() {
    let three = "a1 a2 a3 b1 b2 c1";
    for (names, reports, leads) in [
        (three, "", "a1"),
        (three, "a2>a1", "a1"),
        (three, "a2>a1 b1>a1", "a1"),
        (three, "b1>a1 c1>a1", "a1"),
        (three, "a2>a1 b1>a1 c1>a1", "a2"),
        // All inside: it is no gateway to them.
        (three, "a2>a1 a3>a1", "a2"),
        // Not witnesses.
        (three, "a2>a1 b2>a1 c1>a1", "a1"),
        (three, "a1>a1 a2>a1 b1>a1", "a1"),
        // The next one as well.
        (three, "a2>a1 a3>a1 a1>a2 a3>a2", "a3"),
        // Nobody else is left.
        (three, "a2>a1 a3>a1 a1>a2 a3>a2 a1>a3 a2>a3", "a1"),
        ("a1 a2 b1 b2", "a2>a1 b1>a1", "a2"),
        ("a1 a2 b1 b2", "a2>a1", "a1"),
        ("a1 a2 b1 b2", "b1>a1", "a1"),
        ("a1 a2 b1 c1", "b1>a1 c1>a1", "a2"),
        ("a1 a2", "a2>a1", "a2"),
        ("a1 b1 c1", "b1>a1 c1>a1", "a1"),
        // The segment after the last is the first; a fifth has no say.
        ("a1 a2 b1 c1 d1 e1 f1", "b1>a1 c1>a1 d1>a1", "a2"),
        ("a1 a2 b1 c1 d1 e1 f1", "f1>a1 c1>a1 d1>a1", "a1"),
    ] {
        assert_eq!(leader(&mesh(names, reports)), leads, "{names}: {reports}");
    }
    // Another segment than the first: after the last comes the first.
    let six = "a1 b1 c1 d1 e1 e2 f1";
    for (reports, leads) in
        [("f1>e1 a1>e1 b1>e1", "e2"), ("d1>e1 a1>e1 b1>e1", "e1"), ("e2>e1 f1>e1 c1>e1", "e2")]
    {
        let objects = mesh(six, reports);
        assert_eq!(leaders(&topology("a1", &objects))[4], leads, "{six}: {reports}");
    }
    let mesh = mesh(three, "a2>a1 b1>a1 c1>a1 nobody>a2 b1>nobody");
    let deposed = topology("b2", &mesh).deposed;
    let told = serde_json::to_value(&deposed).expect("JSON");
    assert_eq!(deposed[0].to_string(), "a1 of location:a, reported by a2, b1, c1");
    let asked = topology("c1", &mesh).watches;
    assert_eq!(asked[1].to_string(), "a2, asked at 10.4.0.1");
    assert_eq!(told, json!([{"node": "a1", "segment": "location:a", "reportedBy": ["a2", "b1", "c1"]}]));
}

#[test]
fn a_volunteer_comes_first_and_after_it_those_without() {
    let mut objects = mesh("a1 a2 a3 b1 c1", "a1>a3 b1>a3 c1>a3");
    set(&mut objects[2], "leader", "");
    assert_eq!(leader(&objects), "a1");
    set(&mut objects[1], "leader", "");
    assert_eq!(leader(&objects), "a2", "volunteers by name");
    set(&mut objects[1], "unreachable", "a3");
    assert_eq!(leader(&objects), "a2");
}

#[test]
fn reports_count_only_of_those_who_are_there_and_among_us() {
    let reported = mesh("a1 a2 a3 b1", "a2>a1 a3>a1 b1>a1");
    assert_eq!(leader(&reported), "a2");
    let mut late = reported.clone();
    for place in [1, 2] {
        set(&mut late[place], "last-seen", &(NOW - 60).to_string());
    }
    assert_eq!(leader(&late), "a1", "it is alone");
    let mut mixed = reported.clone();
    mixed[3].metadata.annotations.remove("kilo.squat.ai/agent");
    assert_eq!(leader(&mixed), "a1", "upstream's agent knows no reports");
    let mut by_age = reported;
    set(&mut by_age[3], "agent", &marker(&NOW.to_string(), LeaderFailover::Age));
    assert_eq!(leader(&by_age), "a1", "one node wants it so");
    assert!(topology("a1", &by_age).all_ours && topology("a1", &by_age).watches.is_empty());
}

#[test]
fn more_reports_than_a_node_may_make_are_left_out_and_told() {
    let mut object = node("a1");
    let names: Vec<String> = (0..1000).map(|n| format!("n{n:04}")).collect();
    set(&mut object, "unreachable", &names.join(","));
    let (node, findings) = Node::from_object(&object, "region");
    assert_eq!(node.unreachable.len(), 64);
    assert!(findings.iter().any(|f| f.field == "kilo.squat.ai/unreachable"), "{findings:?}");
}

/// Whom a node looks after, as text.
fn watches(local: &str, objects: &[NodeObject]) -> String {
    let text = |way: Way| match way {
        Way::Probe(ip) => format!("={ip}"),
        Way::Wait => "?".to_owned(),
        Way::Keep => "!".to_owned(),
    };
    let watches = topology(local, objects).watches;
    watches.iter().map(|w| format!("{}{}", w.node, text(w.way))).collect::<Vec<_>>().join(" ")
}

#[test]
fn leaders_are_looked_after_from_inside_and_outside() {
    let objects = mesh("a1 a2 a3 a4 a5 b1 b2 c1", "");
    // The leader, and who comes next; through the tunnel the leaders of locations with more than one node.
    assert_eq!(watches("a1", &objects), "a2=10.0.0.162 b1=10.4.0.2");
    assert_eq!(watches("a2", &objects), "a1=10.0.0.161");
    assert_eq!(watches("a4", &objects), "a1=10.0.0.161 a2=10.0.0.162");
    assert_eq!(watches("a5", &objects), "");
    // In a location of two nobody inside can decide alone.
    assert_eq!(watches("b1", &objects), "a1=10.4.0.1");
    assert_eq!(watches("b2", &objects), "b1=10.0.0.177");
    assert_eq!(watches("c1", &objects), "a1=10.4.0.1 b1=10.4.0.2");
    // Single nodes are looked after by nobody.
    for local in ["a1", "b1", "c1"] {
        assert_eq!(watches(local, &mesh("a1 b1 c1", "")), "");
    }
}

#[test]
fn who_is_reported_is_looked_after_until_the_report_goes() {
    let nodes = "a1 a2 a3 b1 b2 c1";
    let objects = mesh(nodes, "a2>a1 a3>a1 b1>a1 c1>a1");
    assert_eq!(watches("a2", &objects), "a1=10.0.0.161 a3=10.0.0.163");
    assert_eq!(watches("a3", &objects), "a1=10.0.0.161 a2=10.0.0.162");
    // It has no tunnel any more; those inside have the say.
    assert_eq!(watches("b1", &objects), "a1! a2=10.4.0.1");
    // Only its way outside is cut: time tells.
    let objects = mesh("a1 a2 b1 b2 c1", "b1>a1 c1>a1");
    assert_eq!(watches("c1", &objects), "a1? a2=10.4.0.1 b1=10.4.0.2");
    // It leads again.
    assert_eq!(watches("c1", &mesh(nodes, "c1>a1")), "a1=10.4.0.1 b1=10.4.0.2");
    // It is not there, or is gone for good.
    let mut objects = mesh(nodes, "a2>a1 b1>a1,zz");
    set(&mut objects[0], "last-seen", "7");
    assert_eq!(watches("a2", &objects), "a1! b1=10.4.0.2");
    assert_eq!(watches("b1", &objects), "a1! a2=10.4.0.1");
    // Where reports do not count, they lapse.
    let mut objects = mesh(nodes, "a2>a1");
    objects[5].metadata.annotations.remove("kilo.squat.ai/agent");
    assert_eq!(watches("a2", &objects), "a1?");
}

/// Up to fourteen nodes of up to four locations, each with up to four reports.
fn meshes() -> impl Strategy<Value = Vec<NodeObject>> {
    let names = proptest::sample::subsequence(
        "a1 a2 a3 a4 a5 b1 b2 b3 b4 c1 c2 c3 d1 d2".split(' ').collect::<Vec<_>>(),
        1..14,
    );
    names.prop_flat_map(|names| {
        let one = proptest::sample::subsequence(names.clone(), 0..=names.len().min(4));
        let volunteers = proptest::collection::vec(prop::bool::weighted(0.2), names.len());
        (proptest::collection::vec(one, names.len()), volunteers).prop_map(move |(reports, volunteers)| {
            let mut objects: Vec<NodeObject> = names.iter().map(|name| node(name)).collect();
            for ((object, whom), volunteer) in objects.iter_mut().zip(reports).zip(volunteers) {
                set(object, "unreachable", &whom.join(","));
                if volunteer {
                    set(object, "leader", "");
                }
            }
            objects
        })
    })
}

proptest! {
    #[test]
    fn everybody_comes_to_the_same_leaders(objects in meshes(), seed in any::<prop::sample::Index>()) {
        let mut turned = objects.clone();
        turned.rotate_left(seed.index(objects.len()));
        turned.reverse();
        let first = topology(&objects[0].metadata.name, &objects);
        for object in &objects {
            let here = topology(&object.metadata.name, &turned);
            prop_assert_eq!(leaders(&here), leaders(&first));
            prop_assert_eq!(&here.deposed, &first.deposed);
            prop_assert_eq!(&here.watches, &topology(&object.metadata.name, &objects).watches);
            // Nobody looks after more than is bounded: the leader, the next, four outside, and its own reports.
            prop_assert!(here.watches.len() <= 2 + 4 + 4);
        }
        for out in &first.deposed {
            prop_assert!(!leaders(&first).contains(&out.node.to_string()));
        }
    }

    #[test]
    fn with_one_upstream_agent_the_leaders_are_those_of_upstream(
        objects in meshes(),
        which in any::<prop::sample::Index>(),
    ) {
        let mut mixed = objects.clone();
        mixed[which.index(objects.len())].metadata.annotations.remove("kilo.squat.ai/agent");
        let mut silent = objects.clone();
        silent.iter_mut().for_each(|object| set(object, "unreachable", ""));
        let local = &objects[0].metadata.name;
        let mixed = topology(local, &mixed);
        prop_assert_eq!(leaders(&mixed), leaders(&topology(local, &silent)));
        prop_assert!(mixed.deposed.is_empty());
    }
}
