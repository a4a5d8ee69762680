//! The changes between two tables, in an order the kernel takes: what is referred to before what refers to
//! it, removals the other way round.

use crate::{Base, Chain, IpRange, Ranges, Rule, Set, SetKey, Table};

/// So many ranges are worked into a set one by one; more of them together with all that it has.
const FEW: usize = 16;

/// One change of a table. Its `Display` is a line that `nft -f` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Make the table; nothing happens to one that is there.
    AddTable {
        /// `NFT_TABLE_F_*`.
        flags: u32,
    },
    /// Remove the table with all that is in it.
    DeleteTable,
    /// Make a set.
    AddSet {
        /// Its name.
        name: Box<str>,
        /// What its elements are.
        key: SetKey,
    },
    /// Remove a set that no rule looks at.
    DeleteSet(Box<str>),
    /// Put ranges into a set.
    AddElements {
        /// The set.
        set: Box<str>,
        /// In order, overlapping nothing that stays.
        ranges: Vec<IpRange>,
    },
    /// Take ranges, in the very extent they have, out of a set.
    DeleteElements {
        /// The set.
        set: Box<str>,
        /// In order.
        ranges: Vec<IpRange>,
    },
    /// Make a chain, or set the policy of one that is there.
    AddChain {
        /// Its name.
        name: Box<str>,
        /// Where it hangs.
        base: Option<Base>,
    },
    /// Remove all rules of a chain.
    FlushChain(Box<str>),
    /// Remove an empty chain that no rule jumps to.
    DeleteChain(Box<str>),
    /// Append a rule.
    AddRule {
        /// The chain.
        chain: Box<str>,
        /// The rule.
        rule: Rule,
    },
}

/// The changes of one table that the kernel carries out together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// The name of the table, of family `inet`.
    pub table: Box<str>,
    /// What is to be done, in order.
    pub changes: Vec<Change>,
}

/// The smallest transaction that makes `observed` the table that is desired; `None` where nothing is to be
/// done. A set or base chain that would have to become another kind is reason to write the whole table anew,
/// still in one step: rules that refer to it would have to go first anyway.
pub fn diff(observed: Option<&Table>, desired: Option<&Table>) -> Option<Transaction> {
    let changes = match (observed, desired) {
        (None, None) => Vec::new(),
        (Some(_), None) => vec![Change::DeleteTable],
        (None, Some(new)) => between(&empty(new), new, true),
        (Some(old), Some(new)) if old == new => Vec::new(),
        (Some(old), Some(new)) if old.name != new.name || !can_become(old, new) => {
            // Adding first makes the removal succeed also where somebody else was quicker.
            let mut changes = vec![Change::AddTable { flags: 0 }, Change::DeleteTable];
            changes.extend(between(&empty(new), new, true));
            changes
        }
        (Some(old), Some(new)) => between(old, new, false),
    };
    let name = desired.or(observed)?.name.clone();
    (!changes.is_empty()).then_some(Transaction { table: name, changes })
}

/// A table of the same name and flags with nothing in it.
fn empty(table: &Table) -> Table {
    Table { name: table.name.clone(), flags: table.flags, ..Table::default() }
}

/// Whether no set and no chain has to change its kind.
fn can_become(old: &Table, new: &Table) -> bool {
    let hangs =
        |chain: &Chain| chain.base.as_ref().map(|base| (base.chain_type.clone(), base.hook, base.priority));
    old.flags == new.flags
        && old.sets.iter().all(|(name, set)| new.sets.get(name).is_none_or(|s| s.key == set.key))
        && old
            .chains
            .iter()
            .all(|(name, chain)| new.chains.get(name).is_none_or(|c| hangs(c) == hangs(chain)))
}

/// The changes that lead from one table to another of the same kinds.
fn between(old: &Table, new: &Table, add_table: bool) -> Vec<Change> {
    let mut changes = Vec::new();
    if add_table {
        changes.push(Change::AddTable { flags: new.flags });
    }
    for (name, set) in &new.sets {
        if !old.sets.contains_key(name) {
            changes.push(Change::AddSet { name: name.clone(), key: set.key });
        }
    }
    let nothing = Ranges::default();
    for (name, set) in &new.sets {
        let before = old.sets.get(name).map_or(&nothing, |s| &s.ranges);
        if *before == set.ranges {
            continue;
        }
        let (gone, come) = (before.missing_from(&set.ranges), set.ranges.missing_from(before));
        if !gone.is_empty() {
            changes.push(Change::DeleteElements { set: name.clone(), ranges: gone });
        }
        if !come.is_empty() {
            changes.push(Change::AddElements { set: name.clone(), ranges: come });
        }
    }
    for (name, chain) in &new.chains {
        if old.chains.get(name).is_none_or(|c| c.base != chain.base) {
            changes.push(Change::AddChain { name: name.clone(), base: chain.base.clone() });
        }
    }
    // Every chain is emptied before any is filled, so that what the old rules refer to is free.
    fn rules<'a>(table: &'a Table, name: &str) -> &'a [Rule] {
        table.chains.get(name).map_or(&[], |chain| &chain.rules)
    }
    for (name, chain) in &old.chains {
        if !chain.rules.is_empty() && chain.rules != rules(new, name) {
            changes.push(Change::FlushChain(name.clone()));
        }
    }
    for (name, chain) in &new.chains {
        if chain.rules != rules(old, name) {
            changes.extend(
                chain.rules.iter().map(|rule| Change::AddRule { chain: name.clone(), rule: rule.clone() }),
            );
        }
    }
    for name in old.chains.keys().filter(|name| !new.chains.contains_key(*name)) {
        changes.push(Change::DeleteChain(name.clone()));
    }
    for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name)) {
        changes.push(Change::DeleteSet(name.clone()));
    }
    changes
}

impl Transaction {
    /// What the kernel makes of a table, `None` for no table. Changes that the kernel would refuse, such as
    /// those of a set that is not there, do nothing.
    pub fn apply(&self, table: Option<Table>) -> Option<Table> {
        self.changes.iter().fold(table, |table, change| self.apply_one(table, change))
    }

    fn apply_one(&self, table: Option<Table>, change: &Change) -> Option<Table> {
        let Some(mut t) = table else {
            let Change::AddTable { flags } = change else { return None };
            return Some(Table { name: self.table.clone(), flags: *flags, ..Table::default() });
        };
        match change {
            Change::AddTable { .. } => {}
            Change::DeleteTable => return None,
            Change::AddSet { name, key } => {
                t.sets.entry(name.clone()).or_insert(Set { key: *key, ranges: Ranges::default() });
            }
            Change::DeleteSet(name) => {
                t.sets.remove(name);
            }
            Change::AddElements { set, ranges } => {
                if let Some(Set { key: SetKey::Address(family), ranges: now }) = t.sets.get_mut(set) {
                    if ranges.len() <= FEW {
                        ranges.iter().filter(|r| r.family() == *family).for_each(|r| now.add(*r));
                    } else {
                        *now = Ranges::new(*family, now.iter().chain(ranges).copied());
                    }
                }
            }
            Change::DeleteElements { set, ranges } => {
                if let Some(Set { key: SetKey::Address(_), ranges: now }) = t.sets.get_mut(set) {
                    if ranges.len() <= FEW {
                        ranges.iter().for_each(|r| now.remove(r));
                    } else {
                        let gone = Ranges::as_read(ranges.clone());
                        *now = Ranges::as_read(now.missing_from(&gone));
                    }
                }
            }
            Change::AddChain { name, base } => {
                t.chains.entry(name.clone()).or_default().base = base.clone();
            }
            Change::FlushChain(name) => {
                if let Some(chain) = t.chains.get_mut(name) {
                    chain.rules.clear();
                }
            }
            Change::DeleteChain(name) => {
                t.chains.remove(name);
            }
            Change::AddRule { chain, rule } => {
                if let Some(chain) = t.chains.get_mut(chain) {
                    chain.rules.push(rule.clone());
                }
            }
        }
        Some(t)
    }
}
