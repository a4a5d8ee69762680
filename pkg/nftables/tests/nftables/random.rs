//! Random tables that the kernel takes.

use std::collections::BTreeMap;

use ipnet::IpNet;
use kilo_nftables::{
    Addresses, Base, Chain, ChainType, Direction, End, Expr, Family, Hook, Policy, Rule, Set, Table, Verdict,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::table::{link, net};

pub fn any_net(family: Family) -> BoxedStrategy<IpNet> {
    match family {
        // Few addresses, so that ranges meet.
        Family::V4 => (0u32..512, 20u8..=32)
            .prop_map(|(n, len)| {
                IpNet::new(std::net::Ipv4Addr::from((10 << 24) + n).into(), len).unwrap().trunc()
            })
            .boxed(),
        Family::V6 => (0u128..512, 116u8..=128)
            .prop_map(|(n, len)| {
                IpNet::new(std::net::Ipv6Addr::from((0xfd << 120) + n).into(), len).unwrap().trunc()
            })
            .boxed(),
    }
}

/// Networks of IPv4 that meet.
pub fn any_nets() -> impl Strategy<Value = Vec<IpNet>> {
    vec(any_net(Family::V4), 0..12)
}

fn any_family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn any_set(family: Family) -> impl Strategy<Value = Set> {
    let edge = match family {
        Family::V4 => net("255.255.255.254/31"),
        Family::V6 => net("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"),
    };
    (vec(any_net(family), 0..8), any::<bool>()).prop_map(move |(mut nets, with_edge)| {
        nets.extend(with_edge.then_some(edge));
        Set::of_nets(family, &nets)
    })
}

/// Not those of ICMP: before them `nft` does not list a test of the family, as if it were implied.
const PROTOCOLS: &[u8] = &[4, 6, 17, 132, 200];

/// A rule of two families matches nothing, and `nft` refuses its text: all of a rule's are of one.
fn any_expr(family: Family) -> impl Strategy<Value = Expr> {
    let end = || prop_oneof![Just(End::Source), Just(End::Destination)];
    let direction = prop_oneof![Just(Direction::In), Just(Direction::Out)];
    let name = prop_oneof![Just("kilo0"), Just("tunl0"), Just("abcdefghijklmno")];
    // Set names say the family of their elements, so that a reference is always right.
    let addresses = {
        let set = match family {
            Family::V4 => "s4",
            Family::V6 => "s6",
        };
        prop_oneof![any_net(family).prop_map(Addresses::Net), Just(Addresses::Set(family, set.into()))]
    };
    prop_oneof![
        Just(Expr::NfProto(family)),
        prop::sample::select(PROTOCOLS).prop_map(Expr::L4Proto),
        (direction, name, any::<bool>()).prop_map(|(d, n, negated)| link(d, n, negated)),
        (end(), addresses, any::<bool>()).prop_map(|(end, among, negated)| Expr::Address {
            end,
            among,
            negated
        }),
        Just(Expr::Counter),
    ]
}

fn any_rule(targets: &'static [&'static str]) -> impl Strategy<Value = Rule> {
    let mut verdicts = vec![Verdict::Accept, Verdict::Drop, Verdict::Return];
    verdicts.extend(targets.iter().map(|t| Verdict::Jump((*t).into())));
    verdicts.extend(targets.iter().map(|t| Verdict::Goto((*t).into())));
    let verdict = prop::sample::select(verdicts);
    (
        any_family().prop_flat_map(|family| vec(any_expr(family), 0..4)),
        verdict,
        prop_oneof![Just(""), Just("why"), Just("a: b")],
    )
        .prop_map(|(mut exprs, verdict, comment)| {
            exprs.push(Expr::Verdict(verdict));
            Rule::new(exprs, comment)
        })
}

/// Tables that the kernel takes: what rules refer to is there, and jumps make no circle.
pub fn any_table() -> impl Strategy<Value = Table> {
    let sets = (
        any_set(Family::V4),
        any_set(Family::V6),
        btree_map("t[a-c]", any_family().prop_flat_map(any_set), 0..3),
    );
    let base = (prop_oneof![Just(Hook::Input), Just(Hook::Forward)], -20i32..3, any::<bool>()).prop_map(
        |(hook, priority, drop)| Base {
            chain_type: ChainType::Filter,
            hook,
            priority: priority * 10,
            policy: if drop { Policy::Drop } else { Policy::Accept },
        },
    );
    let leaf = vec(any_rule(&[]), 0..3);
    let middle = vec(any_rule(&["leaf"]), 0..3);
    let root = (base, vec(any_rule(&["leaf", "middle"]), 0..4));
    (sets, leaf, middle, prop::option::of(vec(any_rule(&["leaf"]), 0..3)), prop::option::of(root)).prop_map(
        |((s4, s6, more), leaf, middle, other, root)| {
            let mut sets: BTreeMap<Box<str>, Set> = BTreeMap::from([("s4".into(), s4), ("s6".into(), s6)]);
            sets.extend(more.into_iter().map(|(name, set)| (name.into(), set)));
            let mut chains: BTreeMap<Box<str>, Chain> = BTreeMap::from([
                ("leaf".into(), Chain { base: None, rules: leaf }),
                ("middle".into(), Chain { base: None, rules: middle }),
            ]);
            chains.extend(other.map(|rules| ("other".into(), Chain { base: None, rules })));
            chains.extend(root.map(|(base, rules)| ("root".into(), Chain { base: Some(base), rules })));
            Table { name: "kilo".into(), sets, chains, ..Table::default() }
        },
    )
}
