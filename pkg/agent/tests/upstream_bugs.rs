//! What upstream Kilo gets wrong about Peers while it runs, and ours must not: names looked up once, access that
//! stays, deletions that are missed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kilo_agent::{Agent, DiscoverConfig, Event, Handle, Settings};
use kilo_mesh::{
    Config, DnsOrIp, Encapsulate, HostFacts, Metadata, NodeObject, NodeSpec, PeerEndpoint, PeerObject,
    PeerSpec,
};
use kilo_state::DevicePeer;
use kilo_testkit::{FakeBackend, FakeHost};
use kilo_wireguard::{PrivateKey, PublicKey};
use tokio::sync::oneshot;

fn key(n: u8) -> PublicKey {
    PrivateKey::from_random([n; 32]).public_key()
}

fn peer(name: &str, n: u8) -> PeerObject {
    PeerObject {
        metadata: Metadata { name: name.into(), ..Metadata::default() },
        spec: PeerSpec {
            allowed_ips: vec![format!("10.5.0.{n}/32")],
            public_key: key(n).to_string(),
            ..PeerSpec::default()
        },
    }
}

/// An agent on the only node of a mesh.
struct World {
    backend: FakeBackend,
    host: FakeHost,
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl World {
    fn start(peers: impl IntoIterator<Item = PeerObject>) -> Self {
        Self::start_with(peers, |_| ())
    }

    fn start_with(peers: impl IntoIterator<Item = PeerObject>, prepare: impl Fn(&FakeHost)) -> Self {
        let backend = FakeBackend::default();
        backend.apply_node(NodeObject {
            metadata: Metadata { name: "a".into(), ..Metadata::default() },
            spec: NodeSpec { pod_cidr: "10.2.1.0/24".into(), pod_cidrs: Vec::new() },
        });
        peers.into_iter().for_each(|peer| backend.apply_peer(peer));
        let host = FakeHost::new(HostFacts {
            public_key: Some(key(1)),
            external_ip: "198.51.100.1/24".parse().ok(),
            ..HostFacts::default()
        });
        prepare(&host);
        let settings = Settings {
            config: Config { hostname: "a".into(), encapsulate: Encapsulate::Never, ..Config::default() },
            discover: DiscoverConfig::default(),
            resync: Duration::from_secs(3600),
            clean_up: false,
            clean_up_interface: false,
        };
        let (agent, handle) = Agent::new(Arc::new(backend.clone()), host.clone(), settings);
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(agent.run(async move { drop(stopped.await) }));
        Self { backend, host, handle, _stop: stop }
    }

    fn device(&self) -> Vec<DevicePeer> {
        self.host.machine().observed.device.as_ref().map(|d| d.peers.clone()).unwrap_or_default()
    }

    /// Waits until the keys of the device are those of these peers.
    async fn until_peers(&self, what: &str, numbers: &[u8]) {
        let mut wanted: Vec<PublicKey> = numbers.iter().map(|n| key(*n)).collect();
        wanted.sort_unstable();
        self.until(what, |world| world.device().iter().map(|p| p.public_key).eq(wanted.iter().copied()))
            .await;
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..4000 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within 40 s: {what}; {:?}", self.device());
    }
}

/// B13: whoever may no longer get in must not, whatever else is wrong with the object.
#[tokio::test]
async fn a_peer_that_becomes_invalid_loses_its_access() {
    let world = World::start([peer("alice", 7), peer("bob", 8)]);
    world.until_peers("both are there", &[7, 8]).await;
    let mut broken = peer("alice", 7);
    broken.spec.public_key = "no key".into();
    world.backend.apply_peer(broken);
    world.until_peers("alice is out", &[8]).await;
    world.backend.apply_peer(peer("alice", 7));
    world.until_peers("alice is back", &[7, 8]).await;
    // An object that cannot even be read.
    let finding = kilo_mesh::Finding::new("Peer/alice", "spec.allowedIPs", "7", "not a list");
    world.backend.tell(Event::Malformed(kilo_agent::WatchKind::Peers, "alice".into(), finding));
    world.until_peers("alice is out again", &[8]).await;
    // And a key that is replaced does not stay beside the new one.
    world.backend.apply_peer(peer("bob", 9));
    world.until_peers("bob has the new key alone", &[9]).await;
    world.backend.delete_peer("bob");
    world.until_peers("nobody", &[]).await;
}

/// B14: a Peer that was deleted while nothing could be heard is missing from the next list.
#[tokio::test]
async fn a_peer_deleted_unheard_is_gone_with_the_next_list() {
    let world = World::start([peer("alice", 7), peer("bob", 8)]);
    world.until_peers("both are there", &[7, 8]).await;
    world.backend.tell(Event::Peers(vec![peer("bob", 8)], Vec::new()));
    world.until_peers("alice is gone", &[8]).await;
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
    let world = World::start_with([named], |host| resolve(host, "203.0.113.7"));
    world.until("the first address", has(endpoint("203.0.113.7"))).await;
    resolve(&world.host, "203.0.113.8");
    world.until("the next address", has(endpoint("203.0.113.8"))).await;
}

/// B28, B29: a keepalive that cannot be is told as the number that it is.
#[tokio::test]
async fn an_impossible_keepalive_is_told_as_a_number() {
    let mut negative = peer("alice", 7);
    negative.spec.persistent_keepalive = Some(-5);
    let mut large = peer("bob", 8);
    large.spec.persistent_keepalive = Some(70_000);
    let world = World::start([negative, large]);
    world.until_peers("the negative one is invalid", &[8]).await;
    let told = |world: &World, object: &str, value: &str| {
        let findings = &world.handle.status.borrow().findings;
        findings.iter().any(|f| f.object == object && f.value == value)
    };
    world.until("the first is told", |world| told(world, "Peer/alice", "-5")).await;
    world.until("the other is told", |world| told(world, "Peer/bob", "70000")).await;
}
