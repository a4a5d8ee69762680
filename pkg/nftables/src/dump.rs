//! What the kernel answers about a table, put together again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::attr::{Attributes, messages};
use crate::kernel::{chain, data, element, flag, msg, object, rule, set, table};
use crate::range::{address, number};
use crate::{
    Base, Chain, ChainType, Counter, Elements, Family, Hook, IpRange, Item, Key, Policy, Ranges, Rule, Set,
    SetKind, SetType, Table, TableFamily, element as bytes, expr,
};

/// The kernel changed the table while it was read: what was read is of two states, read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ruleset changed while it was read")]
pub struct Interrupted;

/// The answers about one table as they come in. Messages about other tables, and of other kinds, are passed
/// over.
#[derive(Clone, Debug, Default)]
pub struct Dump {
    family: TableFamily,
    name: Box<str>,
    flags: Option<u32>,
    counters: BTreeMap<Box<str>, Counter>,
    sets: BTreeMap<Box<str>, SetKind>,
    /// Of sets of intervals.
    marks: BTreeMap<Box<str>, Vec<Mark>>,
    /// Of exact sets.
    items: BTreeMap<Box<str>, BTreeMap<Key, Item>>,
    /// Sets with an element that we do not write, such as the one that stands for all others.
    strange: BTreeSet<Box<str>>,
    chains: BTreeMap<Box<str>, Option<Base>>,
    rules: BTreeMap<Box<str>, Vec<Rule>>,
}

/// A mark in a set of intervals: from here on addresses belong to it, or do no more.
#[derive(Clone, Debug)]
struct Mark {
    key: IpAddr,
    /// What starts here; `None` for an end.
    item: Option<Item>,
}

impl Dump {
    /// No answers as yet about the table of this family and name. The sets are to be read before their elements.
    pub fn new(family: TableFamily, name: &str) -> Self {
        Self { family, name: name.into(), ..Self::default() }
    }

    /// The family of the table.
    pub fn family(&self) -> TableFamily {
        self.family
    }

    /// The name of the table.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes in a datagram of answers.
    pub fn read(&mut self, datagram: &[u8]) -> Result<(), Interrupted> {
        for message in messages(datagram) {
            if message.flags & flag::DUMP_INTERRUPTED != 0 {
                return Err(Interrupted);
            }
            // The table's name has the same number in messages of all kinds.
            let attributes = message.attributes;
            if message.family != self.family.number() || attributes.text(table::NAME) != Some(&self.name) {
                continue;
            }
            // A name that is no UTF-8 is not ours; what hangs on it shows up as nothing.
            let _known = match message.message {
                msg::NEW_TABLE => {
                    self.flags = Some(attributes.number(table::FLAGS).unwrap_or(0));
                    Some(())
                }
                msg::NEW_SET => self.read_set(attributes),
                msg::NEW_ELEMENTS => self.read_elements(attributes),
                msg::NEW_OBJECT => self.read_counter(attributes),
                msg::NEW_CHAIN => self.read_chain(attributes),
                msg::NEW_RULE => self.read_rule(attributes),
                _ => None,
            };
        }
        Ok(())
    }

    /// The names of the sets that were read, whose elements are to be asked for.
    pub fn sets(&self) -> impl Iterator<Item = &str> {
        let ours = |kind: &SetKind| matches!(kind, SetKind::Known(_));
        self.sets.iter().filter(move |(_, kind)| ours(kind)).map(|(name, _)| &**name)
    }

    /// The table, if there is one.
    pub fn finish(mut self) -> Option<Table> {
        let flags = self.flags?;
        let mut sets = BTreeMap::new();
        for (name, kind) in std::mem::take(&mut self.sets) {
            let kind = if self.strange.contains(&name) {
                SetKind::Unknown { key_type: 0, key_len: 0, flags: 0 }
            } else {
                kind
            };
            let mut set = Set::of_kind(kind);
            let family = match kind {
                SetKind::Known(of) => of.range_family(),
                SetKind::Unknown { .. } => None,
            };
            let marks = self.marks.remove(&name).unwrap_or_default();
            let items = self.items.remove(&name).unwrap_or_default();
            match (&mut set.elements, family) {
                (Elements::Ranges(ranges), Some(family)) => {
                    *ranges = Ranges::as_read(intervals(family, marks).map(|(range, _)| range).collect());
                }
                (Elements::Intervals(known), Some(family)) => *known = intervals(family, marks).collect(),
                (Elements::Exact(known), None) if family.is_none() && kind == set.kind => *known = items,
                (Elements::Ranges(_) | Elements::Intervals(_) | Elements::Exact(_), _) => {}
            }
            sets.insert(name, set);
        }
        let mut chains = BTreeMap::new();
        for (name, base) in std::mem::take(&mut self.chains) {
            let rules = self.rules.remove(&name).unwrap_or_default();
            chains.insert(name, Chain { base, rules });
        }
        let Self { family, name, counters, .. } = self;
        Some(Table { family, name, flags, counters, sets, chains })
    }

    fn read_set(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let kind = SetType::read(attributes).map_or_else(
            || SetKind::Unknown {
                key_type: attributes.number(set::KEY_TYPE).unwrap_or(0),
                key_len: attributes.number(set::KEY_LEN).unwrap_or(0),
                flags: attributes.number(set::FLAGS).unwrap_or(0),
            },
            SetKind::Known,
        );
        self.sets.insert(attributes.text(set::NAME)?.into(), kind);
        Some(())
    }

    fn read_elements(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let name = attributes.text(element::SET)?;
        let (name, kind) = self.sets.get_key_value(name)?;
        let SetKind::Known(of) = kind else { return None };
        for (_, item) in attributes.nest(element::ELEMENTS)? {
            let item = Attributes(item);
            // Only the element that stands for all others has no key.
            let value = item.nest(element::KEY).and_then(|key| key.get(data::VALUE));
            let flags = item.number(element::FLAGS).unwrap_or(0);
            let ends = flags & element::INTERVAL_END != 0;
            let key = value.and_then(|value| of.key().read(value));
            let here = if ends { None } else { bytes::read_item(of.data(), item) };
            match (key, here) {
                (Some(Key::Address(key)), item) if of.has_intervals() && (ends || item.is_some()) => {
                    self.marks.entry(name.clone()).or_default().push(Mark { key, item });
                }
                (Some(key), Some(item)) if !of.has_intervals() => {
                    self.items.entry(name.clone()).or_default().insert(key, item);
                }
                _ => {
                    self.strange.insert(name.clone());
                }
            }
        }
        Some(())
    }

    fn read_counter(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let name = attributes.text(object::NAME)?;
        if attributes.number(object::TYPE) == Some(object::COUNTER) {
            let data = attributes.nest(object::DATA).unwrap_or(Attributes(&[]));
            let count = |number| data.long(number).unwrap_or(0);
            let counter = Counter { packets: count(object::PACKETS), bytes: count(object::BYTES) };
            self.counters.insert(name.into(), counter);
        }
        Some(())
    }

    fn read_chain(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let base = attributes.nest(chain::HOOK).map(|hook| Base {
            chain_type: match attributes.text(chain::TYPE).unwrap_or_default() {
                "filter" => ChainType::Filter,
                "nat" => ChainType::Nat,
                other => ChainType::Unknown(other.into()),
            },
            hook: match hook.number(chain::HOOK_NUMBER).unwrap_or(u32::MAX) {
                0 => Hook::Prerouting,
                1 => Hook::Input,
                2 => Hook::Forward,
                3 => Hook::Output,
                4 => Hook::Postrouting,
                other => Hook::Unknown(other),
            },
            priority: hook.number(chain::HOOK_PRIORITY).unwrap_or(0).cast_signed(),
            policy: match attributes.number(chain::POLICY) {
                Some(chain::DROP) => Policy::Drop,
                _ => Policy::Accept,
            },
        });
        self.chains.insert(attributes.text(chain::NAME)?.into(), base);
        Some(())
    }

    fn read_rule(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let list = attributes.nest(rule::EXPRESSIONS).unwrap_or(Attributes(&[]));
        let exprs = expr::read(self.family, list);
        let comment = attributes.get(rule::USER_DATA).and_then(comment).unwrap_or_default();
        let chain = attributes.text(rule::CHAIN)?.into();
        self.rules.entry(chain).or_default().push(Rule::new(exprs, comment));
        Some(())
    }
}

/// The comment in a rule's user data: type, length and value, one after the other.
fn comment(mut user_data: &[u8]) -> Option<&str> {
    while let [number, len, rest @ ..] = user_data {
        let (value, rest) = rest.split_at_checked(usize::from(*len))?;
        if *number == rule::COMMENT {
            return std::str::from_utf8(value.split(|b| *b == 0).next()?).ok();
        }
        user_data = rest;
    }
    None
}

/// The ranges between marks, which the kernel gives in any order. A mark for the end that no start precedes
/// is `nft`'s way to say that the first addresses do not belong.
fn intervals(family: Family, mut marks: Vec<Mark>) -> impl Iterator<Item = (IpRange, Item)> {
    marks.retain(|mark| Family::of(mark.key) == family);
    // Of an end and a start at the same address the end comes first: one range ends where the next starts.
    marks.sort_by_key(|mark| (mark.key, mark.item.is_some()));
    let highest = address(family, family.highest());
    let mut marks = marks.into_iter().peekable();
    std::iter::from_fn(move || {
        loop {
            let Mark { key: first, item } = marks.next()?;
            let last = marks.peek().map(|next| number(next.key).checked_sub(1));
            let last = last.map_or(Some(highest), |last| last.map(|last| address(family, last)));
            if let (Some(item), Some(range)) = (item, last.and_then(|last| IpRange::new(first, last))) {
                return Some((range, item));
            }
        }
    })
}
