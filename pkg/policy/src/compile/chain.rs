//! A profile as chains: `return` where the subject's policies allow a connection, else `goto deny`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kilo_nftables::{
    Data, DataType, Element, Expr, Family, IpRange, Key, KeyType, Ranges as Intervals, Rule, Set, SetType,
    Verdict,
};

use super::facts::CompilerConfig;
use super::name::{digit, name, of_family};
use super::rules::{FAMILIES, ICMP, ICMPV6, View, all_among, among, between, goto, number, rule, when, word};
use crate::intern::Text;
use crate::policy::{Direction, Protocol};
use crate::profile::{Peers, PodSet, Ports, Profile};

/// From so many single ports on they are looked up together instead of one after the other.
const MANY_PORTS: usize = 4;

/// A profile of one direction. What it refers to is named by what it is.
pub(crate) type Key_ = (Direction, Profile);

/// The chains of one profile, and what they refer to.
#[derive(Debug, Default)]
pub(crate) struct Rendered {
    /// Chains by name.
    pub(crate) chains: BTreeMap<Box<str>, Vec<Rule>>,
    /// Sets whose elements are part of the profile, by name.
    pub(crate) sets: BTreeMap<Box<str>, Set>,
    /// Sets of pods.
    pub(crate) pods: BTreeSet<PodSet>,
    /// Sets of ports by what pods call them.
    pub(crate) named: BTreeSet<(Protocol, Text)>,
}

/// The chain that packets of a view are sent to.
pub(crate) fn entry(key: &Key_, view: View) -> Box<str> {
    name(&format!("{}{}", short(key.0), view.suffix()), key)
}

fn short(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "eg",
    }
}

/// The name of the set of these pods of one family.
pub(crate) fn pods(family: Family, set: &PodSet) -> Box<str> {
    of_family("pods", family, set)
}

/// The name of the set of addresses and ports that pods call so.
pub(crate) fn named(family: Family, port: &(Protocol, Text)) -> Box<str> {
    of_family("port", family, port)
}

/// The last rules for a packet that is not allowed: log, and off.
pub(crate) fn logged(config: &CompilerConfig, id: u32) -> Option<Rule> {
    (config.log_rate > 0).then(|| {
        rule([
            Expr::Limit { packets: config.log_rate.into(), seconds: 1, burst: 5 },
            Expr::Log { group: config.log_group, prefix: format!("{id:08x}").into(), snaplen: None },
        ])
    })
}

/// Makes the chains of a profile that is neither open nor held.
pub(crate) fn render(config: &CompilerConfig, id: u32, key: &Key_) -> Rendered {
    let mut made = Rendered::default();
    let (direction, Profile::Isolated(entries)) = key else { return made };
    let refused = name(&format!("no_{}", short(*direction)), key);
    made.chains.insert(
        refused.clone(),
        logged(config, id)
            .into_iter()
            .chain([when(&[], goto(&format!("deny_{}", word(*direction))))])
            .collect(),
    );
    for view in View::BOTH {
        let mut writer = Writer { made: &mut made, direction: *direction, view, refused: &refused, key };
        writer.chain(config, entries);
    }
    made
}

struct Writer<'w> {
    made: &'w mut Rendered,
    direction: Direction,
    view: View,
    refused: &'w str,
    key: &'w Key_,
}

impl Writer<'_> {
    fn chain(&mut self, config: &CompilerConfig, entries: &BTreeMap<Ports, Peers>) {
        let single = |ports: &Ports| match ports {
            Ports::Numbers(protocol, first, last) if first == last => Some((number(*protocol), *first)),
            Ports::Everything | Ports::All(_) | Ports::Numbers(..) | Ports::Named(..) => None,
        };
        let many = entries.keys().filter(|ports| single(ports).is_some()).count() >= MANY_PORTS;
        let mut rules = Vec::new();
        if config.allow_icmp_echo {
            rules.extend(self.echo());
        }
        let mut exact = Vec::new();
        for (ports, peers) in entries {
            match single(ports) {
                Some(port) if many => exact.push((port, peers)),
                Some(_) | None => {
                    for start in self.ports(ports) {
                        rules.extend(self.peers(&start, peers));
                    }
                }
            }
        }
        if !exact.is_empty() {
            rules.push(self.by_port(&exact));
        }
        rules.push(when(&[], goto(self.refused)));
        self.made.chains.insert(entry(self.key, self.view), rules);
    }

    /// Echo requests, and by tuple what answers them.
    fn echo(&self) -> Vec<Rule> {
        let types = |request: u16, reply| match self.view {
            View::Tuple => vec![request, reply],
            View::Header => vec![request],
        };
        let of = |protocol, types: Vec<u16>| {
            types.into_iter().map(move |t| {
                when(
                    &[Expr::L4Proto(protocol), between(kilo_nftables::Load::IcmpType, t, t)],
                    Verdict::Return,
                )
            })
        };
        of(ICMP, types(8, 0)).chain(of(ICMPV6, types(128, 129))).collect()
    }

    /// The matches of an entry's ports; those of a name are found with the address, in each family.
    fn ports(&mut self, ports: &Ports) -> Vec<(Option<Family>, Vec<Expr>)> {
        match ports {
            Ports::Everything => vec![(None, Vec::new())],
            Ports::All(protocol) => vec![(None, vec![Expr::L4Proto(number(*protocol))])],
            Ports::Numbers(protocol, first, last) => {
                vec![(None, vec![Expr::L4Proto(number(*protocol)), between(self.view.port(), *first, *last)])]
            }
            Ports::Named(protocol, name) => {
                let port = (*protocol, name.clone());
                self.made.named.insert(port.clone());
                let start = |family| {
                    let keys = [
                        self.view.other(self.direction, family),
                        kilo_nftables::Load::L4Proto,
                        self.view.port(),
                    ];
                    let l4 = Expr::L4Proto(number(*protocol));
                    (Some(family), vec![l4, all_among(&keys, &named(family, &port))])
                };
                FAMILIES.map(start).to_vec()
            }
        }
    }

    /// The rules that return for these peers.
    fn peers(&mut self, (family, start): &(Option<Family>, Vec<Expr>), peers: &Peers) -> Vec<Rule> {
        let with = |last: Option<Expr>| {
            let matches: Vec<_> = start.iter().cloned().chain(last).collect();
            when(&matches, Verdict::Return)
        };
        if peers.everybody {
            return vec![with(None)];
        }
        let mut rules = Vec::new();
        for one in FAMILIES.into_iter().filter(|one| family.is_none_or(|family| family == *one)) {
            let other = self.view.other(self.direction, one);
            for set in &peers.pods {
                rules.push(with(Some(among(other, &pods(one, set)))));
            }
            if let Some((name, set)) = ranges(one, peers) {
                rules.push(with(Some(among(other, &name))));
                self.made.sets.insert(name, set);
            }
        }
        self.made.pods.extend(peers.pods.iter().cloned());
        rules
    }

    /// One lookup for all single ports, each with a chain of its own.
    fn by_port(&mut self, entries: &[((u8, u16), &Peers)]) -> Rule {
        let map = name(&format!("{}ports{}", short(self.direction), self.view.suffix()), self.key);
        let mut elements = Vec::new();
        for ((protocol, port), peers) in entries {
            let verdict = if peers.everybody {
                Verdict::Return
            } else {
                let definition = (self.direction, self.view, self.refused, peers);
                let chain = name("peers", &definition);
                let mut rules = self.peers(&(None, Vec::new()), peers);
                rules.push(when(&[], goto(self.refused)));
                self.made.chains.insert(chain.clone(), rules);
                goto(&chain)
            };
            elements.push(Element::with(Key::ProtoPort(*protocol, *port), Data::Verdict(verdict)));
        }
        let kind = SetType::exact(KeyType::ProtoPort).to(DataType::Verdict);
        self.made.sets.insert(map.clone(), Set::of(kind, elements));
        rule([Expr::Vmap { keys: vec![kilo_nftables::Load::L4Proto, self.view.port()], map }])
    }
}

/// The set of the addresses among some peers, of one family.
fn ranges(family: Family, peers: &Peers) -> Option<(Box<str>, Set)> {
    let all: Vec<IpRange> = match family {
        Family::V4 => peers
            .addresses
            .v4()
            .iter()
            .filter_map(|(first, last)| IpRange::new(IpAddr::V4(*first), IpAddr::V4(*last)))
            .collect(),
        Family::V6 => peers
            .addresses
            .v6()
            .iter()
            .filter_map(|(first, last)| IpRange::new(IpAddr::V6(*first), IpAddr::V6(*last)))
            .collect(),
    };
    let definition = match family {
        Family::V4 => (Some(peers.addresses.v4()), None),
        Family::V6 => (None, Some(peers.addresses.v6())),
    };
    if all.is_empty() {
        return None;
    }
    let name = name(&format!("net{}", digit(family)), &definition);
    Some((name, Set::of_ranges(family, Intervals::new(family, all))))
}
