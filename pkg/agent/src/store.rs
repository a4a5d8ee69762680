//! The cluster as last heard of: objects and what they translate to. Each event is worked into it at the
//! cost of one object, and the answer tells whether a plan may come out differently.

use std::collections::{BTreeMap, BTreeSet};

use kilo_mesh::{Finding, Node, NodeObject, Peer, PeerObject};

use crate::changes::Changes;
use crate::presence::Presence;
use crate::{Event, WatchKind, WatchState};

/// An object with its translation.
#[derive(Clone, Debug)]
struct Entry<O, T> {
    object: O,
    translated: T,
    findings: Vec<Finding>,
}

/// The cluster as last heard of.
#[derive(Debug)]
pub struct Store {
    /// The name of our own Node.
    own: String,
    topology_label: String,
    nodes: BTreeMap<String, Entry<NodeObject, Node>>,
    peers: BTreeMap<String, Entry<PeerObject, Peer>>,
    /// Objects that could not even be read, by kind and name or place.
    malformed: BTreeMap<(WatchKind, String), Finding>,
    listed: [bool; 2],
    watches: BTreeMap<WatchKind, WatchState>,
    presence: Presence,
    changes: Changes,
    /// The latest check-in of another node that was heard of since somebody asked.
    news: Option<i64>,
}

/// What an event changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Nothing that a plan looks at, other than when a node was last seen.
    Nothing,
    /// Something that a plan may depend on.
    Plan,
}

impl Store {
    /// An empty store of the agent of node `own`. Nodes take their location from this label; `expiry` is
    /// `--node-expiry`, in seconds.
    pub fn new(own: &str, topology_label: &str, expiry: u64) -> Self {
        Self {
            own: own.to_owned(),
            topology_label: topology_label.to_owned(),
            nodes: BTreeMap::new(),
            peers: BTreeMap::new(),
            malformed: BTreeMap::new(),
            listed: [false; 2],
            watches: BTreeMap::new(),
            presence: Presence::new(expiry),
            changes: Changes::default(),
            news: None,
        }
    }

    /// Works one event in. `now` is in seconds since 1970.
    pub fn apply(&mut self, event: Event, now: u64) -> Changed {
        let of_nodes = match &event {
            Event::Nodes(..) | Event::NodeApplied(_) | Event::NodeDeleted(_) => true,
            Event::Malformed(kind, ..) => *kind == WatchKind::Nodes,
            Event::Peers(..) | Event::PeerApplied(_) | Event::PeerDeleted(_) | Event::Watch(..) => false,
        };
        // A backend may tell what it thinks of objects while it cannot see them.
        let blind = matches!(self.watches.get(&WatchKind::Nodes), Some(WatchState::Down(_)));
        if of_nodes && !blind {
            self.presence.hear(self.nodes.values().map(|e| &e.translated), now);
        }
        let changed = self.work_in(event, now);
        if of_nodes && changed == Changed::Plan {
            self.changes.whole();
        }
        if of_nodes && self.presence.waits() {
            let unheard = self.presence.unheard();
            return Changed::if_so(self.judge(unheard, now) | (changed == Changed::Plan));
        }
        changed
    }

    fn work_in(&mut self, event: Event, now: u64) -> Changed {
        match event {
            Event::Nodes(objects, findings) => {
                let first = !std::mem::replace(&mut self.listed[0], true);
                self.watches.insert(WatchKind::Nodes, WatchState::Up);
                let gone: Vec<_> = gone(&self.nodes, objects.iter().map(|o| &o.metadata.name));
                let mut changed = self.replace_malformed(WatchKind::Nodes, findings);
                for name in &gone {
                    changed |= self.remove_node(name);
                }
                if first {
                    self.begin(&objects, now);
                }
                for object in objects {
                    changed |= self.apply_node(object, now);
                }
                Changed::if_so(changed)
            }
            Event::Peers(objects, findings) => {
                self.listed[1] = true;
                self.watches.insert(WatchKind::Peers, WatchState::Up);
                let gone: Vec<_> = gone(&self.peers, objects.iter().map(|o| &o.metadata.name));
                let mut changed = self.replace_malformed(WatchKind::Peers, findings);
                for name in &gone {
                    changed |= self.remove_peer(name);
                }
                for object in objects {
                    changed |= self.apply_peer(object);
                }
                Changed::if_so(changed)
            }
            Event::NodeApplied(object) => Changed::if_so(self.apply_node(*object, now)),
            Event::NodeDeleted(name) => {
                Changed::if_so(self.remove_node(&name) | self.readable(WatchKind::Nodes, &name))
            }
            Event::PeerApplied(object) => Changed::if_so(self.apply_peer(*object)),
            Event::PeerDeleted(name) => {
                Changed::if_so(self.remove_peer(&name) | self.readable(WatchKind::Peers, &name))
            }
            Event::Malformed(kind, name, finding) => {
                let gone = match kind {
                    WatchKind::Nodes => self.remove_node(&name),
                    WatchKind::Peers => self.remove_peer(&name),
                };
                let before = self.malformed.insert((kind, name), finding.clone());
                let news = before != Some(finding);
                self.changes.findings |= news;
                Changed::if_so(gone | news)
            }
            Event::Watch(kind, state) => {
                self.watches.insert(kind, state);
                Changed::Nothing
            }
        }
    }

    fn apply_node(&mut self, object: NodeObject, now: u64) -> bool {
        let name = object.metadata.name.clone();
        let unreadable = self.readable(WatchKind::Nodes, &name);
        let (mut translated, findings) = Node::from_object(&object, &self.topology_label);
        let counted = self.presence.counts(&name);
        let counts = self.presence.judge(&mut translated, now);
        let old = self.nodes.get(&name);
        if name != self.own && old.is_some_and(|old| old.translated.last_seen != translated.last_seen) {
            self.news = self.news.max(Some(translated.last_seen));
        }
        let same = old.is_some_and(|old| {
            let Node { last_seen, held, .. } = old.translated;
            let like_old = Node { last_seen, held, ..translated.clone() };
            counted == counts && like_old == old.translated && findings == old.findings
        });
        self.changes.endpoint(old.and_then(|e| e.translated.endpoint.as_ref()), translated.endpoint.as_ref());
        self.changes.findings |= old.map_or(&[][..], |old| &old.findings) != findings;
        self.nodes.insert(name, Entry { object, translated, findings });
        !same || unreadable
    }

    fn remove_node(&mut self, name: &str) -> bool {
        self.presence.forget(name);
        let Some(old) = self.nodes.remove(name) else { return false };
        self.changes.endpoint(old.translated.endpoint.as_ref(), None);
        self.changes.findings |= !old.findings.is_empty();
        true
    }

    fn remove_peer(&mut self, name: &str) -> bool {
        let Some(old) = self.peers.remove(name) else { return false };
        self.changes.endpoint(old.translated.endpoint.as_ref(), None);
        self.changes.findings |= !old.findings.is_empty();
        self.changes.peer(name, Some(old.translated));
        true
    }

    /// An object can be read, or is gone. Tells whether it could not be read before.
    fn readable(&mut self, kind: WatchKind, name: &str) -> bool {
        let unreadable = self.malformed.remove(&(kind, name.to_owned())).is_some();
        self.changes.findings |= unreadable;
        unreadable
    }

    /// Looks at the first list as a whole.
    fn begin(&mut self, objects: &[NodeObject], now: u64) {
        let read = objects.iter().map(|object| Node::from_object(object, &self.topology_label).0);
        let (own, others): (Vec<_>, Vec<_>) = read.partition(|node| *node.name == *self.own);
        self.presence.begin(own.first(), others.iter(), now);
    }

    /// Judges nodes again; whether one of them counts no longer.
    fn judge(&mut self, names: Vec<String>, now: u64) -> bool {
        let mut changed = false;
        for name in names {
            let Some(entry) = self.nodes.get_mut(&name) else { continue };
            let counted = self.presence.counts(&name);
            changed |= self.presence.judge(&mut entry.translated, now) != counted;
        }
        if changed {
            self.changes.whole();
        }
        changed
    }

    /// Judges the nodes whose time has come; whether one of them is gone. To be called before each plan.
    pub fn settle(&mut self, now: u64) -> bool {
        let due = self.presence.due(now);
        self.judge(due, now)
    }

    /// Whether a node would be gone if the watch had told anything since it expired.
    pub fn waits_for_news(&self) -> bool {
        self.presence.waits()
    }

    /// Notes that the cluster was asked and has answered. While the watch of Nodes is up this counts as news from it:
    /// who may not write his own Node hears no echo.
    pub fn answered(&mut self, now: u64) -> Changed {
        if self.watches.get(&WatchKind::Nodes) != Some(&WatchState::Up) {
            return Changed::Nothing;
        }
        self.presence.hear(self.nodes.values().map(|e| &e.translated), now);
        let unheard = self.presence.unheard();
        Changed::if_so(self.judge(unheard, now))
    }

    /// The latest check-in of another node that was heard of since this was last asked, in seconds since 1970.
    pub fn take_news(&mut self) -> Option<i64> {
        self.news.take()
    }

    /// Whether there are other nodes.
    pub fn has_others(&self) -> bool {
        self.nodes.keys().any(|name| *name != self.own)
    }

    /// The nodes that take part although their last check-in is too old.
    pub fn held(&self) -> BTreeSet<String> {
        self.nodes.iter().filter(|(_, e)| e.translated.held).map(|(name, _)| name.clone()).collect()
    }

    fn apply_peer(&mut self, object: PeerObject) -> bool {
        let name = object.metadata.name.clone();
        let unreadable = self.readable(WatchKind::Peers, &name);
        let same = self.peers.get(&name).is_some_and(|old| old.object == object);
        if !same {
            let (translated, findings) = Peer::from_object(&object);
            let old = self.peers.remove(&name);
            let before = old.as_ref().and_then(|old| old.translated.endpoint.as_ref());
            self.changes.endpoint(before, translated.endpoint.as_ref());
            self.changes.findings |= old.as_ref().map_or(&[][..], |old| &old.findings) != findings;
            self.changes.peer(&name, old.map(|old| old.translated));
            self.peers.insert(name, Entry { object, translated, findings });
        }
        !same || unreadable
    }

    fn replace_malformed(&mut self, kind: WatchKind, findings: Vec<Finding>) -> bool {
        let old: Vec<_> = self.malformed.iter().filter(|((k, _), _)| *k == kind).map(|(_, f)| f).collect();
        let changed = !old.iter().copied().eq(findings.iter());
        self.changes.findings |= changed;
        self.malformed.retain(|(k, _), _| *k != kind);
        // A list names no objects that it could not read; their findings do.
        self.malformed.extend(findings.into_iter().map(|f| {
            let name = f.object.split_once('/').map_or(f.object.as_str(), |(_, name)| name).to_owned();
            ((kind, name), f)
        }));
        changed
    }

    /// Whether both kinds of object have been listed once: before, nothing may be removed.
    pub fn synced(&self) -> bool {
        self.listed == [true; 2]
    }

    /// How each watch is doing.
    pub fn watches(&self) -> &BTreeMap<WatchKind, WatchState> {
        &self.watches
    }

    /// The nodes, by name.
    pub fn nodes(&self) -> Vec<&Node> {
        self.nodes.values().map(|e| &e.translated).collect()
    }

    /// The peers, by name.
    pub fn peers(&self) -> Vec<&Peer> {
        self.peers.values().map(|e| &e.translated).collect()
    }

    /// The Peer of this name.
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.get(name).map(|e| &e.translated)
    }

    /// What has changed since this was last asked.
    pub fn take_changes(&mut self) -> Changes {
        self.changes.take()
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name).map(|e| &e.translated)
    }

    /// The object of a node.
    pub fn node_object(&self, name: &str) -> Option<&NodeObject> {
        self.nodes.get(name).map(|e| &e.object)
    }

    /// All objects, by name, as a plan's input.
    pub fn objects(&self) -> (Vec<NodeObject>, Vec<PeerObject>) {
        (
            self.nodes.values().map(|e| e.object.clone()).collect(),
            self.peers.values().map(|e| e.object.clone()).collect(),
        )
    }

    /// What is wrong with objects taken one by one.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        let nodes = self.nodes.values().flat_map(|e| &e.findings);
        let peers = self.peers.values().flat_map(|e| &e.findings);
        self.malformed.values().chain(nodes).chain(peers)
    }

    /// The names that endpoints of nodes and peers have.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let peers = self.peers.values().filter_map(|e| e.translated.endpoint.as_ref());
        self.names_of_nodes().chain(peers.filter_map(|endpoint| endpoint.dns()))
    }

    /// The names that endpoints of nodes have.
    pub fn names_of_nodes(&self) -> impl Iterator<Item = &str> {
        let nodes = self.nodes.values().filter_map(|e| e.translated.endpoint.as_ref());
        nodes.filter_map(|endpoint| endpoint.dns())
    }

    /// The first moment at which a node is to be judged again, in seconds since 1970.
    pub fn next_expiry(&self) -> Option<u64> {
        self.presence.next()
    }
}

impl Changed {
    fn if_so(changed: bool) -> Self {
        if changed { Self::Plan } else { Self::Nothing }
    }
}

/// The names in the map that are not among those of the list.
fn gone<'a, T>(map: &BTreeMap<String, T>, names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let names: BTreeSet<&String> = names.collect();
    map.keys().filter(|name| !names.contains(name)).cloned().collect()
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
