//! The agent's own Node: written, refused, fought over, missing and withdrawn.

use std::time::Duration;

use kilo_mesh::Outcome;
use kilo_state::Op;
use kilo_testkit::{FakeBackend, FakeHost};

use crate::world::{World, key, node};

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
    let world = World::run(backend, FakeHost::default());
    world.until("a plan", |w| w.handle.status.borrow().plan.is_some()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let rounds = world.rounds();
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
