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

    /// The range with one more address at either end, where there is one.
    pub fn widened(&self) -> Self {
        let family = self.family();
        let before = number(self.first).saturating_sub(1);
        Self { first: address(family, before), last: self.after().unwrap_or(self.last) }
    }

    /// The address after the last; `None` where the last is the highest there is.
    pub(crate) fn after(&self) -> Option<IpAddr> {
        let next = number(self.last).checked_add(1)?;
        (next <= self.family().highest()).then(|| address(self.family(), next))
    }

    /// The range from an address to the last of its family: in order, no range that begins there is behind it.
    pub(crate) fn from_to_last(first: IpAddr) -> Self {
        let family = Family::of(first);
        Self { first, last: address(family, family.highest()) }
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

    /// Puts a range of the same family in: it becomes one with those that it overlaps or adjoins.
    pub fn add(&mut self, range: IpRange) {
        let from = self.0.partition_point(|r| r.after().is_some_and(|after| after < range.first));
        let to = self.0.partition_point(|r| range.after().is_none_or(|after| r.first <= after));
        let met = self.0.get(from..to).unwrap_or_default();
        let first = met.first().map_or(range.first, |r| r.first.min(range.first));
        let last = met.last().map_or(range.last, |r| r.last.max(range.last));
        self.0.splice(from..to.max(from), [IpRange { first, last }]);
    }

    /// Takes all addresses of a range of the same family out; what it overlaps in part is cut.
    pub fn subtract(&mut self, range: IpRange) {
        let places = self.meeting(range);
        let met = self.0.get(places.clone()).unwrap_or_default();
        let family = range.family();
        let below = |r: &IpRange| Some((r.first, address(family, number(range.first).checked_sub(1)?)));
        let above = |r: &IpRange| Some((range.after()?, r.last));
        let left = met.first().and_then(below).and_then(|(first, last)| IpRange::new(first, last));
        let right = met.last().and_then(above).and_then(|(first, last)| IpRange::new(first, last));
        self.0.splice(places, left.into_iter().chain(right));
    }

    /// Takes a range out that is there in this very extent.
    pub(crate) fn remove(&mut self, range: &IpRange) {
        if let Ok(i) = self.0.binary_search(range) {
            self.0.remove(i);
        }
    }

    /// Those ranges, whole, that have an address in common with one of these extents.
    pub fn within(&self, extents: &Self) -> Self {
        let mut ranges: Vec<IpRange> = extents
            .0
            .iter()
            .flat_map(|&e| self.0.get(self.meeting(e)).unwrap_or_default())
            .copied()
            .collect();
        // One that reaches over the gap between two extents meets both.
        ranges.dedup();
        Self(ranges)
    }

    /// The places of the ranges that have an address in common with this one.
    fn meeting(&self, range: IpRange) -> std::ops::Range<usize> {
        let from = self.0.partition_point(|r| r.last < range.first);
        let to = self.0.partition_point(|r| r.first <= range.last);
        from..to.max(from)
    }

    /// Sorted, disjoint ranges as a set has them, neighbours left apart: they are removed as they were added.
    pub(crate) fn as_read(ranges: Vec<IpRange>) -> Self {
        Self(ranges)
    }

    /// The ranges in order.
    pub fn iter(&self) -> std::slice::Iter<'_, IpRange> {
        self.0.iter()
    }

    /// Whether an address is in one of the ranges.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let at = self.0.partition_point(|range| range.last < ip);
        self.0.get(at).is_some_and(|range| range.first <= ip)
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
