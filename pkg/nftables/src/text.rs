//! The text of tables as `nft --stateless list table` prints it, and of transactions as `nft -f` reads it.

use std::fmt::{self, Display, Formatter, Write as _};

use crate::{
    Addresses, Base, Chain, ChainType, Change, Direction, End, Expr, Family, Hook, IpRange, Policy, Rule,
    Set, SetKey, Table, Transaction, Verdict,
};

impl Table {
    /// The table as `nft --stateless list table` prints it, sets and chains in order of their names.
    pub fn to_text(&self) -> String {
        self.to_string()
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.name)?;
        if self.flags != 0 {
            writeln!(f, "\t# flags {:#x}", self.flags)?;
        }
        let mut gap = "";
        for (name, set) in &self.sets {
            write!(f, "{gap}")?;
            write_set(f, name, set)?;
            gap = "\n";
        }
        for (name, chain) in &self.chains {
            write!(f, "{gap}")?;
            write_chain(f, name, chain)?;
            gap = "\n";
        }
        writeln!(f, "}}")
    }
}

fn write_set(f: &mut Formatter<'_>, name: &str, set: &Set) -> fmt::Result {
    writeln!(f, "\tset {name} {{")?;
    match set.key {
        SetKey::Address(family) => {
            writeln!(f, "\t\ttype {}\n\t\tflags interval", key_type(family))?;
            if !set.ranges.is_empty() {
                write!(f, "\t\telements = {{ ")?;
                write_elements(f, family, set)?;
                writeln!(f, " }}")?;
            }
        }
        SetKey::Unknown { key_type, key_len, flags } => {
            writeln!(f, "\t\t# type {key_type}, {key_len} bytes, flags {flags:#x}")?;
        }
    }
    writeln!(f, "\t}}")
}

/// `nft` puts two IPv4 elements or one IPv6 element on a line.
fn write_elements(f: &mut Formatter<'_>, family: Family, set: &Set) -> fmt::Result {
    let per_line = match family {
        Family::V4 => 2,
        Family::V6 => 1,
    };
    for (i, range) in set.ranges.iter().enumerate() {
        match i {
            0 => {}
            i if i % per_line == 0 => f.write_str(",\n\t\t\t     ")?,
            _ => f.write_str(", ")?,
        }
        range.fmt(f)?;
    }
    Ok(())
}

fn write_chain(f: &mut Formatter<'_>, name: &str, chain: &Chain) -> fmt::Result {
    writeln!(f, "\tchain {name} {{")?;
    if let Some(base) = &chain.base {
        writeln!(f, "\t\t{base}")?;
    }
    for rule in &chain.rules {
        writeln!(f, "\t\t{rule}")?;
    }
    writeln!(f, "\t}}")
}

fn key_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

impl Display for Base {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "type {} hook {} priority ", self.chain_type, self.hook)?;
        write_priority(f, self.hook, self.priority)?;
        write!(f, "; policy {};", self.policy)
    }
}

/// A priority by its name, or by its distance from one where that is 10 at most.
fn write_priority(f: &mut Formatter<'_>, hook: Hook, priority: i32) -> fmt::Result {
    let named = [
        ("raw", -300, true),
        ("mangle", -150, true),
        ("dstnat", -100, hook == Hook::Prerouting),
        ("filter", 0, true),
        ("security", 50, true),
        ("srcnat", 100, hook == Hook::Postrouting),
    ];
    let near = named.iter().find(|(_, value, here)| *here && (value - 10..=value + 10).contains(&priority));
    match near {
        None => write!(f, "{priority}"),
        Some((name, value, _)) if priority == *value => f.write_str(name),
        Some((name, value, _)) if priority > *value => write!(f, "{name} + {}", priority - value),
        Some((name, value, _)) => write!(f, "{name} - {}", value - priority),
    }
}

impl Display for ChainType {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Unknown(name) => name,
        })
    }
}

impl Display for Hook {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prerouting => f.write_str("prerouting"),
            Self::Input => f.write_str("input"),
            Self::Forward => f.write_str("forward"),
            Self::Output => f.write_str("output"),
            Self::Postrouting => f.write_str("postrouting"),
            Self::Unknown(number) => write!(f, "{number}"),
        }
    }
}

impl Display for Policy {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
        })
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, expr) in self.exprs().iter().enumerate() {
            let gap = if i == 0 { "" } else { " " };
            write!(f, "{gap}{expr}")?;
        }
        match self.comment() {
            Some(comment) if self.exprs().is_empty() => write!(f, "comment \"{comment}\""),
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let not = |negated: bool| if negated { "!= " } else { "" };
        match self {
            Self::NfProto(Family::V4) => f.write_str("meta nfproto ipv4"),
            Self::NfProto(Family::V6) => f.write_str("meta nfproto ipv6"),
            Self::L4Proto(number) => match protocol_name(*number) {
                Some(name) => write!(f, "meta l4proto {name}"),
                None => write!(f, "meta l4proto {number}"),
            },
            Self::Link { direction, name, negated } => {
                let key = match direction {
                    Direction::In => "iifname",
                    Direction::Out => "oifname",
                };
                write!(f, "{key} {}\"{}\"", not(*negated), name.as_str())
            }
            Self::Address { end, among, negated } => {
                let header = match among.family() {
                    Family::V4 => "ip",
                    Family::V6 => "ip6",
                };
                let field = match end {
                    End::Source => "saddr",
                    End::Destination => "daddr",
                };
                write!(f, "{header} {field} {}{among}", not(*negated))
            }
            Self::Counter => f.write_str("counter"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Verdict(verdict) => verdict.fmt(f),
            Self::Unknown { name, .. } => write!(f, "[unknown {name}]"),
        }
    }
}

impl Display for Addresses {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Self::Net(net) => net.fmt(f),
            Self::Set(_, name) => write!(f, "@{name}"),
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// The name of a protocol in Debian's `/etc/protocols`, from where `nft` takes it.
fn protocol_name(number: u8) -> Option<&'static str> {
    Some(match number {
        1 => "icmp",
        2 => "igmp",
        4 => "ipencap",
        6 => "tcp",
        17 => "udp",
        41 => "ipv6",
        47 => "gre",
        50 => "esp",
        58 => "ipv6-icmp",
        132 => "sctp",
        _ => return None,
    })
}

/// Lines that `nft -f` takes.
impl Display for Transaction {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for change in &self.changes {
            write_change(f, &self.table, change)?;
            f.write_char('\n')?;
        }
        Ok(())
    }
}

fn write_change(f: &mut Formatter<'_>, table: &str, change: &Change) -> fmt::Result {
    match change {
        Change::AddTable { .. } => write!(f, "add table inet {table}"),
        Change::DeleteTable => write!(f, "delete table inet {table}"),
        Change::AddSet { name, key: SetKey::Address(family) } => {
            write!(f, "add set inet {table} {name} {{ type {}; flags interval; }}", key_type(*family))
        }
        Change::AddSet { name, key: SetKey::Unknown { key_type, .. } } => {
            write!(f, "# add set inet {table} {name} of type {key_type}")
        }
        Change::DeleteSet(name) => write!(f, "delete set inet {table} {name}"),
        Change::AddElements { set, ranges } => write_ranges(f, "add", table, set, ranges),
        Change::DeleteElements { set, ranges } => write_ranges(f, "delete", table, set, ranges),
        Change::AddChain { name, base: None } => write!(f, "add chain inet {table} {name}"),
        Change::AddChain { name, base: Some(base) } => {
            write!(f, "add chain inet {table} {name} {{ {base} }}")
        }
        Change::FlushChain(name) => write!(f, "flush chain inet {table} {name}"),
        Change::DeleteChain(name) => write!(f, "delete chain inet {table} {name}"),
        Change::AddRule { chain, rule } => write!(f, "add rule inet {table} {chain} {rule}"),
    }
}

fn write_ranges(
    f: &mut Formatter<'_>,
    verb: &str,
    table: &str,
    set: &str,
    ranges: &[IpRange],
) -> fmt::Result {
    write!(f, "{verb} element inet {table} {set} {{ ")?;
    for (i, range) in ranges.iter().enumerate() {
        let gap = if i == 0 { "" } else { ", " };
        write!(f, "{gap}{range}")?;
    }
    f.write_str(" }")
}
