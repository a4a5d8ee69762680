//! Who counts as being there when the cluster cannot be heard, at times of our choosing.

use std::collections::BTreeMap;

use kilo_mesh::{Metadata, NodeSpec};

use super::*;

const EXPIRY: u64 = 60;
const START: u64 = 1_767_225_600;

fn node(name: &str, last_seen: u64) -> NodeObject {
    let annotations = [
        ("endpoint", "198.51.100.1:51820".to_owned()),
        ("key", "i/UpUiSOHF5hVIvHsfguIQagj1GnI2eQYkOGQo+in3E=".to_owned()),
        ("last-seen", last_seen.to_string()),
    ];
    let annotations: BTreeMap<_, _> =
        annotations.into_iter().map(|(key, value)| (format!("kilo.squat.ai/{key}"), value)).collect();
    NodeObject {
        metadata: Metadata { name: name.into(), annotations, ..Metadata::default() },
        spec: NodeSpec { pod_cidr: "10.2.0.0/24".into(), pod_cidrs: Vec::new() },
    }
}

/// An agent's store in a cluster with check-ins.
struct Cluster {
    store: Store,
    /// Everybody's last check-in, by name.
    seen: BTreeMap<&'static str, u64>,
}

impl Cluster {
    /// `a` is ours; its check-ins and those of the others are a few seconds apart.
    fn start(names: &[&'static str]) -> Self {
        let seen = names.iter().zip(0_u64..).map(|(&name, n)| (name, START - 3 * n)).collect();
        let mut this = Self { store: Store::new("a", "region", EXPIRY), seen };
        this.list(START);
        this
    }

    /// A list of everybody as the server has them.
    fn list(&mut self, now: u64) -> Changed {
        let nodes = self.seen.iter().map(|(name, seen)| node(name, *seen)).collect();
        self.store.apply(Event::Nodes(nodes, Vec::new()), now)
    }

    /// Time goes on; who is among `alive` checks in every half minute, and we hear of it. Who counts at each change.
    fn live(&mut self, from: u64, to: u64, alive: &[&'static str]) -> Vec<(u64, String)> {
        let mut told = Vec::new();
        let mut before = self.there(from);
        for now in from..=to {
            for name in alive {
                if now - self.seen[name] >= 30 {
                    self.seen.insert(name, now);
                    self.store.apply(Event::NodeApplied(Box::new(node(name, now))), now);
                }
            }
            let there = self.there(now);
            if there != before {
                told.push((now, there.clone()));
                before = there;
            }
        }
        told
    }

    /// Who takes part.
    fn there(&mut self, now: u64) -> String {
        self.store.settle(now);
        let there = self.store.nodes().into_iter().filter(|node| node.ready(now, EXPIRY));
        there.map(|node| node.name.to_string()).collect()
    }

    /// Time goes on, and nothing is heard.
    fn silent(&mut self, from: u64, to: u64) -> Vec<(u64, String)> {
        self.live(from, to, &[])
    }
}

#[test]
fn who_is_dead_goes_after_the_expiry_and_one_echo() {
    let mut cluster = Cluster::start(&["a", "b", "c"]);
    assert_eq!(cluster.live(START, START + 20, &["a", "b", "c"]), []);
    // b checked in at START - 3; it is late from START + 57 on, and c is heard of at START + 84.
    assert!(!cluster.store.waits_for_news());
    assert_eq!(cluster.live(START + 27, START + 56, &["a", "c"]), []);
    let changes = cluster.live(START + 57, START + 57, &[]);
    assert_eq!((changes.len(), cluster.store.waits_for_news()), (0, true));
    assert_eq!(cluster.store.held(), BTreeSet::from(["b".to_owned()]));
    // Our own check-in is all it takes.
    let echo = cluster.store.apply(Event::NodeApplied(Box::new(node("a", START + 57))), START + 57);
    assert_eq!(echo, Changed::Plan);
    assert_eq!(cluster.there(START + 57), "ac");
}

#[test]
fn nobody_goes_while_nothing_is_heard_nor_before_all_could_check_in() {
    for silence in [40, 61, 180, 7 * 24 * 3600] {
        let mut cluster = Cluster::start(&["a", "b", "c", "dead"]);
        let before = cluster.live(START, START + 300, &["a", "b", "c"]);
        assert_eq!(before.last().expect("a change").1, "abc");
        let back = START + 300 + silence;
        assert_eq!(cluster.silent(START + 301, back), [], "in the silence of {silence} s");
        // The list brings nothing new, then one after the other comes.
        cluster.list(back);
        assert_eq!(cluster.there(back), "abc");
        assert_eq!(cluster.live(back, back + 5, &["a"]), []);
        assert_eq!(cluster.live(back + 6, back + 40, &["a", "b"]), []);
        // c never comes: it had its time.
        let gone = cluster.live(back + 41, back + 300, &["a", "b"]);
        assert_eq!(gone.len(), 1, "{gone:?}");
        assert_eq!(gone[0].1, "ab");
        assert!((back + 89..back + 125).contains(&gone[0].0), "{} s after the return", gone[0].0 - back);
    }
}

#[test]
fn who_was_deleted_meanwhile_is_gone_at_once() {
    let mut cluster = Cluster::start(&["a", "b", "c"]);
    assert_eq!(cluster.silent(START, START + 200), []);
    cluster.seen.remove("c");
    assert_eq!(cluster.list(START + 200), Changed::Plan);
    assert_eq!(cluster.there(START + 200), "ab");
    // So is one that says itself that it takes no part.
    let mut left = node("b", START + 200);
    left.metadata.annotations.remove("kilo.squat.ai/key");
    assert_eq!(cluster.store.apply(Event::NodeApplied(Box::new(left)), START + 201), Changed::Plan);
    assert_eq!(cluster.there(START + 201), "a");
}

#[test]
fn one_outage_after_the_other_drops_nobody() {
    let mut cluster = Cluster::start(&["a", "b", "c"]);
    let mut now = START;
    for _ in 0..20 {
        assert_eq!(cluster.silent(now, now + 100), []);
        now += 100;
        // Back for a second only.
        cluster.list(now);
    }
    assert_eq!(cluster.there(now), "abc");
}

#[test]
fn short_silences_keep_no_dead_node_for_ever() {
    // The server is so slow that our own check-in comes 35 s after the last.
    let mut cluster = Cluster::start(&["a", "dead"]);
    let mut now = START;
    for _ in 0..10 {
        cluster.silent(now, now + 35);
        now += 35;
        cluster.store.apply(Event::NodeApplied(Box::new(node("a", now))), now);
    }
    assert_eq!(cluster.there(now), "a");
}

#[test]
fn a_start_after_an_outage_keeps_who_was_there_before_it() {
    // Everybody, we included, checked in for the last time an hour ago, and two died long before.
    let hour = 3600;
    let start = |seen: &[(&'static str, u64)]| {
        let seen = seen.iter().copied().collect();
        let mut cluster = Cluster { store: Store::new("a", "region", EXPIRY), seen };
        cluster.list(START + hour);
        cluster
    };
    let (old, last) = (START - hour, START);
    let mut cluster = start(&[("a", last), ("b", last - 20), ("c", last - 59), ("x", old), ("y", old)]);
    assert_eq!(cluster.there(START + hour), "bc");
    let changes = cluster.live(START + hour, START + hour + 150, &["a", "b"]);
    assert_eq!(changes.first().expect("a change").1, "abc");
    assert_eq!(changes.last().expect("a change").1, "ab");

    // Only we were away: who did not check in since is dead.
    let now = START + hour - 5;
    let mut cluster = start(&[("a", last), ("b", now), ("c", now), ("x", last), ("y", old)]);
    assert_eq!(cluster.there(START + hour), "bc");
    // A restart, with a dead node in a mesh of two.
    let mut cluster = start(&[("a", START + hour - 20), ("x", START + hour - 75)]);
    assert_eq!(cluster.there(START + hour), "a");
}

#[test]
fn what_is_told_while_the_watch_is_down_is_no_news() {
    let mut cluster = Cluster::start(&["a", "b"]);
    cluster.store.apply(Event::Watch(WatchKind::Nodes, WatchState::Down("gone".into())), START);
    cluster.silent(START, START + 300);
    cluster.list(START + 300);
    cluster.store.apply(Event::Watch(WatchKind::Nodes, WatchState::Down("gone".into())), START + 300);
    assert!(cluster.store.waits_for_news());
    cluster.silent(START + 301, START + 600);
    cluster.list(START + 600);
    assert_eq!(cluster.there(START + 600), "ab");
    cluster.store.apply(Event::Watch(WatchKind::Nodes, WatchState::Up), START + 600);
    cluster.list(START + 600);
    assert!(!cluster.store.waits_for_news());
    assert_eq!(cluster.there(START + 689), "ab");
}

#[test]
fn an_answer_is_news_for_who_may_not_write() {
    let mut cluster = Cluster::start(&["a", "b"]);
    cluster.silent(START, START + 70);
    assert!(cluster.store.waits_for_news());
    cluster.store.apply(Event::Watch(WatchKind::Nodes, WatchState::Down("gone".into())), START + 70);
    assert_eq!(cluster.store.answered(START + 70), Changed::Nothing);
    assert_eq!(cluster.there(START + 70), "ab");
    cluster.store.apply(Event::Watch(WatchKind::Nodes, WatchState::Up), START + 70);
    cluster.store.answered(START + 70);
    assert!(!cluster.store.waits_for_news());
    // Refused every few seconds from now on.
    for now in (START + 73..START + 200).step_by(3) {
        cluster.store.answered(now);
    }
    assert_eq!(cluster.there(START + 200), "");
}

#[test]
fn strange_times_are_judged_once_and_not_again_and_again() {
    for seen in ["-9223372036854775808", "9223372036854775807", "-1", "0", "x"] {
        let mut cluster = Cluster::start(&["a"]);
        let mut odd = node("odd", 0);
        odd.metadata.annotations.insert("kilo.squat.ai/last-seen".into(), seen.into());
        cluster.store.apply(Event::NodeApplied(Box::new(odd)), START);
        cluster.store.settle(START);
        assert!(cluster.store.next_expiry().is_some_and(|at| at > START), "{seen}");
    }
}

#[test]
fn check_ins_of_others_are_news_once() {
    let mut cluster = Cluster::start(&["a", "b"]);
    assert_eq!(cluster.store.take_news(), None);
    cluster.store.apply(Event::NodeApplied(Box::new(node("a", START + 5))), START + 5);
    assert_eq!(cluster.store.take_news(), None, "our own");
    cluster.store.apply(Event::NodeApplied(Box::new(node("b", START + 5))), START + 5);
    assert_eq!(cluster.store.take_news().map(i64::unsigned_abs), Some(START + 5));
    assert_eq!(cluster.store.take_news(), None);
    assert!(cluster.store.has_others());
}
