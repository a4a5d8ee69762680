//! Leaders that others cannot reach, where all agents are ours. What counts are reports in the Node objects, so
//! that every agent comes to the same leader; who looks after whom follows from the objects, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::topology::SegmentName;
use crate::{LeaderFailover, Node};

/// How many nodes of its own segment look after a candidate.
const INSIDE: usize = 3;
/// The leaders of how many other segments do.
const OUTSIDE: usize = 4;

/// A node that does not lead its segment because it is reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Deposed {
    /// The Node's name.
    pub node: Arc<str>,
    /// The name of its segment.
    pub segment: String,
    /// Those of its witnesses that report it, by name.
    pub reported_by: Vec<Arc<str>>,
}

/// A node that an agent looks after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Watch {
    /// The Node's name.
    pub node: Arc<str>,
    /// How.
    #[serde(flatten)]
    pub way: Way,
}

/// How an agent looks after a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "way", content = "address")]
pub enum Way {
    /// By asking this address for an answer.
    Probe(IpAddr),
    /// It cannot be asked where it is not leading; a report lapses with time.
    Wait,
    /// Those who are closer report it, or it is not there: a report stays.
    Keep,
}

impl fmt::Display for Deposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}, reported by {}", self.node, self.segment, self.reported_by.join(", "))
    }
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.way {
            Way::Probe(address) => write!(f, "{}, asked at {address}", self.node),
            Way::Wait => write!(f, "{}, whose report lapses with time", self.node),
            Way::Keep => write!(f, "{}, whose report stays", self.node),
        }
    }
}

/// The nodes that take part, grouped into segments.
type Groups<'a> = [&'a [(SegmentName, &'a Node)]];

/// Everybody who has a say about leaders.
pub(crate) struct Electorate<'a> {
    groups: &'a Groups<'a>,
    /// The places of each group in the order in which they come to lead.
    orders: Vec<Vec<usize>>,
    /// The reports of those who take part: who is reported, and by whom.
    reports: BTreeMap<&'a str, BTreeSet<&'a str>>,
    all_ours: bool,
    /// Reports count.
    counts: bool,
}

impl<'a> Electorate<'a> {
    pub(crate) fn new(groups: &'a Groups<'a>, orders: Vec<Vec<usize>>) -> Self {
        let nodes = || groups.iter().flat_map(|group| group.iter().map(|(_, node)| *node));
        let all_ours = nodes().all(|node| node.ours.is_some());
        let counts = nodes().all(|node| node.ours == Some(LeaderFailover::DataPath));
        let mut reports: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        if counts {
            for node in nodes() {
                for name in &node.unreachable {
                    reports.entry(&**name).or_default().insert(&*node.name);
                }
            }
        }
        Self { groups, orders, reports, all_ours, counts }
    }

    /// Whether all nodes that take part run agents of ours.
    pub(crate) fn all_ours(&self) -> bool {
        self.all_ours
    }

    fn node(&self, group: usize, place: usize) -> Option<&'a Node> {
        self.groups.get(group)?.get(place).map(|(_, node)| *node)
    }

    /// Who looks after a candidate from inside its segment: the others, as they come to lead.
    fn inside(&self, group: usize, place: usize) -> impl Iterator<Item = &'a Node> + '_ {
        let others = self.orders[group].iter().filter(move |&&other| other != place);
        others.take(INSIDE).filter_map(move |&other| self.node(group, other))
    }

    /// Who does from outside: those who lead the segments after it if nobody is reported. After the last segment
    /// comes the first.
    fn outside(&self, group: usize) -> impl Iterator<Item = &'a Node> + '_ {
        let count = self.groups.len();
        let others = (1..count).take(OUTSIDE).map(move |step| (group + step) % count);
        others.filter_map(|other| self.node(other, *self.orders[other].first()?))
    }

    /// The witnesses that report a candidate, if they are enough: most of all, or all of two or three inside.
    fn verdict(&self, group: usize, place: usize) -> Option<Vec<Arc<str>>> {
        let reporters = self.reports.get(&*self.node(group, place)?.name)?;
        let says = |witnesses: &[&'a Node]| {
            let those = witnesses.iter().filter(|witness| reporters.contains(&*witness.name));
            those.map(|witness| witness.name.clone()).collect::<Vec<_>>()
        };
        let inside: Vec<&Node> = self.inside(group, place).collect();
        let outside: Vec<&Node> = self.outside(group).collect();
        let (near, far) = (says(&inside), says(&outside));
        let most = 2 * (near.len() + far.len()) > inside.len() + outside.len();
        let cut_off = inside.len() > 1 && near.len() == inside.len();
        (most || cut_off).then(|| {
            let mut all = [near, far].concat();
            all.sort_unstable();
            all
        })
    }

    /// The leader's place in each group, and who is passed over. Where nobody else is left, nobody is.
    pub(crate) fn elect(&self) -> (Vec<usize>, Vec<Deposed>) {
        let mut deposed = Vec::new();
        let mut leaders = Vec::with_capacity(self.groups.len());
        for (group, order) in self.orders.iter().enumerate() {
            let first = order.first().copied().unwrap_or(0);
            if order.len() < 2 || self.reports.is_empty() {
                leaders.push(first);
                continue;
            }
            let verdicts: Vec<_> = order.iter().map(|&place| (place, self.verdict(group, place))).collect();
            let Some((leader, _)) = verdicts.iter().find(|(_, verdict)| verdict.is_none()) else {
                leaders.push(first);
                continue;
            };
            leaders.push(*leader);
            for (place, verdict) in verdicts {
                if let (Some(reported_by), Some((segment, node))) = (verdict, self.groups[group].get(place)) {
                    let (node, segment) = (node.name.clone(), segment.to_string());
                    deposed.push(Deposed { node, segment, reported_by });
                }
            }
        }
        (leaders, deposed)
    }

    /// Whom the local node looks after: candidates that it is a witness of, and all that it reports. `nodes` are
    /// all, also those who do not take part; `addresses` are those of the segments.
    pub(crate) fn watches(
        &self,
        nodes: &[&Node],
        local: &Node,
        here: usize,
        leaders: &[usize],
        deposed: &[Deposed],
        addresses: &[IpAddr],
    ) -> Vec<Watch> {
        let leads = |group: usize| Some(self.node(group, *leaders.get(group)?)?.name.clone());
        let mut watches = BTreeMap::new();
        if self.counts {
            for place in self.next(here, leaders, deposed) {
                let Some(node) = self.node(here, place) else { continue };
                if self.inside(here, place).any(|witness| witness.name == local.name) {
                    watches.insert(node.name.clone(), probe(node));
                }
            }
            let first = self.orders[here].first().and_then(|&place| self.node(here, place));
            // Only a leader has a tunnel.
            if first.is_some_and(|first| first.name == local.name) && leads(here) == Some(local.name.clone())
            {
                let count = self.groups.len();
                for other in (1..count).take(OUTSIDE).map(|step| (here + count - step) % count) {
                    if let (2.., Some(name), Some(&ip)) =
                        (self.orders[other].len(), leads(other), addresses.get(other))
                    {
                        watches.insert(name, Way::Probe(ip));
                    }
                }
            }
        }
        if local.unreachable.is_empty() {
            return collect(watches);
        }
        let taking_part: BTreeMap<&str, (usize, &Node)> = (0..)
            .zip(self.groups)
            .flat_map(|(group, members)| members.iter().map(move |(_, node)| (&*node.name, (group, *node))))
            .collect();
        let there: BTreeSet<&str> = nodes.iter().map(|node| &*node.name).collect();
        for name in &local.unreachable {
            if !there.contains(&**name) || watches.contains_key(name) || *name == local.name {
                continue;
            }
            let way = match taking_part.get(&**name) {
                None => Way::Keep,
                Some(_) if !self.counts => Way::Wait,
                Some((group, node)) if *group == here => probe(node),
                Some((group, _)) => {
                    let reporters = self.reports.get(&**name);
                    let near = |by: &&str| taking_part.get(by).is_some_and(|(at, _)| at == group);
                    let mine = leads(here) == Some(local.name.clone());
                    match addresses.get(*group) {
                        Some(&ip) if mine && leads(*group).as_ref() == Some(name) => Way::Probe(ip),
                        _ if reporters.is_some_and(|by| by.iter().any(near)) => Way::Keep,
                        _ => Way::Wait,
                    }
                }
            };
            watches.insert(name.clone(), way);
        }
        collect(watches)
    }

    /// The places of those who are looked after from inside: the leader, and who comes after it where those inside
    /// may decide alone.
    fn next(&self, here: usize, leaders: &[usize], deposed: &[Deposed]) -> Vec<usize> {
        let order = &self.orders[here];
        let Some(&leader) = leaders.get(here).filter(|_| order.len() > 1) else { return Vec::new() };
        let names: BTreeSet<&str> = deposed.iter().map(|out| &*out.node).collect();
        let out = |place: usize| self.node(here, place).is_some_and(|node| names.contains(&*node.name));
        let after = order.iter().copied().find(|&place| place != leader && !out(place));
        std::iter::once(leader).chain(after.filter(|_| order.len() > 2)).collect()
    }
}

/// How a node of the own segment is looked after; all of them have a private address.
fn probe(node: &Node) -> Way {
    node.internal_ip.map_or(Way::Wait, |net| Way::Probe(net.addr()))
}

fn collect(watches: BTreeMap<Arc<str>, Way>) -> Vec<Watch> {
    watches.into_iter().map(|(node, way)| Watch { node, way }).collect()
}
