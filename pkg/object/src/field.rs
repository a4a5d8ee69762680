//! Walking an object of a stranger field by field. What is wrong becomes a finding that names the field; the
//! reader goes on with the next one.

use std::fmt::Write as _;

use serde_json::Value;

use crate::{Finding, called, scalar, shorten};

/// The most findings on one object; the rest is counted.
const MOST: usize = 16;

/// A field could not be read. The finding stands in the [`Notes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// What is wrong with one object.
#[derive(Clone, Debug)]
pub struct Notes {
    object: String,
    follows: &'static str,
    findings: Vec<Finding>,
    more: usize,
}

impl Notes {
    /// No findings yet on this object, `Pod/shop/web-0`. `follows` ends the reason of each: what is done about it.
    pub fn new(object: impl Into<String>, follows: &'static str) -> Self {
        Self { object: object.into(), follows, findings: Vec::new(), more: 0 }
    }

    /// Changes what is done about what is found from here on.
    pub fn follows(&mut self, follows: &'static str) {
        self.follows = follows;
    }

    /// Notes that a field is wrong.
    pub fn wrong(&mut self, field: &Field<'_, '_>, reason: &str) -> Unreadable {
        self.remark(field, &format!("{reason}; {}", self.follows));
        Unreadable
    }

    /// Notes something odd about a field that is understood all the same; the reason says what follows.
    pub fn remark(&mut self, field: &Field<'_, '_>, reason: &str) {
        if self.findings.len() == MOST {
            self.more += 1;
        } else {
            self.findings.push(Finding::new(self.object.as_str(), field.path(), scalar(field.value), reason));
        }
    }

    /// The findings in the order of the object. The last one counts those that are not told.
    pub fn into_findings(mut self) -> Vec<Finding> {
        if self.more > 0 {
            let reason = format!("{} more fields are wrong", self.more);
            self.findings.push(Finding::new(self.object, "", "", reason));
        }
        self.findings
    }
}

#[derive(Clone, Copy, Debug)]
enum Step<'v> {
    Root,
    Key(&'v str),
    Index(usize),
}

/// A value in an object, and the way to it. A field that is missing is there as `null`, which means the same.
#[derive(Clone, Copy, Debug)]
pub struct Field<'v, 'p> {
    value: &'v Value,
    up: Option<&'p Field<'v, 'p>>,
    step: Step<'v>,
}

impl<'v, 'p> Field<'v, 'p> {
    /// A whole object.
    pub fn root(value: &'v Value) -> Self {
        Self { value, up: None, step: Step::Root }
    }

    /// The field of this name in a map; missing where this is none.
    pub fn get(&'p self, key: &'v str) -> Self {
        Self { value: self.value.get(key).unwrap_or(&Value::Null), up: Some(self), step: Step::Key(key) }
    }

    /// Whether there is nothing.
    pub fn is_missing(&self) -> bool {
        self.value.is_null()
    }

    /// The value itself.
    pub fn value(&self) -> &'v Value {
        self.value
    }

    /// `spec.ingress[0].from[1]`.
    fn path(&self) -> String {
        let (mut steps, mut at) = (Vec::new(), Some(self));
        while let Some(field) = at {
            steps.push(field.step);
            at = field.up;
        }
        let mut path = String::new();
        for step in steps.into_iter().rev() {
            // Writing to a String does not fail.
            let _ = match step {
                Step::Root => Ok(()),
                Step::Key(key) if path.is_empty() => write!(path, "{}", shorten(key)),
                Step::Key(key) => write!(path, ".{}", shorten(key)),
                Step::Index(index) => write!(path, "[{index}]"),
            };
        }
        path
    }

    /// Notes that this must be something else than it is.
    pub fn must_be(&self, wanted: &str, notes: &mut Notes) -> Unreadable {
        notes.wrong(self, &format!("must be {wanted}, not {}", called(Some(self.value))))
    }

    /// The text, if there is one.
    ///
    /// # Errors
    /// When it is something else.
    pub fn text(&self, notes: &mut Notes) -> Result<Option<&'v str>, Unreadable> {
        match self.value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                Err(self.must_be("text in quotes", notes))
            }
        }
    }

    /// Whether it is true; what is missing is not.
    ///
    /// # Errors
    /// When it is something else.
    pub fn flag(&self, notes: &mut Notes) -> Result<bool, Unreadable> {
        match self.value {
            Value::Null => Ok(false),
            Value::Bool(flag) => Ok(*flag),
            Value::String(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                Err(self.must_be("true or false", notes))
            }
        }
    }

    /// The port of a protocol, from 1 to 65535.
    ///
    /// # Errors
    /// When it is something else, or missing.
    pub fn port(&self, notes: &mut Notes) -> Result<u16, Unreadable> {
        let number = self.value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|n| *n > 0);
        number.ok_or_else(|| self.must_be("a port from 1 to 65535", notes))
    }

    /// The items of a list; none where there is none.
    ///
    /// # Errors
    /// When it is something else.
    pub fn items(
        &'p self,
        notes: &mut Notes,
    ) -> Result<impl Iterator<Item = Field<'v, 'p>> + use<'v, 'p>, Unreadable> {
        let items: &'v [Value] = match self.value {
            Value::Null => &[],
            Value::Array(items) => items,
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                return Err(self.must_be("a list", notes));
            }
        };
        Ok(items.iter().enumerate().map(|(i, value)| Self { value, up: Some(self), step: Step::Index(i) }))
    }

    /// The fields of a map in their order; none where there is none.
    ///
    /// # Errors
    /// When it is something else.
    pub fn fields(
        &'p self,
        notes: &mut Notes,
    ) -> Result<impl Iterator<Item = (&'v str, Field<'v, 'p>)> + use<'v, 'p>, Unreadable> {
        let map = match self.value {
            Value::Null => None,
            Value::Object(map) => Some(map),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(self.must_be("a map", notes));
            }
        };
        let all = map.into_iter().flatten();
        Ok(all.map(|(key, value)| (key.as_str(), Self { value, up: Some(self), step: Step::Key(key) })))
    }

    /// Notes each field of a map that is none of these: what it would mean is not known.
    ///
    /// # Errors
    /// When this is no map, or has such a field.
    pub fn only(&self, known: &[&str], notes: &mut Notes) -> Result<(), Unreadable> {
        let mut result = Ok(());
        for (key, field) in self.fields(notes)? {
            if !known.contains(&key) && !field.is_missing() {
                result = Err(notes.wrong(&field, "is an unknown field"));
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_the_way_to_a_field() {
        let object = json!({"spec": {"ingress": [{}, {"from": "x"}], "egress": 7}});
        let mut notes = Notes::new("NetworkPolicy/a/b", "it matches nothing");
        let root = Field::root(&object);
        let spec = root.get("spec");
        let ingress = spec.get("ingress");
        let rules: Vec<_> = ingress.items(&mut notes).expect("a list").collect();
        assert!(rules[0].get("from").items(&mut notes).expect("missing").next().is_none());
        assert!(rules[1].get("from").items(&mut notes).is_err());
        assert!(spec.get("egress").fields(&mut notes).is_err());
        let told: Vec<_> = notes.into_findings().iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "NetworkPolicy/a/b: spec.ingress[1].from \"x\": must be a list, not text; it matches nothing",
                "NetworkPolicy/a/b: spec.egress \"7\": must be a map, not this number; it matches nothing",
            ]
        );
    }

    #[test]
    fn tells_of_a_few_and_counts_the_rest() {
        let object = Value::from((0..1000).collect::<Vec<_>>());
        let mut notes = Notes::new("Pod/a/b", "left out");
        let root = Field::root(&object);
        for item in root.items(&mut notes).expect("a list") {
            assert_eq!(item.text(&mut notes), Err(Unreadable));
        }
        let findings = notes.into_findings();
        assert_eq!(findings.len(), MOST + 1);
        assert_eq!(findings[MOST].reason, "984 more fields are wrong");
    }

    #[test]
    fn knows_what_it_does_not_know() {
        let object = json!({"podSelector": {}, "podSelecter": {}, "gone": null});
        let mut notes = Notes::new("NetworkPolicy/a/b", "it matches nothing");
        assert!(Field::root(&object).only(&["podSelector"], &mut notes).is_err());
        let findings = notes.into_findings();
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].field, "podSelecter");
        assert!(Field::root(&json!(3)).only(&[], &mut Notes::new("", "")).is_err());
    }
}
