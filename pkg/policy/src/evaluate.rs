//! The verdict on a connection, and the object and rule that decide it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::index::{Index, Named};
use crate::intern::Text;
use crate::labels::{Labels, Selector};
use crate::pod::{NAME_LABEL, Pod};
use crate::policy::{Direction, Peer, Port, Protocol, Rule};
use crate::service::Backends;
use crate::snapshot::Snapshot;
use crate::verdict::{Because, Connection, Verdict};

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Traffic {
    /// A protocol with ports, to this port as the destination sees it (behind every Service).
    Port(Protocol, u16),
    /// ICMP of this type. Errors that belong to an allowed connection are allowed with it, and are not asked about.
    Icmp(u8),
    /// ICMP for IPv6 of this type.
    Icmpv6(u8),
    /// Another protocol of this number.
    Other(u8),
}

impl Traffic {
    /// Neighbour discovery and the groups that it needs: without them there is no link.
    fn is_link(self) -> bool {
        matches!(self, Self::Icmpv6(130..=137 | 143))
    }

    fn is_echo(self) -> bool {
        matches!(self, Self::Icmp(8) | Self::Icmpv6(128))
    }
}

/// A pod as an end of connections, with the policies that select it.
#[derive(Debug)]
pub struct PodEnd<'s> {
    /// Its namespace.
    pub namespace: &'s Text,
    /// Its name.
    pub name: &'s Text,
    /// The pod.
    pub pod: &'s Pod,
    labels_of_namespace: Option<&'s Labels>,
    policies: Vec<Named<'s>>,
}

/// Whose an address is.
#[derive(Clone, Debug)]
pub enum Who<'s> {
    /// A pod's.
    Pod(Arc<PodEnd<'s>>),
    /// The packet comes from, or goes to, the network of this node itself: its programs, its pods with the node's
    /// network. Known by where the packet is seen, never by the address.
    Host(&'s str),
    /// Somebody else's: outside the cluster, a node's seen from elsewhere, a VPN peer's.
    Address,
}

/// One end of a connection.
#[derive(Clone, Debug)]
pub struct End<'s> {
    /// Its address.
    pub address: IpAddr,
    /// Whose that is.
    pub who: Who<'s>,
}

/// How an evaluator judges what policies leave open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Echo requests are always allowed; without it a rule without ports must allow them.
    pub allow_icmp_echo: bool,
}

/// A snapshot that is ready to be asked. The cost of an answer grows with the policies that select the subject, not
/// with all.
#[derive(Debug)]
pub struct Evaluator<'s> {
    snapshot: &'s Snapshot,
    options: Options,
    policies: BTreeMap<&'s str, Index<'s>>,
    /// The living pod that has an address; pods with their node's network have none of their own.
    owners: BTreeMap<IpAddr, (&'s Text, &'s Text, &'s Pod)>,
    backends: Backends<'s>,
}

impl<'s> Evaluator<'s> {
    /// Makes a snapshot ready.
    pub fn new(snapshot: &'s Snapshot, options: Options) -> Self {
        let mut policies: BTreeMap<&str, Index<'s>> = BTreeMap::new();
        for (namespace, name, policy) in snapshot.policies() {
            policies.entry(namespace).or_default().add(Named { namespace, name, policy });
        }
        let mut owners: BTreeMap<IpAddr, (&Text, &Text, &Pod)> = BTreeMap::new();
        for this in snapshot.pods().filter(|(_, _, pod)| !pod.finished && !pod.host_network) {
            for address in this.2.addresses() {
                // An address that is used again belongs to the newer pod; the older one is about to be removed.
                let age = |(namespace, name, pod): (&'s Text, &'s Text, &'s Pod)| {
                    (&pod.created, &pod.uid, namespace, name)
                };
                let owner = owners.entry(address).or_insert(this);
                if age(*owner) < age(this) {
                    *owner = this;
                }
            }
        }
        Self { snapshot, options, policies, owners, backends: Backends::new(snapshot) }
    }

    /// The ends that are pods, with namespace and name, sorted by these: one for each pod and address that is its
    /// own. Pods with their node's network stand for the node.
    pub fn ends(&self) -> impl Iterator<Item = (&'s Text, &'s Text, Vec<End<'s>>)> {
        let living = self.snapshot.pods().filter(|(_, _, pod)| !pod.finished);
        living.map(|(namespace, name, pod)| (namespace, name, self.ends_of(namespace, name, pod)))
    }

    /// The ends that are this pod, one for each of its addresses; none if it is not there or has finished.
    pub fn pod(&self, namespace: &str, name: &str) -> Vec<End<'s>> {
        match self.snapshot.pod(namespace, name) {
            Some((namespace, name, pod)) if !pod.finished => self.ends_of(namespace, name, pod),
            Some(_) | None => Vec::new(),
        }
    }

    fn ends_of(&self, namespace: &'s Text, name: &'s Text, pod: &'s Pod) -> Vec<End<'s>> {
        if pod.host_network {
            return pod.addresses().map(|address| End { address, who: Who::Host(&pod.node) }).collect();
        }
        let who = Who::Pod(Arc::new(self.pod_end(namespace, name, pod)));
        self.owned(pod).map(|address| End { address, who: who.clone() }).collect()
    }

    /// The addresses of a pod that are not another's by now.
    fn owned(&self, pod: &'s Pod) -> impl Iterator<Item = IpAddr> {
        let own = |address: &IpAddr| self.owners.get(address).is_some_and(|owner| std::ptr::eq(owner.2, pod));
        pod.addresses().filter(own)
    }

    /// The pods with a network and addresses of their own, sorted by namespace and name.
    pub(crate) fn living(&self) -> impl Iterator<Item = (Vec<IpAddr>, PodEnd<'s>)> {
        let living = self.snapshot.pods().filter(|(_, _, pod)| !pod.finished && !pod.host_network);
        let owned = living.map(|(namespace, name, pod)| (self.owned(pod).collect(), namespace, name, pod));
        owned
            .filter(|(addresses, ..): &(Vec<IpAddr>, _, _, _)| !addresses.is_empty())
            .map(|(addresses, namespace, name, pod)| (addresses, self.pod_end(namespace, name, pod)))
    }

    fn pod_end(&self, namespace: &'s Text, name: &'s Text, pod: &'s Pod) -> PodEnd<'s> {
        let policies = self.policies.get(&**namespace).map(|index| index.selecting(&pod.labels));
        let labels = self.snapshot.namespace(namespace);
        PodEnd::new(namespace, name, pod, labels, policies.unwrap_or_default())
    }

    /// The end that has this address: the pod that owns it, or somebody else.
    pub fn at(&self, address: IpAddr) -> End<'s> {
        let who = match self.owners.get(&address) {
            Some((namespace, name, pod)) => Who::Pod(Arc::new(self.pod_end(namespace, name, pod))),
            None => Who::Address,
        };
        End { address, who }
    }

    /// The ends behind a port of a Service's own address, each with what it is asked for there; nothing where no
    /// Service has this address and port. A connection that is seen before its destination was translated reaches
    /// one of these.
    pub fn behind(&self, address: IpAddr, protocol: Protocol, port: u16) -> Option<Vec<(End<'s>, Traffic)>> {
        let backends = self.backends.of(address, protocol, port)?;
        let end = |(address, port)| (self.at(address), Traffic::Port(protocol, port));
        Some(backends.into_iter().map(end).collect())
    }

    /// The verdicts on a connection between two ends of one family: both must allow it.
    pub fn connection<'e>(&self, from: &'e End<'s>, to: &'e End<'s>, traffic: Traffic) -> Connection<'e, 's> {
        Connection {
            ingress: self.verdict(Direction::Ingress, to, from, traffic),
            egress: self.verdict(Direction::Egress, from, to, traffic),
        }
    }

    /// The verdict of the subject's policies on a connection with another end of the same family; nothing where the
    /// subject is no pod of its own network, to which no policy applies.
    pub fn verdict<'e>(
        &self,
        direction: Direction,
        subject: &'e End<'s>,
        other: &End<'s>,
        traffic: Traffic,
    ) -> Option<Verdict<'e, 's>> {
        let Who::Pod(pod) = &subject.who else { return None };
        Some(self.judge(direction, pod, other, traffic))
    }

    fn judge<'e>(
        &self,
        direction: Direction,
        subject: &'e PodEnd<'s>,
        other: &End<'s>,
        traffic: Traffic,
    ) -> Verdict<'e, 's> {
        let allow = |because| Verdict { allowed: true, because };
        if traffic.is_link() {
            return allow(Because::Link);
        }
        match &other.who {
            // The node's own checks of its pods must always come through.
            Who::Host(node)
                if direction == Direction::Ingress && !node.is_empty() && **node == *subject.pod.node =>
            {
                return allow(Because::OwnNode);
            }
            Who::Pod(pod) if std::ptr::eq(pod.pod, subject.pod) => return allow(Because::Itself),
            Who::Host(_) | Who::Pod(_) | Who::Address => {}
        }
        if subject.pod.held {
            return Verdict { allowed: false, because: Because::Held };
        }
        if subject.isolating(direction).next().is_none() {
            return allow(Because::NotIsolated);
        }
        if self.options.allow_icmp_echo && traffic.is_echo() {
            return allow(Because::Echo);
        }
        let destination = match (direction, &other.who) {
            (Direction::Ingress, _) => Some(subject.pod),
            (Direction::Egress, Who::Pod(pod)) => Some(pod.pod),
            (Direction::Egress, Who::Host(_) | Who::Address) => None,
        };
        for (policy, rules) in subject.isolating(direction) {
            for (index, rule) in rules.iter().enumerate() {
                let Some(port) = rule.port(destination, traffic) else { continue };
                let Some(peer) = rule.peer(policy.namespace, other) else { continue };
                return allow(Because::Rule { policy: *policy, rule: index, peer, port });
            }
        }
        Verdict { allowed: false, because: Because::Isolated { subject, direction } }
    }
}

impl<'s> PodEnd<'s> {
    pub(crate) fn new(
        namespace: &'s Text,
        name: &'s Text,
        pod: &'s Pod,
        labels_of_namespace: Option<&'s Labels>,
        policies: Vec<Named<'s>>,
    ) -> Self {
        Self { namespace, name, pod, labels_of_namespace, policies }
    }

    /// The policies that isolate the pod in a direction, with their rules.
    pub(crate) fn isolating(&self, direction: Direction) -> impl Iterator<Item = (&Named<'s>, &'s [Rule])> {
        self.policies
            .iter()
            .filter_map(move |named| named.policy.rules(direction).map(|rules| (named, rules)))
    }

    /// Whether its namespace is selected.
    pub(crate) fn is_in(&self, namespaces: &Selector) -> bool {
        is_in(namespaces, self.namespace, self.labels_of_namespace)
    }
}

/// Whether a namespace is selected.
pub(crate) fn is_in(namespaces: &Selector, name: &str, labels: Option<&Labels>) -> bool {
    match labels {
        Some(labels) => namespaces.matches(labels),
        // Of a namespace that is not there its name is known and nothing else.
        None => namespaces.terms().iter().all(|term| &*term.key == NAME_LABEL && term.takes(Some(name))),
    }
}

impl Rule {
    /// The entry of `ports` that matches, or that there are none; nothing where none matches.
    fn port(&self, destination: Option<&Pod>, traffic: Traffic) -> Option<Option<usize>> {
        let Some(ports) = &self.ports else { return Some(None) };
        let Traffic::Port(protocol, number) = traffic else { return None };
        let matches = |port: &Port| match port {
            Port::All(p) => *p == protocol,
            Port::Numbers(p, first, last) => *p == protocol && (*first..=*last).contains(&number),
            Port::Name(p, name) => {
                *p == protocol && destination.is_some_and(|pod| pod.port(name, protocol) == Some(number))
            }
            Port::Nothing => false,
        };
        ports.iter().position(matches).map(Some)
    }

    /// The entry of `from` or `to` that matches, or that there are none; nothing where none matches.
    fn peer(&self, own: &Text, other: &End<'_>) -> Option<Option<usize>> {
        let Some(peers) = &self.peers else { return Some(None) };
        let matches = |peer: &Peer| match (peer, &other.who) {
            (Peer::Block(block), _) => block.contains(other.address),
            (Peer::Pods { namespaces, pods }, Who::Pod(pod)) if !pod.pod.held => {
                let there = match namespaces {
                    Some(selector) => pod.is_in(selector),
                    None => pod.namespace == own,
                };
                there && pods.matches(&pod.pod.labels)
            }
            (Peer::Pods { .. }, Who::Pod(_) | Who::Host(_) | Who::Address) | (Peer::Nothing, _) => false,
        };
        peers.iter().position(matches).map(Some)
    }
}
