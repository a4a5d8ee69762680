//! The cluster as last heard of: objects and what they translate to. Each event is worked into it at the
//! cost of one object, and the answer tells whether a plan may come out differently.

use std::collections::BTreeMap;

use kilo_mesh::{Finding, Node, NodeObject, Peer, PeerObject};

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
    topology_label: String,
    nodes: BTreeMap<String, Entry<NodeObject, Node>>,
    peers: BTreeMap<String, Entry<PeerObject, Peer>>,
    /// Objects that could not even be read, by kind and name or place.
    malformed: BTreeMap<(WatchKind, String), Finding>,
    listed: [bool; 2],
    watches: BTreeMap<WatchKind, WatchState>,
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
    /// An empty store; nodes take their location from this label.
    pub fn new(topology_label: &str) -> Self {
        Self {
            topology_label: topology_label.to_owned(),
            nodes: BTreeMap::new(),
            peers: BTreeMap::new(),
            malformed: BTreeMap::new(),
            listed: [false; 2],
            watches: BTreeMap::new(),
        }
    }

    /// Works one event in. `now` is in seconds since 1970.
    pub fn apply(&mut self, event: Event, now: u64, expiry: u64) -> Changed {
        match event {
            Event::Nodes(objects, findings) => {
                self.listed[0] = true;
                self.watches.insert(WatchKind::Nodes, WatchState::Up);
                let gone: Vec<_> = gone(&self.nodes, objects.iter().map(|o| &o.metadata.name));
                let mut changed = self.replace_malformed(WatchKind::Nodes, findings);
                changed |= !gone.is_empty();
                gone.iter().for_each(|name| drop(self.nodes.remove(name)));
                for object in objects {
                    changed |= self.apply_node(object, now, expiry);
                }
                Changed::if_so(changed)
            }
            Event::Peers(objects, findings) => {
                self.listed[1] = true;
                self.watches.insert(WatchKind::Peers, WatchState::Up);
                let gone: Vec<_> = gone(&self.peers, objects.iter().map(|o| &o.metadata.name));
                let mut changed = self.replace_malformed(WatchKind::Peers, findings);
                changed |= !gone.is_empty();
                gone.iter().for_each(|name| drop(self.peers.remove(name)));
                for object in objects {
                    changed |= self.apply_peer(object);
                }
                Changed::if_so(changed)
            }
            Event::NodeApplied(object) => Changed::if_so(self.apply_node(*object, now, expiry)),
            Event::NodeDeleted(name) => {
                let malformed = self.malformed.remove(&(WatchKind::Nodes, name.clone())).is_some();
                Changed::if_so(self.nodes.remove(&name).is_some() | malformed)
            }
            Event::PeerApplied(object) => Changed::if_so(self.apply_peer(*object)),
            Event::PeerDeleted(name) => {
                let malformed = self.malformed.remove(&(WatchKind::Peers, name.clone())).is_some();
                Changed::if_so(self.peers.remove(&name).is_some() | malformed)
            }
            Event::Malformed(kind, name, finding) => {
                let gone = match kind {
                    WatchKind::Nodes => self.nodes.remove(&name).is_some(),
                    WatchKind::Peers => self.peers.remove(&name).is_some(),
                };
                let news = self.malformed.get(&(kind, name.clone())) != Some(&finding);
                self.malformed.insert((kind, name), finding);
                Changed::if_so(gone | news)
            }
            Event::Watch(kind, state) => {
                self.watches.insert(kind, state);
                Changed::Nothing
            }
        }
    }

    fn apply_node(&mut self, object: NodeObject, now: u64, expiry: u64) -> bool {
        let name = object.metadata.name.clone();
        let unreadable = self.malformed.remove(&(WatchKind::Nodes, name.clone())).is_some();
        let (mut translated, findings) = Node::from_object(&object, &self.topology_label);
        let same = self.nodes.get(&name).is_some_and(|old| {
            let ready = old.translated.ready(now, expiry) == translated.ready(now, expiry);
            let last_seen = std::mem::replace(&mut translated.last_seen, old.translated.last_seen);
            let same = old.translated == translated;
            translated.last_seen = last_seen;
            ready && same && old.findings == findings
        });
        self.nodes.insert(name, Entry { object, translated, findings });
        !same || unreadable
    }

    fn apply_peer(&mut self, object: PeerObject) -> bool {
        let name = object.metadata.name.clone();
        let unreadable = self.malformed.remove(&(WatchKind::Peers, name.clone())).is_some();
        let same = self.peers.get(&name).is_some_and(|old| old.object == object);
        if !same {
            let (translated, findings) = Peer::from_object(&object);
            self.peers.insert(name, Entry { object, translated, findings });
        }
        !same || unreadable
    }

    fn replace_malformed(&mut self, kind: WatchKind, findings: Vec<Finding>) -> bool {
        let old: Vec<_> = self.malformed.iter().filter(|((k, _), _)| *k == kind).map(|(_, f)| f).collect();
        let changed = !old.iter().copied().eq(findings.iter());
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
        let nodes = self.nodes.values().filter_map(|e| e.translated.endpoint.as_ref());
        let peers = self.peers.values().filter_map(|e| e.translated.endpoint.as_ref());
        nodes.chain(peers).filter_map(|endpoint| endpoint.dns())
    }

    /// The first moment at which a node that is ready no longer is, in seconds since 1970.
    pub fn next_expiry(&self, now: u64, expiry: u64) -> Option<u64> {
        let ready = self.nodes.values().filter(|e| e.translated.ready(now, expiry));
        let expires =
            ready.map(|e| e.translated.last_seen.saturating_add_unsigned(expiry).max(0).unsigned_abs());
        if expiry > 0 { expires.min() } else { None }
    }
}

impl Changed {
    fn if_so(changed: bool) -> Self {
        if changed { Self::Plan } else { Self::Nothing }
    }
}

/// The names in the map that are not among those of the list.
fn gone<'a, T>(map: &BTreeMap<String, T>, names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = names.collect();
    map.keys().filter(|name| !names.contains(name)).cloned().collect()
}
