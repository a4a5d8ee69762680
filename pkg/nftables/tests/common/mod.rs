//! A table with everything in it, random tables, and the captured messages of `nft`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use ipnet::IpNet;
use kilo_nftables::{
    Addresses, Base, Chain, ChainType, Direction, End, Expr, Family, Hook, IfName, IpRange, Policy, Ranges,
    Rule, Set, SetKey, Table, Verdict,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn among(end: End, net_text: &str) -> Expr {
    Expr::Address { end, among: Addresses::Net(net(net_text)), negated: false }
}

pub fn not_among(end: End, net_text: &str) -> Expr {
    Expr::Address { end, among: Addresses::Net(net(net_text)), negated: true }
}

pub fn in_set(end: End, family: Family, set: &str, negated: bool) -> Expr {
    Expr::Address { end, among: Addresses::Set(family, set.into()), negated }
}

pub fn link(direction: Direction, name: &str, negated: bool) -> Expr {
    Expr::Link { direction, name: IfName::new(name).unwrap(), negated }
}

pub fn range(first: &str, last: &str) -> IpRange {
    IpRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap()
}

/// The table that `vectors/kilo.nft` describes in words.
pub fn table() -> Table {
    use Direction::{In, Out};
    use End::{Destination, Source};
    use Family::{V4, V6};
    let verdict = Expr::Verdict;
    let v4 = [
        net("10.0.0.0/8").into(),
        net("11.0.0.1/32").into(),
        range("12.0.0.0", "12.0.0.9"),
        net("255.255.255.0/24").into(),
    ];
    let v6 = [net("2001:db8::1/128").into(), range("2001:db8::5", "2001:db8::9"), net("fd00::/8").into()];
    let sets = [
        ("except4", Set { key: SetKey::Address(V4), ranges: Ranges::new(V4, v4) }),
        ("except6", Set { key: SetKey::Address(V6), ranges: Ranges::new(V6, v6) }),
    ];
    let jump = |chain: &str| verdict(Verdict::Jump(chain.into()));
    let goto = |chain: &str| verdict(Verdict::Goto(chain.into()));
    let masq = vec![
        Rule::new([in_set(Destination, V4, "except4", false), verdict(Verdict::Return)], "hello"),
        Rule::new([in_set(Destination, V6, "except6", true), Expr::Counter, Expr::Masquerade], ""),
        Rule::new([Expr::NfProto(V4), Expr::Counter, Expr::Masquerade], "Kilo: NAT the rest"),
    ];
    let all = vec![
        Rule::new([Expr::L4Proto(4), in_set(Source, V4, "except4", false), verdict(Verdict::Accept)], ""),
        Rule::new([Expr::L4Proto(4), verdict(Verdict::Drop)], ""),
        Rule::new([link(In, "kilo0", false), link(Out, "eth0", true), verdict(Verdict::Return)], ""),
        Rule::new([among(Source, "10.0.0.0/8"), among(Destination, "10.16.0.0/12"), goto("a-masq")], ""),
        Rule::new([among(Source, "1.2.3.4/32"), verdict(Verdict::Accept)], ""),
        Rule::new(
            [among(Source, "fd00::/64"), not_among(Destination, "fd00::/65"), verdict(Verdict::Accept)],
            "",
        ),
        Rule::new([not_among(Source, "192.168.0.0/16"), verdict(Verdict::Accept)], ""),
    ];
    let base = |chain_type, hook, priority, policy| Some(Base { chain_type, hook, priority, policy });
    let chains = [
        ("a-masq", Chain { base: None, rules: masq }),
        ("b-all", Chain { base: None, rules: all }),
        (
            "c-postrouting",
            Chain {
                base: base(ChainType::Nat, Hook::Postrouting, 100, Policy::Accept),
                rules: vec![Rule::new([in_set(Source, V4, "except4", false), jump("a-masq")], "")],
            },
        ),
        ("d-input", Chain { base: base(ChainType::Filter, Hook::Input, 5, Policy::Drop), rules: vec![] }),
    ];
    Table {
        name: "kilo".into(),
        flags: 0,
        sets: sets.into_iter().map(|(name, set)| (name.into(), set)).collect(),
        chains: chains.into_iter().map(|(name, chain)| (name.into(), chain)).collect(),
    }
}

fn any_net(family: Family) -> BoxedStrategy<IpNet> {
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

fn any_expr() -> impl Strategy<Value = Expr> {
    let end = || prop_oneof![Just(End::Source), Just(End::Destination)];
    let direction = prop_oneof![Just(Direction::In), Just(Direction::Out)];
    let name = prop_oneof![Just("kilo0"), Just("tunl0"), Just("abcdefghijklmno")];
    // Set names say the family of their elements, so that a reference is always right.
    let addresses = any_family().prop_flat_map(|family| {
        let set = match family {
            Family::V4 => "s4",
            Family::V6 => "s6",
        };
        prop_oneof![any_net(family).prop_map(Addresses::Net), Just(Addresses::Set(family, set.into()))]
    });
    prop_oneof![
        any_family().prop_map(Expr::NfProto),
        any::<u8>().prop_map(Expr::L4Proto),
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
    (vec(any_expr(), 0..4), verdict, prop_oneof![Just(""), Just("why"), Just("a: b")]).prop_map(
        |(mut exprs, verdict, comment)| {
            exprs.push(Expr::Verdict(verdict));
            Rule::new(exprs, comment)
        },
    )
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
            Table { name: "kilo".into(), flags: 0, sets, chains }
        },
    )
}
