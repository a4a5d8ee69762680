//! Which policies select a pod, without asking all of them.

use std::collections::BTreeMap;

use crate::intern::Text;
use crate::labels::{Asked, Labels};
use crate::policy::Policy;

/// A policy with its name.
#[derive(Clone, Copy, Debug)]
pub struct Named<'s> {
    /// Its namespace.
    pub namespace: &'s Text,
    /// Its name.
    pub name: &'s Text,
    /// What it says.
    pub policy: &'s Policy,
}

/// The policies of one namespace. Each stands in one place, where every pod that it selects passes by: under a label
/// that it asks for, under a key that must be there, or among those that are always asked.
#[derive(Debug, Default)]
pub(crate) struct Index<'s> {
    policies: Vec<Named<'s>>,
    by_label: BTreeMap<(&'s str, &'s str), Vec<usize>>,
    by_key: BTreeMap<&'s str, Vec<usize>>,
    always: Vec<usize>,
}

impl<'s> Index<'s> {
    /// Adds a policy; they come sorted by name.
    pub(crate) fn add(&mut self, named: Named<'s>) {
        let at = self.policies.len();
        self.policies.push(named);
        let terms = named.policy.subjects.terms();
        // The label with the fewest values passes by the fewest pods.
        let label = terms.iter().filter_map(|term| match &term.asked {
            Asked::In(values) => Some((&*term.key, values)),
            Asked::NotIn(_) | Asked::Exists | Asked::DoesNotExist => None,
        });
        if let Some((key, values)) = label.min_by_key(|(_, values)| values.len()) {
            for value in values {
                self.by_label.entry((key, value)).or_default().push(at);
            }
        } else if let Some(term) = terms.iter().find(|term| term.asked == Asked::Exists) {
            self.by_key.entry(&term.key).or_default().push(at);
        } else {
            self.always.push(at);
        }
    }

    /// The policies that select a pod with these labels, sorted by name.
    pub(crate) fn selecting(&self, labels: &Labels) -> Vec<Named<'s>> {
        let mut found = self.always.clone();
        for (key, value) in labels.iter() {
            found.extend(self.by_label.get(&(key, value)).into_iter().flatten());
            found.extend(self.by_key.get(key).into_iter().flatten());
        }
        found.retain(|at| self.policies[*at].policy.subjects.matches(labels));
        // A policy stands under one key, of which labels have one value: nothing is found twice.
        found.sort_unstable();
        found.into_iter().map(|at| self.policies[at]).collect()
    }
}
