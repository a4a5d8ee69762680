//! The chains that judge connections: which packets, by which address, and what becomes of those that are refused.

use std::collections::BTreeMap;

use kilo_nftables::{
    Base, Chain, ChainType, DataType, Expr, Family, Hook, KeyType, Policy, Rule, Set, SetType, Verdict,
    ct_state,
};

use super::chain::logged;
use super::facts::{CompilerConfig, MeshFacts, Mode, Owner};
use super::name::digit;
use super::reason::Reason;
use super::rules::{
    FAMILIES, ICMP, ICMPV6, View, all_among, among, between, connection_has, goto, jump, mark_connection,
    not_among, picked_up, rule, state, when, word,
};
use crate::policy::Direction;

/// Chains and sets by name.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) chains: BTreeMap<Box<str>, Chain>,
    pub(crate) sets: BTreeMap<Box<str>, Set>,
}

impl Part {
    pub(crate) fn chain(&mut self, name: &str, rules: Vec<Rule>) {
        self.chains.insert(name.into(), Chain { base: None, rules });
    }

    pub(crate) fn base(&mut self, name: &str, hook: Hook, priority: i32, rules: Vec<Rule>) {
        let base = Base { chain_type: ChainType::Filter, hook, priority, policy: Policy::Accept };
        self.chains.insert(name.into(), Chain { base: Some(base), rules });
    }

    pub(crate) fn set(&mut self, name: &str, set: Set) {
        self.sets.insert(name.into(), set);
    }
}

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Numbers of profiles that every table has.
pub(crate) const OPEN: u32 = 1;
pub(crate) const HELD: u32 = 2;

/// The name of the data map that pods of one family are found in: `ingress4`.
pub(crate) fn dispatch(direction: Direction, family: Family) -> Box<str> {
    format!("{}{}", word(direction), digit(family)).into()
}

/// The data map of pods behind this node, which it judges for Peers.
pub(crate) fn relayed(family: Family) -> Box<str> {
    format!("relayed{}", digit(family)).into()
}

/// The set of a pod's address beside itself.
pub(crate) fn itself(family: Family) -> Box<str> {
    format!("self{}", digit(family)).into()
}

/// The verdict map of profiles: `ingress_chain`.
pub(crate) fn profiles(direction: Direction, view: View) -> Box<str> {
    format!("{}_chain{}", word(direction), view.suffix()).into()
}

/// The chain that asks the pods behind this node for Peers.
pub(crate) fn relay(family: Family, view: View) -> String {
    format!("relay_{}{}", digit(family), view.suffix())
}

fn of(prefix: &str, family: Family) -> String {
    format!("{prefix}{}", digit(family))
}

/// The maps and sets that the pods of this node stand in, empty.
pub(crate) fn dispatch_sets() -> BTreeMap<Box<str>, Set> {
    let mut sets = BTreeMap::new();
    for family in FAMILIES {
        let ids = || Set::new(SetType::exact(KeyType::Address(family)).to(DataType::Integer));
        for direction in DIRECTIONS {
            sets.insert(dispatch(direction, family), ids());
        }
        sets.insert(relayed(family), ids());
        sets.insert(itself(family), Set::new(SetType::exact(KeyType::Pair(family))));
    }
    for (direction, view) in DIRECTIONS.into_iter().flat_map(|d| View::BOTH.map(|view| (d, view))) {
        let kind = SetType::exact(KeyType::Integer).to(DataType::Verdict);
        sets.insert(profiles(direction, view), Set::new(kind));
    }
    sets
}

/// What a refusal ends with.
pub(crate) fn last(drops: bool) -> Verdict {
    if drops { Verdict::Drop } else { Verdict::Return }
}

/// The chain for a reason of refusal: log, count, and drop unless it is only an audit.
pub(crate) fn refusal(config: &CompilerConfig, reason: Reason, drops: bool) -> Vec<Rule> {
    let count = rule([Expr::CountIn(reason.counter().into()), Expr::Verdict(last(drops))]);
    logged(config, reason.id()).into_iter().chain([count]).collect()
}

/// The chains that the epoch is written in.
pub(crate) fn epoch_chains(config: &CompilerConfig, epoch: u32) -> [(&'static str, Vec<Rule>); 2] {
    let value = epoch << config.epoch_mask.trailing_zeros();
    let known = vec![when(&[connection_has(config.epoch_mask, value)], Verdict::Accept)];
    let stamp = vec![
        when(&[connection_has(config.loose_bit, config.loose_bit)], Verdict::Accept),
        rule([mark_connection(config.epoch_mask, value)]),
        rule([state(ct_state::NEW), Expr::CountIn("allow".into())]),
        when(&[], Verdict::Accept),
    ];
    [("known", known), ("stamp", stamp)]
}

/// All chains that judge, and the sets of facts that they ask for.
pub(crate) fn judging(config: &CompilerConfig, facts: &MeshFacts) -> Part {
    let mut part = Part::default();
    if config.mode == Mode::Off {
        return part;
    }
    let drops = config.mode == Mode::On;
    for family in FAMILIES {
        let nets = |nets: &mut dyn Iterator<Item = &ipnet::IpNet>| Set::of_nets(family, nets);
        part.set(&of("local", family), nets(&mut facts.own_pods.iter()));
        part.set(&of("services", family), nets(&mut facts.services.iter()));
        let peers = facts.bindings.iter().filter(|(_, owner)| matches!(owner, Owner::Peer(_)));
        part.set(&of("peers", family), nets(&mut peers.map(|(net, _)| net)));
        let own: Vec<_> = facts.own.iter().map(|net| ipnet::IpNet::from(net.addr())).collect();
        part.set(&of("host", family), nets(&mut own.iter()));
    }
    for direction in DIRECTIONS {
        let counted = Expr::CountIn(format!("deny_{}", word(direction)).into());
        part.chain(&format!("deny_{}", word(direction)), vec![rule([counted, Expr::Verdict(last(drops))])]);
        for reason in [Reason::Unknown(direction), Reason::Held(direction)] {
            part.chain(reason.name(), refusal(config, reason, drops));
        }
    }
    part.chain(
        "link",
        vec![
            when(&[between(kilo_nftables::Load::IcmpType, 130, 137)], Verdict::Accept),
            when(&[between(kilo_nftables::Load::IcmpType, 143, 143)], Verdict::Accept),
        ],
    );
    part.chain(
        "related",
        vec![when(&[Expr::L4Proto(ICMP)], Verdict::Accept), when(&[Expr::L4Proto(ICMPV6)], Verdict::Accept)],
    );
    for (family, view) in FAMILIES.into_iter().flat_map(|f| View::BOTH.map(|view| (f, view))) {
        pods(&mut part, family, view);
        judge(&mut part, facts, family, view);
    }
    hooks(&mut part, config, facts);
    part
}

/// The chains that send a packet to the profile of its pod, and close what belongs to no known pod.
fn pods(part: &mut Part, family: Family, view: View) {
    for direction in DIRECTIONS {
        let subject = view.subject(direction, family);
        let to_profile = Expr::Dispatch {
            keys: vec![subject],
            ids: dispatch(direction, family),
            chains: profiles(direction, view),
        };
        let unknown = when(&[among(subject, &of("local", family))], goto(Reason::Unknown(direction).name()));
        part.chain(&judged(direction, family, view), vec![rule([to_profile]), unknown]);
    }
}

fn judged(direction: Direction, family: Family, view: View) -> String {
    format!("{}_{}{}", word(direction), digit(family), view.suffix())
}

/// The chains that ask both ends, and those for packets to this host, whose end is not asked.
fn judge(part: &mut Part, facts: &MeshFacts, family: Family, view: View) {
    let (source, destination) = (view.source(family), view.destination(family));
    let allowed = match view {
        View::Tuple => goto("stamp"),
        View::Header => Verdict::Accept,
    };
    let mut rules = vec![
        when(&[all_among(&[source, destination], &itself(family))], allowed.clone()),
        when(&[], jump(&judged(Direction::Egress, family, view))),
        when(&[], jump(&judged(Direction::Ingress, family, view))),
    ];
    if facts.leader {
        // By the tuple and not by the link: otherwise a reply would let the flow pass unasked.
        let relay = relay(family, view);
        rules.push(when(&[among(source, &of("peers", family))], jump(&relay)));
        let to_profile = Expr::Dispatch {
            keys: vec![destination],
            ids: relayed(family),
            chains: profiles(Direction::Ingress, view),
        };
        part.chain(&relay, vec![rule([to_profile])]);
    }
    rules.push(when(&[], allowed.clone()));
    part.chain(&format!("judge_{}{}", digit(family), view.suffix()), rules);

    let to_profile = Expr::Dispatch {
        keys: vec![source],
        ids: dispatch(Direction::Egress, family),
        chains: profiles(Direction::Egress, view),
    };
    // Replies to what the host opened to a pod are none of the pod's: they are told by who opened the connection, and
    // the host's address on a bridge is among the pods'.
    let unknown = match view {
        View::Tuple => vec![state(ct_state::NEW), among(source, &of("local", family))],
        View::Header => {
            vec![among(source, &of("local", family)), not_among(source, &of("host", family))]
        }
    };
    let unknown = when(&unknown, goto(Reason::Unknown(Direction::Egress).name()));
    let here = format!("host_{}{}", digit(family), view.suffix());
    part.chain(&format!("{here}_pods"), vec![rule([to_profile]), unknown]);
    part.chain(
        &here,
        vec![
            // A Service that is not translated yet is judged when it is.
            when(&[among(destination, &of("services", family))], Verdict::Accept),
            when(&[], jump(&format!("{here}_pods"))),
            when(&[], allowed),
        ],
    );
}

fn hooks(part: &mut Part, config: &CompilerConfig, facts: &MeshFacts) {
    for (hook, name, chain) in [(Hook::Forward, "forward", "judge"), (Hook::Input, "input", "host")] {
        let mut rules = vec![
            when(&[Expr::L4Proto(ICMPV6)], jump("link")),
            when(&[], jump("known")),
            when(&[state(ct_state::RELATED)], jump("related")),
        ];
        let bare = format!("{name}_bare");
        rules.push(when(&[state(ct_state::UNTRACKED | ct_state::INVALID)], goto(&bare)));
        rules
            .push(rule(picked_up().into_iter().chain([mark_connection(config.loose_bit, config.loose_bit)])));
        let by_family = |view: View| {
            FAMILIES.map(|family| {
                let to = format!("{chain}_{}{}", digit(family), view.suffix());
                when(&[Expr::NfProto(family)], goto(&to))
            })
        };
        rules.extend(by_family(View::Tuple));
        part.base(name, hook, -5, rules);
        part.chain(&bare, by_family(View::Header).into());
    }
    if facts.ipvs {
        // IPVS sends what comes to a Service on from here, past the chain of forwarded packets.
        let view = View::Tuple;
        let rules = FAMILIES.map(|family| {
            let service = kilo_nftables::Load::CtAddress(
                kilo_nftables::CtDirection::Original,
                family,
                kilo_nftables::End::Destination,
            );
            let matches = [
                among(service, &of("services", family)),
                not_among(view.source(family), &of("host", family)),
            ];
            when(&matches, goto(&format!("judge_{}", digit(family))))
        });
        let rules = [when(&[], jump("known"))].into_iter().chain(rules).collect();
        part.base("postrouting", Hook::Postrouting, 95, rules);
    }
}
