//! The firewall as an nftables table: sets hold what changes, chains and rules stand still.
//!
//! ```text
//! table inet kilo {
//!   chain postrouting (nat, srcnat - 1)   daddr @except → return; saddr @masq_src, daddr @masq_dst → masquerade
//!   chain input (filter)                  IPIP from @ipip → accept, other IPIP → drop; only with a tunnel of ours
//! }
//! ```

use ipnet::IpNet;
use kilo_nftables::{
    Addresses, Base, Chain, ChainType, End, Expr, Family, Hook, Policy, Rule, Set, Table, Verdict,
};

use crate::Firewall;

/// The name of our table.
pub const TABLE_NAME: &str = "kilo";
/// Just before `srcnat`, so that a masquerading of others does not come first.
const POSTROUTING: i32 = 99;
const FILTER: i32 = 0;
/// IPv4 in IP, IANA's protocol number.
const IPIP: u8 = 4;

/// Who is not masqueraded as a destination.
pub(crate) const EXCEPT: &str = "except";
/// Who is masqueraded as a source.
pub(crate) const MASQ_SRC: &str = "masq_src";

fn add_sets(table: &mut Table, name: &str, nets: &[IpNet]) {
    for (family, digit) in [(Family::V4, '4'), (Family::V6, '6')] {
        table.sets.insert(format!("{name}{digit}").into(), Set::of_nets(family, nets));
    }
}

/// The name of the set of this kind for the networks of this one's family.
pub(crate) fn set_for(name: &str, net: IpNet) -> Box<str> {
    format!("{name}{}", if net.addr().is_ipv4() { '4' } else { '6' }).into()
}

fn in_set(end: End, name: &str) -> [(Family, Expr); 2] {
    [(Family::V4, '4'), (Family::V6, '6')].map(|(family, digit)| {
        let among = Addresses::Set(family, format!("{name}{digit}").into());
        (family, Expr::Address { end, among, negated: false })
    })
}

fn base(chain_type: ChainType, hook: Hook, priority: i32) -> Option<Base> {
    Some(Base { chain_type, hook, priority, policy: Policy::Accept })
}

/// The table of this firewall.
pub(crate) fn table(firewall: &Firewall) -> Table {
    let mut table = Table { name: TABLE_NAME.into(), ..Table::default() };
    add_sets(&mut table, EXCEPT, &firewall.masquerade.except_destinations);
    add_sets(&mut table, MASQ_SRC, &firewall.masquerade.sources);
    add_sets(&mut table, "masq_dst", &firewall.masquerade.destinations);

    let mut rules = Vec::new();
    for (_, matches) in in_set(End::Destination, EXCEPT) {
        let comment = "do not NAT packets to pods, nodes, peers and services";
        rules.push(Rule::new([matches, Expr::Verdict(Verdict::Return)], comment));
    }
    let from = in_set(End::Source, MASQ_SRC).map(|m| (m.1, "NAT packets from pods and peers"));
    let to = in_set(End::Destination, "masq_dst").map(|m| (m.1, "NAT packets to allowed location IPs"));
    for (matches, comment) in from.into_iter().chain(to) {
        rules.push(Rule::new([matches, Expr::Counter, Expr::Masquerade], comment));
    }
    let chain = Chain { base: base(ChainType::Nat, Hook::Postrouting, POSTROUTING), rules };
    table.chains.insert("postrouting".into(), chain);

    if firewall.ipip.filtered {
        add_sets(&mut table, "ipip", &firewall.ipip.allow_sources);
        let mut rules: Vec<Rule> = in_set(End::Source, "ipip")
            .into_iter()
            .map(|(_, matches)| {
                let exprs = [Expr::L4Proto(IPIP), matches, Expr::Verdict(Verdict::Accept)];
                Rule::new(exprs, "IPIP from nodes of this location")
            })
            .collect();
        let drop = [Expr::L4Proto(IPIP), Expr::Counter, Expr::Verdict(Verdict::Drop)];
        rules.push(Rule::new(drop, "IPIP from anybody else"));
        let chain = Chain { base: base(ChainType::Filter, Hook::Input, FILTER), rules };
        table.chains.insert("input".into(), chain);
    }
    table
}
