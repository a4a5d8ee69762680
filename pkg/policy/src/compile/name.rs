//! Names and numbers that come from what something is, so that they are the same after a restart and never mean
//! something else.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use kilo_nftables::Family;

/// A name out of a definition: 96 bits, so that nobody finds a second definition of the same name.
pub(crate) fn name(prefix: &str, definition: &impl Hash) -> Box<str> {
    format!("{prefix}_{:016x}{:08x}", hash(0, definition), hash(1, definition) >> 32).into()
}

/// The name of a set of one family: `prefix4_…` or `prefix6_…`.
pub(crate) fn of_family(prefix: &str, family: Family, definition: &impl Hash) -> Box<str> {
    name(&format!("{prefix}{}", digit(family)), definition)
}

/// `4` or `6`.
pub(crate) fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

fn hash(salt: u8, definition: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    (salt, definition).hash(&mut hasher);
    hasher.finish()
}

/// Numbers below this one have a meaning of their own.
pub(crate) const FIRST_ID: u32 = 256;

/// Numbers for definitions. One is that of the definition's hash; where another has it already, the next free one.
#[derive(Debug)]
pub(crate) struct Ids<T>(BTreeMap<u32, T>);

impl<T> Default for Ids<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Hash> Ids<T> {
    /// A number for something that has none yet.
    pub(crate) fn take(&mut self, definition: T) -> u32 {
        let low = u32::try_from(hash(0, &definition) & u64::from(u32::MAX)).unwrap_or(FIRST_ID);
        let mut id = low.max(FIRST_ID);
        while self.0.contains_key(&id) {
            id = id.checked_add(1).unwrap_or(FIRST_ID);
        }
        self.0.insert(id, definition);
        id
    }

    /// Gives a number back.
    pub(crate) fn free(&mut self, id: u32) {
        self.0.remove(&id);
    }

    /// Whose number it is.
    pub(crate) fn get(&self, id: u32) -> Option<&T> {
        self.0.get(&id)
    }
}
