//! Labels, and selectors of labels as they are evaluated: a list of terms, all of which must hold.

use std::sync::Arc;

use kilo_object::{Field, Notes, Unreadable};

use crate::intern::{Interner, Text};

/// Labels of a pod or namespace, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Box<[(Text, Text)]>);

impl Labels {
    /// The value of this key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    /// Keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Reads `metadata.labels`, with one label that is known otherwise in place of what stands there.
    pub(crate) fn read(
        field: &Field<'_, '_>,
        known: Option<(&str, &str)>,
        interner: &mut Interner,
        notes: &mut Notes,
    ) -> Result<Arc<Self>, Unreadable> {
        let (mut labels, mut result) = (Vec::new(), Ok(()));
        for (key, field) in field.fields(notes)? {
            if known.is_some_and(|(k, _)| k == key) {
                continue;
            }
            match field.text(notes) {
                Ok(Some(value)) => labels.push((interner.text(key), interner.text(value))),
                Ok(None) => result = Err(field.must_be("text in quotes", notes)),
                Err(unreadable) => result = Err(unreadable),
            }
        }
        result?;
        if let Some((key, value)) = known {
            labels.push((interner.text(key), interner.text(value)));
        }
        // The order of a JSON map is not promised.
        labels.sort_unstable();
        Ok(interner.labels(Self(labels.into())))
    }
}

/// What one term of a selector asks of the value of its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Asked {
    /// It is one of these; sorted.
    In(Box<[Text]>),
    /// It is none of these, or there is none; sorted.
    NotIn(Box<[Text]>),
    /// There is one.
    Exists,
    /// There is none.
    DoesNotExist,
}

/// One term of a selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    /// The key of the label.
    pub key: Text,
    /// What its value must be.
    pub asked: Asked,
}

impl Term {
    /// Whether this is a value that the term asks for; nothing is no label of this key.
    pub fn takes(&self, value: Option<&str>) -> bool {
        let among = |values: &[Text], value: &str| values.binary_search_by(|v| (**v).cmp(value)).is_ok();
        match (&self.asked, value) {
            (Asked::In(values), Some(value)) => among(values, value),
            (Asked::NotIn(values), Some(value)) => !among(values, value),
            (Asked::Exists, value) => value.is_some(),
            (Asked::DoesNotExist, value) => value.is_none(),
            (Asked::In(_), None) => false,
            (Asked::NotIn(_), None) => true,
        }
    }
}

/// A label selector. Its terms are sorted and each stands there once, so that selectors of one meaning that differ
/// in order only are equal. Without terms it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(Box<[Term]>);

impl Selector {
    /// Whether labels are selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|term| term.takes(labels.get(&term.key)))
    }

    /// The terms, sorted.
    pub fn terms(&self) -> &[Term] {
        &self.0
    }

    /// Reads a label selector. What cannot be understood is noted and left out, and the second value is the error
    /// for a caller that must have all of it.
    pub(crate) fn read(
        field: &Field<'_, '_>,
        interner: &mut Interner,
        notes: &mut Notes,
    ) -> (Self, Result<(), Unreadable>) {
        let mut terms = Vec::new();
        let mut result = field.only(&["matchLabels", "matchExpressions"], notes);
        if field.is_missing() || field.value().is_object() {
            result = result.and(Self::read_labels(&field.get("matchLabels"), &mut terms, interner, notes));
            result =
                result.and(Self::read_terms(&field.get("matchExpressions"), &mut terms, interner, notes));
        }
        terms.sort_unstable();
        terms.dedup();
        (Self(terms.into()), result)
    }

    fn read_labels(
        field: &Field<'_, '_>,
        terms: &mut Vec<Term>,
        interner: &mut Interner,
        notes: &mut Notes,
    ) -> Result<(), Unreadable> {
        let mut result = Ok(());
        for (key, field) in field.fields(notes)? {
            match field.text(notes) {
                Ok(Some(value)) => {
                    let asked = Asked::In([interner.text(value)].into());
                    terms.push(Term { key: interner.text(key), asked });
                }
                Ok(None) => result = Err(field.must_be("text in quotes", notes)),
                Err(unreadable) => result = Err(unreadable),
            }
        }
        result
    }

    fn read_terms(
        field: &Field<'_, '_>,
        terms: &mut Vec<Term>,
        interner: &mut Interner,
        notes: &mut Notes,
    ) -> Result<(), Unreadable> {
        let mut result = Ok(());
        for field in field.items(notes)? {
            match Term::read(&field, interner, notes) {
                Ok(term) => terms.push(term),
                Err(unreadable) => result = Err(unreadable),
            }
        }
        result
    }
}

impl Term {
    fn read(field: &Field<'_, '_>, interner: &mut Interner, notes: &mut Notes) -> Result<Self, Unreadable> {
        field.only(&["key", "operator", "values"], notes)?;
        let key = field.get("key");
        let key = match key.text(notes)? {
            Some(text) if !text.is_empty() => interner.text(text),
            Some(_) | None => return Err(key.must_be("the key of a label", notes)),
        };
        let values_field = field.get("values");
        let mut values = Vec::new();
        for value in values_field.items(notes)? {
            match value.text(notes)? {
                Some(text) => values.push(interner.text(text)),
                None => return Err(value.must_be("text in quotes", notes)),
            }
        }
        values.sort_unstable();
        values.dedup();
        let operator = field.get("operator");
        let asked = match operator.text(notes)? {
            Some("In" | "NotIn") if values.is_empty() => {
                return Err(notes.wrong(&values_field, "must hold a value"));
            }
            Some("Exists" | "DoesNotExist") if !values.is_empty() => {
                return Err(notes.wrong(&values_field, "must be empty with this operator"));
            }
            Some("In") => Asked::In(values.into()),
            Some("NotIn") => Asked::NotIn(values.into()),
            Some("Exists") => Asked::Exists,
            Some("DoesNotExist") => Asked::DoesNotExist,
            Some(_) | None => {
                return Err(notes.wrong(&operator, "must be In, NotIn, Exists or DoesNotExist"));
            }
        };
        Ok(Self { key, asked })
    }
}
