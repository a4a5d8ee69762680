//! Any changes of Peers, held against what a whole plan of the same objects says.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kilo_agent::{Query, Summary};
use kilo_mesh::{DnsOrIp, Finding, Node, Peer, PeerEndpoint, PeerObject, PeerSpec, Plan};
use tokio::sync::oneshot;

use crate::world::{World, config, node, peer};

/// The plan of all that the agent has heard of, and all findings.
async fn whole(world: &World) -> (Plan, BTreeSet<Finding>) {
    let (answer, answered) = oneshot::channel();
    world.handle.queries.send(Query::Input(answer)).await.expect("a running agent");
    let input = answered.await.expect("an answer");
    let config = config();
    let read = |object| Node::from_object(object, &config.topology_label);
    let (nodes, of_nodes): (Vec<Node>, Vec<_>) = input.nodes.iter().map(read).unzip();
    let (peers, of_peers): (Vec<Peer>, Vec<_>) = input.peers.iter().map(Peer::from_object).unzip();
    let by_ref = (nodes.iter().collect::<Vec<_>>(), peers.iter().collect::<Vec<_>>());
    let plan = kilo_mesh::plan(&config, &by_ref.0, &by_ref.1, &input.facts);
    let findings = of_nodes.into_iter().chain(of_peers).flatten().chain(plan.findings.iter().cloned());
    let findings = findings.collect();
    (plan, findings)
}

#[tokio::test]
async fn whatever_becomes_of_peers_the_host_is_as_a_whole_plan_says() {
    let world = World::start(false);
    world.host.machine().dns.insert("known.example".into(), vec!["203.0.113.7".parse().expect("an address")]);
    world.until("set up", World::settled).await;
    let mut seed = 7_u64;
    let mut any = |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % n
    };
    for step in 0..200 {
        for _ in 0..=any(3) {
            let i = any(12);
            let name = format!("p{i}");
            let mut object = peer(&name, if any(8) == 0 { 20 } else { 20 + i as u8 });
            object.spec.allowed_ips =
                (0..=any(3)).map(|k| format!("10.5.{}.{}/32", any(40) / 39, i * 4 + k)).collect();
            match any(16) {
                0..4 => world.backend.delete_peer(&name),
                4 => world.backend.apply_peer(PeerObject { spec: PeerSpec::default(), ..object }),
                5 => {
                    object.spec.allowed_ips.push("10.2.2.0/25".into());
                    world.backend.apply_peer(object);
                }
                6 | 7 => {
                    let dns = if any(2) == 0 { "known.example" } else { "unknown.example" }.to_owned();
                    let dns_or_ip = DnsOrIp { dns, ip: String::new() };
                    object.spec.endpoint = Some(PeerEndpoint { dns_or_ip, port: 51820 });
                    world.backend.apply_peer(object);
                }
                8 if any(4) == 0 => {
                    let mut b = node("b", 2, true);
                    let ips = format!("10.5.0.{}/31", any(40));
                    b.metadata.annotations.insert("kilo.squat.ai/allowed-location-ips".into(), ips);
                    world.backend.apply_node(b);
                }
                _ => world.backend.apply_peer(object),
            }
        }
        let mut waited = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let (plan, findings) = whole(&world).await;
            let desired = &plan.mesh.as_ref().expect("a mesh").desired;
            let left = kilo_state::diff(desired, &world.host.machine().observed);
            let status = world.handle.status.borrow().clone();
            if left.is_empty() && *status.findings == findings && status.plan == Some(Summary::from(&plan)) {
                break;
            }
            waited += 1;
            assert!(waited < 1000, "step {step}: {left:?} left, {:?}", status.plan);
        }
    }
    let followed = world.handle.stats.followed.load(Ordering::Relaxed);
    assert!(followed > 50, "{followed} plans were followed");
    assert!(world.host.machine().observations < 5);
}
