//! What follows from the objects for each pod, kept up to date: who owns an address, which sets a pod is in, and which
//! profiles it has. The work is that of what changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kilo_nftables::Family;

use super::choose::Choice;
use super::draft::Draft;
use super::facts::{CompilerConfig, LocalPods};
use super::members::Members;
use super::programs::Programs;
use crate::evaluate::PodEnd;
use crate::index::Named;
use crate::intern::Text;
use crate::labels::{Labels, Selector};
use crate::pod::{NamedPort, Pod};
use crate::policy::Direction;
use crate::profile::Profile;
use crate::snapshot::Snapshot;

/// Namespace and name.
pub(crate) type Name = (Text, Text);

/// Labels, and whether the pod could not be read: pods of one namespace that are equal in these are in the same sets.
pub(crate) type Alike = (Arc<Labels>, bool);

/// What is known of a pod, and what the table has because of it.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Its own addresses.
    pub(crate) owned: Vec<IpAddr>,
    pub(crate) alike: Alike,
    pub(crate) ports: Arc<[NamedPort]>,
    pub(crate) judged: Judged,
}

/// Where a pod is judged, with the numbers of its profiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Judged {
    /// Elsewhere.
    #[default]
    Not,
    /// Here: ingress, egress.
    Here(u32, u32),
    /// Also here, for Peers: ingress.
    Relayed(u32),
}

/// The state behind a table.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) snapshot: Snapshot,
    /// The pods of this node as CNI says.
    local: LocalPods,
    /// The same by name.
    here: BTreeMap<Name, BTreeSet<IpAddr>>,
    leader: bool,
    /// What of these belongs to no pod is closed.
    closed: Vec<IpNet>,
    records: BTreeMap<Name, Record>,
    claimed: BTreeMap<Name, Vec<IpAddr>>,
    claims: BTreeMap<IpAddr, BTreeSet<Name>>,
    owners: BTreeMap<IpAddr, Name>,
    choices: BTreeMap<Text, Choice>,
    members: Members,
    programs: Programs,
    dirty: BTreeSet<Name>,
    dirty_addresses: BTreeSet<IpAddr>,
    dirty_namespaces: BTreeSet<Text>,
}

impl Cluster {
    /// A pod was put in, changed or taken out.
    pub(crate) fn touch_pod(&mut self, namespace: &str, name: &str) {
        self.dirty.insert((namespace.into(), name.into()));
    }

    /// The labels of a namespace are others.
    pub(crate) fn touch_namespace(&mut self, name: &str) {
        self.dirty_namespaces.insert(name.into());
    }

    /// A policy is another one than it was; either is nothing where there is none.
    pub(crate) fn touch_policy(
        &mut self,
        namespace: &str,
        name: &str,
        old: Option<&Selector>,
        new: Option<&Selector>,
    ) {
        let (namespace, name): Name = (namespace.into(), name.into());
        let choice = self.choices.entry(namespace.clone()).or_default();
        old.into_iter().for_each(|old| choice.remove(&name, old));
        new.into_iter().for_each(|new| choice.add(&name, new));
        for pod in self.members.selected(&namespace, [old, new]) {
            if self.records.get(pod).is_some_and(|record| record.judged != Judged::Not || self.leader) {
                self.dirty.insert(pod.clone());
            }
        }
    }

    /// What CNI says about the pods of this node.
    pub(crate) fn set_local(&mut self, local: LocalPods) {
        let old = std::mem::replace(&mut self.local, local);
        let other = |a: &LocalPods, b: &LocalPods| -> Vec<_> {
            a.iter().filter(|(ip, pod)| b.get(ip) != Some(pod)).map(|(ip, pod)| (*ip, pod.clone())).collect()
        };
        let changed: Vec<_> = other(&old, &self.local).into_iter().chain(other(&self.local, &old)).collect();
        for (ip, pod) in changed {
            let name: Name = (pod.namespace.as_str().into(), pod.name.as_str().into());
            let is_there = self.local.get(&ip).is_some_and(|l| *l.namespace == *name.0 && *l.name == *name.1);
            let here = self.here.entry(name.clone()).or_default();
            if is_there {
                here.insert(ip);
            } else {
                here.remove(&ip);
            }
            if here.is_empty() {
                self.here.remove(&name);
            }
            self.dirty_addresses.insert(ip);
            self.dirty.insert(name);
        }
    }

    /// Whether pods behind this node are judged here, and which addresses are closed.
    pub(crate) fn set_facts(&mut self, leader: bool, closed: Vec<IpNet>) {
        self.closed = closed;
        if leader != self.leader {
            self.leader = leader;
            self.dirty.extend(self.records.keys().cloned());
        }
    }

    /// Brings a draft up to what the objects say; whether something is allowed less than before.
    pub(crate) fn settle(&mut self, config: &CompilerConfig, draft: &mut Draft) -> bool {
        let mut narrowed = false;
        for namespace in std::mem::take(&mut self.dirty_namespaces) {
            narrowed |= self.members.relabel(&namespace, &self.snapshot, &self.records, draft);
        }
        let dirty = self.owners_settled();
        let mut old = Vec::new();
        let mut come = Vec::new();
        for name in &dirty {
            let record = self.record(config, name);
            let before = match record {
                Some(record) => self.records.insert(name.clone(), record),
                None => self.records.remove(name),
            };
            old.push(before);
        }
        for (name, before) in dirty.iter().zip(&old) {
            let after = self.records.get(name);
            narrowed |= self.members.change(name, before.as_ref(), after, &self.snapshot, draft, &mut come);
        }
        come.into_iter().for_each(|(set, element)| draft.insert(&set, element));
        let mut released = Vec::new();
        let mut entries = Vec::new();
        for (name, before) in dirty.iter().zip(&old) {
            let profiles = self.profiles(config, name);
            let judged = match profiles {
                None => Judged::Not,
                Some((Profile::Open, None)) => Judged::Not,
                Some((ingress, egress)) => {
                    let mut number = |direction, profile| {
                        self.programs.acquire(
                            config,
                            (direction, profile),
                            &mut self.members,
                            (&self.snapshot, &self.records),
                            draft,
                        )
                    };
                    let ingress = number(Direction::Ingress, ingress);
                    egress.map_or(Judged::Relayed(ingress), |egress| {
                        Judged::Here(ingress, number(Direction::Egress, egress))
                    })
                }
            };
            if let Some(record) = self.records.get_mut(name) {
                record.judged = judged;
            }
            if let Some(before) = before {
                released.push(before.judged);
                narrowed |= self.programs.leave(before, self.records.get(name), draft);
            }
            entries.push(name);
        }
        for record in entries.into_iter().filter_map(|name| self.records.get(name)) {
            narrowed |= self.programs.enter(record, &self.closed, draft);
        }
        for judged in released {
            self.programs.release(config, judged, &mut self.members, draft);
        }
        narrowed
    }

    /// Finds out who owns the addresses that may have changed hands; the pods that are to be looked at again.
    fn owners_settled(&mut self) -> BTreeSet<Name> {
        let mut dirty = std::mem::take(&mut self.dirty);
        for name in &dirty {
            let now = self.claims_of(name);
            let before = if now.is_empty() {
                self.claimed.remove(name)
            } else {
                self.claimed.insert(name.clone(), now.clone())
            };
            for ip in before.unwrap_or_default() {
                if let Some(claims) = self.claims.get_mut(&ip) {
                    claims.remove(name);
                    if claims.is_empty() {
                        self.claims.remove(&ip);
                    }
                }
                self.dirty_addresses.insert(ip);
            }
            for ip in now {
                self.claims.entry(ip).or_default().insert(name.clone());
                self.dirty_addresses.insert(ip);
            }
        }
        for ip in std::mem::take(&mut self.dirty_addresses) {
            let owner = self.owner_of(ip);
            let before = match &owner {
                Some(owner) => self.owners.insert(ip, owner.clone()),
                None => self.owners.remove(&ip),
            };
            if before != owner {
                dirty.extend(before.into_iter().chain(owner));
            }
        }
        dirty
    }

    /// The pod of this name, if it is one for policies: with a network of its own, and not at its end.
    fn pod(&self, name: &Name) -> Option<&Pod> {
        let (_, _, pod) = self.snapshot.pod(&name.0, &name.1)?;
        (!pod.finished && !pod.host_network).then_some(pod)
    }

    /// The addresses CNI gave to this pod here.
    fn here(&self, name: &Name, pod: &Pod) -> impl Iterator<Item = IpAddr> {
        let same = |ip: &IpAddr| {
            let local = self.local.get(ip);
            local.is_some_and(|l| l.uid.is_empty() || pod.uid.is_empty() || *l.uid == *pod.uid)
        };
        self.here.get(name).into_iter().flatten().copied().filter(same)
    }

    /// The addresses that a pod says are its own; those that CNI gave it count more than what the API server knows.
    fn claims_of(&self, name: &Name) -> Vec<IpAddr> {
        let Some(pod) = self.pod(name) else { return Vec::new() };
        let mut claims: Vec<IpAddr> = self.here(name, pod).collect();
        for ip in pod.addresses() {
            if !claims.iter().any(|claim| Family::of(*claim) == Family::of(ip)) {
                claims.push(ip);
            }
        }
        claims
    }

    fn owner_of(&self, ip: IpAddr) -> Option<Name> {
        let claims = self.claims.get(&ip)?;
        if let Some(local) = self.local.get(&ip) {
            // Another pod that has the address by the API server's word is a former one.
            return claims
                .iter()
                .find(|(namespace, name)| **namespace == *local.namespace && **name == *local.name)
                .cloned();
        }
        let age = |name: &&Name| self.pod(name).map(|pod| (pod.created, pod.uid.clone(), (*name).clone()));
        claims.iter().max_by_key(age).cloned()
    }

    fn record(&self, config: &CompilerConfig, name: &Name) -> Option<Record> {
        let pod = self.pod(name)?;
        let owned = self.claimed.get(name).into_iter().flatten().copied();
        let owned: Vec<_> = owned.filter(|ip| self.owners.get(ip) == Some(name)).collect();
        if owned.is_empty() && !self.is_local(config, name, pod) && pod.addresses().next().is_none() {
            return None;
        }
        let alike = (pod.labels.clone(), pod.held);
        Some(Record { owned, alike, ports: pod.ports.clone(), judged: Judged::Not })
    }

    fn is_local(&self, config: &CompilerConfig, name: &Name, pod: &Pod) -> bool {
        *pod.node == *config.node && !config.node.is_empty() || self.here(name, pod).next().is_some()
    }

    /// The profiles of a pod that is judged here: ingress, and egress if it is a pod of this node.
    fn profiles(&self, config: &CompilerConfig, name: &Name) -> Option<(Profile, Option<Profile>)> {
        let record = self.records.get(name)?;
        let (namespace, name_, pod) = self.snapshot.pod(&name.0, &name.1)?;
        let local = self.is_local(config, name, pod);
        if record.owned.is_empty() || !(local || self.leader) {
            return None;
        }
        let policies = self.policies(namespace, &pod.labels);
        let end = PodEnd::new(namespace, name_, pod, None, policies);
        let egress = local.then(|| Profile::of(&end, Direction::Egress));
        Some((Profile::of(&end, Direction::Ingress), egress))
    }

    /// The policies that select a pod with these labels, sorted by name.
    pub(crate) fn policies(&self, namespace: &Text, labels: &Labels) -> Vec<Named<'_>> {
        let passing = self.choices.get(namespace).map(|choice| choice.passing(labels)).unwrap_or_default();
        passing
            .into_iter()
            .filter_map(|name| self.snapshot.policy(namespace, name))
            .filter(|named| named.policy.subjects.matches(labels))
            .collect()
    }

    /// The pods of this node as CNI says.
    pub(crate) fn local(&self) -> &LocalPods {
        &self.local
    }

    /// The pod that owns an address.
    pub(crate) fn owner(&self, ip: IpAddr) -> Option<(&Name, &Pod)> {
        let name = self.owners.get(&ip)?;
        Some((name, self.pod(name)?))
    }

    /// The profiles in use, and what each number means.
    pub(crate) fn programs(&self) -> &Programs {
        &self.programs
    }
}
