//! What upstream Kilo gets wrong about Peers while it runs, and ours must not: names looked up once, access that
//! stays, deletions that are missed.

use std::collections::BTreeMap;
use std::time::Duration;

use kilo_agent::Event;
use kilo_mesh::{DnsOrIp, Metadata, NodeObject, NodeSpec, PeerEndpoint, PeerObject};
use kilo_testkit::{FakeBackend, FakeHost};
use kilo_wireguard::PublicKey;

use crate::world::{World, key, machine, peer, settings};

/// An agent on the only node of a mesh, which nothing but events wakes.
fn alone(host: FakeHost, peers: impl IntoIterator<Item = PeerObject>) -> World {
    let backend = FakeBackend::default();
    backend.apply_node(NodeObject {
        metadata: Metadata { name: "a".into(), ..Metadata::default() },
        spec: NodeSpec { pod_cidr: "10.2.1.0/24".into(), pod_cidrs: Vec::new() },
    });
    peers.into_iter().for_each(|peer| backend.apply_peer(peer));
    World::run_with(backend, host, settings(Duration::from_secs(3600)))
}

/// Waits until the keys of the device are those of these peers.
async fn until_peers(world: &World, what: &str, numbers: &[u8]) {
    let mut wanted: Vec<PublicKey> = numbers.iter().map(|n| key(*n)).collect();
    wanted.sort_unstable();
    world.until(what, |world| world.device().iter().map(|p| p.public_key).eq(wanted.iter().copied())).await;
}

/// B13: whoever may no longer get in must not, whatever else is wrong with the object.
#[tokio::test]
async fn a_peer_that_becomes_invalid_loses_its_access() {
    let world = alone(machine(), [peer("alice", 7), peer("bob", 8)]);
    until_peers(&world, "both are there", &[7, 8]).await;
    let mut broken = peer("alice", 7);
    broken.spec.public_key = "no key".into();
    world.backend.apply_peer(broken);
    until_peers(&world, "alice is out", &[8]).await;
    world.backend.apply_peer(peer("alice", 7));
    until_peers(&world, "alice is back", &[7, 8]).await;
    // An object that cannot even be read.
    let finding = kilo_mesh::Finding::new("Peer/alice", "spec.allowedIPs", "7", "not a list");
    world.backend.tell(Event::Malformed(kilo_agent::WatchKind::Peers, "alice".into(), finding));
    until_peers(&world, "alice is out again", &[8]).await;
    // And a key that is replaced does not stay beside the new one.
    world.backend.apply_peer(peer("bob", 9));
    until_peers(&world, "bob has the new key alone", &[9]).await;
    world.backend.delete_peer("bob");
    until_peers(&world, "nobody", &[]).await;
}

/// B14: a Peer that was deleted while nothing could be heard is missing from the next list.
#[tokio::test]
async fn a_peer_deleted_unheard_is_gone_with_the_next_list() {
    let world = alone(machine(), [peer("alice", 7), peer("bob", 8)]);
    until_peers(&world, "both are there", &[7, 8]).await;
    world.backend.tell(Event::Peers(vec![peer("bob", 8)], Vec::new()));
    until_peers(&world, "alice is gone", &[8]).await;
}

/// B12: the endpoint follows its name, within the half minute after which names are looked up again.
#[tokio::test]
async fn an_endpoint_follows_its_name() {
    let mut named = peer("alice", 7);
    named.spec.endpoint = Some(PeerEndpoint {
        dns_or_ip: DnsOrIp { dns: "alice.example".into(), ip: String::new() },
        port: 51820,
    });
    let resolve = |host: &FakeHost, address: &str| {
        let found = vec![address.parse().expect("an address")];
        host.machine().dns = BTreeMap::from([("alice.example".to_owned(), found)]);
    };
    let endpoint = |address: &str| format!("{address}:51820").parse().ok();
    let has = |wanted| move |world: &World| world.device().iter().any(|peer| peer.endpoint == wanted);
    let host = machine();
    resolve(&host, "203.0.113.7");
    let world = alone(host, [named]);
    world.until("the first address", has(endpoint("203.0.113.7"))).await;
    resolve(&world.host, "203.0.113.8");
    world.within(40, "the next address", has(endpoint("203.0.113.8"))).await;
}

/// B28, B29: a keepalive that cannot be is told as the number that it is.
#[tokio::test]
async fn an_impossible_keepalive_is_told_as_a_number() {
    let mut negative = peer("alice", 7);
    negative.spec.persistent_keepalive = Some(-5);
    let mut large = peer("bob", 8);
    large.spec.persistent_keepalive = Some(70_000);
    let world = alone(machine(), [negative, large]);
    until_peers(&world, "the negative one is invalid", &[8]).await;
    let told = |world: &World, object: &str, value: &str| {
        let findings = &world.handle.status.borrow().findings;
        findings.iter().any(|f| f.object == object && f.value == value)
    };
    world.until("the first is told", |world| told(world, "Peer/alice", "-5")).await;
    world.until("the other is told", |world| told(world, "Peer/bob", "70000")).await;
}
