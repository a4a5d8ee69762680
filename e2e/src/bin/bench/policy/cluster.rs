//! A cluster of any size, as objects and as what the mesh says about it.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use kilo_policy::{Kind, MeshFacts, Owner};
use serde_json::{Value, json};

/// This node.
pub const NODE: &str = "node-0";
/// How many namespaces there are.
pub const NAMESPACES: usize = 20;
/// How many apps a namespace has.
pub const APPS: usize = 100;

/// How large a cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Nodes, this one too.
    pub nodes: usize,
    /// Pods.
    pub pods: usize,
    /// Those of them on this node.
    pub local: usize,
    /// Policies.
    pub policies: usize,
    /// Peers.
    pub peers: usize,
}

impl Size {
    /// All objects.
    pub fn objects(self) -> impl Iterator<Item = (Kind, Value)> {
        let namespaces = (0..NAMESPACES).map(|n| (Kind::Namespace, namespace(n)));
        let policies = (0..self.policies).map(|n| (Kind::NetworkPolicy, policy(n, 8080)));
        namespaces.chain(policies).chain((0..self.pods).map(move |n| (Kind::Pod, pod(n, self, "blue"))))
    }

    /// What the mesh says.
    pub fn facts(self) -> Result<MeshFacts> {
        let peers = (0..self.peers).map(|n| {
            let ip = Ipv4Addr::from(0x0a05_0000 + u32::try_from(n).unwrap_or_default());
            (ipnet::IpNet::from(std::net::IpAddr::V4(ip)), Owner::Peer(format!("peer-{n}")))
        });
        Ok(MeshFacts {
            bindings: peers.collect(),
            own_pods: ["10.64.0.0/24".parse()?, "fd64::/112".parse()?].into(),
            all_pods: ["10.64.0.0/10".parse()?, "fd64::/64".parse()?].into(),
            services: ["10.43.0.0/16".parse()?].into(),
            subnets: ["10.4.0.0/16".parse()?].into(),
            wireguard_port: 51820,
            leader: self.peers > 0,
            ..MeshFacts::default()
        })
    }
}

fn namespace(n: usize) -> Value {
    json!({"metadata": {"name": format!("team-{n}"), "labels": {"team": n.to_string()}}})
}

/// A pod of a deployment, with two addresses; the first ones are on this node.
pub fn pod(n: usize, size: Size, colour: &str) -> Value {
    let (namespace, app) = (n % NAMESPACES, n / NAMESPACES % APPS);
    let local = n < size.local;
    let node = if local { 0 } else { 1 + n % (size.nodes - 1).max(1) };
    let number = u32::try_from(n).unwrap_or_default();
    let (v4, v6) = if local {
        (Ipv4Addr::from(0x0a40_0002 + number), Ipv6Addr::from((0xfd64_u128 << 112) + 2 + u128::from(number)))
    } else {
        (
            Ipv4Addr::from(0x0a41_0000 + number),
            Ipv6Addr::from((0xfd64_u128 << 112) + 0x1_0000 + u128::from(number)),
        )
    };
    json!({
        "metadata": {"namespace": format!("team-{namespace}"), "name": format!("app-{app}-7c9d8b6f5d-{n:05}"),
            "uid": format!("2f1f8a52-93a4-4f6c-9d2c-{n:012}"), "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": format!("app-{app}"), "colour": colour}},
        "spec": {"nodeName": format!("node-{node}"), "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": v4}, {"ip": v6}]},
    })
}

/// A policy for the pods of one app, open to another app, to a team and to the mesh.
pub fn policy(n: usize, port: u16) -> Value {
    let (namespace, app) = (n % NAMESPACES, n / NAMESPACES % APPS);
    let from = json!([
        {"podSelector": {"matchLabels": {"app": format!("app-{}", (app * 7 + 1) % APPS), "colour": "blue"}}},
        {"namespaceSelector": {"matchLabels": {"team": (namespace * 3 % NAMESPACES).to_string()}},
            "podSelector": {"matchLabels": {"app": format!("app-{app}")}}},
        {"ipBlock": {"cidr": "10.4.0.0/16"}},
    ]);
    json!({
        "metadata": {"namespace": format!("team-{namespace}"), "name": format!("policy-{n}")},
        "spec": {"podSelector": {"matchLabels": {"app": format!("app-{app}")}},
            "ingress": [{"from": from, "ports": [{"port": port}, {"port": "http"}]}]},
    })
}
