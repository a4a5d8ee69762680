//! The steps of a rule. One stands for one or more expressions of the kernel's and has exactly one text and one
//! byte form.

mod read;
mod write;

use ipnet::IpNet;

pub(crate) use read::{read, read_verdict};
pub(crate) use write::{bits, write, write_verdict};

use crate::{Addresses, Direction, End, Family, IfName, Load, Verdict};

/// `NF_CT_STATE_BIT`s: how a packet stands to its connection.
pub mod ct_state {
    /// `invalid`: no connection takes it.
    pub const INVALID: u32 = 1;
    /// `established`: there were packets both ways.
    pub const ESTABLISHED: u32 = 2;
    /// `related`: of another connection, or an ICMP error about one.
    pub const RELATED: u32 = 4;
    /// `new`: there were packets one way at most.
    pub const NEW: u32 = 8;
    /// `untracked`: it was kept from connection tracking.
    pub const UNTRACKED: u32 = 64;
}

/// Which mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// `meta mark`, of the packet.
    Packet,
    /// `ct mark`, of its connection.
    Connection,
}

/// One step of a rule: a match, which ends the rule when it does not hold, or a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// `meta nfproto`: the packet is of this family.
    NfProto(Family),
    /// `meta l4proto`: the packet carries this protocol, extension headers skipped.
    L4Proto(u8),
    /// `meta protocol`: the packet is of this EtherType; for tables of family `bridge`.
    EtherType(u16),
    /// `iifname`, `oifname`: the packet's link has this name.
    Link {
        /// The link it came by or leaves by.
        direction: Direction,
        /// The name in full.
        name: IfName,
        /// Holds for any other name.
        negated: bool,
    },
    /// `ip saddr`, `ip6 daddr` and so on: one of the packet's addresses. Packets of the other family do not
    /// match, negated or not.
    Address {
        /// Source or destination.
        end: End,
        /// A network or a set.
        among: Addresses,
        /// Holds for any other address.
        negated: bool,
    },
    /// An address from elsewhere is in a network.
    Net {
        /// The address, of the network's family.
        of: Load,
        /// The network.
        net: IpNet,
        /// Holds for any other address.
        negated: bool,
    },
    /// `ether saddr`: the Ethernet address the frame came from.
    EtherSource {
        /// The address.
        address: [u8; 6],
        /// Holds for any other address.
        negated: bool,
    },
    /// A number of one or two bytes (protocol, port, type) is in a range.
    Number {
        /// The number.
        of: Load,
        /// The lowest.
        first: u16,
        /// The highest, which still belongs to the range.
        last: u16,
        /// Holds outside of the range.
        negated: bool,
    },
    /// Bits of a mark, a state or flags, the others cleared, are these.
    Bits {
        /// The mark, state or flags.
        of: Load,
        /// The bits that count.
        mask: u32,
        /// What they are. With others the comparison never holds.
        value: u32,
        /// Holds for any other value.
        negated: bool,
    },
    /// `fib saddr . iif oif missing`: the way to the packet's source does not lead through the link it came by.
    NoReturnPath,
    /// One value or several together are a key of a set.
    Lookup {
        /// The parts of the key in order; 64 bytes at most, each counted up to four.
        keys: Vec<Load>,
        /// The set.
        set: Box<str>,
        /// Holds for all that is not in the set.
        negated: bool,
    },
    /// `vmap`: the verdict that a map has for a key; without one the rule ends.
    Vmap {
        /// The parts of the key in order.
        keys: Vec<Load>,
        /// The verdict map.
        map: Box<str>,
    },
    /// A data map gives a number for a key, a verdict map a verdict for the number; without either the rule
    /// ends. The key is an address or less. `nft` cannot say it, and lists `meta mark vmap @chains`.
    Dispatch {
        /// The parts of the key in order.
        keys: Vec<Load>,
        /// The data map.
        ids: Box<str>,
        /// The verdict map, whose keys are numbers.
        chains: Box<str>,
    },
    /// Sets some bits of a mark and leaves the others.
    SetMark {
        /// Of the packet or of its connection.
        mark: Mark,
        /// The bits to be set.
        mask: u32,
        /// What they become.
        value: u32,
    },
    /// Counts packets and bytes; the values are no part of the table.
    Counter,
    /// Counts in the counter of this name.
    CountIn(Box<str>),
    /// Goes on for so many packets a time.
    Limit {
        /// Packets, at least 1.
        packets: u64,
        /// In so many seconds, at least 1; `nft` has words for 1, 60, 3600, 86400 and 604800.
        seconds: u64,
        /// How many may come at once, at least 1.
        burst: u32,
    },
    /// Hands the packet to who listens to an NFLOG group.
    Log {
        /// The group.
        group: u16,
        /// What is written to it, 127 bytes at most.
        prefix: Box<str>,
        /// Bytes of the packet that are handed over; all of them if not said.
        snaplen: Option<u32>,
    },
    /// Translates the source address to that of the link.
    Masquerade,
    /// `reject with icmpx admin-prohibited`: drops it and tells the sender.
    Reject,
    /// Ends the rule.
    Verdict(Verdict),
    /// An expression of the kernel's that we do not write, so that no desired table has it.
    Unknown {
        /// Its name in the kernel.
        name: Box<str>,
        /// Its attributes as they came.
        data: Box<[u8]>,
    },
}

/// Bytes of a log's prefix that the kernel takes.
const MAX_PREFIX: usize = 127;

impl Expr {
    /// A match of the state of the connection: it is one of [`ct_state`], or none of them.
    pub fn ct_state(states: u32, negated: bool) -> Self {
        // "None of these bits" is the comparison, "one of them" its negation.
        Self::Bits { of: Load::CtState, mask: states, value: 0, negated: !negated }
    }

    /// Whether it only decides if the rule goes on, so that its place among its like does not matter.
    pub(crate) fn is_match(&self) -> bool {
        match self {
            Self::NfProto(_)
            | Self::L4Proto(_)
            | Self::EtherType(_)
            | Self::Link { .. }
            | Self::Address { .. }
            | Self::Net { .. }
            | Self::EtherSource { .. }
            | Self::Number { .. }
            | Self::Bits { .. }
            | Self::NoReturnPath
            | Self::Lookup { .. } => true,
            Self::Vmap { .. }
            | Self::Dispatch { .. }
            | Self::SetMark { .. }
            | Self::Counter
            | Self::CountIn(_)
            | Self::Limit { .. }
            | Self::Log { .. }
            | Self::Masquerade
            | Self::Reject
            | Self::Verdict(_)
            | Self::Unknown { .. } => false,
        }
    }

    /// The family that a packet needs for its header to be looked at, which is compared first.
    pub(crate) fn family(&self) -> Option<Family> {
        match self {
            Self::Address { among, .. } => Some(among.family()),
            Self::Net { of, .. } | Self::Number { of, .. } | Self::Bits { of, .. } => of.family(),
            Self::Lookup { keys, .. } | Self::Vmap { keys, .. } | Self::Dispatch { keys, .. } => {
                keys.iter().find_map(|key| key.family())
            }
            Self::NfProto(_)
            | Self::L4Proto(_)
            | Self::EtherType(_)
            | Self::Link { .. }
            | Self::EtherSource { .. }
            | Self::NoReturnPath
            | Self::SetMark { .. }
            | Self::Counter
            | Self::CountIn(_)
            | Self::Limit { .. }
            | Self::Log { .. }
            | Self::Masquerade
            | Self::Reject
            | Self::Verdict(_)
            | Self::Unknown { .. } => None,
        }
    }

    /// The family that packets have behind it.
    pub(crate) fn fixes(&self) -> Option<Family> {
        if let Self::NfProto(family) = self { Some(*family) } else { self.family() }
    }

    /// The one of several expressions with the same meaning that is read back; the packet's family has been
    /// compared before or not.
    pub(crate) fn normal(self, fixed: Option<Family>) -> Self {
        let fixed = self.family().or(fixed);
        let all = |keys: Vec<Load>| -> Vec<Load> { keys.into_iter().map(|key| key.normal(fixed)).collect() };
        match self {
            Self::Address { among: Addresses::Net(net), negated: false, .. } if net.prefix_len() == 0 => {
                Self::NfProto(Family::of(net.addr()))
            }
            Self::Address { end, among: Addresses::Net(net), negated } => {
                Self::Address { end, among: Addresses::Net(net.trunc()), negated }
            }
            Self::EtherType(0x0800) => Self::NfProto(Family::V4),
            Self::EtherType(0x86dd) => Self::NfProto(Family::V6),
            Self::Net { of, net, negated } => {
                let of = of.normal(fixed);
                if let Load::Address(_, end) = of {
                    return Self::Address { end, among: Addresses::Net(net), negated }.normal(fixed);
                }
                Self::Net { of, net: net.trunc(), negated }
            }
            Self::Number { of, first, last, negated } => {
                let of = of.normal(fixed);
                if let (Load::L4Proto, Ok(protocol), false) =
                    (of, u8::try_from(first), negated || first != last)
                {
                    return Self::L4Proto(protocol);
                }
                let highest = if of.width() == 1 { u8::MAX.into() } else { u16::MAX };
                Self::Number { of, first: first.min(highest), last: last.min(highest), negated }
            }
            Self::Bits { of, mask, value, negated } => {
                let all = if of.width() == 1 { u8::MAX.into() } else { u32::MAX };
                Self::Bits { of, mask: mask & all, value: value & all, negated }
            }
            Self::Lookup { keys, set, negated } => match all(keys)[..] {
                [Load::Address(family, end)] => {
                    Self::Address { end, among: Addresses::Set(family, set), negated }
                }
                ref keys => Self::Lookup { keys: keys.to_vec(), set, negated },
            },
            Self::Vmap { keys, map } => Self::Vmap { keys: all(keys), map },
            Self::Dispatch { keys, ids, chains } => Self::Dispatch { keys: all(keys), ids, chains },
            Self::SetMark { mark, mask, value } => Self::SetMark { mark, mask, value: value & mask },
            Self::Limit { packets, seconds, burst } => {
                Self::Limit { packets: packets.max(1), seconds: seconds.max(1), burst: burst.max(1) }
            }
            Self::Log { group, prefix, snaplen } => {
                let prefix = crate::rule::clean(&prefix, MAX_PREFIX).unwrap_or_default();
                Self::Log { group, prefix, snaplen }
            }
            other @ (Self::NfProto(_)
            | Self::L4Proto(_)
            | Self::EtherType(_)
            | Self::Link { .. }
            | Self::Address { .. }
            | Self::EtherSource { .. }
            | Self::NoReturnPath
            | Self::Counter
            | Self::CountIn(_)
            | Self::Masquerade
            | Self::Reject
            | Self::Verdict(_)
            | Self::Unknown { .. }) => other,
        }
    }
}
