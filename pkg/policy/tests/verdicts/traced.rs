//! Packets led through the compiled tables by the tracer, which knows nothing of the compiler: what becomes of them is
//! what the evaluator says.

use std::net::IpAddr;

use kilo_nftables::trace::{Connection, Outcome, Packet, Tuple, trace};
use kilo_nftables::{Hook, Table, TableFamily, ct_state};
use kilo_policy::{Direction, End, Evaluator, LocalPods, MeshFacts, Options, Protocol, Traffic, Who};
use proptest::prelude::*;

use crate::compiled::{compiled, config};
use crate::{random, snapshot};

const TRAFFIC: [Traffic; 6] = [
    Traffic::Port(Protocol::Tcp, 80),
    Traffic::Port(Protocol::Tcp, 82),
    Traffic::Port(Protocol::Udp, 81),
    Traffic::Port(Protocol::Sctp, 79),
    Traffic::Icmp(8),
    Traffic::Other(47),
];

/// The first packet of a connection.
fn opening(from: IpAddr, to: IpAddr, traffic: Traffic) -> Packet {
    let tuple = |port| Tuple { source: from, destination: to, source_port: 40_000, destination_port: port };
    match traffic {
        Traffic::Port(Protocol::Tcp, port) => Packet::opening(6, tuple(port)),
        Traffic::Port(Protocol::Udp, port) => Packet::opening(17, tuple(port)),
        Traffic::Port(Protocol::Sctp, port) => Packet::opening(132, tuple(port)),
        Traffic::Other(protocol) => Packet::opening(protocol, tuple(0)),
        Traffic::Icmp(kind) | Traffic::Icmpv6(kind) => {
            let protocol = if from.is_ipv4() { 1 } else { 58 };
            let connection = Some(Connection::plain(protocol, tuple(u16::from(kind) << 8)));
            let packet = Packet::new(from, to, protocol, &[kind, 0, 0, 0, 0, 1, 0, 1]);
            Packet { state: ct_state::NEW, connection, ..packet }
        }
    }
}

/// A packet that answers.
fn answer(opening: &Packet, mark: u32) -> Packet {
    let connection = opening.connection.expect("one that is known");
    let reply = Packet::opening(connection.protocol, connection.reply).with_tcp_flags(0x10);
    Packet { state: ct_state::ESTABLISHED, connection: Some(Connection { mark, ..connection }), ..reply }
}

fn passes(tables: &[Table], packet: &Packet) -> (bool, u32) {
    let trace = trace(tables, TableFamily::Inet, Hook::Forward, packet).expect("traceable");
    (trace.outcome == Outcome::Accepted, trace.ct_mark.unwrap_or(0))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
    #[test]
    fn packets_fare_as_the_evaluator_says(objects in random::cluster(), echo in any::<bool>(), leader in any::<bool>()) {
        let config = kilo_policy::CompilerConfig { allow_icmp_echo: echo, ..config() };
        let mut compiler = compiled(config, &objects, MeshFacts { leader, ..MeshFacts::default() }, LocalPods::new());
        compiler.take();
        let tables: Vec<Table> = compiler.tables().into_iter().cloned().collect();
        let (snapshot, _) = snapshot(&objects);
        let evaluator = Evaluator::new(&snapshot, Options { allow_icmp_echo: echo });
        let mut ends: Vec<End<'_>> = evaluator.ends().flat_map(|(_, _, ends)| ends).collect();
        ends.retain(|end| matches!(end.who, Who::Pod(_)));
        ends.extend(["198.51.100.7", "10.0.1.5", "2001:db8::7"].map(|ip| evaluator.at(ip.parse().expect("an address"))));
        let here = |end: &End<'_>| matches!(&end.who, Who::Pod(pod) if &*pod.pod.node == "n1");
        for (from, to) in ends.iter().flat_map(|a| ends.iter().map(move |b| (a, b))) {
            // By one address a pod is known to be the other end, too; by two it is not.
            let itself = matches!((&from.who, &to.who), (Who::Pod(a), Who::Pod(b)) if std::ptr::eq(a.pod, b.pod));
            if from.address.is_ipv4() != to.address.is_ipv4() || itself && from.address != to.address {
                continue;
            }
            for traffic in TRAFFIC {
                let echo = matches!(traffic, Traffic::Icmp(_));
                let traffic = if echo && from.address.is_ipv6() { Traffic::Icmpv6(128) } else { traffic };
                let says = |direction, subject: &End<'_>, other| {
                    let allowed = evaluator.verdict(direction, subject, other, traffic).is_none_or(|v| v.allowed);
                    !here(subject) || allowed
                };
                let want = says(Direction::Egress, from, to) && says(Direction::Ingress, to, from);
                let packet = opening(from.address, to.address, traffic);
                let tell = || format!("{} to {} {traffic:?}", from.address, to.address);
                let (new, mark) = passes(&tables, &packet);
                prop_assert_eq!(new, want, "new: {}", tell());
                prop_assert_eq!(passes(&tables, &answer(&packet, 0)).0, want, "answer of another epoch: {}", tell());
                if want {
                    prop_assert_ne!(mark & 0x7f00_0000, 0, "not stamped: {}", tell());
                    prop_assert!(passes(&tables, &answer(&packet, mark)).0, "answer: {}", tell());
                }
                let bare = Packet { state: ct_state::UNTRACKED, connection: None, ..packet.clone() };
                prop_assert_eq!(passes(&tables, &bare).0, want, "untracked: {}", tell());
                if matches!(traffic, Traffic::Port(Protocol::Tcp, _)) {
                    let (amidst, mark) = passes(&tables, &packet.with_tcp_flags(0x10));
                    prop_assert_eq!(amidst, want, "amidst: {}", tell());
                    prop_assert!(!want || mark & 0x7f00_0000 == 0, "stamped without its beginning: {}", tell());
                }
            }
        }
    }
}
