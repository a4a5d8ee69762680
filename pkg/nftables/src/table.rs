//! Tables, their counters and chains.

use std::collections::BTreeMap;

use crate::{Elements, Ranges, Rule, Set, kernel};

/// The family of a table: which packets come by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableFamily {
    /// IPv4 and IPv6.
    #[default]
    Inet,
    /// Frames of bridges.
    Bridge,
}

impl TableFamily {
    /// `NFPROTO_*`.
    pub fn number(self) -> u8 {
        match self {
            Self::Inet => kernel::INET,
            Self::Bridge => kernel::BRIDGE,
        }
    }

    /// The family of this `NFPROTO_*`.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Inet, Self::Bridge].into_iter().find(|family| family.number() == number)
    }
}

/// `NFT_TABLE_F_*`.
pub mod flags {
    /// Only the socket that made the table changes it, and it goes with the socket.
    pub const OWNER: u32 = crate::kernel::table::OWNER;
    /// It stays without its owner, and another socket may own it then: of kernel 6.9 and later.
    pub const PERSIST: u32 = crate::kernel::table::PERSIST;
}

/// What a named counter has counted. That is no part of the table: all are equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl PartialEq for Counter {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Counter {}

/// An nftables table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: TableFamily,
    /// Its name.
    pub name: Box<str>,
    /// `NFT_TABLE_F_*`; 0 for a table that works as usual.
    pub flags: u32,
    /// Its counters by name.
    pub counters: BTreeMap<Box<str>, Counter>,
    /// Its sets by name.
    pub sets: BTreeMap<Box<str>, Set>,
    /// Its chains by name.
    pub chains: BTreeMap<Box<str>, Chain>,
}

impl Table {
    /// The table with these of its sets only, and of each only the plain ranges that meet one of these extents;
    /// no chain. The difference of the parts of two tables that differ nowhere else is that of the tables.
    pub fn part(&self, extents: &BTreeMap<Box<str>, Ranges>) -> Self {
        let part = |name: &str, extents: &Ranges| {
            let set = self.sets.get(name)?;
            let elements = Elements::Ranges(set.ranges()?.within(extents));
            Some((name.into(), Set { kind: set.kind, elements }))
        };
        Self {
            family: self.family,
            name: self.name.clone(),
            flags: self.flags,
            sets: extents.iter().filter_map(|(name, extents)| part(name, extents)).collect(),
            ..Self::default()
        }
    }

    /// A table of the same name and flags with nothing in it.
    pub(crate) fn emptied(&self) -> Self {
        Self { family: self.family, name: self.name.clone(), flags: self.flags, ..Self::default() }
    }
}

/// What a base chain may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainType {
    /// Accept and drop.
    Filter,
    /// Translate addresses; sees the first packet of a connection.
    Nat,
    /// Another type of the kernel's, never desired.
    Unknown(Box<str>),
}

/// Where packets come by a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
    /// Another hook of the kernel's, never desired.
    Unknown(u32),
}

/// What becomes of a packet that no rule of a base chain decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It is lost.
    Drop,
}

/// What makes a chain a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// What it may do.
    pub chain_type: ChainType,
    /// Where it hangs.
    pub hook: Hook,
    /// Lower ones come first.
    pub priority: i32,
    /// For packets without a verdict.
    pub policy: Policy,
}

/// A chain: with a base, packets come to it; without, rules jump to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where it hangs.
    pub base: Option<Base>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}
