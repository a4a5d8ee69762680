//! Tables of family `inet`, their sets and chains.

use std::collections::BTreeMap;

use crate::{Family, Ranges, Rule};

/// An nftables table of family `inet`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: Box<str>,
    /// `NFT_TABLE_F_*`; 0 for a table that works as usual.
    pub flags: u32,
    /// Its sets by name.
    pub sets: BTreeMap<Box<str>, Set>,
    /// Its chains by name.
    pub chains: BTreeMap<Box<str>, Chain>,
}

impl Table {
    /// The table with these of its sets only, and of each only the ranges that meet one of these extents; no
    /// chain. The difference of the parts of two tables that differ nowhere else is that of the tables.
    pub fn part(&self, extents: &BTreeMap<Box<str>, Ranges>) -> Self {
        Self {
            name: self.name.clone(),
            flags: self.flags,
            sets: extents
                .iter()
                .filter_map(|(name, extents)| {
                    let Set { key, ranges } = self.sets.get(name)?;
                    Some((name.clone(), Set { key: *key, ranges: ranges.within(extents) }))
                })
                .collect(),
            chains: BTreeMap::new(),
        }
    }
}

/// The type of a set's keys. Concatenations and maps will be further kinds of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKey {
    /// Intervals of addresses: `ipv4_addr` or `ipv6_addr` with `flags interval`.
    Address(Family),
    /// A set that we do not write. Its elements are not read, and no desired table has it.
    Unknown {
        /// The type as `nft` numbers it.
        key_type: u32,
        /// Bytes.
        key_len: u32,
        /// `NFT_SET_*`.
        flags: u32,
    },
}

/// A named set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// What its elements are.
    pub key: SetKey,
    /// Its elements.
    pub ranges: Ranges,
}

impl Set {
    /// The set of the networks of one family among these; overlapping and adjacent ones become one range.
    pub fn of_nets<'a>(family: Family, nets: impl IntoIterator<Item = &'a ipnet::IpNet>) -> Self {
        Self { key: SetKey::Address(family), ranges: Ranges::from_nets(family, nets) }
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
