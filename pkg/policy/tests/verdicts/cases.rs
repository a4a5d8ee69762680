//! What no recording asks: ends that no table has, traffic without ports, and objects that the API server would not
//! let through.

use std::net::IpAddr;

use kilo_policy::{Direction, End, Evaluator, Options, Protocol, Snapshot, Traffic, Who};
use serde_json::{Value, json};

use crate::snapshot;

const WEB: Traffic = Traffic::Port(Protocol::Tcp, 80);

fn pod(namespace: &str, name: &str, addresses: &[&str]) -> Value {
    let ips: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": {"nodeName": "n1"}, "status": {"podIPs": ips}})
}

fn policy(spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "p"}, "spec": spec})
}

fn deny_all() -> Value {
    policy(json!({"policyTypes": ["Ingress", "Egress"]}))
}

fn two_pods() -> Vec<Value> {
    vec![pod("shop", "web", &["10.0.0.1", "fd00::1"]), pod("shop", "db", &["10.0.0.2", "fd00::2"])]
}

fn end<'s>(evaluator: &Evaluator<'s>, text: &str) -> End<'s> {
    match text.split_once('/') {
        Some(("host", rest)) => {
            let (node, address) = rest.split_once('/').expect("host/NODE/ADDRESS");
            let node: &'static str = node.to_owned().leak();
            End { address: address.parse().expect("an address"), who: Who::Host(node) }
        }
        _ => evaluator.at(text.parse().expect("an address")),
    }
}

/// What one end says, in words: `allow not isolated`; `n/a` where no policy applies to it.
fn said_with(
    options: Options,
    objects: &[Value],
    direction: Direction,
    from: &str,
    to: &str,
    traffic: Traffic,
) -> String {
    let (snapshot, _) = snapshot(objects);
    let evaluator = Evaluator::new(&snapshot, options);
    let (from, to) = (end(&evaluator, from), end(&evaluator, to));
    let (subject, other) = match direction {
        Direction::Ingress => (&to, &from),
        Direction::Egress => (&from, &to),
    };
    match evaluator.verdict(direction, subject, other, traffic) {
        Some(verdict) => format!("{} {}", if verdict.allowed { "allow" } else { "deny" }, verdict.because),
        None => "n/a".to_owned(),
    }
}

fn said(objects: &[Value], direction: Direction, from: &str, to: &str, traffic: Traffic) -> String {
    said_with(Options::default(), objects, direction, from, to, traffic)
}

fn with(policy: Value) -> Vec<Value> {
    let mut objects = two_pods();
    objects.push(policy);
    objects
}

const DENIED: &str = "deny isolated by shop/p; no rule allows it";

#[test]
fn an_allow_names_policy_rule_and_entries() {
    let objects = with(policy(json!({"ingress": [
        {"from": [{"podSelector": {"matchLabels": {"app": "nobody"}}}]},
        {"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}, {"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": 53}, {"port": 80}]},
    ]})));
    assert_eq!(
        said(&objects, Direction::Ingress, "10.0.0.2", "10.0.0.1", WEB),
        "allow shop/p rule 1 peer 1 port 1"
    );
    assert_eq!(
        said(&objects, Direction::Ingress, "192.0.2.9", "10.0.0.1", WEB),
        "allow shop/p rule 1 peer 0 port 1"
    );
    assert_eq!(said(&objects, Direction::Ingress, "10.0.0.9", "10.0.0.1", WEB), DENIED);
    assert_eq!(said(&objects, Direction::Egress, "10.0.0.1", "10.0.0.9", WEB), "allow not isolated");
    assert_eq!(said(&objects, Direction::Ingress, "10.0.0.1", "10.0.0.9", WEB), "n/a");
    let open = with(policy(json!({"ingress": [{}]})));
    assert_eq!(said(&open, Direction::Ingress, "10.0.0.2", "10.0.0.1", WEB), "allow shop/p rule 0");
}

#[test]
fn the_reasons_have_a_form_for_programs() {
    let (snapshot, _) = snapshot(&with(policy(json!({"ingress": [{"ports": [{"port": 80}]}]}))));
    let evaluator = Evaluator::new(&snapshot, Options::default());
    let (from, to) = (end(&evaluator, "10.0.0.2"), end(&evaluator, "10.0.0.1"));
    let json_of = |traffic| {
        let connection = evaluator.connection(&from, &to, traffic);
        let because = &connection.ingress.as_ref().expect("a subject").because;
        (connection.is_allowed(), serde_json::to_value(because).expect("JSON"))
    };
    let allowed = json!({"because": "rule", "policy": "shop/p", "rule": 0, "peer": null, "port": 0});
    assert_eq!(json_of(WEB), (true, allowed));
    let denied = json!({"because": "isolated", "isolatedBy": ["shop/p"], "rule": null});
    assert_eq!(json_of(Traffic::Port(Protocol::Tcp, 81)), (false, denied));
}

#[test]
fn every_policy_that_isolates_is_named() {
    let mut objects = with(deny_all());
    let mut second = policy(json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": []}));
    second["metadata"]["name"] = json!("a");
    objects.push(second);
    let both = "deny isolated by shop/a, shop/p; no rule allows it";
    assert_eq!(said(&objects, Direction::Ingress, "10.0.0.2", "10.0.0.1", WEB), both);
    assert_eq!(said(&objects, Direction::Egress, "10.0.0.1", "10.0.0.2", WEB), DENIED);
}

#[test]
fn a_pod_reaches_itself_through_a_service() {
    let objects = with(deny_all());
    for direction in [Direction::Ingress, Direction::Egress] {
        assert_eq!(said(&objects, direction, "10.0.0.1", "10.0.0.1", WEB), "allow to itself");
        assert_eq!(said(&objects, direction, "fd00::1", "fd00::1", WEB), "allow to itself");
    }
}

#[test]
fn its_own_node_reaches_a_pod_and_is_known_by_the_hook_alone() {
    let objects = with(deny_all());
    let ingress = |from| said(&objects, Direction::Ingress, from, "10.0.0.1", WEB);
    assert_eq!(ingress("host/n1/172.16.0.1"), "allow from its own node");
    assert_eq!(ingress("host/n2/172.16.0.2"), DENIED);
    assert_eq!(ingress("172.16.0.1"), DENIED, "the address alone proves nothing");
    // Towards the node there is no exception.
    assert_eq!(said(&objects, Direction::Egress, "10.0.0.1", "host/n1/172.16.0.1", WEB), DENIED);
    let mut unscheduled = with(deny_all());
    unscheduled[0]["spec"] = json!({});
    assert_eq!(said(&unscheduled, Direction::Ingress, "host//172.16.0.1", "10.0.0.1", WEB), DENIED);
}

#[test]
fn neighbour_discovery_always_works_and_echo_needs_a_rule_without_ports() {
    let closed = with(deny_all());
    for kind in [130, 131, 132, 133, 134, 135, 136, 137, 143] {
        let said = said(&closed, Direction::Ingress, "fd00::2", "fd00::1", Traffic::Icmpv6(kind));
        assert_eq!(said, "allow neighbour discovery", "{kind}");
    }
    let echo = |objects: &[Value]| {
        let v4 = said(objects, Direction::Ingress, "10.0.0.2", "10.0.0.1", Traffic::Icmp(8));
        let v6 = said(objects, Direction::Ingress, "fd00::2", "fd00::1", Traffic::Icmpv6(128));
        assert_eq!(v4, v6);
        v4
    };
    assert_eq!(echo(&closed), DENIED);
    assert_eq!(echo(&two_pods()), "allow not isolated");
    assert_eq!(echo(&with(policy(json!({"ingress": [{"ports": [{}]}]})))), DENIED);
    assert_eq!(
        echo(&with(policy(json!({"ingress": [{"from": [{"podSelector": {}}]}]})))),
        "allow shop/p rule 0 peer 0"
    );
    let options = Options { allow_icmp_echo: true };
    let said = |traffic| said_with(options, &closed, Direction::Ingress, "10.0.0.2", "10.0.0.1", traffic);
    assert_eq!(said(Traffic::Icmp(8)), "allow echo is always allowed");
    assert_eq!(said(Traffic::Icmp(13)), DENIED);
    assert_eq!(said(WEB), DENIED);
    // ICMP of IPv4 has other numbers.
    assert_eq!(said(Traffic::Icmp(135)), DENIED);
}

#[test]
fn protocols_without_ports_need_a_rule_without_ports() {
    let gre = Traffic::Other(47);
    let open = with(policy(json!({"ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]})));
    assert_eq!(said(&open, Direction::Ingress, "10.0.0.2", "10.0.0.1", gre), "allow shop/p rule 0 peer 0");
    let tcp = with(policy(json!({"ingress": [{"ports": [{"protocol": "TCP"}]}]})));
    assert_eq!(said(&tcp, Direction::Ingress, "10.0.0.2", "10.0.0.1", gre), DENIED);
}

#[test]
fn an_address_belongs_to_the_newest_pod_that_lives() {
    let mut objects = vec![
        pod("shop", "old", &["10.0.0.1"]),
        pod("shop", "new", &["10.0.0.1"]),
        pod("shop", "x", &["10.0.0.2"]),
    ];
    objects[0]["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    objects[1]["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:01Z");
    objects.push(policy(json!({"podSelector": {"matchLabels": {"app": "x"}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "old"}}}]}]})));
    let ingress = |objects: &[Value]| said(objects, Direction::Ingress, "10.0.0.1", "10.0.0.2", WEB);
    assert_eq!(ingress(&objects), DENIED);
    objects.swap(0, 1);
    assert_eq!(ingress(&objects), DENIED, "whatever came first");
    let (snapshot, _) = snapshot(&objects);
    let evaluator = Evaluator::new(&snapshot, Options::default());
    assert!(evaluator.pod("shop", "old").is_empty(), "it has no address of its own any more");
    assert_eq!(evaluator.pod("shop", "new").len(), 1);
    assert!(evaluator.pod("shop", "nobody").is_empty());
    objects[0]["status"]["phase"] = json!("Succeeded");
    assert_eq!(ingress(&objects), "allow shop/p rule 0 peer 0");
    objects[1]["status"]["phase"] = json!("Failed");
    assert_eq!(said(&objects, Direction::Egress, "10.0.0.1", "10.0.0.2", WEB), "n/a", "nobody's address");
}

#[test]
fn of_two_pods_that_are_alike_one_has_the_address() {
    let mut objects = [pod("shop", "a", &["10.0.0.1"]), pod("shop", "b", &["10.0.0.1"])];
    for object in &mut objects {
        object["metadata"]["labels"] = json!({});
    }
    let (snapshot, _) = snapshot(&objects);
    let evaluator = Evaluator::new(&snapshot, Options::default());
    assert_eq!(["a", "b"].map(|name| evaluator.pod("shop", name).len()), [0, 1]);
}

#[test]
fn a_pod_that_cannot_be_read_is_held() {
    for broken in [json!({"labels": {"app": 7}}), json!({"labels": "app"}), json!({"labels": {"app": null}})]
    {
        let mut objects = with(policy(json!({"podSelector": {"matchLabels": {"app": "db"}},
            "ingress": [{"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]}}]}]})));
        objects[0]["metadata"]["labels"] = broken["labels"].clone();
        let (_, findings) = snapshot(&objects);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].starts_with("Pod/shop/web: metadata.labels"), "{findings:?}");
        let held = "deny the pod could not be read";
        assert_eq!(said(&objects, Direction::Ingress, "198.51.100.1", "10.0.0.1", WEB), held);
        assert_eq!(said(&objects, Direction::Egress, "10.0.0.1", "198.51.100.1", WEB), held);
        assert_eq!(
            said(&objects, Direction::Ingress, "10.0.0.1", "10.0.0.2", WEB),
            DENIED,
            "and matches no selector"
        );
    }
    let mut objects = with(deny_all());
    objects[0]["spec"]["hostNetwork"] = json!("true");
    assert_eq!(
        said(&objects, Direction::Ingress, "10.0.0.2", "10.0.0.1", WEB),
        "deny the pod could not be read"
    );
}

#[test]
fn of_a_namespace_that_is_not_there_only_the_name_is_known() {
    let from = |namespaces: Value| {
        let mut objects = two_pods();
        objects[1]["metadata"]["namespace"] = json!("away");
        objects.push(policy(json!({"ingress": [{"from": [{"namespaceSelector": namespaces}]}]})));
        said(&objects, Direction::Ingress, "10.0.0.2", "10.0.0.1", WEB)
    };
    let allowed = "allow shop/p rule 0 peer 0";
    assert_eq!(from(json!({})), allowed);
    assert_eq!(from(json!({"matchLabels": {"kubernetes.io/metadata.name": "away"}})), allowed);
    assert_eq!(from(json!({"matchLabels": {"kubernetes.io/metadata.name": "shop"}})), DENIED);
    assert_eq!(
        from(json!({"matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["prod"]}]})),
        DENIED
    );
}

#[test]
fn the_name_of_a_namespace_cannot_be_forged() {
    let mut objects = with(policy(
        json!({"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "trusted"}}}]}]}),
    ));
    objects[1]["metadata"]["namespace"] = json!("evil");
    objects.push(json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "evil", "labels": {"kubernetes.io/metadata.name": "trusted"}}}));
    assert_eq!(said(&objects, Direction::Ingress, "10.0.0.2", "10.0.0.1", WEB), DENIED);
}

#[test]
fn a_change_of_an_object_takes_its_place() {
    let mut snapshot = Snapshot::default();
    let kind = kilo_policy::Kind::Pod;
    assert!(!snapshot.apply(kind, &pod("shop", "web", &["10.0.0.1"])).replaced);
    assert!(snapshot.apply(kind, &pod("shop", "web", &["10.0.0.3"])).replaced);
    let evaluator = Evaluator::new(&snapshot, Options::default());
    let at = |text: &str| evaluator.at(text.parse::<IpAddr>().expect("an address"));
    assert!(matches!(at("10.0.0.1").who, Who::Address));
    assert!(matches!(at("10.0.0.3").who, Who::Pod(_)));
}

#[test]
fn an_address_of_a_service_means_the_pods_behind_it() {
    let service = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name}, "spec": spec});
    let slice = |name: &str, endpoints: Value, port: u16| {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": endpoints, "ports": [{"name": "http", "port": port}, {"name": "all", "port": null}, {"name": "admin", "port": 9999}]})
    };
    let mut objects = with(deny_all());
    objects.extend([
        service("web", json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd96::1"], "ports": [{"name": "http", "port": 80, "targetPort": "web"}]})),
        service("headless", json!({"clusterIP": "None", "ports": [{"port": 80}]})),
        slice("web-1", json!([{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.8"], "conditions": {"ready": false, "serving": true}}]), 8080),
        slice("web-2", json!([{"addresses": ["fd00::1"], "conditions": {"ready": true}}]), 8080),
        slice("web-3", json!([{"addresses": ["10.0.0.9"], "conditions": {"ready": false}}, {"addresses": ["web.example"]}]), 8443),
    ]);
    let (snapshot, findings) = snapshot(&objects);
    assert_eq!(
        findings,
        [
            "EndpointSlice/shop/web-3: endpoints[1].addresses[0] \"web.example\": must be an address, not text; it is left out"
        ]
    );
    let evaluator = Evaluator::new(&snapshot, Options::default());
    let behind = |address: &str, protocol, port| {
        let found = evaluator.behind(address.parse().expect("an address"), protocol, port)?;
        Some(
            found
                .into_iter()
                .map(|(end, traffic)| (end.address.to_string(), matches!(end.who, Who::Pod(_)), traffic))
                .collect::<Vec<_>>(),
        )
    };
    let at = Traffic::Port(Protocol::Tcp, 8080);
    let v4 = vec![("10.0.0.1".to_owned(), true, at), ("10.0.0.8".to_owned(), false, at)];
    assert_eq!(behind("10.96.0.1", Protocol::Tcp, 80), Some(v4));
    assert_eq!(behind("fd96::1", Protocol::Tcp, 80), Some(vec![("fd00::1".to_owned(), true, at)]));
    for (address, protocol, port) in [
        ("10.96.0.1", Protocol::Udp, 80),
        ("10.96.0.1", Protocol::Tcp, 8080),
        ("10.0.0.1", Protocol::Tcp, 80),
    ] {
        assert_eq!(behind(address, protocol, port), None, "{address} {protocol} {port}");
    }
}

#[test]
fn the_list_of_addresses_counts_and_the_single_one_only_without_it() {
    for (status, want) in [
        (json!({"podIP": "10.0.0.1", "podIPs": []}), "10.0.0.1"),
        (json!({"podIP": "10.0.0.1"}), "10.0.0.1"),
        (json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.2"}, {"ip": "10.0.0.3"}]}), "10.0.0.2"),
        (json!({"podIP": "::ffff:10.0.0.4"}), "10.0.0.4"),
    ] {
        let mut object = pod("shop", "web", &[]);
        object["status"] = status;
        let (snapshot, _) = snapshot(&[object]);
        let (_, _, pod) = snapshot.pod("shop", "web").expect("there");
        let addresses: Vec<_> = pod.addresses().map(|address| address.to_string()).collect();
        assert_eq!(addresses, [want]);
    }
}
