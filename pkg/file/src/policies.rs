//! The store's other half: the objects that network policies are about. They are kept as short texts, for a file that
//! cannot be read any more has to stand for its last ones.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::sync::Arc;

use kilo_agent::{Kind, PolicyEvent, Trim, WatchState};
use serde_json::Value;
use tracing::warn;

use crate::documents::{Item, read_items};
use crate::scan::Stamp;
use crate::store::Store;

/// Kind, namespace and name.
type Key = (Kind, String, String);

/// Objects, trimmed, as JSON.
pub(crate) type Policies = BTreeMap<Key, Arc<str>>;

/// What was told of them.
#[derive(Debug, Default)]
pub(crate) struct Told {
    objects: Option<Policies>,
    /// That it was everything.
    synced: bool,
    /// Objects that stand twice.
    twice: BTreeSet<Key>,
}

/// All kinds, those first that others refer to.
const KINDS: [Kind; 5] =
    [Kind::Namespace, Kind::Pod, Kind::NetworkPolicy, Kind::Service, Kind::EndpointSlice];

/// The objects of a text that policies are about, and whether all of it could be read. What is wrong with the rest is for
/// who reads Nodes and Peers to tell.
pub(crate) fn read_policies(origin: &str, text: &[u8]) -> (Policies, bool) {
    let (mut objects, mut whole) = (Policies::new(), !text.iter().all(u8::is_ascii_whitespace));
    for item in read_items(origin, text) {
        let Ok(Item { api_version, kind, object }) = item else {
            whole = false;
            continue;
        };
        let Some(kind) = Kind::of(&api_version, &kind) else { continue };
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
        let namespace = match (kind, text("namespace")) {
            (Kind::Namespace, _) => "",
            (_, "") => "default",
            (_, namespace) => namespace,
        };
        let key = (kind, namespace.to_owned(), text("name").to_owned());
        // Of two with one name in a file the first counts.
        if let Entry::Vacant(free) = objects.entry(key) {
            free.insert(Trim::of(kind).value(object).to_string().into());
        }
    }
    (objects, whole)
}

impl Store {
    /// Takes the content of a file; of one that cannot be read as a whole, the last objects stay beside the new ones.
    pub(crate) fn read_policies(&mut self, path: &OsStr, text: &[u8], stamp: Stamp, device: u64) {
        let (mut objects, whole) = read_policies(&path.to_string_lossy(), text);
        let source = self.begin(path, stamp, device);
        let last = std::mem::take(&mut source.policies);
        for (key, object) in last {
            match objects.entry(key) {
                // The same allocation tells cheaply that nothing changed.
                Entry::Occupied(mut new) => {
                    if *new.get() == object {
                        new.insert(object);
                    }
                }
                Entry::Vacant(free) => {
                    if !whole {
                        free.insert(object);
                    }
                }
            }
        }
        source.policies = objects;
        source.whole = whole;
    }

    /// What the agent has to be told now; at first everything. While a file that was never read to its end may hold more,
    /// the lists do not end.
    pub(crate) fn policy_events(&mut self) -> Vec<PolicyEvent> {
        let (mut now, mut twice) = (Policies::new(), BTreeSet::new());
        // A file that was renamed is there under its new name and missing under the old one.
        for there in [true, false] {
            for source in self.sources.values().filter(|source| source.missing.is_none() == there) {
                for (key, object) in &source.policies {
                    match now.entry(key.clone()) {
                        Entry::Vacant(free) => _ = free.insert(object.clone()),
                        Entry::Occupied(_) if there => _ = twice.insert(key.clone()),
                        Entry::Occupied(_) => {}
                    }
                }
            }
        }
        for (kind, namespace, name) in twice.difference(&self.told_policies.twice) {
            warn!(kind = kind.name(), namespace, name, "An object stands twice and the first one counts");
        }
        let (mut events, synced) = (Vec::new(), self.told_policies.synced || self.is_whole());
        match &self.told_policies.objects {
            None => {
                for kind in KINDS {
                    let of_kind = now.iter().filter(|((of, _, _), _)| *of == kind);
                    events.push(PolicyEvent::Restarted(kind));
                    events.extend(of_kind.map(|(_, object)| PolicyEvent::Applied(kind, value(object))));
                }
            }
            Some(last) => {
                let gone = last.keys().filter(|key| !now.contains_key(*key)).cloned();
                events
                    .extend(gone.map(|(kind, namespace, name)| PolicyEvent::Deleted(kind, namespace, name)));
                let changed = now.iter().filter(|(key, object)| {
                    last.get(*key).is_none_or(|last| !Arc::ptr_eq(last, object) && last != *object)
                });
                events.extend(changed.map(|((kind, ..), object)| PolicyEvent::Applied(*kind, value(object))));
            }
        }
        if synced && !self.told_policies.synced {
            events.extend(KINDS.map(PolicyEvent::Synced));
        }
        self.told_policies = Told { objects: Some(now), synced, twice };
        events.extend(self.policy_state());
        events
    }

    /// That nothing can be told yet, and why; once for each reason.
    pub(crate) fn policies_waiting(&mut self) -> Vec<PolicyEvent> {
        if self.has_vanished() { self.policy_state() } else { Vec::new() }
    }

    fn policy_state(&mut self) -> Vec<PolicyEvent> {
        let Some(vanished) = self.new_state() else { return Vec::new() };
        let state = vanished.map_or(WatchState::Up, WatchState::Down);
        KINDS.map(|kind| PolicyEvent::Watch(kind, state.clone())).to_vec()
    }
}

/// An object that was kept.
fn value(object: &str) -> Value {
    // We wrote it ourselves.
    serde_json::from_str(object).unwrap_or_default()
}
