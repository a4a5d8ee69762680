//! Profiles and sets as a kernel would use them: looked up by addresses alone. They must say what the evaluator says.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kilo_policy::{
    Direction, End, Evaluator, Options, Peers, Ports, Profile, Profiles, Protocol, Snapshot, Traffic, Who,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{random, snapshot};

/// What the profile of `subject` says about a packet between it and `other`; nothing where the subject has none.
fn says(
    made: &Profiles,
    direction: Direction,
    subject: IpAddr,
    other: IpAddr,
    traffic: Traffic,
) -> Option<bool> {
    let (ingress, egress) = *made.dispatch.get(&subject)?;
    let profile = match direction {
        Direction::Ingress => ingress,
        Direction::Egress => egress,
    };
    let entries = match &made.profiles[profile] {
        Profile::Open => return Some(true),
        Profile::Held => return Some(false),
        Profile::Isolated(entries) => entries,
    };
    let ports = |ports: &Ports| match (ports, traffic) {
        (Ports::Everything, _) => true,
        (Ports::All(p), Traffic::Port(protocol, _)) => *p == protocol,
        (Ports::Numbers(p, first, last), Traffic::Port(protocol, port)) => {
            *p == protocol && *first <= port && port <= *last
        }
        (Ports::Named(p, name), Traffic::Port(protocol, port)) => {
            *p == protocol && made.named[&(protocol, name.clone())].contains(&(other, port))
        }
        (_, Traffic::Icmp(_) | Traffic::Icmpv6(_) | Traffic::Other(_)) => false,
    };
    let peers = |peers: &Peers| {
        peers.everybody
            || peers.addresses.contains(other)
            || peers.pods.iter().any(|set| made.sets[set].contains(&other))
    };
    Some(entries.iter().any(|(p, who)| ports(p) && peers(who)))
}

fn all_pods(evaluator: &Evaluator<'_>) -> Profiles {
    Profiles::new(evaluator, |_| true)
}

proptest! {
    #[test]
    fn profiles_and_sets_say_what_the_evaluator_says(objects in random::cluster()) {
        let (snapshot, _) = snapshot(&objects);
        let evaluator = Evaluator::new(&snapshot, Options::default());
        let made = all_pods(&evaluator);
        let mut ends: Vec<End<'_>> = evaluator.ends().flat_map(|(_, _, ends)| ends).collect();
        // Where a packet comes from is known by the hook; these are the ends that are known by their address.
        ends.retain(|end| matches!(end.who, Who::Pod(_)));
        ends.extend(["198.51.100.7", "10.0.1.5", "2001:db8::7"].map(|ip| evaluator.at(ip.parse().expect("an address"))));
        let traffic = [
            Traffic::Port(Protocol::Tcp, 80), Traffic::Port(Protocol::Tcp, 82), Traffic::Port(Protocol::Udp, 81),
            Traffic::Port(Protocol::Sctp, 79), Traffic::Icmp(8), Traffic::Other(47),
        ];
        for (subject, other) in ends.iter().flat_map(|a| ends.iter().map(move |b| (a, b))) {
            if subject.address == other.address || subject.address.is_ipv4() != other.address.is_ipv4() {
                continue;
            }
            if let (Who::Pod(a), Who::Pod(b)) = (&subject.who, &other.who) && std::ptr::eq(a.pod, b.pod) {
                continue;
            }
            for (direction, traffic) in [Direction::Ingress, Direction::Egress].into_iter().flat_map(|d| traffic.map(|t| (d, t))) {
                let want = evaluator.verdict(direction, subject, other, traffic).map(|verdict| verdict.allowed);
                let got = says(&made, direction, subject.address, other.address, traffic);
                prop_assert_eq!(got, want, "{:?} {} {} {:?}", direction, subject.address, other.address, traffic);
            }
        }
    }

    #[test]
    fn joined_ranges_hold_what_the_blocks_hold(
        blocks in prop::collection::vec((random::range(), prop::collection::vec(random::range(), 0..4)), 1..5),
        addresses in prop::collection::vec(any::<u32>(), 8),
    ) {
        let rules: Vec<_> = blocks.iter().map(|(cidr, except)| json!({"ipBlock": {"cidr": cidr, "except": except}})).collect();
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "a", "name": "p"},
            "spec": {"ingress": [{"from": rules}]}});
        let (snapshot, _) = snapshot(&[policy]);
        let (_, _, policy) = snapshot.policies().next().expect("a policy");
        let blocks: Vec<_> = policy.ingress.iter().flat_map(|rules| rules.iter())
            .flat_map(|rule| rule.peers.iter().flat_map(|peers| peers.iter()))
            .filter_map(|peer| match peer {
                kilo_policy::Peer::Block(block) => Some(block),
                kilo_policy::Peer::Pods { .. } | kilo_policy::Peer::Nothing => None,
            })
            .collect();
        let ranges = kilo_policy::Ranges::of(blocks.iter().copied());
        let edges = ranges.v4().iter().flat_map(|(a, b)| [u32::from(*a).wrapping_sub(1), u32::from(*a), u32::from(*b), u32::from(*b).wrapping_add(1)]);
        let edges: Vec<IpAddr> = edges.chain(addresses).map(|n| std::net::Ipv4Addr::from(n).into()).collect();
        let six = (0..10_u128).map(|n| std::net::Ipv6Addr::from((0xfd00_u128 << 112) + n).into());
        for address in edges.into_iter().chain(six) {
            prop_assert_eq!(ranges.contains(address), blocks.iter().any(|block| block.contains(address)), "{}", address);
        }
        prop_assert!(ranges.v4().iter().all(|(first, last)| first <= last), "one is upside down: {:?}", ranges);
        prop_assert!(ranges.v4().windows(2).all(|w| u32::from(w[0].1) + 1 < u32::from(w[1].0)), "they touch: {:?}", ranges);
    }
}

fn pod(name: &str, n: usize, http: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "labels": {"app": "web", "n": n.to_string()}},
        "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "http", "containerPort": http}]}]},
        "status": {"podIP": format!("10.0.0.{n}")}})
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": name}, "spec": spec})
}

#[test]
fn pods_share_profiles_and_policies_share_sets() {
    let web = || json!({"matchLabels": {"app": "web"}});
    let one = json!({"from": [{"podSelector": {"matchLabels": {"a": "1", "b": "2"}}}], "ports": [{"port": "http"}]});
    let same = json!({"from": [{"podSelector": {"matchExpressions": [
        {"key": "b", "operator": "In", "values": ["2"]}, {"key": "a", "operator": "In", "values": ["1", "1"]}]}}], "ports": [{"port": 80}]});
    let objects = [
        pod("a", 1, 80),
        pod("b", 2, 80),
        pod("c", 3, 8080),
        policy("p", json!({"podSelector": web(), "ingress": [one]})),
        policy("q", json!({"podSelector": {"matchLabels": {"n": "1"}}, "ingress": [same]})),
    ];
    let (snapshot, _) = snapshot(&objects);
    let evaluator = Evaluator::new(&snapshot, Options::default());
    let made = all_pods(&evaluator);
    let of = |n: usize| made.dispatch[&IpAddr::from([10, 0, 0, u8::try_from(n).expect("small")])];
    // The second policy says in other words what the first one says already; c calls another port http.
    assert_eq!(of(1), of(2));
    assert_ne!(of(1).0, of(3).0);
    assert_eq!(of(1).1, of(3).1);
    assert_eq!((made.profiles.len(), made.sets.len()), (3, 1));
    let local = Profiles::new(&evaluator, |pod| &**pod.name == "c");
    assert_eq!((local.dispatch.len(), local.profiles.len(), local.sets.len()), (1, 2, 1));
}

#[test]
fn a_pod_that_comes_changes_no_profile() {
    let spec = json!({"ingress": [{"from": [{"podSelector": {}}, {"ipBlock": {"cidr": "10.5.0.0/16"}}]}], "egress": [{"ports": [{"port": "http"}]}]});
    let mut objects = vec![pod("a", 1, 80), policy("p", spec)];
    let profiles = |objects: &[Value]| {
        let (snapshot, _) = snapshot(objects);
        all_pods(&Evaluator::new(&snapshot, Options::default()))
    };
    let before = profiles(&objects);
    objects.push(pod("b", 2, 8080));
    let after = profiles(&objects);
    assert_eq!(before.profiles, after.profiles);
    assert_eq!(before.sets.keys().collect::<Vec<_>>(), after.sets.keys().collect::<Vec<_>>());
    let sizes = |made: &Profiles| -> BTreeMap<&str, usize> {
        BTreeMap::from([
            ("sets", made.sets.values().map(|s| s.len()).sum()),
            ("named", made.named.values().map(|s| s.len()).sum()),
        ])
    };
    assert_eq!(sizes(&before), BTreeMap::from([("sets", 1), ("named", 1)]));
    assert_eq!(sizes(&after), BTreeMap::from([("sets", 2), ("named", 2)]));
}

#[test]
fn everybody_by_everything_is_all_there_is_to_say() {
    let spec = json!({"ingress": [{}, {"ports": [{"port": 80}]}, {"from": [{"podSelector": {}}]}]});
    let (snapshot, _) = snapshot(&[pod("a", 1, 80), policy("p", spec)]);
    let evaluator = Evaluator::new(&snapshot, Options::default());
    let made = all_pods(&evaluator);
    let everybody = Peers { everybody: true, ..Peers::default() };
    assert_eq!(made.profiles[0], Profile::Isolated(BTreeMap::from([(Ports::Everything, everybody)])));
    assert!(made.sets.is_empty());
    assert_eq!(
        Profiles::new(&Evaluator::new(&Snapshot::default(), Options::default()), |_| true),
        Profiles::default()
    );
}

#[test]
fn a_pod_that_cannot_be_read_lets_nothing_through_and_is_in_no_set() {
    let mut held = pod("a", 1, 80);
    held["metadata"]["labels"] = json!({"app": 7});
    let objects = [
        held,
        pod("b", 2, 80),
        policy(
            "p",
            json!({"podSelector": {"matchLabels": {"n": "2"}}, "ingress": [{"from": [{"podSelector": {}}]}]}),
        ),
    ];
    let (snapshot, _) = snapshot(&objects);
    let made = all_pods(&Evaluator::new(&snapshot, Options::default()));
    let [a, b] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().expect("an address"));
    let web = Traffic::Port(Protocol::Tcp, 80);
    for direction in [Direction::Ingress, Direction::Egress] {
        assert_eq!(says(&made, direction, a, b, web), Some(false));
    }
    assert_eq!(says(&made, Direction::Ingress, b, a, web), Some(false));
    assert_eq!(says(&made, Direction::Ingress, b, b, web), Some(true));
    assert_eq!(says(&made, Direction::Egress, b, a, web), Some(true));
}
