//! Of several Peers that name one range one has it: the first by name for upstream agents, the oldest without them.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use kilo_mesh::{Config, Facts, HostFacts, Metadata, Node, Peer, PeerObject, PeerSpec, Topology, plan};
use proptest::prelude::*;

use crate::random::{NOW, key, mark, node, range};

const DAYS: [Option<&str>; 4] =
    [None, Some("2026-01-01T00:00:00Z"), Some("2026-01-02T00:00:00Z"), Some("2025-12-31T23:59:59Z")];

fn peer(name: &str, k: u8, created: Option<&str>, allowed_ips: Vec<String>) -> PeerObject {
    PeerObject {
        metadata: Metadata {
            name: name.to_owned(),
            creation_timestamp: created.map(str::to_owned),
            ..Metadata::default()
        },
        spec: PeerSpec { allowed_ips, public_key: key(k).to_string(), ..PeerSpec::default() },
    }
}

/// Peers with keys of their own, and ranges of others.
fn peers() -> impl Strategy<Value = Vec<PeerObject>> {
    let one = (0..DAYS.len(), prop::collection::vec(range(), 1..5));
    prop::collection::vec(one, 1..8).prop_map(|list| {
        let numbered = (0..).zip(list);
        numbered.map(|(n, (day, ranges))| peer(&format!("p{n}"), 100 + n, DAYS[day], ranges)).collect()
    })
}

/// The ranges of each Peer that takes part, and what is told of claims on ranges.
type Told = (BTreeMap<String, BTreeSet<IpNet>>, Vec<String>);

fn told(nodes: &[Node], peers: &[&Peer]) -> Option<Told> {
    let config = Config { hostname: "n0".into(), node_expiry: 0, ..Config::default() };
    let host = HostFacts { public_key: Some(key(1)), ..HostFacts::default() };
    let facts = Facts { now: NOW, host, ..Facts::default() };
    let plan = plan(&config, &nodes.iter().collect::<Vec<_>>(), peers, &facts);
    let topology: Topology = plan.mesh?.topology;
    let ranges = |peer| topology.allowed_ips(peer).iter().copied().collect();
    let by_name = topology.peers.iter().map(|peer| (peer.name.to_string(), ranges(peer))).collect();
    let findings = plan.findings.iter().filter(|f| f.field == "spec.allowedIPs");
    Some((by_name, findings.map(|f| format!("{} {}: {}", f.object, f.value, f.reason)).collect()))
}

proptest! {
    #[test]
    fn a_range_is_the_oldests_or_the_first_names(
        mut objects in (node(0), node(1)).prop_map(|(a, b)| [a, b]),
        ours in any::<[bool; 2]>(),
        peers in peers(),
    ) {
        for (node, _) in objects.iter_mut().zip(ours).filter(|(_, ours)| *ours) {
            mark(node);
        }
        let nodes: Vec<Node> = objects.iter().map(|object| Node::from_object(object, "region").0).collect();
        let peers: Vec<Peer> = peers.iter().map(|object| Peer::from_object(object).0).collect();
        let Some((found, findings)) = told(&nodes, &peers.iter().collect::<Vec<_>>()) else { return Ok(()) };
        let turned = told(&nodes, &peers.iter().rev().collect::<Vec<_>>());
        prop_assert_eq!(Some((found.clone(), findings)), turned, "the order of objects makes a difference");

        let ready: Vec<&Node> = nodes.iter().filter(|node| node.ready(NOW, 0)).collect();
        let all_ours = ready.iter().all(|node| node.ours.is_some());
        let mut claims: BTreeMap<IpNet, Vec<&Peer>> = BTreeMap::new();
        for peer in peers.iter().filter(|peer| peer.ready()) {
            for net in &peer.allowed_ips {
                claims.entry(net.trunc()).or_default().push(peer);
            }
        }
        for (net, mut claimants) in claims {
            claimants.sort_by_key(|peer| &peer.name);
            if all_ours {
                claimants.sort_by_key(|peer| (peer.created.is_none(), &peer.created));
            }
            let owners: Vec<&str> =
                found.iter().filter(|(_, ranges)| ranges.contains(&net)).map(|(name, _)| name.as_str()).collect();
            // Nobody has what is a node's.
            prop_assert!(owners.is_empty() || owners == [&*claimants[0].name], "{}: {:?}", net, owners);
        }
    }
}

/// A young Peer cannot take over what an older one has, whatever its name.
#[test]
fn a_new_peer_takes_nothing_from_an_older_one_unless_upstream_agents_have_it_so() {
    let object = |name: &str, n: u8| {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "annotations": {
                "kilo.squat.ai/endpoint": format!("203.0.113.{n}:51820"),
                "kilo.squat.ai/internal-ip": format!("10.0.0.{n}/24"),
                "kilo.squat.ai/key": key(n).to_string(),
                "kilo.squat.ai/last-seen": NOW.to_string(),
            }},
            "spec": {"podCIDR": format!("10.42.{n}.0/24")},
        }))
        .expect("a Node")
    };
    let ranges = |list: &[&str]| list.iter().map(|net| (*net).to_owned()).collect();
    let peers = [
        peer("a-new", 101, DAYS[2], ranges(&["10.5.0.0/24", "fd05::/64", "10.5.1.0/24"])),
        peer("b-unknown", 102, None, ranges(&["10.5.0.0/24"])),
        peer("c-old", 103, DAYS[1], ranges(&["10.5.0.0/24", "fd05::/64"])),
        peer("d-as-old", 104, DAYS[1], ranges(&["10.5.0.0/24"])),
    ];
    let peers: Vec<Peer> = peers.iter().map(|object| Peer::from_object(object).0).collect();
    let tell = |upstream: bool| {
        let mut objects = [object("n0", 1), object("n1", 2)];
        objects.iter_mut().take(if upstream { 1 } else { 2 }).for_each(mark);
        let nodes = objects.iter().map(|object| Node::from_object(object, "region").0).collect::<Vec<_>>();
        let (ranges, findings) = told(&nodes, &peers.iter().collect::<Vec<_>>()).expect("a mesh");
        let lines = ranges.into_iter().map(|(name, nets)| {
            format!("{name} has {}", nets.iter().map(IpNet::to_string).collect::<Vec<_>>().join(" "))
        });
        lines.chain(findings).collect::<Vec<_>>()
    };
    assert_eq!(
        tell(false),
        [
            "a-new has 10.5.1.0/24",
            "b-unknown has ",
            "c-old has 10.5.0.0/24 fd05::/64",
            "d-as-old has ",
            "Peer/a-new 10.5.0.0/24: Peer/c-old has it already; the peer goes without",
            "Peer/a-new fd05::/64: Peer/c-old has it already; the peer goes without",
            "Peer/b-unknown 10.5.0.0/24: Peer/c-old has it already; the peer goes without",
            "Peer/d-as-old 10.5.0.0/24: Peer/c-old has it already; the peer goes without",
        ]
    );
    assert_eq!(
        tell(true),
        [
            "a-new has 10.5.0.0/24 10.5.1.0/24 fd05::/64",
            "b-unknown has ",
            "c-old has ",
            "d-as-old has ",
            "Peer/b-unknown 10.5.0.0/24: Peer/a-new has it already; the peer goes without",
            "Peer/c-old 10.5.0.0/24: Peer/a-new has it already; the peer goes without",
            "Peer/c-old fd05::/64: Peer/a-new has it already; the peer goes without",
            "Peer/d-as-old 10.5.0.0/24: Peer/a-new has it already; the peer goes without",
        ]
    );
}
