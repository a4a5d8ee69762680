//! Ranges of addresses as interval sets hold them: sorted, disjoint and not even adjacent, because the
//! kernel refuses overlaps and lists neighbours as they were given.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::Family;

/// All addresses from the first to the last, both included and of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpRange {
    first: IpAddr,
    last: IpAddr,
}

/// An address as a number, for arithmetic.
pub(crate) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// The address of this number; numbers above the family's last address become the last address.
pub(crate) fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

impl IpRange {
    /// The range between two addresses of one family; `None` where they are of two, or the wrong way round.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// The first address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address, which still belongs to the range.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// The family of both addresses.
    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// The address after the last; `None` where the last is the highest there is.
    pub(crate) fn after(&self) -> Option<IpAddr> {
        let next = number(self.last).checked_add(1)?;
        (next <= self.family().highest()).then(|| address(self.family(), next))
    }

    /// The range as one network, if it is one.
    fn net(&self) -> Option<IpNet> {
        let (first, last) = (number(self.first), number(self.last));
        // The differing low bits of a network are all ones, and its first address has zeros there.
        let host = first ^ last;
        if host & host.wrapping_add(1) != 0 || first & host != 0 {
            return None;
        }
        let bits = u8::try_from(u128::BITS - host.leading_zeros()).ok()?;
        match self.first {
            IpAddr::V4(ip) => Ipv4Net::new(ip, 32 - bits).ok().map(IpNet::V4),
            IpAddr::V6(ip) => Ipv6Net::new(ip, 128 - bits).ok().map(IpNet::V6),
        }
    }
}

impl From<IpNet> for IpRange {
    fn from(net: IpNet) -> Self {
        Self { first: net.network(), last: net.broadcast() }
    }
}

/// As `nft` prints elements: a network, a single address, or `first-last`.
impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.net() {
            _ if self.first == self.last => self.first.fmt(f),
            Some(net) => net.fmt(f),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// Sorted ranges of one family with a gap between any two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<IpRange>);

impl Ranges {
    /// The ranges of one family among these, overlapping and adjacent ones made one.
    pub fn new(family: Family, ranges: impl IntoIterator<Item = IpRange>) -> Self {
        let mut sorted: Vec<IpRange> = ranges.into_iter().filter(|r| r.family() == family).collect();
        sorted.sort_unstable();
        let mut merged: Vec<IpRange> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match merged.last_mut() {
                Some(last) if last.after().is_none_or(|after| range.first <= after) => {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    /// The networks of one family among these, overlapping and adjacent ones made one.
    pub fn from_nets<'a>(family: Family, nets: impl IntoIterator<Item = &'a IpNet>) -> Self {
        Self::new(family, nets.into_iter().map(|&net| net.into()))
    }

    /// Sorted, disjoint ranges as a set has them, neighbours left apart: they are removed as they were added.
    pub(crate) fn as_read(ranges: Vec<IpRange>) -> Self {
        Self(ranges)
    }

    /// The ranges in order.
    pub fn iter(&self) -> std::slice::Iter<'_, IpRange> {
        self.0.iter()
    }

    /// Whether there is no range.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The ranges that these do not have in the same extent.
    pub(crate) fn missing_from(&self, other: &Self) -> Vec<IpRange> {
        let mut theirs = other.0.iter().peekable();
        let mut missing = Vec::new();
        for range in &self.0 {
            while theirs.next_if(|r| *r < range).is_some() {}
            if theirs.peek() != Some(&range) {
                missing.push(*range);
            }
        }
        missing
    }
}
