//! Texts, labels and ports that many objects have in common, each kept once. Values that are equal compare equal
//! whether they are shared or not: sharing saves memory and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::labels::Labels;
use crate::pod::NamedPort;

/// A text that may be shared.
pub type Text = Arc<str>;

/// Below this many values nothing is swept.
const FEW: usize = 4096;

#[derive(Debug)]
struct Pool<T: ?Sized> {
    values: BTreeSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { values: BTreeSet::new(), sweep_at: FEW }
    }
}

impl<T: ?Sized + Ord> Pool<T> {
    fn get(&mut self, value: &T, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        if let Some(there) = self.values.get(value) {
            return there.clone();
        }
        // Twice as many as were in use the last time: the cost of a sweep is spread over what came since.
        if self.values.len() >= self.sweep_at {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = FEW.max(2 * self.values.len());
        }
        let value = make();
        self.values.insert(value.clone());
        value
    }
}

/// The pools of one snapshot.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    texts: Pool<str>,
    labels: Pool<Labels>,
    ports: Pool<[NamedPort]>,
}

impl Interner {
    pub(crate) fn text(&mut self, text: &str) -> Text {
        self.texts.get(text, || text.into())
    }

    pub(crate) fn labels(&mut self, labels: Labels) -> Arc<Labels> {
        match self.labels.values.get(&labels) {
            Some(there) => there.clone(),
            None => self.labels.get(&labels.clone(), || Arc::new(labels)),
        }
    }

    pub(crate) fn ports(&mut self, ports: Vec<NamedPort>) -> Arc<[NamedPort]> {
        self.ports.get(&ports.clone(), || ports.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_one_of_each_and_only_what_is_used() {
        let mut interner = Interner::default();
        let kept = interner.text("kept");
        assert!(Arc::ptr_eq(&kept, &interner.text("kept")));
        for n in 0..10 * FEW {
            interner.text(&n.to_string());
        }
        assert!(interner.texts.values.len() <= FEW + 1, "{}", interner.texts.values.len());
        assert!(Arc::ptr_eq(&kept, &interner.text("kept")));
    }
}
