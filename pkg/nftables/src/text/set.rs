//! The text of the types of sets and of their elements.

use std::fmt::{self, Display, Formatter};

use super::rule::protocol_name;
use crate::{Data, DataType, Element, Family, Item, Key, KeyType, Place, SetKind, SetType, Timeout};

impl SetKind {
    /// Whether something belongs to its keys.
    pub(super) fn is_map(&self) -> bool {
        matches!(self, Self::Known(of) if of.data() != DataType::Nothing)
    }
}

impl SetType {
    /// The words behind `flags`.
    pub(super) fn flag_words(&self) -> Vec<&'static str> {
        let interval = self.has_intervals().then_some("interval");
        interval.into_iter().chain(self.has_timeouts().then_some("timeout")).collect()
    }

    /// How many elements `nft` puts on a line.
    pub(super) fn per_line(&self) -> usize {
        match (self.key(), self.data()) {
            (KeyType::Address(Family::V4), DataType::Nothing) => 2,
            _ => 1,
        }
    }
}

impl Display for SetType {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.key().fmt(f)?;
        match self.data() {
            DataType::Nothing => Ok(()),
            DataType::Integer => f.write_str(" : mark . mark"),
            DataType::Verdict => f.write_str(" : verdict"),
        }
    }
}

impl Display for KeyType {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let address = |family: &Family| match family {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        };
        match self {
            Self::Address(family) => f.write_str(address(family)),
            Self::Pair(family) => write!(f, "{0} . {0}", address(family)),
            Self::Service(family) => write!(f, "{} . inet_proto . inet_service", address(family)),
            Self::Bound(family) => write!(f, "ifname . {}", address(family)),
            Self::Link => f.write_str("ifname"),
            Self::Integer => f.write_str("mark"),
            Self::ProtoPort => f.write_str("inet_proto . inet_service"),
            Self::Protocol => f.write_str("inet_proto"),
            Self::Port => f.write_str("inet_service"),
            Self::Icmpv6Type => f.write_str("icmpv6_type"),
        }
    }
}

/// A protocol by its name, if it has one.
struct Protocol(u8);

impl Display for Protocol {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match protocol_name(self.0) {
            Some(name) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::Pair(one, other) => write!(f, "{one} . {other}"),
            Self::Service(ip, protocol, port) => write!(f, "{ip} . {} . {port}", Protocol(*protocol)),
            Self::Bound(link, ip) => write!(f, "\"{}\" . {ip}", link.as_str()),
            Self::Link(link) => write!(f, "\"{}\"", link.as_str()),
            Self::Integer(number) => write!(f, "{number:#010x}"),
            Self::ProtoPort(protocol, port) => write!(f, "{} . {port}", Protocol(*protocol)),
            Self::Protocol(number) => Protocol(*number).fmt(f),
            Self::Port(number) => number.fmt(f),
            Self::Icmpv6Type(number) => number.fmt(f),
        }
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(range) => range.fmt(f),
            Self::Key(key) => key.fmt(f),
        }
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Item { data, timeout } = &self.item;
        self.place.fmt(f)?;
        if let Some(Timeout(milliseconds)) = timeout {
            write!(f, " timeout {milliseconds}ms")?;
        }
        match data {
            Data::Nothing => Ok(()),
            Data::Integer(number) => write!(f, " : 0x00000000 . {number:#010x}"),
            Data::Verdict(verdict) => write!(f, " : {verdict}"),
        }
    }
}
