//! What a pod lets through, said without naming a single other pod: pods with equal profiles share what a kernel is
//! told, and a profile changes with policies, never with the pods that come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::block::Block;
use crate::evaluate::{Evaluator, PodEnd};
use crate::intern::Text;
use crate::labels::Selector;
use crate::pod::Pod;
use crate::policy::{Direction, Peer, Port, Protocol, Rule};
use crate::ranges::Ranges;

/// What a pod lets through in one direction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Profile {
    /// No policy isolates it: everything.
    Open,
    /// It could not be read: nothing.
    Held,
    /// What these allow and nothing else.
    Isolated(BTreeMap<Ports, Peers>),
}

/// What a connection may carry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// Every protocol, those without ports too.
    Everything,
    /// Every port of a protocol.
    All(Protocol),
    /// From the first to the last port.
    Numbers(Protocol, u16, u16),
    /// The port that the destination calls so; for egress only, since a pod knows its own ports.
    Named(Protocol, Text),
}

/// With whom: the union of its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peers {
    /// With everybody; then the other parts are empty.
    pub everybody: bool,
    /// With the pods of these sets.
    pub pods: BTreeSet<PodSet>,
    /// With these addresses.
    pub addresses: Ranges,
}

/// A set of pods by what they are, not by which they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodSet {
    /// Of these namespaces.
    pub namespaces: Namespaces,
    /// These of them.
    pub pods: Selector,
}

/// Namespaces by what they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// The one of this name.
    Only(Text),
    /// Those that are selected.
    Selected(Selector),
}

/// Peers while they are collected.
#[derive(Default)]
struct Parts<'p> {
    everybody: bool,
    pods: BTreeSet<PodSet>,
    blocks: BTreeSet<&'p Block>,
}

impl Profile {
    /// The profile of a pod.
    pub fn of(pod: &PodEnd<'_>, direction: Direction) -> Self {
        if pod.pod.held {
            return Self::Held;
        }
        let mut isolated = false;
        let mut parts: BTreeMap<Ports, Parts<'_>> = BTreeMap::new();
        for (named, rules) in pod.isolating(direction) {
            isolated = true;
            for rule in rules {
                let mut ports = rule.profiled(direction, pod.pod).peekable();
                if ports.peek().is_none() {
                    continue;
                }
                for ports in ports {
                    rule.collect(named.namespace, parts.entry(ports).or_default());
                }
            }
        }
        if !isolated {
            return Self::Open;
        }
        let everything = parts.get(&Ports::Everything).is_some_and(|parts| parts.everybody);
        let entries = parts.into_iter().filter(|(ports, _)| !everything || *ports == Ports::Everything);
        let entries =
            entries.map(|(ports, parts)| (ports, parts.finish())).filter(|(_, peers)| !peers.is_nobody());
        Self::Isolated(entries.collect())
    }
}

impl Parts<'_> {
    fn finish(self) -> Peers {
        if self.everybody {
            return Peers { everybody: true, ..Peers::default() };
        }
        Peers { everybody: false, pods: self.pods, addresses: Ranges::of(self.blocks) }
    }
}

impl Peers {
    fn is_nobody(&self) -> bool {
        !self.everybody && self.pods.is_empty() && self.addresses.is_empty()
    }
}

impl Rule {
    /// The entries of `ports` as a profile has them; those of a name that the subject itself must have, by number.
    fn profiled<'r>(&'r self, direction: Direction, subject: &'r Pod) -> impl Iterator<Item = Ports> + 'r {
        let everything = self.ports.is_none().then_some(Ports::Everything);
        let some = self.ports.iter().flat_map(|ports| ports.iter()).filter_map(move |port| match port {
            Port::All(protocol) => Some(Ports::All(*protocol)),
            Port::Numbers(protocol, first, last) => Some(Ports::Numbers(*protocol, *first, *last)),
            Port::Name(protocol, name) if direction == Direction::Ingress => {
                let number = subject.port(name, *protocol)?;
                Some(Ports::Numbers(*protocol, number, number))
            }
            Port::Name(protocol, name) => Some(Ports::Named(*protocol, name.clone())),
            Port::Nothing => None,
        });
        everything.into_iter().chain(some)
    }

    fn collect<'p>(&'p self, own: &Text, parts: &mut Parts<'p>) {
        let Some(peers) = &self.peers else {
            parts.everybody = true;
            return;
        };
        for peer in peers {
            match peer {
                Peer::Pods { namespaces, pods } => {
                    let namespaces = match namespaces {
                        Some(selector) => Namespaces::Selected(selector.clone()),
                        None => Namespaces::Only(own.clone()),
                    };
                    parts.pods.insert(PodSet { namespaces, pods: pods.clone() });
                }
                Peer::Block(block) => _ = parts.blocks.insert(block),
                Peer::Nothing => {}
            }
        }
    }
}

impl PodSet {
    /// Whether a pod is in the set.
    pub fn contains(&self, pod: &PodEnd<'_>) -> bool {
        let there = match &self.namespaces {
            Namespaces::Only(name) => pod.namespace == name,
            Namespaces::Selected(selector) => pod.is_in(selector),
        };
        there && !pod.pod.held && self.pods.matches(&pod.pod.labels)
    }
}

/// The profiles of some pods and the sets that these refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profiles {
    /// The numbers of the profiles of each address: ingress, egress.
    pub dispatch: BTreeMap<IpAddr, (usize, usize)>,
    /// The profiles, each once, by their number.
    pub profiles: Vec<Profile>,
    /// Who is in each set, of all pods of the cluster.
    pub sets: BTreeMap<PodSet, BTreeSet<IpAddr>>,
    /// Who calls which port so, of all pods of the cluster.
    pub named: BTreeMap<(Protocol, Text), BTreeSet<(IpAddr, u16)>>,
}

impl Profiles {
    /// The profiles of the pods of one node, or of other pods that packets are judged for here.
    pub fn new<'s>(evaluator: &Evaluator<'s>, judged: impl Fn(&PodEnd<'s>) -> bool) -> Self {
        let mut made = Self::default();
        let mut numbers: BTreeMap<Profile, usize> = BTreeMap::new();
        let pods: Vec<_> = evaluator.living().collect();
        for (addresses, pod) in pods.iter().filter(|(_, pod)| judged(pod)) {
            let mut number = |direction| {
                let next = numbers.len();
                *numbers.entry(Profile::of(pod, direction)).or_insert(next)
            };
            let both = (number(Direction::Ingress), number(Direction::Egress));
            made.dispatch.extend(addresses.iter().map(|address| (*address, both)));
        }
        let mut profiles: Vec<_> = numbers.into_iter().collect();
        profiles.sort_by_key(|(_, number)| *number);
        made.profiles = profiles.into_iter().map(|(profile, _)| profile).collect();
        made.refer();
        made.fill(&pods);
        made
    }

    /// Makes an empty set for each that a profile refers to.
    fn refer(&mut self) {
        for profile in &self.profiles {
            let Profile::Isolated(entries) = profile else { continue };
            for (ports, peers) in entries {
                if let Ports::Named(protocol, name) = ports {
                    self.named.entry((*protocol, name.clone())).or_default();
                }
                for set in &peers.pods {
                    if !self.sets.contains_key(set) {
                        self.sets.insert(set.clone(), BTreeSet::new());
                    }
                }
            }
        }
    }

    fn fill(&mut self, pods: &[(Vec<IpAddr>, PodEnd<'_>)]) {
        // Pods of one namespace with equal labels are in the same sets: replicas are asked about once.
        let mut alike: BTreeMap<_, Vec<&(Vec<IpAddr>, PodEnd<'_>)>> = BTreeMap::new();
        for pod in pods {
            let (_, end) = pod;
            alike.entry((end.namespace, &end.pod.labels, end.pod.held)).or_default().push(pod);
        }
        for pods in alike.values() {
            for (set, members) in &mut self.sets {
                if pods.first().is_some_and(|(_, pod)| set.contains(pod)) {
                    members.extend(pods.iter().flat_map(|(addresses, _)| addresses));
                }
            }
        }
        for (addresses, pod) in pods {
            for port in &*pod.pod.ports {
                if let Some(members) = self.named.get_mut(&(port.protocol, port.name.clone())) {
                    members.extend(addresses.iter().map(|address| (*address, port.number)));
                }
            }
        }
    }
}
