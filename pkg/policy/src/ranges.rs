//! Sets of addresses as ranges that touch nowhere: what remains of blocks once exceptions are taken out and the rest is
//! joined.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::block::Block;

/// Addresses of both families as first and last of each range; sorted, with a gap between each two. Two of them are
/// equal if they hold the same addresses, however those were written.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ranges {
    v4: Vec<(Ipv4Addr, Ipv4Addr)>,
    v6: Vec<(Ipv6Addr, Ipv6Addr)>,
}

impl Ranges {
    /// The addresses of any of these blocks. The exceptions of one take nothing from another.
    pub fn of<'b>(blocks: impl IntoIterator<Item = &'b Block>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for block in blocks {
            let mut first = number(block.cidr.network());
            let last = number(block.cidr.broadcast());
            let family = if block.cidr.addr().is_ipv4() { &mut v4 } else { &mut v6 };
            let mut whole = true;
            for except in &block.except {
                let (from, to) = (number(except.network()), number(except.broadcast()));
                if to < first || from > last {
                    continue;
                }
                if from > first {
                    family.push((first, from - 1));
                }
                if to >= last {
                    whole = false;
                    break;
                }
                first = to + 1;
            }
            if whole {
                family.push((first, last));
            }
        }
        let v4 = join(v4).into_iter().filter_map(|(a, b)| Some((four(a)?, four(b)?))).collect();
        let v6 = join(v6).into_iter().map(|(a, b)| (Ipv6Addr::from(a), Ipv6Addr::from(b))).collect();
        Self { v4, v6 }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether an address is among them.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => within(&self.v4, address),
            IpAddr::V6(address) => within(&self.v6, address),
        }
    }

    /// The ranges of IPv4, first and last.
    pub fn v4(&self) -> &[(Ipv4Addr, Ipv4Addr)] {
        &self.v4
    }

    /// The ranges of IPv6, first and last.
    pub fn v6(&self) -> &[(Ipv6Addr, Ipv6Addr)] {
        &self.v6
    }
}

fn within<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let above = ranges.partition_point(|(first, _)| *first <= address);
    ranges[..above].last().is_some_and(|(_, last)| address <= *last)
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn four(number: u128) -> Option<Ipv4Addr> {
    u32::try_from(number).ok().map(Ipv4Addr::from)
}

/// Sorts ranges, and makes one of those that overlap or touch.
fn join(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            Some(_) | None => joined.push((first, last)),
        }
    }
    joined
}
