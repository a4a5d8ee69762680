//! Random clusters out of few names, labels, addresses and ports, so that they meet; some of it makes no sense.

use proptest::prelude::*;
use serde_json::{Value, json};

pub const NAMESPACES: [&str; 3] = ["x", "y", "z"];

fn of(texts: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(texts)
}

fn labels() -> impl Strategy<Value = Value> {
    prop::collection::btree_map(of(&["app", "tier", "odd"]), of(&["a", "b", ""]), 0..3)
        .prop_map(|map| json!(map))
}

fn term() -> impl Strategy<Value = Value> {
    let values = || prop::collection::vec(of(&["a", "b", ""]), 1..3);
    prop_oneof![
        4 => (of(&["app", "tier"]), of(&["In", "NotIn"]), values()).prop_map(|(k, o, v)| json!({"key": k, "operator": o, "values": v})),
        3 => (of(&["app", "tier"]), of(&["Exists", "DoesNotExist"])).prop_map(|(k, o)| json!({"key": k, "operator": o})),
        1 => (of(&["app", "tier"]), of(&["Like", "In", "exists"])).prop_map(|(k, o)| json!({"key": k, "operator": o})),
    ]
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        2 => Just(json!({})),
        4 => labels().prop_map(|l| json!({"matchLabels": l})),
        3 => (labels(), prop::collection::vec(term(), 0..3)).prop_map(|(l, t)| json!({"matchLabels": l, "matchExpressions": t})),
    ]
}

fn address() -> impl Strategy<Value = String> {
    prop_oneof![4 => (0..2_u8, 1..8_u8).prop_map(|(a, b)| format!("10.0.{a}.{b}")), 2 => (1..8_u8).prop_map(|b| format!("fd00::{b}"))]
}

pub fn range() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => (address(), 0..=32_u8).prop_map(|(a, l)| if a.contains(':') { format!("{a}/{}", 96 + l) } else { format!("{a}/{l}") }),
        1 => of(&["0.0.0.0/0", "::/0", "010.000.00.0/08", "10.0.0.0/33", "10.0/8", "", "fd00::/129"]).prop_map(str::to_owned),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => selector().prop_map(|s| json!({"podSelector": s})),
        3 => namespaces().prop_map(|s| json!({"namespaceSelector": s})),
        3 => (namespaces(), selector()).prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        4 => (range(), prop::collection::vec(range(), 0..3)).prop_map(|(c, e)| json!({"ipBlock": {"cidr": c, "except": e}})),
        1 => Just(json!({})),
        1 => (range(), selector()).prop_map(|(c, s)| json!({"ipBlock": {"cidr": c}, "podSelector": s})),
    ]
}

fn namespaces() -> impl Strategy<Value = Value> {
    prop_oneof![
        2 => selector(),
        2 => prop::collection::vec(of(&NAMESPACES), 1..3).prop_map(|names| {
            json!({"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": names}]})
        }),
        2 => of(&NAMESPACES).prop_map(|name| json!({"matchLabels": {"kubernetes.io/metadata.name": name}})),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let protocol = || prop::option::weighted(0.7, of(&["TCP", "TCP", "UDP", "SCTP", "tcp"]));
    let number = || prop_oneof![6 => 79..83_u32, 1 => Just(0), 1 => Just(70000)];
    prop_oneof![
        1 => protocol().prop_map(|p| p.map_or(json!({}), |p| json!({"protocol": p}))),
        4 => (protocol(), number()).prop_map(|(p, n)| json!({"protocol": p, "port": n})),
        2 => (protocol(), number(), number()).prop_map(|(p, a, b)| json!({"protocol": p, "port": a, "endPort": b})),
        3 => (protocol(), of(&["web", "dns"])).prop_map(|(p, n)| json!({"protocol": p, "port": n})),
        1 => (of(&["web", "80"]), number()).prop_map(|(n, e)| json!({"port": n, "endPort": e})),
    ]
}

pub fn rule(peers: &'static str) -> impl Strategy<Value = Value> {
    let listed = prop::option::weighted(0.8, prop::collection::vec(peer(), 0..4));
    let ports = prop::option::weighted(0.5, prop::collection::vec(port(), 0..4));
    (listed, ports, prop::bool::weighted(0.03)).prop_map(move |(listed, ports, odd)| {
        let mut rule = json!({});
        if let Some(listed) = listed {
            rule[peers] = json!(listed);
        }
        if let Some(ports) = ports {
            rule["ports"] = json!(ports);
        }
        if odd {
            rule["form"] = json!([]);
        }
        rule
    })
}

pub fn policy(name: String) -> impl Strategy<Value = Value> {
    let rules = |peers| prop::option::of(prop::collection::vec(rule(peers), 0..4));
    let types = prop::option::weighted(
        0.7,
        prop::collection::vec(prop_oneof![8 => of(&["Ingress", "Egress"]), 1 => Just("ingress")], 0..3),
    );
    (of(&NAMESPACES), selector(), types, rules("from"), rules("to")).prop_map(
        move |(namespace, selector, types, ingress, egress)| {
            let mut spec = json!({"podSelector": selector});
            for (key, value) in
                [("policyTypes", json!(types)), ("ingress", json!(ingress)), ("egress", json!(egress))]
            {
                if !value.is_null() {
                    spec[key] = value;
                }
            }
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": namespace, "name": name}, "spec": spec})
        },
    )
}

fn pod(name: String) -> impl Strategy<Value = Value> {
    let container = || {
        let port = (
            prop::option::weighted(0.8, of(&["web", "dns"])),
            79..83_u16,
            prop::option::of(of(&["TCP", "UDP"])),
        );
        (prop::collection::vec(port, 0..3), prop::bool::ANY).prop_map(|(ports, sidecar)| {
            let ports: Vec<_> = ports
                .into_iter()
                .map(|(name, number, protocol)| json!({"name": name, "containerPort": number, "protocol": protocol}))
                .collect();
            json!({"ports": ports, "restartPolicy": sidecar.then_some("Always")})
        })
    };
    let containers = || prop::collection::vec(container(), 0..3);
    (
        (of(&NAMESPACES), labels(), 0..3_u8),
        (containers(), containers(), prop::bool::weighted(0.15), of(&["n1", "n2", ""])),
        (prop::collection::vec(address(), 0..3), prop::bool::weighted(0.2), of(&["Running", "Running", "Pending", "Failed", "Succeeded", "Unknown"])),
    )
        .prop_map(move |((namespace, labels, age), (containers, init, host, node), (ips, single, phase))| {
            let mut status = json!({"phase": phase});
            if single {
                status["podIP"] = json!(ips.first());
            } else {
                status["podIPs"] = ips.iter().map(|ip| json!({"ip": ip})).collect();
            }
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": namespace, "name": name, "labels": labels, "uid": format!("u-{name}"),
                    "creationTimestamp": format!("2026-01-0{}T00:00:00Z", age + 1)},
                "spec": {"nodeName": node, "hostNetwork": host, "containers": containers, "initContainers": init},
                "status": status})
        })
}

fn namespace(name: &'static str) -> impl Strategy<Value = Value> {
    labels().prop_map(move |mut labels| {
        labels["kubernetes.io/metadata.name"] = json!(name);
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    })
}

/// Up to 8 pods and 6 policies in three namespaces.
pub fn cluster() -> impl Strategy<Value = Vec<Value>> {
    let pods = (1..8_usize).prop_flat_map(|n| (0..n).map(|n| pod(format!("p{n}"))).collect::<Vec<_>>());
    let policies =
        (0..7_usize).prop_flat_map(|n| (0..n).map(|n| policy(format!("q{n}"))).collect::<Vec<_>>());
    let namespaces = NAMESPACES.map(namespace);
    (pods, policies, namespaces)
        .prop_map(|(pods, policies, namespaces)| namespaces.into_iter().chain(pods).chain(policies).collect())
}

/// Any JSON, with words of policies in it.
pub fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
        of(&["TCP", "In", "Ingress", "10.0.0.0/8", "app"]).prop_map(Value::from),
    ];
    let key = prop_oneof![
        of(&[
            "from",
            "to",
            "ports",
            "port",
            "endPort",
            "protocol",
            "podSelector",
            "namespaceSelector",
            "ipBlock"
        ])
        .prop_map(str::to_owned),
        of(&[
            "cidr",
            "except",
            "matchLabels",
            "matchExpressions",
            "key",
            "operator",
            "values",
            "ip",
            "ports",
            "name"
        ])
        .prop_map(str::to_owned),
        of(&[
            "ingress",
            "egress",
            "policyTypes",
            "labels",
            "containers",
            "initContainers",
            "podIPs",
            "podIP",
            "phase"
        ])
        .prop_map(str::to_owned),
        ".{0,4}",
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..6).prop_map(|map| json!(map)),
        ]
    })
}
