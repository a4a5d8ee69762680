//! What the kernel answers about a table, put together again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::attr::{Attributes, messages};
use crate::kernel::{INET, chain, data, element, flag, msg, rule, set, table};
use crate::range::{address, number};
use crate::{Base, Chain, ChainType, Family, Hook, IpRange, Policy, Ranges, Rule, Set, SetKey, Table, expr};

/// The kernel changed the table while it was read: what was read is of two states, read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ruleset changed while it was read")]
pub struct Interrupted;

/// The answers about one table as they come in. Messages about other tables, and of other kinds, are passed
/// over.
#[derive(Clone, Debug, Default)]
pub struct Dump {
    name: Box<str>,
    flags: Option<u32>,
    sets: BTreeMap<Box<str>, SetKey>,
    elements: BTreeMap<Box<str>, Vec<Element>>,
    /// Sets with an element that stands for all others.
    catch_all: BTreeSet<Box<str>>,
    chains: BTreeMap<Box<str>, Option<Base>>,
    rules: BTreeMap<Box<str>, Vec<Rule>>,
}

/// A mark in a set of intervals: from here on addresses belong to it, or do no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Element {
    key: IpAddr,
    starts: bool,
}

impl Dump {
    /// No answers as yet about the table of this name and of family `inet`.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Takes in a datagram of answers.
    pub fn read(&mut self, datagram: &[u8]) -> Result<(), Interrupted> {
        for message in messages(datagram) {
            if message.flags & flag::DUMP_INTERRUPTED != 0 {
                return Err(Interrupted);
            }
            // The table's name has the same number in messages of all kinds.
            let attributes = message.attributes;
            if message.family != INET || attributes.text(table::NAME) != Some(&self.name) {
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
                msg::NEW_CHAIN => self.read_chain(attributes),
                msg::NEW_RULE => self.read_rule(attributes),
                _ => None,
            };
        }
        Ok(())
    }

    /// The names of the sets that were read, whose elements are to be asked for.
    pub fn sets(&self) -> impl Iterator<Item = &str> {
        let ours = |key: &SetKey| matches!(key, SetKey::Address(_));
        self.sets.iter().filter(move |(_, key)| ours(key)).map(|(name, _)| &**name)
    }

    /// The table, if there is one.
    pub fn finish(mut self) -> Option<Table> {
        let flags = self.flags?;
        let mut sets = BTreeMap::new();
        for (name, key) in std::mem::take(&mut self.sets) {
            let elements = self.elements.remove(&name).unwrap_or_default();
            let key = match key {
                SetKey::Address(family) if self.catch_all.contains(&name) => {
                    SetKey::Unknown { key_type: 0, key_len: u32::from(family.width()), flags: 0 }
                }
                SetKey::Address(_) | SetKey::Unknown { .. } => key,
            };
            let ranges = match key {
                SetKey::Address(family) => intervals(family, elements),
                SetKey::Unknown { .. } => Ranges::default(),
            };
            sets.insert(name, Set { key, ranges });
        }
        let mut chains = BTreeMap::new();
        for (name, base) in std::mem::take(&mut self.chains) {
            let rules = self.rules.remove(&name).unwrap_or_default();
            chains.insert(name, Chain { base, rules });
        }
        Some(Table { name: self.name, flags, sets, chains })
    }

    fn read_set(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let flags = attributes.number(set::FLAGS).unwrap_or(0);
        let key_type = attributes.number(set::KEY_TYPE).unwrap_or(0);
        let key_len = attributes.number(set::KEY_LEN).unwrap_or(0);
        let key = match (key_type, key_len, flags) {
            (set::IPV4_ADDR, 4, set::INTERVAL) => SetKey::Address(Family::V4),
            (set::IPV6_ADDR, 16, set::INTERVAL) => SetKey::Address(Family::V6),
            _ => SetKey::Unknown { key_type, key_len, flags },
        };
        self.sets.insert(attributes.text(set::NAME)?.into(), key);
        Some(())
    }

    fn read_elements(&mut self, attributes: Attributes<'_>) -> Option<()> {
        let name: Box<str> = attributes.text(element::SET)?.into();
        let elements = self.elements.entry(name.clone()).or_default();
        for (_, item) in attributes.nest(element::ELEMENTS)? {
            let item = Attributes(item);
            // Only the element that stands for all others has no key.
            let Some(value) = item.nest(element::KEY).and_then(|key| key.get(data::VALUE)) else {
                self.catch_all.insert(name.clone());
                continue;
            };
            let key = match value.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(value).ok()?),
                16 => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
                _ => continue,
            };
            let flags = item.number(element::FLAGS).unwrap_or(0);
            elements.push(Element { key, starts: flags & element::INTERVAL_END == 0 });
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
        let exprs = attributes.nest(rule::EXPRESSIONS).map_or_else(Vec::new, expr::read);
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
fn intervals(family: Family, mut elements: Vec<Element>) -> Ranges {
    // Of an end and a start at the same address the end comes first: one range ends where the next starts.
    elements.sort_unstable();
    let mut ranges = Vec::new();
    let mut start = None;
    for Element { key, starts } in elements.into_iter().filter(|e| Family::of(e.key) == family) {
        if let Some(first) = start.take() {
            let last = number(key).checked_sub(1).map(|last| address(family, last));
            ranges.extend(last.and_then(|last| IpRange::new(first, last)));
        }
        start = starts.then_some(key);
    }
    let to_the_end = start.and_then(|first| IpRange::new(first, address(family, family.highest())));
    ranges.extend(to_the_end);
    Ranges::as_read(ranges)
}
