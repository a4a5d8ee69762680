//! What an agent knows when it begins: nothing, and nothing must come of that.

use std::sync::Arc;
use std::time::Duration;

use kilo_agent::{Agent, Event, WatchKind, WatchState};
use kilo_testkit::FakeBackend;

use crate::world::{World, machine, node, peer, settings};

#[tokio::test]
async fn nothing_is_removed_before_both_lists_are_there() {
    let first = World::start(false);
    first.until("set up", World::settled).await;
    first.backend.apply_peer(peer("laptop", 9));
    first.until("peer there", |w| w.device().len() == 2).await;
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
        async fn run_policy(
            &self,
            events: tokio::sync::mpsc::Sender<kilo_agent::PolicyEvent>,
        ) -> Result<(), kilo_agent::BackendError> {
            self.0.run_policy(events).await
        }
        async fn patch_node(
            &self,
            name: &str,
            patch: &kilo_agent::NodePatch,
        ) -> Result<(), kilo_agent::BackendError> {
            self.0.patch_node(name, patch).await
        }
    }
    let settings = settings(Duration::from_secs(1));
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
    let second = World::run(backend, host);
    second.until("set up again", World::settled).await;
    assert!(second.host.machine().ops.is_empty(), "{:?}", second.host.machine().ops);
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
    let host = machine();
    host.machine().dns.insert("z.example".into(), vec!["198.51.100.3".parse().expect("an address")]);
    let follows = |w: &World| {
        let machine = w.host.machine();
        machine.observed.device.as_ref().is_none_or(|device| device.peers.is_empty())
            && machine.observed.routes.iter().any(|r| r.route.dst.to_string() == "10.2.2.0/24")
    };
    let first = World::run(backend.clone(), host);
    first.until("z leads", follows).await;
    let host = first.end().await;
    assert!(!host.machine().ops.iter().any(|op| op.kind() == "peer"), "{:?}", host.machine().ops);
    host.machine().ops.clear();
    let second = World::run(backend, host);
    second.until("z leads again", |w| w.handle.status.borrow().last_success.is_some()).await;
    assert!(second.host.machine().ops.is_empty(), "{:?}", second.host.machine().ops);
}
