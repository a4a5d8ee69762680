//! Profiles in use: their numbers and chains, and the maps that lead from a pod's address to them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use kilo_nftables::{Data, Element, Family, Key, Place};

use super::chain::{Key_, entry, render};
use super::cluster::{Judged, Name, Record};
use super::draft::Draft;
use super::facts::CompilerConfig;
use super::judge::{HELD, OPEN, dispatch, itself, profiles, relayed};
use super::members::Members;
use super::name::Ids;
use super::rules::{View, goto};
use crate::policy::Direction;
use crate::profile::Profile;
use crate::snapshot::Snapshot;

/// The profiles in use.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    ids: Ids<Key_>,
    /// The number of each, and how many pods have it.
    used: BTreeMap<Key_, (u32, usize)>,
    /// Sets whose elements are part of profiles, and how many have them.
    shared: BTreeMap<Box<str>, usize>,
}

/// A place in a map or set of pods' addresses, with what stands there.
type Entry = (Box<str>, Place, Option<u32>);

fn entries(record: &Record) -> Vec<Entry> {
    let mut entries = Vec::new();
    for ip in &record.owned {
        let (family, place) = (Family::of(*ip), Place::Key(Key::Address(*ip)));
        match record.judged {
            Judged::Not => {}
            Judged::Here(ingress, egress) => {
                entries.push((dispatch(Direction::Ingress, family), place, Some(ingress)));
                entries.push((dispatch(Direction::Egress, family), place, Some(egress)));
                entries.push((itself(family), Place::Key(Key::Pair(*ip, *ip)), None));
            }
            Judged::Relayed(ingress) => entries.push((relayed(family), place, Some(ingress))),
        }
    }
    entries
}

impl Programs {
    /// What a number means.
    pub(crate) fn get(&self, id: u32) -> Option<&Key_> {
        self.ids.get(id)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.used.len()
    }

    /// The number of a profile that one more pod has.
    pub(crate) fn acquire(
        &mut self,
        config: &CompilerConfig,
        key: Key_,
        members: &mut Members,
        (snapshot, records): (&Snapshot, &BTreeMap<Name, Record>),
        draft: &mut Draft,
    ) -> u32 {
        match &key.1 {
            Profile::Open => return OPEN,
            Profile::Held => return HELD,
            Profile::Isolated(_) => {}
        }
        if let Some((id, pods)) = self.used.get_mut(&key) {
            *pods += 1;
            return *id;
        }
        let id = self.ids.take(key.clone());
        let made = render(config, id, &key);
        made.pods.iter().for_each(|set| members.refer(set, (snapshot, records), draft));
        made.named.iter().for_each(|port| members.refer_named(port, records, draft));
        for (name, set) in made.sets {
            *self.shared.entry(name.clone()).or_default() += 1;
            draft.put_set(&name, set);
        }
        for (name, rules) in made.chains {
            draft.put_rules(&name, rules);
        }
        for view in View::BOTH {
            let verdict = Data::Verdict(goto(&entry(&key, view)));
            draft.insert(&profiles(key.0, view), Element::with(Key::Integer(id), verdict));
        }
        self.used.insert(key, (id, 1));
        id
    }

    /// A pod has these profiles no more.
    pub(crate) fn release(
        &mut self,
        config: &CompilerConfig,
        judged: Judged,
        members: &mut Members,
        draft: &mut Draft,
    ) {
        match judged {
            Judged::Not => {}
            Judged::Here(ingress, egress) => {
                self.release_one(config, ingress, members, draft);
                self.release_one(config, egress, members, draft);
            }
            Judged::Relayed(ingress) => self.release_one(config, ingress, members, draft),
        }
    }

    fn release_one(&mut self, config: &CompilerConfig, id: u32, members: &mut Members, draft: &mut Draft) {
        let Some(key) = self.ids.get(id).cloned() else { return };
        let Some((_, pods)) = self.used.get_mut(&key) else { return };
        *pods -= 1;
        if *pods > 0 {
            return;
        }
        self.used.remove(&key);
        for view in View::BOTH {
            draft.remove(&profiles(key.0, view), Place::Key(Key::Integer(id)));
        }
        let made = render(config, id, &key);
        made.chains.keys().for_each(|name| draft.remove_chain(name));
        for name in made.sets.keys() {
            if let Some(times) = self.shared.get_mut(name) {
                *times -= 1;
                if *times == 0 {
                    self.shared.remove(name);
                    draft.remove_set(name);
                }
            }
        }
        made.pods.iter().for_each(|set| members.forget(set, draft));
        made.named.iter().for_each(|port| members.forget_named(port, draft));
        self.ids.free(id);
    }

    /// Takes a pod out of the places that it has no more; whether there were any.
    pub(crate) fn leave(&self, before: &Record, after: Option<&Record>, draft: &mut Draft) -> bool {
        let kept = after.map(entries).unwrap_or_default();
        let mut left = false;
        for (set, place, _) in entries(before) {
            if !kept.iter().any(|(s, p, _)| (s, p) == (&set, &place)) {
                left |= draft.remove(&set, place);
            }
        }
        left
    }

    /// Puts a pod where it belongs; whether something may be allowed less than before. An address that was closed is
    /// allowed more.
    pub(crate) fn enter(&self, record: &Record, closed: &[IpNet], draft: &mut Draft) -> bool {
        let mut narrowed = false;
        for (set, place, id) in entries(record) {
            let data = id.map_or(Data::Nothing, Data::Integer);
            let there = draft.at(&set, place);
            if there == Some(&data) {
                continue;
            }
            let was_closed = there.is_none()
                && matches!(record.judged, Judged::Here(..))
                && matches!(place, Place::Key(Key::Address(ip)) if holds(closed, ip));
            narrowed |= id.is_some() && !was_closed;
            draft.insert(&set, Element::with(place, data));
        }
        narrowed
    }
}

fn holds(nets: &[IpNet], ip: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&ip))
}
