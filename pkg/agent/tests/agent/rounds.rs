//! What a round does to the machine, and that at rest there is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kilo_agent::{Event, HostEvent};

use crate::world::{World, key, node, now, peer};

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
    // Each check-in says whose it is.
    assert_eq!(get("agent"), kilo_mesh::marker(&get("last-seen"), Default::default()));
    for (_, patch) in &world.backend.cluster().patches {
        let of = |k: &str| patch.get(&format!("kilo.squat.ai/{k}")).cloned().flatten();
        assert_eq!(of("agent"), of("last-seen").map(|time| kilo_mesh::marker(&time, Default::default())));
    }
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
    world.until("peer there", |w| w.device().len() == 2).await;
    world.backend.delete_peer("laptop");
    world.until("peer gone", |w| w.device().len() == 1).await;
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
    let before = world.rounds();
    for i in 0..20 {
        let mut b = node("b", 2, true);
        b.metadata.annotations.insert("kilo.squat.ai/last-seen".into(), (now() + i).to_string());
        world.backend.apply_node(b);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.rounds(), before);
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
    world.until("peer there", |w| w.device().len() == 2).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(lines.0.load(Ordering::Relaxed) > 0, "the start is told");
    let (said, written) = (lines.0.load(Ordering::Relaxed), world.backend.cluster().patches.len());
    let reconciles = world.rounds();
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
    world.until("the host was read", |w| w.rounds() > reconciles).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(world.host.machine().ops.is_empty(), "{:?}", world.host.machine().ops);
    assert_eq!(world.backend.cluster().patches.len(), written);
    assert_eq!(lines.0.load(Ordering::Relaxed), said);
}
