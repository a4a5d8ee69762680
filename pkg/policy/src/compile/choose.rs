//! Which policies of a namespace select a pod, while policies come and go.

use std::collections::{BTreeMap, BTreeSet};

use crate::intern::Text;
use crate::labels::{Asked, Labels, Selector};

/// The policies of one namespace by name. Each stands where every pod that it selects passes by: under a label that it
/// asks for, under a key that must be there, or among those that are always asked.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    by_label: BTreeMap<Text, BTreeMap<Text, BTreeSet<Text>>>,
    by_key: BTreeMap<Text, BTreeSet<Text>>,
    always: BTreeSet<Text>,
}

/// Where a policy stands.
enum Stand<'s> {
    Labels(&'s Text, &'s [Text]),
    Key(&'s Text),
    Always,
}

fn stand(subjects: &Selector) -> Stand<'_> {
    let labels = subjects.terms().iter().filter_map(|term| match &term.asked {
        Asked::In(values) => Some((&term.key, &**values)),
        Asked::NotIn(_) | Asked::Exists | Asked::DoesNotExist => None,
    });
    // The label with the fewest values passes by the fewest pods.
    if let Some((key, values)) = labels.min_by_key(|(_, values)| values.len()) {
        return Stand::Labels(key, values);
    }
    let key = subjects.terms().iter().find(|term| term.asked == Asked::Exists);
    key.map_or(Stand::Always, |term| Stand::Key(&term.key))
}

impl Choice {
    pub(crate) fn add(&mut self, name: &Text, subjects: &Selector) {
        match stand(subjects) {
            Stand::Labels(key, values) => {
                let by_value = self.by_label.entry(key.clone()).or_default();
                for value in values {
                    by_value.entry(value.clone()).or_default().insert(name.clone());
                }
            }
            Stand::Key(key) => _ = self.by_key.entry(key.clone()).or_default().insert(name.clone()),
            Stand::Always => _ = self.always.insert(name.clone()),
        }
    }

    pub(crate) fn remove(&mut self, name: &Text, subjects: &Selector) {
        match stand(subjects) {
            Stand::Labels(key, values) => {
                let Some(by_value) = self.by_label.get_mut(key) else { return };
                for value in values {
                    if let Some(names) = by_value.get_mut(value) {
                        names.remove(name);
                        if names.is_empty() {
                            by_value.remove(value);
                        }
                    }
                }
                if by_value.is_empty() {
                    self.by_label.remove(key);
                }
            }
            Stand::Key(key) => {
                if let Some(names) = self.by_key.get_mut(key) {
                    names.remove(name);
                    if names.is_empty() {
                        self.by_key.remove(key);
                    }
                }
            }
            Stand::Always => _ = self.always.remove(name),
        }
    }

    /// The policies that may select a pod with these labels, sorted; the others do not.
    pub(crate) fn passing(&self, labels: &Labels) -> BTreeSet<&Text> {
        let mut found: BTreeSet<&Text> = self.always.iter().collect();
        for (key, value) in labels.iter() {
            found.extend(self.by_label.get(key).and_then(|values| values.get(value)).into_iter().flatten());
            found.extend(self.by_key.get(key).into_iter().flatten());
        }
        found
    }
}
