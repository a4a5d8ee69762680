//! The whole loop with two fakes: what is done to the machine and written to the cluster, and what is not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kilo_agent::{
    Agent, DiscoverConfig, Event, Handle, HostEvent, Query, Settings, Summary, WatchKind, WatchState,
};
use kilo_mesh::{
    Config, DnsOrIp, Encapsulate, Finding, HostFacts, Metadata, Node, NodeObject, NodeSpec, Outcome, Peer,
    PeerEndpoint, PeerObject, PeerSpec, Plan,
};
use kilo_state::Op;
use kilo_testkit::{FakeBackend, FakeHost};
use kilo_wireguard::{PrivateKey, PublicKey};
use tokio::sync::oneshot;

fn key(n: u8) -> PublicKey {
    PrivateKey::from_random([n; 32]).public_key()
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A node of its own location; `n` numbers its addresses.
fn node(name: &str, n: u8, annotated: bool) -> NodeObject {
    let mut annotations = BTreeMap::new();
    if annotated {
        for (k, v) in [
            ("endpoint", format!("198.51.100.{n}:51820")),
            ("internal-ip", format!("10.0.{n}.1/24")),
            ("key", key(n).to_string()),
            ("last-seen", now().to_string()),
        ] {
            annotations.insert(format!("kilo.squat.ai/{k}"), v);
        }
    }
    annotations.insert("kilo.squat.ai/location".into(), format!("l{n}"));
    NodeObject {
        metadata: Metadata { name: name.into(), annotations, ..Metadata::default() },
        spec: NodeSpec { pod_cidr: format!("10.2.{n}.0/24"), pod_cidrs: Vec::new() },
    }
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

struct World {
    backend: FakeBackend,
    host: FakeHost,
    handle: Handle,
    stop: oneshot::Sender<()>,
    running: tokio::task::JoinHandle<Result<(), kilo_agent::AgentError>>,
}

impl World {
    /// Node `a` runs the agent; `b` is another location.
    fn start(clean_up: bool) -> Self {
        let backend = FakeBackend::default();
        backend.apply_node(node("a", 1, false));
        backend.apply_node(node("b", 2, true));
        let host = FakeHost::new(HostFacts {
            public_key: Some(key(1)),
            internal_ip: "10.0.1.1/24".parse().ok(),
            external_ip: "198.51.100.1/24".parse().ok(),
            uplink_mtu: Some(1500),
            ..HostFacts::default()
        });
        Self::run(backend, host, clean_up)
    }

    fn run(backend: FakeBackend, host: FakeHost, clean_up: bool) -> Self {
        let settings = Settings {
            config: Config { hostname: "a".into(), encapsulate: Encapsulate::Never, ..Config::default() },
            discover: DiscoverConfig::default(),
            resync: Duration::from_secs(30),
            clean_up,
            clean_up_interface: true,
        };
        let (agent, handle) = Agent::new(Arc::new(backend.clone()), host.clone(), settings);
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(agent.run(async move { drop(stopped.await) }));
        Self { backend, host, handle, stop, running }
    }

    /// Waits until this holds, for ten seconds.
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..1000 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within 10 s: {what}; status {:?}", *self.handle.status.borrow());
    }

    fn settled(&self) -> bool {
        let status = self.handle.status.borrow();
        let written = self.backend.node("a").is_some_and(|n| {
            n.metadata.annotations.get("kilo.squat.ai/wireguard-ip").is_some_and(|ip| ip == "10.4.0.1/16")
        });
        status.last_success.is_some()
            && status.device
            && written
            && self.host.machine().observed.routes.len() > 1
    }

    async fn end(self) -> FakeHost {
        drop(self.stop);
        self.running.await.expect("no panic").expect("a graceful end");
        self.host
    }
}

#[tokio::test]
async fn a_fresh_node_is_set_up_and_writes_itself() {
    let world = World::start(false);
    world.until("set up", World::settled).await;
    let annotations = world.backend.node("a").expect("a").metadata.annotations;
    let get = |k: &str| annotations.get(&format!("kilo.squat.ai/{k}")).cloned().unwrap_or_default();
    assert_eq!(get("key"), key(1).to_string());
    assert_eq!(get("endpoint"), "198.51.100.1:51820");
    assert_eq!(get("internal-ip"), "10.0.1.1/24");
    assert_eq!(get("granularity"), "location");
    let routes: Vec<_> =
        world.host.machine().observed.routes.iter().map(|r| r.route.dst.to_string()).collect();
    assert_eq!(routes, ["10.0.2.1/32", "10.2.2.0/24"]);
    assert!(world.end().await.machine().closed);
}

#[tokio::test]
async fn one_peer_costs_its_own_operations_and_no_reading() {
    let world = World::start(false);
    world.until("set up", World::settled).await;
    let before = world.host.machine().observations;
    let followed = world.handle.stats.followed.load(Ordering::Relaxed);
    world.host.machine().ops.clear();
    world.backend.apply_peer(peer("laptop", 9));
    world
        .until("peer there", |w| {
            w.host.machine().observed.device.as_ref().is_some_and(|d| d.peers.len() == 2)
        })
        .await;
    world.backend.delete_peer("laptop");
    world
        .until("peer gone", |w| w.host.machine().observed.device.as_ref().is_some_and(|d| d.peers.len() == 1))
        .await;
    let machine = world.host.machine();
    assert_eq!(machine.observations, before);
    assert_eq!(world.handle.stats.followed.load(Ordering::Relaxed), followed + 2);
    let of = |kind: &str| machine.ops.iter().filter(|op| op.kind() == kind).count();
    assert_eq!((of("peer"), of("route"), machine.ops.len()), (2, 2, 6), "{:?}", machine.ops);
}

#[tokio::test]
async fn check_ins_of_others_and_equal_events_change_nothing() {
    let world = World::start(false);
    world.until("set up", World::settled).await;
    world.host.machine().ops.clear();
    let reconciles = || world.handle.stats.reconciles.load(Ordering::Relaxed);
    let before = reconciles();
    for i in 0..20 {
        let mut b = node("b", 2, true);
        b.metadata.annotations.insert("kilo.squat.ai/last-seen".into(), (now() + i).to_string());
        world.backend.apply_node(b);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(reconciles(), before);
    assert!(world.host.machine().ops.is_empty());
}

#[tokio::test]
async fn what_somebody_takes_away_comes_back() {
    let world = World::start(false);
    world.until("set up", World::settled).await;
    world.host.machine().observed.routes.clear();
    world.host.disturb(HostEvent::Routing);
    world.until("routes back", |w| w.host.machine().observed.routes.len() == 2).await;
}

#[tokio::test]
async fn what_fails_is_tried_again_and_shown() {
    let world = World::start(false);
    world.host.machine().fail.insert("route", 3);
    world.until("failure shown", |w| w.handle.status.borrow().apply_error.is_some()).await;
    world.until("set up after all", World::settled).await;
    world.until("failure gone", |w| w.handle.status.borrow().apply_error.is_none()).await;
}

#[tokio::test]
async fn nothing_is_removed_before_both_lists_are_there() {
    let first = World::start(false);
    first.until("set up", World::settled).await;
    first.backend.apply_peer(peer("laptop", 9));
    first
        .until("peer there", |w| {
            w.host.machine().observed.device.as_ref().is_some_and(|d| d.peers.len() == 2)
        })
        .await;
    let backend = first.backend.clone();
    let host = first.end().await;
    host.machine().ops.clear();
    // A backend that has listed Nodes but not yet Peers: a plan of these would remove the laptop.
    struct Slow(FakeBackend);
    impl kilo_agent::Backend for Slow {
        async fn run(
            &self,
            events: tokio::sync::mpsc::Sender<Event>,
        ) -> Result<(), kilo_agent::BackendError> {
            let nodes = ["a", "b"].into_iter().filter_map(|name| self.0.node(name)).collect();
            let _ = events.send(Event::Nodes(nodes, Vec::new())).await;
            let _ = events.send(Event::Watch(WatchKind::Peers, WatchState::Down("slow".into()))).await;
            std::future::pending().await
        }
        async fn patch_node(
            &self,
            name: &str,
            patch: &kilo_agent::NodePatch,
        ) -> Result<(), kilo_agent::BackendError> {
            self.0.patch_node(name, patch).await
        }
    }
    let settings = Settings {
        config: Config { hostname: "a".into(), encapsulate: Encapsulate::Never, ..Config::default() },
        discover: DiscoverConfig::default(),
        resync: Duration::from_secs(1),
        clean_up: false,
        clean_up_interface: false,
    };
    let (agent, _handle) = Agent::new(Arc::new(Slow(backend)), host.clone(), settings);
    let running = tokio::spawn(agent.run(std::future::pending()));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    running.abort();
    assert!(host.machine().ops.is_empty(), "{:?}", host.machine().ops);
}

#[tokio::test]
async fn a_restart_finds_everything_right_and_touches_nothing() {
    let first = World::start(false);
    first.until("set up", World::settled).await;
    let backend = first.backend.clone();
    let host = first.end().await;
    host.machine().ops.clear();
    let second = World::run(backend, host, false);
    second.until("set up again", World::settled).await;
    assert!(second.host.machine().ops.is_empty(), "{:?}", second.host.machine().ops);
}

#[tokio::test]
async fn a_graceful_stop_leaves_nothing_and_withdraws_the_node() {
    let world = World::start(true);
    world.until("set up", World::settled).await;
    let backend = world.backend.clone();
    let host = world.end().await;
    let machine = host.machine();
    assert!(machine.observed.routes.is_empty() && machine.observed.table.is_none(), "{:?}", machine.observed);
    assert!(machine.ops.iter().any(|op| matches!(op, Op::DeleteLink { .. })), "{:?}", machine.ops.last());
    let left = backend.node("a").expect("a").metadata.annotations;
    assert!(
        !left.contains_key("kilo.squat.ai/key") && left.contains_key("kilo.squat.ai/location"),
        "{left:?}"
    );
}

#[tokio::test]
async fn a_refused_write_is_counted_and_stops_nothing() {
    let world = World::start(false);
    world.backend.cluster().refuse_patches = true;
    world.until("error counted", |w| !w.handle.stats.errors().is_empty()).await;
    world.backend.cluster().refuse_patches = false;
    world.until("set up", World::settled).await;
}

#[tokio::test]
async fn a_forbidden_write_is_shown_until_it_is_allowed() {
    let world = World::start(false);
    world.backend.cluster().forbid_patches = true;
    world.until("refusal shown", |w| w.handle.status.borrow().write_refused.is_some()).await;
    world.backend.cluster().forbid_patches = false;
    world.until("set up", World::settled).await;
    world.until("refusal gone", |w| w.handle.status.borrow().write_refused.is_none()).await;
}

#[tokio::test]
async fn without_a_node_of_ours_the_agent_waits_and_does_not_spin() {
    let backend = FakeBackend::default();
    backend.apply_node(node("b", 2, true));
    let world = World::run(backend, FakeHost::default(), false);
    world.until("a plan", |w| w.handle.status.borrow().plan.is_some()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let rounds = world.handle.stats.reconciles.load(Ordering::Relaxed);
    assert!(rounds < 5, "{rounds} rounds in 300 ms");
    world.backend.apply_node(node("a", 1, true));
    world
        .until("a plan with a mesh", |w| {
            w.handle.status.borrow().plan.as_ref().is_some_and(|plan| plan.outcome == Outcome::Ok)
        })
        .await;
}

#[tokio::test]
async fn who_undoes_our_writes_again_and_again_is_left_alone_for_longer_and_longer() {
    let world = World::start(false);
    world.until("set up", World::settled).await;
    let before = world.backend.cluster().patches.len();
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        let mut node = world.backend.node("a").expect("a");
        let ours = node.metadata.annotations.insert("kilo.squat.ai/key".into(), key(7).to_string());
        if ours != Some(key(7).to_string()) {
            world.backend.apply_node(node);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // At once, and after 0.25, 0.5, 1 and 2 s.
    let writes = world.backend.cluster().patches.len() - before;
    assert!((3..=6).contains(&writes), "{writes} writes in 4 s");
    // Another change is not held back by that.
    world
        .until("ours again", |w| {
            w.backend
                .node("a")
                .is_some_and(|n| n.metadata.annotations["kilo.squat.ai/key"] == key(1).to_string())
        })
        .await;
    let mut node = world.backend.node("a").expect("a");
    node.metadata.annotations.insert("kilo.squat.ai/endpoint".into(), "198.51.100.9:1".into());
    node.metadata.annotations.remove("kilo.squat.ai/granularity");
    world.backend.apply_node(node);
    let asked = std::time::Instant::now();
    world
        .until("granularity again", |w| {
            w.backend
                .node("a")
                .is_some_and(|n| n.metadata.annotations.contains_key("kilo.squat.ai/granularity"))
        })
        .await;
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
}

/// Counts log lines of level INFO and worse.
#[derive(Clone, Default)]
struct Lines(Arc<AtomicUsize>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, line: &tracing::Metadata<'_>) -> bool {
        *line.level() <= tracing::Level::INFO && line.is_event()
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn at_rest_nothing_is_changed_written_or_said() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let world = World::start(false);
    world.backend.apply_peer(peer("laptop", 9));
    world.until("set up", World::settled).await;
    world
        .until("peer there", |w| {
            w.host.machine().observed.device.as_ref().is_some_and(|d| d.peers.len() == 2)
        })
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(lines.0.load(Ordering::Relaxed) > 0, "the start is told");
    let (said, written) = (lines.0.load(Ordering::Relaxed), world.backend.cluster().patches.len());
    let reconciles = world.handle.stats.reconciles.load(Ordering::Relaxed);
    world.host.machine().ops.clear();
    let nodes = || ["a", "b"].into_iter().filter_map(|name| world.backend.node(name)).collect::<Vec<_>>();
    for i in 0..20 {
        let mut b = node("b", 2, true);
        b.metadata.annotations.insert("kilo.squat.ai/last-seen".into(), (now() + i).to_string());
        world.backend.apply_node(b);
        world.backend.apply_peer(peer("laptop", 9));
    }
    world.backend.tell(Event::Nodes(nodes(), Vec::new()));
    world.backend.tell(Event::Peers(vec![peer("laptop", 9)], Vec::new()));
    world.host.disturb(HostEvent::Routing);
    world
        .until("the host was read", |w| w.handle.stats.reconciles.load(Ordering::Relaxed) > reconciles)
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(world.host.machine().ops.is_empty(), "{:?}", world.host.machine().ops);
    assert_eq!(world.backend.cluster().patches.len(), written);
    assert_eq!(lines.0.load(Ordering::Relaxed), said);
}

/// The plan of all that the agent has heard of, and all findings.
async fn whole(world: &World) -> (Plan, BTreeSet<Finding>) {
    let (answer, answered) = oneshot::channel();
    world.handle.queries.send(Query::Input(answer)).await.expect("a running agent");
    let input = answered.await.expect("an answer");
    let config = Config { hostname: "a".into(), encapsulate: Encapsulate::Never, ..Config::default() };
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

#[tokio::test]
async fn a_restart_asks_for_names_before_it_elects() {
    // The name of z is that of a public address: it leads the location, which nobody knows before it resolves.
    let backend = FakeBackend::default();
    let mut own = node("a", 1, false);
    own.metadata.annotations.insert("kilo.squat.ai/force-endpoint".into(), "10.0.1.1:51820".into());
    let mut leader = node("z", 3, true);
    leader.metadata.annotations.insert("kilo.squat.ai/location".into(), "l1".into());
    leader.metadata.annotations.insert("kilo.squat.ai/endpoint".into(), "z.example:51820".into());
    leader.metadata.annotations.insert("kilo.squat.ai/internal-ip".into(), "10.0.1.3/24".into());
    [own, leader, node("b", 2, true)].into_iter().for_each(|node| backend.apply_node(node));
    let host = FakeHost::new(HostFacts {
        public_key: Some(key(1)),
        internal_ip: "10.0.1.1/24".parse().ok(),
        external_ip: "198.51.100.1/24".parse().ok(),
        uplink_mtu: Some(1500),
        ..HostFacts::default()
    });
    host.machine().dns.insert("z.example".into(), vec!["198.51.100.3".parse().expect("an address")]);
    let follows = |w: &World| {
        let machine = w.host.machine();
        machine.observed.device.as_ref().is_none_or(|device| device.peers.is_empty())
            && machine.observed.routes.iter().any(|r| r.route.dst.to_string() == "10.2.2.0/24")
    };
    let first = World::run(backend.clone(), host, false);
    first.until("z leads", follows).await;
    let host = first.end().await;
    assert!(!host.machine().ops.iter().any(|op| op.kind() == "peer"), "{:?}", host.machine().ops);
    host.machine().ops.clear();
    let second = World::run(backend, host, false);
    second.until("z leads again", |w| w.handle.status.borrow().last_success.is_some()).await;
    assert!(second.host.machine().ops.is_empty(), "{:?}", second.host.machine().ops);
}
