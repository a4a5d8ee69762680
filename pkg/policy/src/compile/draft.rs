//! A table that is worked on, with what it was where it was touched: the changes between the two are told without
//! walking the rest.

use std::collections::{BTreeMap, BTreeSet};

use kilo_nftables::{
    Chain, Change, Data, DataType, Element, Elements, IpRange, Item, Place, Rule, Set, SetKind, Table,
    Transaction,
};

/// A table under work.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    table: Table,
    /// Sets that were made or removed since, as they were.
    sets: BTreeMap<Box<str>, Option<Set>>,
    /// Elements of other sets that were touched since, as they were.
    elements: BTreeMap<Box<str>, BTreeMap<Place, Option<Item>>>,
    /// Chains that were touched since, as they were.
    chains: BTreeMap<Box<str>, Option<Chain>>,
    counters: BTreeSet<Box<str>>,
}

/// What a set has at a place, if it is one of single keys.
fn item<'s>(set: &'s Set, place: &Place) -> Option<&'s Item> {
    match (&set.elements, place) {
        (Elements::Exact(items), Place::Key(key)) => items.get(key),
        (Elements::Intervals(items), Place::Range(range)) => items.get(range),
        (Elements::Exact(_) | Elements::Intervals(_) | Elements::Ranges(_), _) => None,
    }
}

impl Draft {
    /// A table of this name and kind with nothing in it.
    pub(crate) fn new(table: Table) -> Self {
        Self { table, ..Self::default() }
    }

    /// The table as it is now.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Puts an element into a set of single keys, in place of what its key has.
    pub(crate) fn insert(&mut self, name: &str, element: Element) {
        let Some(set) = self.table.sets.get_mut(name) else { return };
        touch(&self.sets, &mut self.elements, name, set, &element.place);
        set.insert(element);
    }

    /// Takes an element out of a set of single keys; whether it was there.
    pub(crate) fn remove(&mut self, name: &str, place: Place) -> bool {
        let Some(set) = self.table.sets.get_mut(name) else { return false };
        let there = item(set, &place).is_some();
        touch(&self.sets, &mut self.elements, name, set, &place);
        set.remove(&place);
        there
    }

    /// What a map has at a key.
    pub(crate) fn at(&self, name: &str, place: Place) -> Option<&Data> {
        item(self.table.sets.get(name)?, &place).map(|item| &item.data)
    }

    /// Makes a set, or makes it this one; whether it is another one now.
    pub(crate) fn put_set(&mut self, name: &str, set: Set) -> bool {
        let old = self.table.sets.get(name);
        if old == Some(&set) {
            return false;
        }
        self.remember(name);
        self.table.sets.insert(name.into(), set);
        true
    }

    /// Removes a set.
    pub(crate) fn remove_set(&mut self, name: &str) {
        self.remember(name);
        self.table.sets.remove(name);
    }

    /// Keeps a set as it was before any element of it was touched.
    fn remember(&mut self, name: &str) {
        if self.sets.contains_key(name) {
            return;
        }
        let mut old = self.table.sets.get(name).cloned();
        if let (Some(old), Some(touched)) = (&mut old, self.elements.remove(name)) {
            for (place, item) in touched {
                old.remove(&place);
                item.into_iter().for_each(|item| old.insert(Element { place, item }));
            }
        }
        self.sets.insert(name.into(), old);
    }

    /// Makes a chain, or makes it this one; whether it is another one now.
    pub(crate) fn put_chain(&mut self, name: &str, chain: Chain) -> bool {
        let old = self.table.chains.get(name);
        if old == Some(&chain) {
            return false;
        }
        self.chains.entry(name.into()).or_insert_with(|| old.cloned());
        self.table.chains.insert(name.into(), chain);
        true
    }

    /// Makes a chain that others jump to.
    pub(crate) fn put_rules(&mut self, name: &str, rules: Vec<Rule>) -> bool {
        self.put_chain(name, Chain { base: None, rules })
    }

    /// Removes a chain.
    pub(crate) fn remove_chain(&mut self, name: &str) {
        if let Some(old) = self.table.chains.remove(name) {
            self.chains.entry(name.into()).or_insert(Some(old));
        }
    }

    /// Makes a counter.
    pub(crate) fn put_counter(&mut self, name: &str) {
        if !self.table.counters.contains_key(name) {
            self.table.counters.insert(name.into(), kilo_nftables::Counter::default());
            self.counters.insert(name.into());
        }
    }

    /// Whether nothing is different from what it was.
    pub(crate) fn is_unchanged(&self) -> bool {
        let table = &self.table;
        self.counters.is_empty()
            && self.sets.iter().all(|(name, old)| old.as_ref() == table.sets.get(name))
            && self.chains.iter().all(|(name, old)| old.as_ref() == table.chains.get(name))
            && self.elements.iter().all(|(name, touched)| {
                let Some(set) = table.sets.get(name) else { return true };
                touched.iter().all(|(place, old)| old.as_ref() == item(set, place))
            })
    }

    /// The changes since the last time: what is referred to before what refers to it.
    pub(crate) fn take(&mut self) -> Transaction {
        let mut changes = Vec::new();
        let (sets, elements, chains) = (
            std::mem::take(&mut self.sets),
            std::mem::take(&mut self.elements),
            std::mem::take(&mut self.chains),
        );
        changes.extend(std::mem::take(&mut self.counters).into_iter().map(Change::AddCounter));
        let table = &self.table;
        let (mut gone_elements, mut early, mut late) = (Vec::new(), Vec::new(), Vec::new());
        for (name, old) in &sets {
            match (old, table.sets.get(name)) {
                (_, None) => {}
                (Some(old), Some(new)) if old.kind == new.kind => {
                    let (gone, come) = between(old, new);
                    add(&mut gone_elements, &mut early, &mut late, name, new, gone, come);
                }
                (_, Some(new)) => {
                    changes.push(Change::AddSet { name: name.clone(), kind: new.kind });
                    add(
                        &mut gone_elements,
                        &mut early,
                        &mut late,
                        name,
                        new,
                        Vec::new(),
                        new.iter().collect(),
                    );
                }
            }
        }
        for (name, touched) in &elements {
            let Some(new) = table.sets.get(name) else { continue };
            let (mut gone, mut come) = (Vec::new(), Vec::new());
            for (place, old) in touched {
                let now = item(new, place);
                if old.as_ref() == now {
                    continue;
                }
                gone.extend(old.as_ref().map(|_| *place));
                come.extend(now.map(|item| Element { place: *place, item: item.clone() }));
            }
            add(&mut gone_elements, &mut early, &mut late, name, new, gone, come);
        }
        // A set that goes lets go of its chains first.
        for (name, old) in &sets {
            if let (Some(old), None) = (old, table.sets.get(name))
                && has_verdicts(old)
                && !old.is_empty()
            {
                let places = old.iter().map(|element| element.place).collect();
                gone_elements.push(Change::DeleteElements { set: name.clone(), places });
            }
        }
        changes.extend(gone_elements);
        changes.extend(early);
        let different = |name: &str, old: &Option<Chain>| old.as_ref() != table.chains.get(name);
        let touched: Vec<_> = chains.iter().filter(|(name, old)| different(name, old)).collect();
        for (name, old) in &touched {
            if let Some(new) = table.chains.get(*name)
                && old.as_ref().is_none_or(|old| old.base != new.base)
            {
                changes.push(Change::AddChain { name: (*name).clone(), base: new.base.clone() });
            }
        }
        for (name, old) in &touched {
            if old.as_ref().is_some_and(|old| !old.rules.is_empty()) {
                changes.push(Change::FlushChain((*name).clone()));
            }
        }
        for (name, _) in &touched {
            let rules = table.chains.get(*name).map_or(&[][..], |chain| &chain.rules);
            changes.extend(
                rules.iter().map(|rule| Change::AddRule { chain: (*name).clone(), rule: rule.clone() }),
            );
        }
        changes.extend(late);
        let gone = touched.iter().filter(|(name, _)| !table.chains.contains_key(*name));
        changes.extend(gone.map(|(name, _)| Change::DeleteChain((*name).clone())));
        let gone = sets.iter().filter(|(name, old)| old.is_some() && !table.sets.contains_key(*name));
        changes.extend(gone.map(|(name, _)| Change::DeleteSet(name.clone())));
        Transaction { family: table.family, table: table.name.clone(), changes }
    }
}

/// Remembers what a place had, unless the whole set is remembered.
fn touch(
    sets: &BTreeMap<Box<str>, Option<Set>>,
    elements: &mut BTreeMap<Box<str>, BTreeMap<Place, Option<Item>>>,
    name: &str,
    set: &Set,
    place: &Place,
) {
    if sets.contains_key(name) {
        return;
    }
    if !elements.contains_key(name) {
        elements.insert(name.into(), BTreeMap::new());
    }
    if let Some(touched) = elements.get_mut(name) {
        touched.entry(*place).or_insert_with(|| item(set, place).cloned());
    }
}

fn has_verdicts(set: &Set) -> bool {
    matches!(set.kind, SetKind::Known(kind) if kind.data() == DataType::Verdict)
}

fn add(
    deletions: &mut Vec<Change>,
    early: &mut Vec<Change>,
    late: &mut Vec<Change>,
    name: &str,
    set: &Set,
    gone: Vec<Place>,
    come: Vec<Element>,
) {
    if !gone.is_empty() {
        deletions.push(Change::DeleteElements { set: name.into(), places: gone });
    }
    if !come.is_empty() {
        let when = if has_verdicts(set) { late } else { early };
        when.push(Change::AddElements { set: name.into(), elements: come });
    }
}

/// What goes from one set and what comes, to make it another one.
fn between(old: &Set, new: &Set) -> (Vec<Place>, Vec<Element>) {
    if let (Some(old), Some(new)) = (old.ranges(), new.ranges()) {
        let (a, b): (BTreeSet<IpRange>, BTreeSet<IpRange>) =
            (old.iter().copied().collect(), new.iter().copied().collect());
        return (
            a.difference(&b).copied().map(Place::Range).collect(),
            b.difference(&a).copied().map(Element::new).collect(),
        );
    }
    let gone = old
        .iter()
        .filter(|element| item(new, &element.place) != Some(&element.item))
        .map(|element| element.place);
    let come = new.iter().filter(|element| item(old, &element.place) != Some(&element.item));
    (gone.collect(), come.collect())
}
