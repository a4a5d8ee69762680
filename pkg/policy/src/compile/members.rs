//! Sets of pods and who is in them.

use std::collections::{BTreeMap, BTreeSet};

use kilo_nftables::{Element, Family, Key, KeyType, Place, Set, SetType};

use super::chain;
use super::cluster::{Alike, Name, Record};
use super::draft::Draft;
use super::rules::{FAMILIES, number};
use crate::evaluate::is_in;
use crate::intern::Text;
use crate::labels::Selector;
use crate::policy::Protocol;
use crate::profile::{Namespaces, PodSet};
use crate::snapshot::Snapshot;

/// Pods that are in the same sets, and these by their numbers.
#[derive(Debug, Default)]
struct Group {
    pods: BTreeSet<Name>,
    sets: BTreeSet<u32>,
}

/// A set of pods that profiles refer to.
#[derive(Debug)]
struct Used {
    number: u32,
    times: usize,
}

/// The sets in use, and the pods that may be in them.
#[derive(Debug, Default)]
pub(crate) struct Members {
    groups: BTreeMap<Text, BTreeMap<Alike, Group>>,
    sets: BTreeMap<PodSet, Used>,
    names: BTreeMap<u32, [Box<str>; 2]>,
    next: u32,
    named: BTreeMap<(Protocol, Text), usize>,
}

/// A set's name and an element of it.
pub(crate) type Entry = (Box<str>, Element);

fn at(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

fn contains(set: &PodSet, namespace: &Text, alike: &Alike, snapshot: &Snapshot) -> bool {
    let (labels, held) = alike;
    let there = match &set.namespaces {
        Namespaces::Only(name) => name == namespace,
        Namespaces::Selected(selector) => is_in(selector, namespace, snapshot.namespace(namespace)),
    };
    there && !held && set.pods.matches(labels)
}

impl Members {
    /// The pods of a namespace that one of these selectors selects.
    pub(crate) fn selected<'m>(
        &'m self,
        namespace: &Text,
        subjects: [Option<&'m Selector>; 2],
    ) -> impl Iterator<Item = &'m Name> {
        let groups = self.groups.get(namespace).into_iter().flatten();
        groups
            .filter(move |((labels, _), _)| {
                subjects.iter().flatten().any(|subjects| subjects.matches(labels))
            })
            .flat_map(|(_, group)| &group.pods)
    }

    fn sets_of(&self, namespace: &Text, alike: &Alike, snapshot: &Snapshot) -> BTreeSet<u32> {
        let sets = self.sets.iter().filter(|(set, _)| contains(set, namespace, alike, snapshot));
        sets.map(|(_, used)| used.number).collect()
    }

    fn name(&self, set: u32, family: Family) -> Option<&str> {
        self.names.get(&set).map(|names| &*names[at(family)])
    }

    /// The labels of a namespace are others; whether a pod left a set.
    pub(crate) fn relabel(
        &mut self,
        namespace: &Text,
        snapshot: &Snapshot,
        records: &BTreeMap<Name, Record>,
        draft: &mut Draft,
    ) -> bool {
        let mut left = false;
        let alikes: Vec<Alike> =
            self.groups.get(namespace).map(|groups| groups.keys().cloned().collect()).unwrap_or_default();
        for alike in alikes {
            let now = self.sets_of(namespace, &alike, snapshot);
            let Some(group) = self.groups.get_mut(namespace).and_then(|groups| groups.get_mut(&alike)) else {
                continue;
            };
            let before = std::mem::replace(&mut group.sets, now.clone());
            let pods = group.pods.clone();
            for ip in pods.iter().filter_map(|pod| records.get(pod)).flat_map(|record| &record.owned) {
                for set in before.difference(&now) {
                    if let Some(name) = self.name(*set, Family::of(*ip)) {
                        left |= draft.remove(name, Place::Key(Key::Address(*ip)));
                    }
                }
                for set in now.difference(&before) {
                    if let Some(name) = self.name(*set, Family::of(*ip)) {
                        draft.insert(name, Element::new(Key::Address(*ip)));
                    }
                }
            }
        }
        left
    }

    /// A pod is another one than it was; what comes into sets is told, since what others leave goes first. Whether
    /// it left a set.
    pub(crate) fn change(
        &mut self,
        name: &Name,
        before: Option<&Record>,
        after: Option<&Record>,
        snapshot: &Snapshot,
        draft: &mut Draft,
        come: &mut Vec<Entry>,
    ) -> bool {
        let old: BTreeSet<(Box<str>, Key)> = before.map(|r| self.places(&name.0, r)).unwrap_or_default();
        if before.map(|r| &r.alike) != after.map(|r| &r.alike) {
            if let Some(record) = before {
                self.leave(name, &record.alike);
            }
            if let Some(record) = after {
                self.join(name, &record.alike, snapshot);
            }
        }
        let new = after.map(|r| self.places(&name.0, r)).unwrap_or_default();
        let mut left = false;
        for (set, key) in old.difference(&new) {
            left |= draft.remove(set, Place::Key(*key));
        }
        come.extend(new.difference(&old).map(|(set, key)| (set.clone(), Element::new(*key))));
        left
    }

    fn leave(&mut self, name: &Name, alike: &Alike) {
        let Some(groups) = self.groups.get_mut(&name.0) else { return };
        if let Some(group) = groups.get_mut(alike) {
            group.pods.remove(name);
            if group.pods.is_empty() {
                groups.remove(alike);
            }
        }
        if groups.is_empty() {
            self.groups.remove(&name.0);
        }
    }

    fn join(&mut self, name: &Name, alike: &Alike, snapshot: &Snapshot) {
        let known = self.groups.get(&name.0).is_some_and(|groups| groups.contains_key(alike));
        let sets = if known { BTreeSet::new() } else { self.sets_of(&name.0, alike, snapshot) };
        let groups = self.groups.entry(name.0.clone()).or_default();
        let group = groups.entry(alike.clone()).or_insert_with(|| Group { pods: BTreeSet::new(), sets });
        group.pods.insert(name.clone());
    }

    /// Where a pod stands: its addresses in sets of pods, and with its ports in those of names.
    fn places(&self, namespace: &Text, record: &Record) -> BTreeSet<(Box<str>, Key)> {
        let mut places = BTreeSet::new();
        let group = self.groups.get(namespace).and_then(|groups| groups.get(&record.alike));
        for ip in &record.owned {
            let family = Family::of(*ip);
            for set in group.into_iter().flat_map(|group| &group.sets) {
                if let Some(name) = self.name(*set, family) {
                    places.insert((name.into(), Key::Address(*ip)));
                }
            }
            for port in &*record.ports {
                let named = (port.protocol, port.name.clone());
                if self.named.contains_key(&named) {
                    let key = Key::Service(*ip, number(port.protocol), port.number);
                    places.insert((chain::named(family, &named), key));
                }
            }
        }
        places
    }

    /// A profile refers to a set.
    pub(crate) fn refer(
        &mut self,
        set: &PodSet,
        (snapshot, records): (&Snapshot, &BTreeMap<Name, Record>),
        draft: &mut Draft,
    ) {
        if let Some(used) = self.sets.get_mut(set) {
            used.times += 1;
            return;
        }
        let number = self.next;
        self.next += 1;
        self.sets.insert(set.clone(), Used { number, times: 1 });
        let mut members = [Vec::new(), Vec::new()];
        for (namespace, groups) in &mut self.groups {
            for (alike, group) in groups {
                if !contains(set, namespace, alike, snapshot) {
                    continue;
                }
                group.sets.insert(number);
                let records = group.pods.iter().filter_map(|pod| records.get(pod));
                for ip in records.flat_map(|record| &record.owned) {
                    members[at(Family::of(*ip))].push(Element::new(Key::Address(*ip)));
                }
            }
        }
        for (family, members) in FAMILIES.into_iter().zip(members) {
            let kind = SetType::exact(KeyType::Address(family));
            draft.put_set(&chain::pods(family, set), Set::of(kind, members));
        }
        self.names.insert(number, FAMILIES.map(|family| chain::pods(family, set)));
    }

    /// A profile refers to a set no more.
    pub(crate) fn forget(&mut self, set: &PodSet, draft: &mut Draft) {
        let Some(used) = self.sets.get_mut(set) else { return };
        used.times -= 1;
        if used.times > 0 {
            return;
        }
        let number = used.number;
        self.sets.remove(set);
        for group in self.groups.values_mut().flat_map(BTreeMap::values_mut) {
            group.sets.remove(&number);
        }
        for name in self.names.remove(&number).into_iter().flatten() {
            draft.remove_set(&name);
        }
    }

    /// A profile refers to ports by name.
    pub(crate) fn refer_named(
        &mut self,
        port: &(Protocol, Text),
        records: &BTreeMap<Name, Record>,
        draft: &mut Draft,
    ) {
        let times = self.named.entry(port.clone()).or_default();
        *times += 1;
        if *times > 1 {
            return;
        }
        let mut members = [Vec::new(), Vec::new()];
        for record in records.values() {
            for p in record.ports.iter().filter(|p| p.protocol == port.0 && p.name == port.1) {
                for ip in &record.owned {
                    let key = Key::Service(*ip, number(p.protocol), p.number);
                    members[at(Family::of(*ip))].push(Element::new(key));
                }
            }
        }
        for (family, members) in FAMILIES.into_iter().zip(members) {
            let kind = SetType::exact(KeyType::Service(family));
            draft.put_set(&chain::named(family, port), Set::of(kind, members));
        }
    }

    /// A profile refers to ports by name no more.
    pub(crate) fn forget_named(&mut self, port: &(Protocol, Text), draft: &mut Draft) {
        let Some(times) = self.named.get_mut(port) else { return };
        *times -= 1;
        if *times == 0 {
            self.named.remove(port);
            FAMILIES.into_iter().for_each(|family| draft.remove_set(&chain::named(family, port)));
        }
    }
}
