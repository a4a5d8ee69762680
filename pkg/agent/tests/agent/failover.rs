//! A leader that does not answer: asked, reported, passed over, and given time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kilo_mesh::{LeaderFailover, NodeObject, marker};
use kilo_testkit::FakeBackend;

use crate::world::{World, config, machine, node, settings};

const REPORTS: &str = "kilo.squat.ai/unreachable";

fn set(node: &mut NodeObject, annotation: &str, value: &str) {
    node.metadata.annotations.insert(format!("kilo.squat.ai/{annotation}"), value.to_owned());
}

/// A node with an agent of ours, in this location.
fn ours(name: &str, n: u8, location: &str) -> NodeObject {
    let mut node = node(name, n, true);
    let time = node.metadata.annotations["kilo.squat.ai/last-seen"].clone();
    set(&mut node, "agent", &marker(&time, LeaderFailover::DataPath));
    set(&mut node, "location", location);
    node
}

/// `b` leads the location of `a`, whose agent runs; `c` is another location.
fn cluster() -> FakeBackend {
    let backend = FakeBackend::default();
    let mut own = node("a", 1, false);
    set(&mut own, "location", "west");
    backend.apply_node(own);
    let mut leader = ours("b", 2, "west");
    set(&mut leader, "leader", "");
    backend.apply_node(leader);
    backend.apply_node(ours("c", 3, "east"));
    backend
}

fn reports(world: &World) -> Option<String> {
    world.backend.node("a").and_then(|node| node.metadata.annotations.get(REPORTS).cloned())
}

#[tokio::test]
async fn a_leader_that_most_witnesses_report_is_followed_by_the_next() {
    let backend = cluster();
    let host = machine();
    let world = World::run(backend.clone(), host);
    world.until("the leader is asked", |w| !w.host.machine().probed.is_empty()).await;
    assert!(world.device().is_empty(), "it does not lead");
    let leader = "10.0.2.1".parse().expect("an address");
    world.host.machine().silent.insert(leader);
    // The first two to four seconds are those of the witness, the rest is the fakes'.
    let since = tokio::time::Instant::now();
    world.until("the report", |w| reports(w).is_some()).await;
    assert!(since.elapsed() < Duration::from_millis(4500), "{:?}", since.elapsed());
    assert_eq!(reports(&world).as_deref(), Some("b"));
    assert!(world.device().is_empty(), "one of two witnesses");
    let mut other = ours("c", 3, "east");
    set(&mut other, "unreachable", "b");
    backend.apply_node(other);
    world.until("it leads", |w| w.device().len() == 1).await;
    let stats = &world.handle.stats;
    let counts = [&stats.failovers, &stats.unreachable].map(|n| n.load(Ordering::Relaxed));
    assert_eq!(counts, [1, 1]);
    assert_eq!(world.handle.status.borrow().plan.as_ref().map(|plan| plan.deposed), Some(1));
    assert!(world.host.machine().probed.iter().all(|asked| *asked == leader));

    // It answers again; another run knows no more than what stands on the Node.
    world.host.machine().silent.clear();
    let host = world.end().await;
    let world = World::run(backend, host);
    world.until("the leader is asked again", |w| w.host.machine().probed.len() > 10).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(reports(&world).as_deref(), Some("b"));
    assert_eq!(world.device().len(), 1, "it leads on");
}

#[tokio::test]
async fn with_upstream_agents_or_by_age_nobody_is_asked() {
    let mixed = cluster();
    let mut upstream = ours("c", 3, "east");
    upstream.metadata.annotations.remove("kilo.squat.ai/agent");
    mixed.apply_node(upstream);
    let mut by_age = settings(Duration::from_secs(30));
    by_age.config.leader_failover = LeaderFailover::Age;
    for (backend, settings) in [(mixed, settings(Duration::from_secs(30))), (cluster(), by_age)] {
        assert_eq!(settings.config.hostname, config().hostname);
        let world = World::run_with(backend, machine(), settings);
        world
            .until("it is written", |w| {
                w.backend
                    .node("a")
                    .is_some_and(|n| n.metadata.annotations.contains_key("kilo.squat.ai/agent"))
            })
            .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(world.host.machine().probed.is_empty());
    }
}
