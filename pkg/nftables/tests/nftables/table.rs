//! A table with everything in it.

use ipnet::IpNet;
use kilo_nftables::{
    Addresses, Base, Chain, ChainType, Direction, End, Expr, Family, Hook, IfName, IpRange, Policy, Ranges,
    Rule, Set, Table, Verdict,
};

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
        ("except4", Set::of_ranges(V4, Ranges::new(V4, v4))),
        ("except6", Set::of_ranges(V6, Ranges::new(V6, v6))),
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
        sets: sets.into_iter().map(|(name, set)| (name.into(), set)).collect(),
        chains: chains.into_iter().map(|(name, chain)| (name.into(), chain)).collect(),
        ..Table::default()
    }
}
