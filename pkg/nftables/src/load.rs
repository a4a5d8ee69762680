//! What a rule reads of a packet or of its connection before it compares it or looks it up.

use crate::{Direction, End, Family};

/// Which of the two tuples of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CtDirection {
    /// As the first packet was before any translation.
    Original,
    /// As the answer to it comes in.
    Reply,
}

/// Where a packet's header begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Header {
    /// `@ll`: Ethernet.
    Link,
    /// `@nh`: IPv4, IPv6, ARP.
    Network,
    /// `@th`: what the network header carries, extension headers skipped.
    Transport,
}

/// One value of a packet or its connection. Where there is none (no connection, no such header) the rule ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// `iifname`, `oifname`.
    Link(Direction),
    /// `meta l4proto`: the protocol the packet carries, extension headers skipped.
    L4Proto,
    /// `ip saddr`, `ip6 daddr` and so on. Packets of the other family do not match.
    Address(Family, End),
    /// `th sport`, `th dport`: of TCP, UDP, SCTP and what else begins with two ports. Whoever means one of
    /// them asks for the protocol, too.
    Port(End),
    /// `ct original ip saddr` and so on. Connections of the other family do not match.
    CtAddress(CtDirection, Family, End),
    /// `ct reply proto-src` and so on: a port of TCP, UDP or SCTP, the identifier of an ICMP echo.
    CtPort(CtDirection, End),
    /// `ct protocol`: that of the connection, not that of an ICMP error about it.
    CtProtocol,
    /// `meta mark`.
    Mark,
    /// `ct mark`.
    CtMark,
    /// `ct state`, `NF_CT_STATE_BIT`s: see [`crate::ct_state`]. Also untracked packets have one.
    CtState,
    /// `tcp flags`. Whoever means them asks for the protocol, too.
    TcpFlags,
    /// The type of an ICMP or ICMPv6 message. Whoever means one of them asks for the protocol, too.
    IcmpType,
    /// `ether saddr`; in family `inet` only where packets come in by Ethernet.
    EtherSource,
    /// Bytes at a fixed place: the addresses inside of IP-in-IP, those of ARP.
    Raw {
        /// Where counting begins.
        header: Header,
        /// Bytes before it.
        offset: u8,
        /// Bytes of it, 16 at most.
        len: u8,
    },
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A number in network order.
    Number,
    /// Bits in the order of the host.
    Bits,
    /// An address.
    Address,
    /// Only as a whole.
    Other,
}

impl Load {
    /// Bytes of the value.
    pub fn width(self) -> u8 {
        match self {
            Self::Link(_) => 16,
            Self::L4Proto | Self::CtProtocol | Self::TcpFlags | Self::IcmpType => 1,
            Self::Address(family, _) | Self::CtAddress(_, family, _) => family.width(),
            Self::Port(_) | Self::CtPort(..) => 2,
            Self::Mark | Self::CtMark | Self::CtState => 4,
            Self::EtherSource => 6,
            Self::Raw { len, .. } => len,
        }
    }

    /// The family that a packet needs for the value to be loaded from its header.
    pub fn family(self) -> Option<Family> {
        match self {
            Self::Address(family, _) => Some(family),
            Self::Link(_)
            | Self::L4Proto
            | Self::Port(_)
            | Self::CtAddress(..)
            | Self::CtPort(..)
            | Self::CtProtocol
            | Self::Mark
            | Self::CtMark
            | Self::CtState
            | Self::TcpFlags
            | Self::IcmpType
            | Self::EtherSource
            | Self::Raw { .. } => None,
        }
    }

    pub(crate) fn class(self) -> Class {
        match self {
            Self::L4Proto | Self::CtProtocol | Self::IcmpType | Self::Port(_) | Self::CtPort(..) => {
                Class::Number
            }
            Self::Raw { len: 1 | 2, .. } => Class::Number,
            Self::Mark | Self::CtMark | Self::CtState | Self::TcpFlags => Class::Bits,
            Self::Address(..) | Self::CtAddress(..) | Self::Raw { len: 4 | 16, .. } => Class::Address,
            Self::Link(_) | Self::EtherSource | Self::Raw { .. } => Class::Other,
        }
    }

    /// Where in the packet the value is, if it is part of a header.
    pub(crate) fn payload(self) -> Option<(Header, u8)> {
        Some(match self {
            Self::Address(family, end) => (Header::Network, family.offset(end)),
            Self::Port(End::Source) | Self::IcmpType => (Header::Transport, 0),
            Self::Port(End::Destination) => (Header::Transport, 2),
            Self::TcpFlags => (Header::Transport, 13),
            Self::EtherSource => (Header::Link, 6),
            Self::Raw { header, offset, .. } => (header, offset),
            Self::Link(_)
            | Self::L4Proto
            | Self::CtAddress(..)
            | Self::CtPort(..)
            | Self::CtProtocol
            | Self::Mark
            | Self::CtMark
            | Self::CtState => return None,
        })
    }

    /// What is at a place of the packet, where its family has been compared or not: by its name, if it has one.
    pub(crate) fn at(header: Header, offset: u8, len: u8, fixed: Option<Family>) -> Self {
        let address = fixed
            .into_iter()
            .flat_map(|family| [End::Source, End::Destination].map(|end| Self::Address(family, end)));
        let named = [
            Self::Port(End::Source),
            Self::Port(End::Destination),
            Self::TcpFlags,
            Self::IcmpType,
            Self::EtherSource,
        ];
        address
            .chain(named)
            .find(|load| load.width() == len && load.payload() == Some((header, offset)))
            .unwrap_or(Self::Raw { header, offset, len })
    }

    /// The same value by its name.
    pub(crate) fn normal(self, fixed: Option<Family>) -> Self {
        match self {
            Self::Raw { header, offset, len } => Self::at(header, offset, len.min(16), fixed),
            other @ (Self::Link(_)
            | Self::L4Proto
            | Self::Address(..)
            | Self::Port(_)
            | Self::CtAddress(..)
            | Self::CtPort(..)
            | Self::CtProtocol
            | Self::Mark
            | Self::CtMark
            | Self::CtState
            | Self::TcpFlags
            | Self::IcmpType
            | Self::EtherSource) => other,
        }
    }
}
