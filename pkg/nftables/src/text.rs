//! The text of tables as `nft --stateless list table` prints it, and of transactions as `nft -f` reads it. For
//! what `nft` has no words there are ours, which it refuses.

mod rule;
mod set;

use std::fmt::{self, Display, Formatter, Write as _};

use crate::{Base, Chain, ChainType, Change, Hook, Policy, Set, SetKind, Table, TableFamily, Transaction};

impl Table {
    /// The table as `nft --stateless list table` prints it, sets and chains in order of their names.
    pub fn to_text(&self) -> String {
        self.to_string()
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", self.family, self.name)?;
        if self.flags != 0 {
            writeln!(f, "\t# flags {:#x}", self.flags)?;
        }
        let mut gap = "";
        for name in self.counters.keys() {
            writeln!(f, "{gap}\tcounter {name} {{\n\t}}")?;
            gap = "\n";
        }
        for (name, set) in &self.sets {
            write!(f, "{gap}")?;
            write_set(f, name, set)?;
            gap = "\n";
        }
        for (name, chain) in &self.chains {
            write!(f, "{gap}")?;
            write_chain(f, self.family, name, chain)?;
            gap = "\n";
        }
        writeln!(f, "}}")
    }
}

impl Display for TableFamily {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        })
    }
}

fn write_set(f: &mut Formatter<'_>, name: &str, set: &Set) -> fmt::Result {
    let word = if set.kind.is_map() { "map" } else { "set" };
    writeln!(f, "\t{word} {name} {{")?;
    match set.kind {
        SetKind::Known(of) => {
            writeln!(f, "\t\ttype {of}")?;
            let flags = of.flag_words();
            if !flags.is_empty() {
                writeln!(f, "\t\tflags {}", flags.join(","))?;
            }
            if !set.is_empty() {
                write!(f, "\t\telements = {{ ")?;
                // `nft` puts two short elements or one long one on a line.
                let per_line = of.per_line();
                for (i, element) in set.iter().enumerate() {
                    match i {
                        0 => {}
                        i if i % per_line == 0 => f.write_str(",\n\t\t\t     ")?,
                        _ => f.write_str(", ")?,
                    }
                    element.fmt(f)?;
                }
                writeln!(f, " }}")?;
            }
        }
        SetKind::Unknown { key_type, key_len, flags } => {
            writeln!(f, "\t\t# type {key_type}, {key_len} bytes, flags {flags:#x}")?;
        }
    }
    writeln!(f, "\t}}")
}

fn write_chain(f: &mut Formatter<'_>, family: TableFamily, name: &str, chain: &Chain) -> fmt::Result {
    writeln!(f, "\tchain {name} {{")?;
    if let Some(base) = &chain.base {
        write!(f, "\t\t")?;
        write_base(f, family, base)?;
        writeln!(f)?;
    }
    for rule in &chain.rules {
        writeln!(f, "\t\t{rule}")?;
    }
    writeln!(f, "\t}}")
}

fn write_base(f: &mut Formatter<'_>, family: TableFamily, base: &Base) -> fmt::Result {
    write!(f, "type {} hook {} priority ", base.chain_type, base.hook)?;
    write_priority(f, family, base.hook, base.priority)?;
    write!(f, "; policy {};", base.policy)
}

/// A priority by its name, or by its distance from one where that is 10 at most.
fn write_priority(f: &mut Formatter<'_>, family: TableFamily, hook: Hook, priority: i32) -> fmt::Result {
    let named: &[_] = match family {
        TableFamily::Inet => &[
            ("raw", -300, true),
            ("mangle", -150, true),
            ("dstnat", -100, hook == Hook::Prerouting),
            ("filter", 0, true),
            ("security", 50, true),
            ("srcnat", 100, hook == Hook::Postrouting),
        ],
        TableFamily::Bridge => &[
            ("dstnat", -300, hook == Hook::Prerouting),
            ("filter", -200, true),
            ("out", 100, hook == Hook::Output),
            ("srcnat", 300, hook == Hook::Postrouting),
        ],
    };
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

/// Lines that `nft -f` takes.
impl Display for Transaction {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for change in &self.changes {
            write_change(f, self.family, &self.table, change)?;
            f.write_char('\n')?;
        }
        Ok(())
    }
}

fn write_change(f: &mut Formatter<'_>, family: TableFamily, table: &str, change: &Change) -> fmt::Result {
    let place = format_args!("{family} {table}");
    match change {
        Change::AddTable { flags: 0 } => write!(f, "add table {place}"),
        Change::AddTable { flags } => write!(f, "add table {place} # flags {flags:#x}"),
        Change::DeleteTable => write!(f, "delete table {place}"),
        Change::AddSet { name, kind: kind @ SetKind::Known(of) } => {
            let word = if kind.is_map() { "map" } else { "set" };
            write!(f, "add {word} {place} {name} {{ type {of};")?;
            let flags = of.flag_words();
            if !flags.is_empty() {
                write!(f, " flags {};", flags.join(","))?;
            }
            f.write_str(" }")
        }
        Change::AddSet { name, kind: SetKind::Unknown { key_type, .. } } => {
            write!(f, "# add set {place} {name} of type {key_type}")
        }
        Change::DeleteSet(name) => write!(f, "delete set {place} {name}"),
        Change::AddElements { set, elements } => {
            write!(f, "add element {place} {set} ")?;
            write_list(f, elements)
        }
        Change::DeleteElements { set, places } => {
            write!(f, "delete element {place} {set} ")?;
            write_list(f, places)
        }
        Change::AddCounter(name) => write!(f, "add counter {place} {name}"),
        Change::DeleteCounter(name) => write!(f, "delete counter {place} {name}"),
        Change::AddChain { name, base: None } => write!(f, "add chain {place} {name}"),
        Change::AddChain { name, base: Some(base) } => {
            write!(f, "add chain {place} {name} {{ ")?;
            write_base(f, family, base)?;
            f.write_str(" }")
        }
        Change::FlushChain(name) => write!(f, "flush chain {place} {name}"),
        Change::DeleteChain(name) => write!(f, "delete chain {place} {name}"),
        Change::AddRule { chain, rule } => write!(f, "add rule {place} {chain} {rule}"),
    }
}

fn write_list<T: Display>(f: &mut Formatter<'_>, items: &[T]) -> fmt::Result {
    f.write_str("{ ")?;
    for (i, item) in items.iter().enumerate() {
        let gap = if i == 0 { "" } else { ", " };
        write!(f, "{gap}{item}")?;
    }
    f.write_str(" }")
}
