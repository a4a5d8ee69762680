//! The packet tracer, by tables made by hand and by what the kernel does with real packets.
#![allow(clippy::disallowed_methods)] // a test may open sockets

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Instant;

use kilo_nftables::trace::{Connection, Outcome, Packet, Trace, Tuple, Untraceable, trace};
use kilo_nftables::{
    Base, Chain, ChainType, Counter, CtDirection, Data, DataType, Direction, Element, End, Expr, Family,
    Header, Hook, Key, KeyType, Load, Mark, Policy, Rule, Set, SetType, Table, TableFamily, Verdict,
    ct_state,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};

use crate::kernel::{Nft, inside};
use crate::policy::{bridge, goto, ip, link_name};
use crate::table::{among, in_set, link, net, not_among, range};

fn chain(hook: Option<(Hook, i32, Policy)>, rules: Vec<Vec<Expr>>) -> Chain {
    let base =
        hook.map(|(hook, priority, policy)| Base { chain_type: ChainType::Filter, hook, priority, policy });
    Chain { base, rules: rules.into_iter().map(|exprs| Rule::new(exprs, "")).collect() }
}

fn table(chains: Vec<(&str, Chain)>, sets: Vec<(&str, Set)>) -> Table {
    Table {
        name: "kilo".into(),
        sets: sets.into_iter().map(|(name, set)| (name.into(), set)).collect(),
        chains: chains.into_iter().map(|(name, chain)| (name.into(), chain)).collect(),
        ..Table::default()
    }
}

fn count(name: &str) -> Expr {
    Expr::CountIn(name.into())
}

fn verdict(verdict: Verdict) -> Expr {
    Expr::Verdict(verdict)
}

fn jump(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Jump(chain.into()))
}

fn tuple(source: &str, destination: &str, destination_port: u16) -> Tuple {
    Tuple { source: ip(source), destination: ip(destination), source_port: 40_000, destination_port }
}

fn forward<'t>(table: &'t Table, packet: &Packet) -> Trace<'t> {
    trace(std::slice::from_ref(table), TableFamily::Inet, Hook::Forward, packet).unwrap()
}

const FORWARD: Option<(Hook, i32, Policy)> = Some((Hook::Forward, 0, Policy::Drop));

#[test]
fn chains_are_left_as_the_kernel_leaves_them() {
    let table = table(
        vec![
            (
                "base",
                chain(
                    FORWARD,
                    vec![
                        vec![jump("a")],
                        vec![count("back")],
                        vec![verdict(Verdict::Goto("c".into()))],
                        vec![count("never")],
                    ],
                ),
            ),
            ("a", chain(None, vec![vec![verdict(Verdict::Goto("b".into()))], vec![count("never")]])),
            ("b", chain(None, vec![vec![count("b"), verdict(Verdict::Return)], vec![count("never")]])),
            ("c", chain(None, vec![vec![count("c")]])),
        ],
        vec![],
    );
    let seen = forward(&table, &Packet::opening(6, tuple("10.0.0.1", "10.0.0.2", 80)));
    assert_eq!((seen.outcome, &seen.counters[..]), (Outcome::Dropped, &["b", "back", "c"][..]));
    let steps: Vec<String> = seen.rules.iter().map(ToString::to_string).collect();
    assert_eq!(steps[..3], ["base 0: jump a", "a 0: goto b", "b 0: counter name \"b\" return"]);
}

#[test]
fn base_chains_come_in_order_and_accept_ends_one() {
    let at = |priority, exprs| chain(Some((Hook::Forward, priority, Policy::Accept)), vec![exprs]);
    let one = table(
        vec![
            ("late", at(5, vec![count("late")])),
            ("early", at(-5, vec![count("early"), verdict(Verdict::Accept)])),
        ],
        vec![],
    );
    let mut two = table(
        vec![
            ("last", at(10, vec![count("last"), verdict(Verdict::Drop)])),
            ("after", at(20, vec![count("after")])),
        ],
        vec![],
    );
    two.name = "other".into();
    let mut frames = bridge();
    frames.name = "frames".into();
    let tables = [two, one, frames];
    let packet = Packet::opening(17, tuple("fd00::1", "fd00::2", 53));
    let seen = trace(&tables, TableFamily::Inet, Hook::Forward, &packet).unwrap();
    assert_eq!((seen.outcome, &seen.counters[..]), (Outcome::Dropped, &["early", "late", "last"][..]));
    let seen = trace(&tables, TableFamily::Inet, Hook::Input, &packet).unwrap();
    assert_eq!((seen.outcome, seen.rules.len()), (Outcome::Accepted, 0));
}

/// Two-step dispatch on the connection, epoch in its mark, log and counters of a denial.
#[test]
fn policy_judges_by_the_connection() {
    let epoch = Expr::Bits { of: Load::CtMark, mask: 0x7f00_0000, value: 0x0100_0000, negated: false };
    let stamp = Expr::SetMark { mark: Mark::Connection, mask: 0x7f00_0000, value: 0x0100_0000 };
    let keys = vec![Load::CtAddress(CtDirection::Reply, Family::V4, End::Source)];
    let dispatch = Expr::Dispatch { keys, ids: "in4".into(), chains: "profiles".into() };
    let ports = vec![Load::CtProtocol, Load::CtPort(CtDirection::Reply, End::Source)];
    let ports = Expr::Vmap { keys: ports, map: "ports".into() };
    let log = Expr::Log { group: 5, prefix: "kilo:2a".into(), snaplen: None };
    let table = table(
        vec![
            (
                "forward",
                chain(
                    FORWARD,
                    vec![
                        vec![epoch, verdict(Verdict::Accept)],
                        vec![jump("ingress")],
                        vec![stamp, count("granted"), verdict(Verdict::Accept)],
                    ],
                ),
            ),
            ("ingress", chain(None, vec![vec![dispatch]])),
            ("p7", chain(None, vec![vec![ports], vec![verdict(Verdict::Goto("deny".into()))]])),
            (
                "deny",
                chain(
                    None,
                    vec![
                        vec![count("denied"), Expr::Limit { packets: 1, seconds: 1, burst: 5 }, log],
                        vec![verdict(Verdict::Drop)],
                    ],
                ),
            ),
        ],
        vec![
            (
                "in4",
                Set::of(
                    SetType::exact(KeyType::Address(Family::V4)).to(DataType::Integer),
                    [Element::with(Key::Address(ip("10.0.0.2")), Data::Integer(7))],
                ),
            ),
            (
                "profiles",
                Set::of(
                    SetType::exact(KeyType::Integer).to(DataType::Verdict),
                    [Element::with(Key::Integer(7), goto("p7"))],
                ),
            ),
            (
                "ports",
                Set::of(
                    SetType::exact(KeyType::ProtoPort).to(DataType::Verdict),
                    [Element::with(Key::ProtoPort(6, 8080), Data::Verdict(Verdict::Return))],
                ),
            ),
        ],
    );
    // To a virtual address and port, translated to the pod's.
    let mut packet = Packet::opening(6, tuple("192.0.2.1", "10.0.0.2", 8080));
    let original = tuple("192.0.2.1", "203.0.113.1", 80);
    let reply = tuple("192.0.2.1", "10.0.0.2", 8080).reversed();
    packet.connection = Some(Connection { protocol: 6, original, reply, mark: 0x8000_0001 });
    let seen = forward(&table, &packet);
    assert_eq!(
        (seen.outcome, &seen.counters[..], seen.ct_mark),
        (Outcome::Accepted, &["granted"][..], Some(0x8100_0001))
    );
    // The next packet has the epoch.
    packet.connection = packet.connection.map(|c| Connection { mark: seen.ct_mark.unwrap(), ..c });
    assert_eq!(forward(&table, &packet).rules.len(), 1);
    let seen_of_other = forward(&table, &Packet::opening(6, tuple("192.0.2.1", "10.0.0.2", 81)));
    assert_eq!(
        (seen_of_other.outcome, &seen_of_other.counters[..], &seen_of_other.logged[..]),
        (Outcome::Dropped, &["denied"][..], &["kilo:2a"][..])
    );
    assert_eq!(seen_of_other.ct_mark, Some(0));
    // Without a connection nothing of it is loaded, and no mark is set.
    packet.connection = None;
    packet.state = ct_state::UNTRACKED;
    let seen = forward(&table, &packet);
    assert_eq!((seen.outcome, &seen.counters[..], seen.ct_mark), (Outcome::Accepted, &["granted"][..], None));
}

#[test]
fn headers_are_read_where_they_are() {
    let holds = |expr: Expr, packet: &Packet| {
        let table = table(
            vec![("f", chain(FORWARD, vec![vec![expr, verdict(Verdict::Accept)]]))],
            vec![
                ("c4", Set::of_nets(Family::V4, &[net("10.0.0.0/8"), net("192.0.2.0/28")])),
                (
                    "b4",
                    Set::of(
                        SetType::exact(KeyType::Bound(Family::V4)),
                        [Element::new(Key::Bound(link_name("veth0"), ip("10.0.0.1")))],
                    ),
                ),
                (
                    "s6",
                    Set::of(
                        SetType::exact(KeyType::Service(Family::V6)),
                        [Element::new(Key::Service(ip("fd00::2"), 6, 80))],
                    ),
                ),
            ],
        );
        forward(&table, packet).outcome == Outcome::Accepted
    };
    let mut syn = Packet::opening(6, tuple("10.0.0.1", "192.0.2.200", 80));
    syn.input = Some(link_name("veth0"));
    let v6 = Packet::opening(6, tuple("fd00::1", "fd00::2", 80));
    let flags = |value| Expr::Bits { of: Load::TcpFlags, mask: 0x17, value, negated: false };
    let port = |first, last, negated| Expr::Number { of: Load::Port(End::Destination), first, last, negated };
    let bound = |negated| Expr::Lookup {
        keys: vec![Load::Link(Direction::In), Load::Address(Family::V4, End::Source)],
        set: "b4".into(),
        negated,
    };
    let service = Expr::Lookup {
        keys: vec![Load::Address(Family::V6, End::Destination), Load::L4Proto, Load::Port(End::Destination)],
        set: "s6".into(),
        negated: false,
    };
    for (expr, of_v4, of_v6) in [
        (flags(2), true, true),
        (flags(0x10), false, false),
        (port(80, 80, false), true, true),
        (port(81, 90, false), false, false),
        (port(81, 90, true), true, true),
        (port(70, 90, true), false, false),
        (bound(false), true, false),
        (bound(true), false, false),
        (service, false, true),
        (in_set(End::Source, Family::V4, "c4", false), true, false),
        (in_set(End::Destination, Family::V4, "c4", true), true, false),
        (among(End::Source, "10.0.0.0/30"), true, false),
        (not_among(End::Source, "10.0.0.0/30"), false, false),
        (not_among(End::Source, "fd00::/127"), false, false),
        (among(End::Source, "fd00::/127"), false, true),
        (link(Direction::In, "veth0", true), false, true),
        (link(Direction::Out, "veth0", false), false, false),
        (Expr::NfProto(Family::V6), false, true),
        (Expr::L4Proto(17), false, false),
        (Expr::NoReturnPath, false, false),
        (Expr::EtherSource { address: [0; 6], negated: true }, false, false),
        (Expr::ct_state(ct_state::NEW | ct_state::RELATED, false), true, true),
        (Expr::ct_state(ct_state::NEW, true), false, false),
        (
            Expr::Net {
                of: Load::CtAddress(CtDirection::Reply, Family::V4, End::Source),
                net: net("192.0.2.0/24"),
                negated: false,
            },
            true,
            false,
        ),
    ] {
        assert_eq!((holds(expr.clone(), &syn), holds(expr.clone(), &v6)), (of_v4, of_v6), "{expr}");
    }
    // The second fragment has a protocol but no ports.
    let mut fragment = syn.clone();
    fragment.transport = None;
    assert!(holds(Expr::L4Proto(6), &fragment) && !holds(port(80, 80, false), &fragment));
    assert!(!holds(port(1, 2, true), &fragment));
    // The source inside of IP-in-IP.
    let outer = Packet::new(ip("192.0.2.1"), ip("192.0.2.2"), 4, &syn.bytes);
    let inner = |header, offset, negated| Expr::Lookup {
        keys: vec![Load::Raw { header, offset, len: 4 }],
        set: "c4".into(),
        negated,
    };
    assert!(holds(inner(Header::Transport, 12, false), &outer));
    assert!(holds(inner(Header::Network, 36, true), &outer));
    assert!(!holds(
        inner(Header::Transport, 12, false),
        &Packet::new(ip("1.2.3.4"), ip("1.2.3.5"), 4, &[0; 15])
    ));
    assert_eq!(outer.connection, None);
    assert!(holds(Expr::ct_state(ct_state::INVALID, false), &outer));
}

#[test]
fn before_tracking_there_is_no_connection() {
    let at = |priority, name| {
        let matches = Expr::ct_state(ct_state::NEW, false);
        chain(Some((Hook::Prerouting, priority, Policy::Accept)), vec![vec![matches, count(name)]])
    };
    let table = table(vec![("raw", at(-300, "raw")), ("mangle", at(-150, "mangle"))], vec![]);
    let packet = Packet::opening(6, tuple("10.0.0.1", "10.0.0.2", 80));
    let seen = trace(&[table], TableFamily::Inet, Hook::Prerouting, &packet).unwrap().counters.len();
    assert_eq!(seen, 1);
}

#[test]
fn senders_of_a_bridge_are_bound() {
    let tables = [bridge()];
    let pass =
        |packet: &Packet| trace(&tables, TableFamily::Bridge, Hook::Prerouting, packet).unwrap().outcome;
    let mut packet = Packet::opening(17, tuple("10.0.0.1", "10.0.0.2", 53));
    packet.input = Some(link_name("veth0"));
    assert_eq!(pass(&packet), Outcome::Accepted);
    packet.input = Some(link_name("veth1"));
    assert_eq!(pass(&packet), Outcome::Dropped);
    let mut arp = vec![0u8; 28];
    arp[14..18].copy_from_slice(&[10, 0, 0, 1]);
    let mut request = Packet { bytes: arp, ether_type: 0x0806, protocol: None, transport: None, ..packet };
    assert_eq!(pass(&request), Outcome::Dropped);
    request.input = Some(link_name("veth0"));
    assert_eq!(pass(&request), Outcome::Accepted);
}

#[test]
fn what_cannot_be_followed_is_said() {
    let packet = Packet::opening(6, tuple("10.0.0.1", "10.0.0.2", 80));
    let why = |rule: Vec<Expr>| {
        let looped = chain(None, vec![vec![verdict(Verdict::Goto("loop".into()))]]);
        let deep = chain(None, vec![vec![jump("deep")]]);
        let tables = [table(
            vec![("f", chain(FORWARD, vec![rule])), ("loop", looped), ("deep", deep)],
            vec![("ports", Set::new(SetType::exact(KeyType::Port)))],
        )];
        trace(&tables, TableFamily::Inet, Hook::Forward, &packet).unwrap_err()
    };
    let unknown = Expr::Unknown { name: "moon".into(), data: Box::default() };
    assert_eq!(why(vec![unknown]).to_string(), "rule 0 of chain f has an unknown expression moon");
    assert_eq!(why(vec![jump("nowhere")]), Untraceable::Chain("nowhere".into()));
    assert_eq!(why(vec![jump("loop")]), Untraceable::Circle("loop".into()));
    assert_eq!(why(vec![jump("deep")]), Untraceable::Circle("deep".into()));
    for set in ["nothing", "ports"] {
        let why = why(vec![in_set(End::Source, Family::V4, set, false)]);
        assert_eq!(why, Untraceable::Set { chain: "f".into(), rule: 0, set: set.into() });
    }
}

/// 100,000 packets against sets of 50,000 elements each.
#[test]
fn packets_are_traced_by_searches() {
    let addresses = (0..50_000u32).map(|n| IpAddr::V4((0x0a00_0000 + 2 * n).into()));
    let ids = Set::of(
        SetType::exact(KeyType::Address(Family::V4)).to(DataType::Integer),
        addresses.clone().map(|ip| Element::with(Key::Address(ip), Data::Integer(7))),
    );
    let ranges = addresses.map(|ip| Element::with(range(&ip.to_string(), &ip.to_string()), Data::Integer(7)));
    let intervals = Set::of(SetType::intervals(Family::V4).to(DataType::Integer), ranges);
    let profiles = Set::of(
        SetType::exact(KeyType::Integer).to(DataType::Verdict),
        [Element::with(Key::Integer(7), goto("seven"))],
    );
    let dispatch = |ids: &str| Expr::Dispatch {
        keys: vec![Load::Address(Family::V4, End::Source)],
        ids: ids.into(),
        chains: "profiles".into(),
    };
    let table = table(
        vec![
            ("f", chain(FORWARD, vec![vec![jump("a")], vec![jump("b")], vec![verdict(Verdict::Accept)]])),
            ("a", chain(None, vec![vec![dispatch("ids")]])),
            ("b", chain(None, vec![vec![dispatch("intervals")]])),
            ("seven", chain(None, vec![vec![count("seven")]])),
        ],
        vec![("ids", ids), ("intervals", intervals), ("profiles", profiles)],
    );
    let mut packet = Packet::opening(6, tuple("10.0.0.0", "10.0.0.2", 80));
    let start = Instant::now();
    let mut counted = 0;
    for n in 0..100_000u32 {
        packet.bytes[12..16].copy_from_slice(&(0x0a00_0000 + n).to_be_bytes());
        counted += forward(&table, &packet).counters.len();
    }
    assert_eq!(counted, 100_000);
    eprintln!("100,000 packets in {:.1?}", start.elapsed());
    assert!(start.elapsed().as_secs() < 20, "each packet walks the sets");
}

const LOCAL: [&str; 4] = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "::1"];
const PORTS: std::ops::Range<u16> = 5000..5006;

/// Matches of a packet that this host sends to itself.
fn any_match() -> impl Strategy<Value = Expr> {
    use CtDirection::{Original, Reply};
    use End::{Destination, Source};
    use Family::{V4, V6};
    let port = PORTS.start..=PORTS.end;
    let number = prop::sample::select(vec![
        Load::Port(Destination),
        Load::CtPort(Original, Destination),
        Load::CtPort(Reply, Source),
    ]);
    let bits = prop::sample::select(vec![Load::Mark, Load::CtMark]);
    let nets = prop::sample::select(vec![
        "127.0.0.0/31",
        "127.0.0.2/31",
        "127.0.0.1/32",
        "::1/128",
        "::/0",
        "127.0.0.0/8",
    ]);
    let (nets, ct_nets) = (nets.clone(), nets);
    let end = prop_oneof![Just(Source), Just(Destination)];
    let keys = prop::sample::select(vec![
        (vec![Load::Address(V4, Destination)], "exact4"),
        (vec![Load::CtAddress(Original, V4, Destination)], "ranges4"),
        (vec![Load::CtAddress(Reply, V6, Source)], "exact6"),
        (vec![Load::CtAddress(Reply, V4, Source), Load::CtAddress(Original, V4, Source)], "pairs4"),
        (
            vec![Load::CtAddress(Reply, V4, Source), Load::CtProtocol, Load::CtPort(Reply, Source)],
            "services4",
        ),
        (vec![Load::Address(V4, Destination), Load::L4Proto, Load::Port(Destination)], "services4"),
        (vec![Load::Link(Direction::Out), Load::Address(V4, Destination)], "bound4"),
        (vec![Load::Link(Direction::In), Load::Address(V4, Destination)], "bound4"),
        (vec![Load::Link(Direction::Out)], "links"),
        (vec![Load::Mark], "marks"),
    ]);
    let link_names = prop::sample::select(vec!["lo", "eth0"]);
    let direction = prop_oneof![Just(Direction::In), Just(Direction::Out)];
    let states =
        prop::sample::select(vec![ct_state::NEW, ct_state::ESTABLISHED, ct_state::NEW | ct_state::INVALID]);
    prop_oneof![
        (number, port.clone(), port, any::<bool>()).prop_map(|(of, a, b, negated)| Expr::Number {
            of,
            first: a.min(b),
            last: a.max(b),
            negated
        }),
        (bits, 0u32..4, 0u32..4, any::<bool>()).prop_map(|(of, mask, value, negated)| Expr::Bits {
            of,
            mask,
            value: value & mask,
            negated
        }),
        (end.clone(), nets, any::<bool>()).prop_map(|(end, n, negated)| if negated {
            not_among(end, n)
        } else {
            among(end, n)
        }),
        (end, ct_nets, any::<bool>()).prop_map(|(end, n, negated)| {
            let of = Load::CtAddress(Original, Family::of(net(n).addr()), end);
            Expr::Net { of, net: net(n), negated }
        }),
        (keys, any::<bool>()).prop_map(|((keys, set), negated)| Expr::Lookup {
            keys,
            set: set.into(),
            negated
        }),
        (direction, link_names, any::<bool>()).prop_map(|(d, name, negated)| link(d, name, negated)),
        (states, any::<bool>()).prop_map(|(states, negated)| Expr::ct_state(states, negated)),
        prop_oneof![Just(6u8), Just(17)].prop_map(Expr::L4Proto),
    ]
}

fn any_statement(targets: Vec<&'static str>) -> impl Strategy<Value = Option<Expr>> {
    let mark = prop_oneof![Just(Mark::Packet), Just(Mark::Connection)];
    let mark = (mark, prop_oneof![0u32..4, Just(u32::MAX)], 0u32..4);
    let mut ends = vec![
        None,
        Some(verdict(Verdict::Return)),
        Some(verdict(Verdict::Accept)),
        Some(verdict(Verdict::Drop)),
    ];
    for target in targets {
        ends.push(Some(jump(target)));
        ends.push(Some(verdict(Verdict::Goto(target.into()))));
        let keys = vec![Load::CtAddress(CtDirection::Original, Family::V4, End::Destination)];
        if target == "leaf" {
            ends.push(Some(Expr::Dispatch {
                keys: keys.clone(),
                ids: "ids4".into(),
                chains: "profiles".into(),
            }));
            ends.push(Some(Expr::Dispatch {
                keys: keys.clone(),
                ids: "range_ids4".into(),
                chains: "profiles".into(),
            }));
            ends.push(Some(Expr::Vmap { keys, map: "chains4".into() }));
            let ports = vec![Load::L4Proto, Load::CtPort(CtDirection::Reply, End::Source)];
            ends.push(Some(Expr::Vmap { keys: ports, map: "ports".into() }));
        }
    }
    prop_oneof![
        2 => mark.prop_map(|(mark, mask, value)| Some(Expr::SetMark { mark, mask, value: value & mask })),
        3 => prop::sample::select(ends),
    ]
}

/// Rules that each count in a counter of their own.
fn any_rules(chain: &'static str, targets: &[&'static str]) -> impl Strategy<Value = Vec<Rule>> + use<> {
    vec((vec(any_match(), 0..3), any_statement(targets.to_vec())), 0..5).prop_map(move |rules| {
        let rules = rules.into_iter().enumerate();
        rules
            .map(|(n, (exprs, statement))| {
                let counted = [count(&format!("{chain}{n}"))];
                Rule::new(exprs.into_iter().chain(counted).chain(statement), "")
            })
            .collect()
    })
}

fn any_output_table() -> impl Strategy<Value = Table> {
    let v4 = |text: &str| Key::Address(ip(text));
    let sets = [
        (
            "exact4",
            Set::of(
                SetType::exact(KeyType::Address(Family::V4)),
                [Element::new(v4("127.0.0.1")), Element::new(v4("127.0.0.3"))],
            ),
        ),
        (
            "exact6",
            Set::of(SetType::exact(KeyType::Address(Family::V6)), [Element::new(Key::Address(ip("::1")))]),
        ),
        ("ranges4", Set::of_nets(Family::V4, &[net("127.0.0.2/31")])),
        (
            "pairs4",
            Set::of(
                SetType::exact(KeyType::Pair(Family::V4)),
                [Element::new(Key::Pair(ip("127.0.0.2"), ip("127.0.0.2")))],
            ),
        ),
        (
            "services4",
            Set::of(
                SetType::exact(KeyType::Service(Family::V4)),
                [
                    Element::new(Key::Service(ip("127.0.0.1"), 17, 5001)),
                    Element::new(Key::Service(ip("127.0.0.2"), 17, 5002)),
                ],
            ),
        ),
        (
            "bound4",
            Set::of(
                SetType::exact(KeyType::Bound(Family::V4)),
                [Element::new(Key::Bound(link_name("lo"), ip("127.0.0.1")))],
            ),
        ),
        ("links", Set::of(SetType::exact(KeyType::Link), [Element::new(Key::Link(link_name("lo")))])),
        (
            "marks",
            Set::of(
                SetType::exact(KeyType::Integer),
                [Element::new(Key::Integer(2)), Element::new(Key::Integer(0))],
            ),
        ),
        (
            "ids4",
            Set::of(
                SetType::exact(KeyType::Address(Family::V4)).to(DataType::Integer),
                [
                    Element::with(v4("127.0.0.1"), Data::Integer(1)),
                    Element::with(v4("127.0.0.2"), Data::Integer(9)),
                ],
            ),
        ),
        (
            "range_ids4",
            Set::of(
                SetType::intervals(Family::V4).to(DataType::Integer),
                [
                    Element::with(range("127.0.0.2", "127.0.0.2"), Data::Integer(2)),
                    Element::with(range("127.0.0.3", "127.0.0.9"), Data::Integer(1)),
                ],
            ),
        ),
        (
            "profiles",
            Set::of(
                SetType::exact(KeyType::Integer).to(DataType::Verdict),
                [
                    Element::with(Key::Integer(1), goto("leaf")),
                    Element::with(Key::Integer(2), Data::Verdict(Verdict::Jump("leaf".into()))),
                ],
            ),
        ),
        (
            "chains4",
            Set::of(
                SetType::intervals(Family::V4).to(DataType::Verdict),
                [Element::with(range("127.0.0.1", "127.0.0.2"), goto("leaf"))],
            ),
        ),
        (
            "ports",
            Set::of(
                SetType::exact(KeyType::ProtoPort).to(DataType::Verdict),
                [
                    Element::with(Key::ProtoPort(17, 5001), Data::Verdict(Verdict::Accept)),
                    Element::with(Key::ProtoPort(17, 5002), Data::Verdict(Verdict::Drop)),
                    Element::with(Key::ProtoPort(17, 5003), goto("leaf")),
                ],
            ),
        ),
    ];
    let sets: BTreeMap<Box<str>, Set> = sets.map(|(name, set)| (name.into(), set)).into();
    let leaf = any_rules("leaf", &[]);
    let middle = any_rules("middle", &["leaf"]);
    let (one, two) = (any_rules("one", &["leaf", "middle"]), any_rules("two", &["leaf", "middle"]));
    (leaf, middle, one, two, any::<bool>()).prop_map(move |(leaf, middle, one, two, drop)| {
        let policy = if drop { Policy::Drop } else { Policy::Accept };
        let base =
            |priority| Some(Base { chain_type: ChainType::Filter, hook: Hook::Output, priority, policy });
        let chains: [(&str, _, Vec<Rule>); 4] =
            [("leaf", None, leaf), ("middle", None, middle), ("one", base(0), one), ("two", base(10), two)];
        let counters = ["leaf", "middle", "one", "two"]
            .iter()
            .flat_map(|chain| (0..5).map(move |n| format!("{chain}{n}")));
        Table {
            name: "kilo".into(),
            counters: counters.map(|name| (name.into(), Counter::default())).collect(),
            sets: sets.clone(),
            chains: chains
                .into_iter()
                .map(|(name, base, rules)| (name.into(), Chain { base, rules }))
                .collect(),
            ..Table::default()
        }
    })
}

/// Random rules count real packets as the tracer counts them, and let the same ones pass.
#[test]
fn kernel_counts_what_is_traced() {
    if !inside("trace::kernel_counts_what_is_traced") {
        return;
    }
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !up.is_ok_and(|status| status.success()) {
        eprintln!("skipped: kernel_counts_what_is_traced: `ip link set lo up` does not work here");
        return;
    }
    // Somebody has to listen: errors that tell of nobody would be packets of their own.
    let listen = |ip: IpAddr| (0..16).map(move |n| UdpSocket::bind((ip, PORTS.start + n)).unwrap());
    let _listeners: Vec<UdpSocket> = LOCAL.iter().flat_map(|local| listen(ip(local))).collect();
    let mut nft = Nft::new();
    let mut runner = TestRunner::new(Config::default());
    let (mut passed, mut lost, mut hits) = (0, 0, 0);
    let mut source_port = 20_000;
    for _ in 0..150 {
        let want = any_output_table().new_tree(&mut runner).unwrap().current();
        nft.become_table(None);
        nft.become_table(Some(&want));
        let tables = [nft.read().unwrap()];
        let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
        for (n, local) in LOCAL.iter().enumerate() {
            let destination_port = PORTS.start + u16::try_from(n).unwrap() + source_port % 3;
            source_port += 1;
            let to = Tuple { source: ip(local), destination: ip(local), source_port, destination_port };
            let mut packet = Packet::opening(17, to);
            packet.output = Some(link_name("lo"));
            let seen = trace(&tables, TableFamily::Inet, Hook::Output, &packet).unwrap();
            seen.counters.iter().for_each(|name| *expected.entry(name).or_default() += 1);
            hits += seen.counters.len();
            // Who sends hears of what is lost on the way out.
            let socket = UdpSocket::bind(SocketAddr::new(to.source, source_port)).unwrap();
            let sent = socket.send_to(b"hello", SocketAddr::new(to.destination, destination_port)).is_ok();
            assert_eq!(
                sent,
                seen.outcome == Outcome::Accepted,
                "{packet:?}\n{}\n{:#?}",
                tables[0],
                seen.rules
            );
            if sent { passed += 1 } else { lost += 1 }
        }
        let after = nft.read().unwrap();
        for (name, counter) in &after.counters {
            assert_eq!(counter.packets, expected.get(&**name).copied().unwrap_or(0), "{name} in\n{after}");
        }
    }
    eprintln!("{passed} packets passed, {lost} were lost, {hits} rules counted");
    assert!(passed > 50 && lost > 50 && hits > 300);
}
