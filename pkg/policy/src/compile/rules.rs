//! Words for rules, so that what is written with them reads like the ruleset.

use kilo_nftables::{CtDirection, Direction as Way, End, Expr, Family, Load, Mark, Rule, Verdict, ct_state};

use crate::policy::{Direction, Protocol};

/// Both families.
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

pub(crate) const ICMP: u8 = 1;
pub(crate) const IPIP: u8 = 4;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const IPV6: u8 = 41;
pub(crate) const GRE: u8 = 47;
pub(crate) const ICMPV6: u8 = 58;

/// By what a connection is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum View {
    /// By its tuples: translation does not matter, and a reply is judged as what it replies to.
    Tuple,
    /// By the headers of a packet that no connection is known of.
    Header,
}

impl View {
    pub(crate) const BOTH: [Self; 2] = [Self::Tuple, Self::Header];

    /// Appended to names of chains and maps.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Tuple => "",
            Self::Header => "_bare",
        }
    }

    /// Who opened the connection.
    pub(crate) fn source(self, family: Family) -> Load {
        match self {
            Self::Tuple => Load::CtAddress(CtDirection::Original, family, End::Source),
            Self::Header => Load::Address(family, End::Source),
        }
    }

    /// Who answers, behind every translation.
    pub(crate) fn destination(self, family: Family) -> Load {
        match self {
            Self::Tuple => Load::CtAddress(CtDirection::Reply, family, End::Source),
            Self::Header => Load::Address(family, End::Destination),
        }
    }

    /// The port that is connected to, behind every translation.
    pub(crate) fn port(self) -> Load {
        match self {
            Self::Tuple => Load::CtPort(CtDirection::Reply, End::Source),
            Self::Header => Load::Port(End::Destination),
        }
    }

    /// The pod that is judged.
    pub(crate) fn subject(self, direction: Direction, family: Family) -> Load {
        match direction {
            Direction::Ingress => self.destination(family),
            Direction::Egress => self.source(family),
        }
    }

    /// Whom it speaks with.
    pub(crate) fn other(self, direction: Direction, family: Family) -> Load {
        match direction {
            Direction::Ingress => self.source(family),
            Direction::Egress => self.destination(family),
        }
    }
}

/// `ingress` or `egress`.
pub(crate) fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// The number of a protocol.
pub(crate) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
        Protocol::Sctp => 132,
    }
}

pub(crate) fn rule(exprs: impl IntoIterator<Item = Expr>) -> Rule {
    Rule::new(exprs, "")
}

/// A rule of some matches and a verdict.
pub(crate) fn when(matches: &[Expr], verdict: Verdict) -> Rule {
    rule(matches.iter().cloned().chain([Expr::Verdict(verdict)]))
}

pub(crate) fn jump(chain: &str) -> Verdict {
    Verdict::Jump(chain.into())
}

pub(crate) fn goto(chain: &str) -> Verdict {
    Verdict::Goto(chain.into())
}

pub(crate) fn among(key: Load, set: &str) -> Expr {
    Expr::Lookup { keys: vec![key], set: set.into(), negated: false }
}

pub(crate) fn not_among(key: Load, set: &str) -> Expr {
    Expr::Lookup { keys: vec![key], set: set.into(), negated: true }
}

pub(crate) fn all_among(keys: &[Load], set: &str) -> Expr {
    Expr::Lookup { keys: keys.to_vec(), set: set.into(), negated: false }
}

pub(crate) fn between(of: Load, first: u16, last: u16) -> Expr {
    Expr::Number { of, first, last, negated: false }
}

pub(crate) fn state(states: u32) -> Expr {
    Expr::ct_state(states, false)
}

/// The link a packet came in by.
pub(crate) const LINK: Load = Load::Link(Way::In);

/// Bits of the ct mark.
pub(crate) fn connection_has(mask: u32, value: u32) -> Expr {
    Expr::Bits { of: Load::CtMark, mask, value, negated: false }
}

pub(crate) fn mark_connection(mask: u32, value: u32) -> Expr {
    Expr::SetMark { mark: Mark::Connection, mask, value }
}

pub(crate) fn mark_packet(mask: u32, value: u32) -> Expr {
    Expr::SetMark { mark: Mark::Packet, mask, value }
}

/// A TCP packet that begins nothing, of a connection that is new here.
pub(crate) fn picked_up() -> [Expr; 3] {
    const SYN_RST_ACK: u32 = 0x16;
    const SYN: u32 = 0x02;
    [
        Expr::L4Proto(TCP),
        state(ct_state::NEW),
        Expr::Bits { of: Load::TcpFlags, mask: SYN_RST_ACK, value: SYN, negated: true },
    ]
}
