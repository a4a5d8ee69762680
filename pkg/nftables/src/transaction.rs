//! The changes between two tables, in an order the kernel takes: what is referred to before what refers to
//! it, removals the other way round.

use crate::table::flags;
use crate::{Base, Chain, Counter, Element, Elements, Place, Ranges, Rule, Set, SetKind, Table, TableFamily};

/// So many ranges are worked into a set one by one; more of them together with all that it has.
const FEW: usize = 16;

/// One change of a table. Its `Display` is a line that `nft -f` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Make the table; nothing happens to one that is there.
    /// One that has lost its owner gets the sender's socket as one, where the flags say so.
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
        kind: SetKind,
    },
    /// Remove a set that no rule looks at.
    DeleteSet(Box<str>),
    /// Put elements into a set or map, at places that are free.
    AddElements {
        /// The set.
        set: Box<str>,
        /// In order, overlapping nothing that stays.
        elements: Vec<Element>,
    },
    /// Take elements out of a set or map.
    DeleteElements {
        /// The set.
        set: Box<str>,
        /// In order; ranges in the very extent they have.
        places: Vec<Place>,
    },
    /// Make a counter that starts at 0; nothing happens to one that is there.
    AddCounter(Box<str>),
    /// Remove a counter that no rule counts in.
    DeleteCounter(Box<str>),
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
    /// The family of the table.
    pub family: TableFamily,
    /// The name of the table.
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
        (None, Some(new)) => between(&new.emptied(), new, true),
        (Some(old), Some(new)) if old == new => Vec::new(),
        (Some(old), Some(new)) if !can_become(old, new) => {
            // Adding first makes the removal succeed also where somebody else was quicker.
            let mut changes = vec![Change::AddTable { flags: 0 }, Change::DeleteTable];
            changes.extend(between(&new.emptied(), new, true));
            changes
        }
        (Some(old), Some(new)) => between(old, new, old.flags != new.flags),
    };
    let Table { family, name, .. } = desired.or(observed)?;
    (!changes.is_empty()).then_some(Transaction { family: *family, table: name.clone(), changes })
}

/// Whether no set and no chain has to change its kind.
fn can_become(old: &Table, new: &Table) -> bool {
    let hangs =
        |chain: &Chain| chain.base.as_ref().map(|base| (base.chain_type.clone(), base.hook, base.priority));
    (old.family, &old.name) == (new.family, &new.name)
        && (old.flags == new.flags || can_be_owned(old.flags, new.flags))
        && old.sets.iter().all(|(name, set)| new.sets.get(name).is_none_or(|s| s.kind == set.kind))
        && old
            .chains
            .iter()
            .all(|(name, chain)| new.chains.get(name).is_none_or(|c| hangs(c) == hangs(chain)))
}

/// Whether a table has lost its owner and is to have one again.
fn can_be_owned(old: u32, new: u32) -> bool {
    old & flags::PERSIST != 0 && new == old | flags::OWNER
}

/// The changes that lead from one table to another of the same kinds.
fn between(old: &Table, new: &Table, add_table: bool) -> Vec<Change> {
    let mut changes = Vec::new();
    if add_table {
        changes.push(Change::AddTable { flags: new.flags });
    }
    for name in new.counters.keys().filter(|name| !old.counters.contains_key(*name)) {
        changes.push(Change::AddCounter(name.clone()));
    }
    for (name, set) in &new.sets {
        if !old.sets.contains_key(name) {
            changes.push(Change::AddSet { name: name.clone(), kind: set.kind });
        }
    }
    // Elements with verdicts name chains: they come once those are there.
    let mut late = Vec::new();
    for (name, set) in &new.sets {
        let before = old.sets.get(name);
        if before.is_some_and(|before| before.elements == set.elements) {
            continue;
        }
        let (gone, come) = match before {
            Some(before) => before.to(set),
            None => (Vec::new(), set.iter().collect()),
        };
        if !gone.is_empty() {
            changes.push(Change::DeleteElements { set: name.clone(), places: gone });
        }
        if !come.is_empty() {
            let when = if set.has_verdicts() { &mut late } else { &mut changes };
            when.push(Change::AddElements { set: name.clone(), elements: come });
        }
    }
    // A set that goes lets go of its chains first.
    for (name, set) in
        old.sets.iter().filter(|(name, set)| set.has_verdicts() && !new.sets.contains_key(*name))
    {
        if !set.is_empty() {
            let places = set.iter().map(|element| element.place).collect();
            changes.push(Change::DeleteElements { set: name.clone(), places });
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
    changes.extend(late);
    for name in old.chains.keys().filter(|name| !new.chains.contains_key(*name)) {
        changes.push(Change::DeleteChain(name.clone()));
    }
    for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name)) {
        changes.push(Change::DeleteSet(name.clone()));
    }
    for name in old.counters.keys().filter(|name| !new.counters.contains_key(*name)) {
        changes.push(Change::DeleteCounter(name.clone()));
    }
    changes
}

impl Transaction {
    /// What the kernel makes of a table, `None` for no table. Changes that the kernel would refuse, such as
    /// those of a set that is not there, do nothing.
    pub fn apply(&self, mut table: Option<Table>) -> Option<Table> {
        self.apply_to(&mut table);
        table
    }

    /// What the kernel makes of a table, in place: the work is that of the changes.
    pub fn apply_to(&self, table: &mut Option<Table>) {
        self.changes.iter().for_each(|change| self.apply_one(table, change));
    }

    fn apply_one(&self, table: &mut Option<Table>, change: &Change) {
        let Some(t) = table else {
            if let Change::AddTable { flags } = change {
                let new = Table { family: self.family, flags: *flags, ..Table::default() };
                *table = Some(Table { name: self.table.clone(), ..new });
            }
            return;
        };
        match change {
            Change::AddTable { flags } => {
                if can_be_owned(t.flags, *flags) {
                    t.flags = *flags;
                }
            }
            Change::DeleteTable => *table = None,
            Change::AddCounter(name) => {
                t.counters.entry(name.clone()).or_insert_with(Counter::default);
            }
            Change::DeleteCounter(name) => {
                t.counters.remove(name);
            }
            Change::AddSet { name, kind } => {
                t.sets.entry(name.clone()).or_insert_with(|| Set::of_kind(*kind));
            }
            Change::DeleteSet(name) => {
                t.sets.remove(name);
            }
            Change::AddElements { set, elements } => {
                if let Some(set) = t.sets.get_mut(set) {
                    add(set, elements);
                }
            }
            Change::DeleteElements { set, places } => {
                if let Some(set) = t.sets.get_mut(set) {
                    delete(set, places);
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
    }
}

/// Puts elements into a set: many plain ranges all at once, as each would move those behind it.
fn add(set: &mut Set, elements: &[Element]) {
    match (&mut set.elements, set.kind) {
        (Elements::Ranges(ranges), SetKind::Known(of)) if elements.len() > FEW => {
            if let Some(family) = of.range_family() {
                let more = elements.iter().filter_map(|e| e.place.range());
                *ranges = Ranges::new(family, ranges.iter().copied().chain(more).collect::<Vec<_>>());
            }
        }
        _ => elements.iter().for_each(|element| set.insert(element.clone())),
    }
}

/// Takes elements out of a set, many plain ranges all at once.
fn delete(set: &mut Set, places: &[Place]) {
    match &mut set.elements {
        Elements::Ranges(ranges) if places.len() > FEW => {
            let mut gone: Vec<_> = places.iter().filter_map(Place::range).collect();
            gone.sort_unstable();
            *ranges = Ranges::as_read(ranges.missing_from(&Ranges::as_read(gone)));
        }
        Elements::Ranges(_) | Elements::Intervals(_) | Elements::Exact(_) => {
            places.iter().for_each(|place| set.remove(place));
        }
    }
}
