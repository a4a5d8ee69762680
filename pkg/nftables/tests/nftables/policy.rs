//! A table with each kind of set and each expression that a policy needs.

use kilo_nftables::{
    Base, Chain, ChainType, Counter, CtDirection, Data, DataType, Direction, Element, End, Expr, Family,
    Header, Hook, IfName, Key, KeyType, Load, Mark, Policy, Rule, Set, SetType, Table, TableFamily, Timeout,
    Verdict, ct_state,
};

use crate::table::{in_set, net, range};

pub fn link_name(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

pub fn ip(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

pub fn goto(chain: &str) -> Data {
    Data::Verdict(Verdict::Goto(chain.into()))
}

fn timed(mut element: Element, milliseconds: u64) -> Element {
    element.item.timeout = Some(Timeout(milliseconds));
    element
}

/// A set of each kind, by name.
pub fn sets() -> Vec<(&'static str, Set)> {
    use Family::{V4, V6};
    let exact = |key, elements: Vec<Element>| Set::of(SetType::exact(key), elements);
    let map = |key, data, elements: Vec<Element>| Set::of(SetType::exact(key).to(data), elements);
    let intervals =
        |family, data, elements: Vec<Element>| Set::of(SetType::intervals(family).to(data), elements);
    let key = |key: Key| Element::new(key);
    vec![
        ("cidr4", Set::of_nets(V4, &[net("10.0.0.0/8"), net("192.0.2.0/28")])),
        ("cidr6", Set::of_nets(V6, &[net("fd00::/8")])),
        (
            "pods4",
            exact(
                KeyType::Address(V4),
                vec![key(Key::Address(ip("10.0.0.1"))), key(Key::Address(ip("10.0.0.2")))],
            ),
        ),
        ("pods6", exact(KeyType::Address(V6), vec![key(Key::Address(ip("fd00::1")))])),
        ("self4", exact(KeyType::Pair(V4), vec![key(Key::Pair(ip("10.0.0.1"), ip("10.0.0.1")))])),
        ("self6", exact(KeyType::Pair(V6), vec![key(Key::Pair(ip("fd00::1"), ip("fd00::2")))])),
        (
            "svc4",
            exact(
                KeyType::Service(V4),
                vec![key(Key::Service(ip("10.0.0.1"), 6, 80)), key(Key::Service(ip("10.0.0.1"), 17, 53))],
            ),
        ),
        ("svc6", exact(KeyType::Service(V6), vec![key(Key::Service(ip("fd00::1"), 132, 65535))])),
        ("bound4", exact(KeyType::Bound(V4), vec![key(Key::Bound(link_name("veth0"), ip("10.0.0.1")))])),
        (
            "bound6",
            exact(KeyType::Bound(V6), vec![key(Key::Bound(link_name("abcdefghijklmno"), ip("fd00::1")))]),
        ),
        ("links", exact(KeyType::Link, vec![key(Key::Link(link_name("eth0")))])),
        ("protocols", exact(KeyType::Protocol, vec![key(Key::Protocol(6)), key(Key::Protocol(200))])),
        ("ports", exact(KeyType::Port, vec![key(Key::Port(80)), key(Key::Port(65535))])),
        ("nd", exact(KeyType::Icmpv6Type, vec![key(Key::Icmpv6Type(135)), key(Key::Icmpv6Type(136))])),
        ("marks", exact(KeyType::Integer, vec![key(Key::Integer(0x0102_0304))])),
        (
            "timed4",
            Set::of(
                SetType::exact(KeyType::Address(V4)).with_timeouts(),
                vec![timed(key(Key::Address(ip("10.0.0.9"))), 3_600_000), key(Key::Address(ip("10.0.0.8")))],
            ),
        ),
        (
            "timed_cidr4",
            Set::of(
                SetType::intervals(V4).with_timeouts(),
                vec![
                    timed(Element::new(range("10.1.0.0", "10.1.0.255")), 3_600_000),
                    Element::new(range("10.1.1.0", "10.1.1.9")),
                ],
            ),
        ),
        (
            "ids4",
            map(
                KeyType::Address(V4),
                DataType::Integer,
                vec![
                    Element::with(Key::Address(ip("10.0.0.1")), Data::Integer(1)),
                    Element::with(Key::Address(ip("10.0.0.2")), Data::Integer(0xffff_fffe)),
                ],
            ),
        ),
        (
            "ids6",
            map(
                KeyType::Address(V6),
                DataType::Integer,
                vec![Element::with(Key::Address(ip("fd00::1")), Data::Integer(2))],
            ),
        ),
        (
            "cidr_ids4",
            intervals(
                V4,
                DataType::Integer,
                vec![
                    Element::with(range("10.0.0.0", "10.0.0.255"), Data::Integer(1)),
                    Element::with(range("10.0.1.0", "10.0.1.9"), Data::Integer(2)),
                    Element::with(range("255.255.255.0", "255.255.255.255"), Data::Integer(3)),
                ],
            ),
        ),
        (
            "cidr_chains6",
            intervals(V6, DataType::Verdict, vec![Element::with(range("fd00::", "fd00::ff"), goto("one"))]),
        ),
        (
            "chains4",
            map(
                KeyType::Address(V4),
                DataType::Verdict,
                vec![Element::with(Key::Address(ip("10.0.0.1")), goto("two"))],
            ),
        ),
        (
            "profiles",
            map(
                KeyType::Integer,
                DataType::Verdict,
                vec![
                    Element::with(Key::Integer(1), goto("one")),
                    Element::with(Key::Integer(2), Data::Verdict(Verdict::Jump("two".into()))),
                ],
            ),
        ),
        (
            "classes",
            map(
                KeyType::Link,
                DataType::Verdict,
                vec![
                    Element::with(Key::Link(link_name("kilo0")), goto("one")),
                    Element::with(Key::Link(link_name("lo")), Data::Verdict(Verdict::Return)),
                ],
            ),
        ),
        (
            "portspecs",
            map(
                KeyType::ProtoPort,
                DataType::Verdict,
                vec![
                    Element::with(Key::ProtoPort(6, 80), Data::Verdict(Verdict::Accept)),
                    Element::with(Key::ProtoPort(17, 53), Data::Verdict(Verdict::Drop)),
                ],
            ),
        ),
    ]
}

/// Each expression that `nft` has words for.
pub fn sayable() -> Vec<Expr> {
    use CtDirection::{Original, Reply};
    use End::{Destination, Source};
    use Family::{V4, V6};
    let lookup =
        |keys: &[Load], set: &str, negated| Expr::Lookup { keys: keys.to_vec(), set: set.into(), negated };
    let vmap = |keys: &[Load], map: &str| Expr::Vmap { keys: keys.to_vec(), map: map.into() };
    let number = |of, first, last, negated| Expr::Number { of, first, last, negated };
    let bits = |of, mask, value, negated| Expr::Bits { of, mask, value, negated };
    vec![
        Expr::ct_state(ct_state::ESTABLISHED | ct_state::RELATED, false),
        Expr::ct_state(ct_state::NEW, true),
        Expr::ct_state(ct_state::INVALID | ct_state::UNTRACKED, false),
        bits(Load::CtMark, 0x7f00_0000, 0x0100_0000, false),
        bits(Load::CtMark, 0x8000_0000, 0, true),
        bits(Load::Mark, 0x200, 0x200, false),
        bits(Load::Mark, u32::MAX, 0x1234, true),
        Expr::SetMark { mark: Mark::Packet, mask: 0x200, value: 0x200 },
        Expr::SetMark { mark: Mark::Packet, mask: u32::MAX, value: 5 },
        Expr::SetMark { mark: Mark::Packet, mask: 0x200, value: 0 },
        Expr::SetMark { mark: Mark::Connection, mask: 0x7f00_0000, value: 0x0300_0000 },
        Expr::SetMark { mark: Mark::Connection, mask: u32::MAX, value: 0 },
        Expr::Net { of: Load::CtAddress(Original, V4, Source), net: net("10.0.0.0/12"), negated: false },
        Expr::Net { of: Load::CtAddress(Reply, V4, Destination), net: net("10.0.0.1/32"), negated: true },
        Expr::Net { of: Load::CtAddress(Reply, V6, Source), net: net("fd00::/64"), negated: false },
        lookup(&[Load::CtAddress(Original, V4, Source)], "cidr4", false),
        lookup(&[Load::CtAddress(Original, V6, Destination)], "cidr6", true),
        lookup(
            &[Load::CtAddress(Original, V4, Source), Load::CtAddress(Reply, V4, Destination)],
            "self4",
            false,
        ),
        lookup(
            &[Load::CtAddress(Original, V6, Source), Load::CtAddress(Reply, V6, Destination)],
            "self6",
            false,
        ),
        lookup(&[Load::Address(V4, Destination), Load::L4Proto, Load::Port(Destination)], "svc4", false),
        lookup(&[Load::Address(V6, Destination), Load::L4Proto, Load::Port(Destination)], "svc6", true),
        lookup(&[Load::Link(Direction::In), Load::Address(V4, Source)], "bound4", false),
        lookup(&[Load::Link(Direction::In), Load::Address(V6, Source)], "bound6", true),
        lookup(&[Load::Link(Direction::Out)], "links", false),
        lookup(&[Load::L4Proto], "protocols", false),
        lookup(&[Load::Mark], "marks", false),
        lookup(&[Load::CtMark], "marks", true),
        in_set(Source, V4, "cidr4", false),
        in_set(Source, V4, "timed4", false),
        in_set(Source, V4, "timed_cidr4", false),
        in_set(Destination, V6, "pods6", true),
        number(Load::L4Proto, 6, 17, false),
        number(Load::L4Proto, 6, 6, true),
        vmap(&[Load::Address(V4, Source)], "chains4"),
        vmap(&[Load::Address(V6, Source)], "cidr_chains6"),
        vmap(&[Load::Link(Direction::In)], "classes"),
        vmap(&[Load::Mark], "profiles"),
        vmap(&[Load::L4Proto, Load::Port(Destination)], "portspecs"),
        Expr::CountIn("denied".into()),
        Expr::Limit { packets: 10, seconds: 1, burst: 5 },
        Expr::Limit { packets: 7, seconds: 60, burst: 1 },
        Expr::Log { group: 5, prefix: "kilo:0000002a".into(), snaplen: Some(96) },
        Expr::Log { group: 0, prefix: "".into(), snaplen: None },
        Expr::Reject,
    ]
}

/// Each expression that `nft` has no words for, or others, or none behind these.
pub fn unsayable() -> Vec<Expr> {
    use CtDirection::{Original, Reply};
    use End::{Destination, Source};
    use Family::{V4, V6};
    let number = |of, first, last, negated| Expr::Number { of, first, last, negated };
    let raw = |header, offset, len| Load::Raw { header, offset, len };
    let lookup =
        |keys: &[Load], set: &str, negated| Expr::Lookup { keys: keys.to_vec(), set: set.into(), negated };
    let dispatch = |keys: &[Load], ids: &str| Expr::Dispatch {
        keys: keys.to_vec(),
        ids: ids.into(),
        chains: "profiles".into(),
    };
    vec![
        Expr::EtherSource { address: [2, 0, 0, 0xab, 0xcd, 0xef], negated: true },
        dispatch(&[Load::CtAddress(Original, V4, Source)], "ids4"),
        dispatch(&[Load::CtAddress(Reply, V6, Source)], "ids6"),
        dispatch(&[Load::Address(V4, Source)], "ids4"),
        dispatch(&[Load::Address(V4, Destination)], "cidr_ids4"),
        Expr::Vmap { keys: vec![Load::L4Proto, Load::CtPort(Reply, Source)], map: "portspecs".into() },
        Expr::Vmap { keys: vec![Load::CtProtocol, Load::CtPort(Reply, Source)], map: "portspecs".into() },
        lookup(
            &[Load::CtAddress(Reply, V4, Source), Load::L4Proto, Load::CtPort(Reply, Source)],
            "svc4",
            false,
        ),
        lookup(&[Load::CtPort(Reply, Source)], "ports", false),
        lookup(&[Load::Port(Destination)], "ports", true),
        lookup(&[Load::IcmpType], "nd", false),
        lookup(&[raw(Header::Transport, 12, 4)], "cidr4", false),
        lookup(&[raw(Header::Network, 32, 4)], "pods4", true),
        Expr::Net { of: raw(Header::Transport, 12, 4), net: net("10.4.0.0/16"), negated: true },
        Expr::Net { of: raw(Header::Transport, 8, 16), net: net("fd00::1/128"), negated: false },
        Expr::Bits { of: Load::TcpFlags, mask: 0x17, value: 0x02, negated: false },
        Expr::Bits { of: Load::TcpFlags, mask: 0xff, value: 0x02, negated: true },
        number(Load::Port(Destination), 80, 80, false),
        number(Load::Port(Source), 1024, 65535, true),
        number(Load::Port(Destination), 8000, 8999, false),
        number(Load::IcmpType, 133, 137, false),
        number(Load::IcmpType, 8, 8, true),
        number(Load::CtPort(Reply, Source), 80, 80, false),
        number(Load::CtPort(Reply, Source), 80, 90, false),
        number(Load::CtPort(Original, Destination), 80, 90, true),
        number(Load::CtProtocol, 6, 6, false),
        number(raw(Header::Network, 6, 2), 0, 0x4000, true),
    ]
}

/// An expression alone, or with what has to end its rule.
fn rule(expr: Expr) -> Rule {
    let ends = matches!(expr, Expr::Vmap { .. } | Expr::Dispatch { .. } | Expr::Reject);
    let end = (!ends).then_some([Expr::Counter, Expr::Verdict(Verdict::Accept)]);
    Rule::new([expr].into_iter().chain(end.into_iter().flatten()), "")
}

/// A table of family `inet` with these expressions, one in a rule each.
pub fn table_of(exprs: Vec<Expr>) -> Table {
    let base =
        |hook, priority| Base { chain_type: ChainType::Filter, hook, priority, policy: Policy::Accept };
    let leaf = |verdict| Chain { base: None, rules: vec![Rule::new([Expr::Verdict(verdict)], "")] };
    let judge = Chain { base: Some(base(Hook::Forward, -5)), rules: exprs.into_iter().map(rule).collect() };
    let back = [Expr::NoReturnPath, Expr::CountIn("spoofed".into()), Expr::Verdict(Verdict::Drop)];
    let raw = Chain { base: Some(base(Hook::Prerouting, -300)), rules: vec![Rule::new(back, "")] };
    Table {
        family: TableFamily::Inet,
        name: "kilo".into(),
        counters: ["denied", "spoofed"].map(|name| (name.into(), Counter::default())).into(),
        sets: sets().into_iter().map(|(name, set)| (name.into(), set)).collect(),
        chains: [
            ("judge", judge),
            ("raw", raw),
            ("one", leaf(Verdict::Drop)),
            ("two", leaf(Verdict::Return)),
        ]
        .map(|(name, chain)| (name.into(), chain))
        .into(),
        ..Table::default()
    }
}

/// A table of family `bridge`: who may send from which link.
pub fn bridge() -> Table {
    let v4 = Load::Address(Family::V4, End::Source);
    let sender = Load::Raw { header: Header::Network, offset: 14, len: 4 };
    let bound = |of: Load| Expr::Lookup {
        keys: vec![Load::Link(Direction::In), of],
        set: "bound4".into(),
        negated: true,
    };
    let rules = vec![
        Rule::new([bound(v4), Expr::CountIn("denied".into()), Expr::Verdict(Verdict::Drop)], ""),
        Rule::new([Expr::EtherType(0x0806), bound(sender), Expr::Verdict(Verdict::Drop)], "ARP"),
        Rule::new([Expr::NfProto(Family::V6), Expr::Counter, Expr::Verdict(Verdict::Accept)], ""),
        Rule::new([Expr::EtherSource { address: [2, 0, 0, 0, 0, 1], negated: false }, Expr::Counter], ""),
    ];
    let base = Base {
        chain_type: ChainType::Filter,
        hook: Hook::Prerouting,
        priority: -300,
        policy: Policy::Accept,
    };
    Table {
        family: TableFamily::Bridge,
        name: "kilo".into(),
        counters: [("denied".into(), Counter::default())].into(),
        sets: sets().into_iter().filter(|(name, _)| *name == "bound4").map(|(n, s)| (n.into(), s)).collect(),
        chains: [("senders".into(), Chain { base: Some(base), rules })].into(),
        ..Table::default()
    }
}
