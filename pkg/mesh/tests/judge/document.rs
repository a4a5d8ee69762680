//! Plans and translated objects as documents with the names of the recordings.

use ipnet::IpNet;
use kilo_mesh::{Interfaces, Mesh, Node, Peer, Plan, Segment, Topology};
use kilo_state::{Dev, MAIN_TABLE, Route, Rule};
use kilo_wireguard as wg;
use serde_json::{Value, json};

fn texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|i| i.to_string()).collect()
}

fn map<'a, K: ToString + 'a, V: ToString + 'a>(items: impl IntoIterator<Item = (&'a K, &'a V)>) -> Value {
    items.into_iter().map(|(k, v)| (k.to_string(), Value::from(v.to_string()))).collect()
}

pub fn node(n: &Node, now: u64) -> Value {
    json!({
        "name": &*n.name,
        "ready": n.ready(now, 60),
        "endpoint": n.endpoint,
        "key": n.key,
        "internalIP": n.internal_ip,
        "noInternalIP": n.no_internal_ip,
        "cniCompatibilityIP": n.cni_compatibility_ip,
        "lastSeen": n.last_seen,
        "leader": n.leader,
        "location": &*n.location,
        "persistentKeepalive": n.persistent_keepalive,
        "subnet": n.subnet,
        "wireGuardIP": n.wireguard_ip,
        "discoveredEndpoints": map(&n.discovered_endpoints),
        "allowedLocationIPs": texts(&n.allowed_location_ips),
        "granularity": n.granularity,
    })
}

pub fn peer(p: &Peer) -> Value {
    json!({
        "name": &*p.name,
        "valid": p.valid,
        "ready": p.has_key_and_ranges(),
        "publicKey": p.public_key,
        "endpoint": p.endpoint_text(),
        "persistentKeepalive": p.persistent_keepalive,
        "allowedIPs": texts(&p.allowed_ips),
    })
}

fn segment(t: &Topology, s: &Segment) -> Value {
    let members = t.members(s);
    json!({
        "location": s.name.to_string(),
        "hostnames": members.iter().map(|m| &*m.name).collect::<Vec<_>>(),
        "cidrs": texts(members.iter().map(|m| m.subnet)),
        "privateIPs": members.iter().map(|m| m.private_ip).collect::<Vec<_>>(),
        "cniCompatibilityIPs": members.iter().map(|m| m.cni_compatibility_ip).collect::<Vec<_>>(),
        "leader": s.leader,
        "key": s.key,
        "endpoint": s.endpoint,
        "endpointAddr": s.endpoint.as_ref().and_then(|e| e.dns()).and(s.endpoint_addr),
        "persistentKeepalive": s.persistent_keepalive,
        "wireGuardIP": s.wireguard_ip,
        "allowedIPs": texts(t.segment_ranges(s)),
        "allowedLocationIPs": texts(&s.allowed_location_ips),
    })
}

fn wg_peer(p: &wg::Peer) -> Value {
    json!({
        "publicKey": p.public_key,
        "endpoint": p.endpoint,
        "endpointAddr": p.endpoint_addr,
        "allowedIPs": texts(&p.allowed_ips),
        "persistentKeepalive": p.persistent_keepalive,
        "hasPresharedKey": p.preshared_key.is_some(),
    })
}

pub fn conf(c: &wg::Conf) -> Value {
    json!({"listenPort": c.listen_port, "peers": c.peers.iter().map(wg_peer).collect::<Vec<_>>()})
}

fn dev(names: &Interfaces, dev: Dev) -> &str {
    match dev {
        Dev::WireGuard => &names.wireguard,
        Dev::Private => &names.private,
        Dev::Tunnel => &names.tunnel,
        Dev::Other(_) => "?",
    }
}

pub fn route(r: &Route) -> Value {
    json!({
        "dst": r.dst, "via": r.via, "dev": dev(&Interfaces::default(), r.dev), "src": r.src, "onlink": r.onlink,
        "table": (r.table != MAIN_TABLE).then_some(r.table),
    })
}

fn rule(r: &Rule) -> Value {
    json!({"src": r.src, "dst": r.dst, "iif": r.iif.map(|d| dev(&Interfaces::default(), d).to_owned()), "table": r.table})
}

/// A plan with the names of the recordings.
pub fn plan(p: &Plan) -> Value {
    let mut out = json!({
        "outcome": p.outcome.as_str(),
        "error": p.error,
        "annotations": p.annotations,
        "readyNodes": p.ready_nodes.iter().map(|n| &**n).collect::<Vec<_>>(),
        "natEndpoints": map(&p.nat_endpoints),
    });
    if let Some(m) = &p.mesh {
        let Mesh { topology: t, firewall, tunnel_address, .. } = m;
        let rest = json!({
            "location": t.local_segment().name.to_string(),
            "leader": t.leader,
            "wireGuardCIDR": t.wireguard_cidr(),
            "privateIP": t.private_ip,
            "subnet": t.local().subnet,
            "listenPort": t.listen_port,
            "persistentKeepalive": t.persistent_keepalive,
            "discoveredEndpoints": map(&t.discovered_endpoints),
            "segments": t.segments.iter().map(|s| segment(t, s)).collect::<Vec<_>>(),
            "peers": t.peers.iter().map(|p| json!({
                "name": &*p.name, "publicKey": p.public_key, "allowedIPs": texts(t.allowed_ips(p)),
            })).collect::<Vec<_>>(),
            "conf": conf(&t.conf()),
            "asPeer": wg_peer(&t.as_peer()),
            "routes": m.routes().iter().map(route).collect::<Vec<_>>(),
            "rules": m.rules().iter().map(rule).collect::<Vec<_>>(),
            "tunnelAddress": tunnel_address,
            "firewall": firewall,
        });
        if let (Value::Object(out), Value::Object(rest)) = (&mut out, rest) {
            out.extend(rest);
        }
    }
    out
}

/// A range in the form of the recordings.
pub fn net(text: &str) -> IpNet {
    text.parse().expect("a range")
}
