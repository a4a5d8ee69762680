//! What holds of any two tables.

use std::net::{IpAddr, Ipv4Addr};

use crate::random::{any_net, any_nets, any_table};
use crate::table::{net, range};
use ipnet::IpNet;
use kilo_nftables::{Change, Dump, Family, IpRange, Ranges, Set, TableFamily, diff};
use proptest::prelude::*;

proptest! {
    #[test]
    fn transaction_leads_to_the_desired_table(a in prop::option::of(any_table()), b in prop::option::of(any_table())) {
        let Some(transaction) = diff(a.as_ref(), b.as_ref()) else {
            prop_assert_eq!(a, b);
            return Ok(());
        };
        let reached = transaction.apply(a);
        prop_assert_eq!(&reached, &b);
        prop_assert_eq!(diff(reached.as_ref(), b.as_ref()), None);
    }

    /// One range in or out gives what all addresses together give, and nothing changes far from it.
    #[test]
    fn single_ranges_are_worked_in(nets in any_nets(), net in any_net(Family::V4), wider in any_net(Family::V4)) {
        let before = Ranges::from_nets(Family::V4, &nets);
        let range = IpRange::from(net);
        let (mut with, mut without) = (before.clone(), before.clone());
        with.add(range);
        let more: Vec<IpNet> = nets.iter().chain([&net]).copied().collect();
        prop_assert_eq!(&with, &Ranges::from_nets(Family::V4, &more));
        without.subtract(range);
        for address in (0..1024).map(|n| IpAddr::from(Ipv4Addr::from((10 << 24) + n))) {
            let has = |ranges: &Ranges| ranges.iter().any(|r| r.first() <= address && address <= r.last());
            prop_assert_eq!(has(&without), has(&before) && !net.contains(&address), "{}", address);
        }
        prop_assert!(without.iter().zip(without.iter().skip(1)).all(|(a, b)| a.last() < b.first()));
        let mut extents = Ranges::default();
        extents.add(range.widened());
        for after in [&with, &without] {
            let gone = before.iter().filter(|r| !after.iter().any(|other| other == *r));
            prop_assert!(gone.clone().all(|r| before.within(&extents).iter().any(|near| near == r)));
            let come = after.iter().filter(|r| !before.iter().any(|other| other == *r));
            prop_assert!(come.clone().all(|r| after.within(&extents).iter().any(|near| near == r)));
        }
        extents.add(IpRange::from(wider));
        let meets = |r: &&IpRange| extents.iter().any(|e| r.first() <= e.last() && e.first() <= r.last());
        let near: Vec<_> = before.iter().filter(meets).copied().collect();
        prop_assert_eq!(before.within(&extents).iter().copied().collect::<Vec<_>>(), near);
    }

    #[test]
    fn equal_tables_need_nothing(a in any_table()) {
        prop_assert_eq!(diff(Some(&a), Some(&a.clone())), None);
    }

    /// A new table is read from our own messages as it was.
    #[test]
    fn bytes_say_all_of_a_table(a in any_table()) {
        let batch = diff(None, Some(&a)).unwrap().encode(1, None);
        let mut dump = Dump::new(TableFamily::Inet, "kilo");
        dump.read(&batch.bytes).unwrap();
        prop_assert_eq!(dump.finish(), Some(a));
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut dump = Dump::new(TableFamily::Inet, "kilo");
        let _ = dump.read(&bytes);
        dump.finish();
    }

    #[test]
    fn ranges_hold_the_same_addresses_with_gaps(nets in prop::collection::vec((0u32..300, 24u8..=32), 0..12)) {
        let nets: Vec<ipnet::IpNet> = nets
            .into_iter()
            .map(|(n, len)| ipnet::IpNet::new(std::net::Ipv4Addr::from(n).into(), len).unwrap().trunc())
            .collect();
        let ranges = Ranges::from_nets(Family::V4, &nets);
        for n in 0..600 {
            let ip = std::net::IpAddr::V4(n.into());
            let want = nets.iter().any(|net| net.contains(&ip));
            prop_assert_eq!(ranges.iter().any(|r| r.first() <= ip && ip <= r.last()), want, "{}", ip);
        }
        let all: Vec<_> = ranges.iter().collect();
        for pair in all.windows(2) {
            let (std::net::IpAddr::V4(a), std::net::IpAddr::V4(b)) = (pair[0].last(), pair[1].first()) else {
                unreachable!()
            };
            prop_assert!(u32::from(a) + 1 < u32::from(b));
        }
    }
}

#[test]
fn ranges_at_the_ends_of_the_address_space() {
    let all = Ranges::from_nets(Family::V4, &[net("0.0.0.0/1"), net("128.0.0.0/1")]);
    assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0.0.0.0/0"]);
    let all = Ranges::from_nets(Family::V6, &[net("::/1"), net("8000::/1"), net("ffff::1/128")]);
    assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), ["::/0"]);
    let odd = Ranges::new(Family::V6, [range("ffff::", "ffff::2")]);
    assert_eq!(odd.iter().map(ToString::to_string).collect::<Vec<_>>(), ["ffff::-ffff::2"]);
}

#[test]
fn one_element_is_one_change() {
    let mut table = crate::table::table();
    let before = table.clone();
    let set = table.sets.get_mut("except4").unwrap();
    let more = set.ranges().unwrap().iter().copied().chain([net("172.16.0.0/12").into()]);
    *set = Set::of_ranges(Family::V4, Ranges::new(Family::V4, more.collect::<Vec<_>>()));
    let transaction = diff(Some(&before), Some(&table)).unwrap();
    assert_eq!(transaction.to_string(), "add element inet kilo except4 { 172.16.0.0/12 }\n");
    let back = diff(Some(&table), Some(&before)).unwrap();
    assert_eq!(back.to_string(), "delete element inet kilo except4 { 172.16.0.0/12 }\n");
}

#[test]
fn changed_rule_rewrites_its_chain_alone() {
    let mut table = crate::table::table();
    let before = table.clone();
    table.chains.get_mut("a-masq").unwrap().rules.pop();
    let transaction = diff(Some(&before), Some(&table)).unwrap();
    let flushed = transaction.changes.iter().filter(|c| matches!(c, Change::FlushChain(_))).count();
    let added = transaction.changes.iter().filter(|c| matches!(c, Change::AddRule { .. })).count();
    assert_eq!((flushed, added, transaction.changes.len()), (1, 2, 3));
}
