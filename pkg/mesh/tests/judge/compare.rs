//! Comparing documents: what counts as equal, and what a difference consists of.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// A difference: where, what the plan says, what upstream said.
pub type Difference = (String, Value, Value);

/// Lists whose order has no meaning.
const UNORDERED: [&str; 2] = ["allowedIPs", "allowedLocationIPs"];

fn empty(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

/// Absent, null, false, empty and 0 are the same; lists without a meaningful order are sorted.
pub fn norm(v: &Value, key: &str) -> Value {
    match v {
        Value::Object(o) => {
            let sorted: BTreeMap<_, _> = o.iter().map(|(k, x)| (k.clone(), norm(x, k))).collect();
            Value::Object(sorted.into_iter().filter(|(_, x)| !empty(x)).collect())
        }
        Value::Array(a) => {
            let mut items: Vec<Value> = a.iter().map(|x| norm(x, "")).collect();
            if UNORDERED.contains(&key) {
                items.sort_by_key(Value::to_string);
            }
            Value::Array(items)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => v.clone(),
    }
}

/// The fields that are compared.
pub fn only(v: &Value, keys: &[&str]) -> Value {
    let fields = v.as_object().into_iter().flatten();
    fields.filter(|(k, _)| keys.contains(&k.as_str())).map(|(k, x)| (k.clone(), x.clone())).collect()
}

/// Rows as a set of texts.
pub fn bag(rows: &Value, keys: &[&str]) -> Value {
    let set: BTreeSet<String> =
        rows.as_array().into_iter().flatten().map(|r| norm(&only(r, keys), "").to_string()).collect();
    set.into_iter().map(Value::from).collect()
}

/// The list of items as a sorted set of texts.
pub fn set<'a>(items: impl IntoIterator<Item = &'a str>) -> Value {
    items.into_iter().collect::<BTreeSet<_>>().into_iter().map(Value::from).collect()
}

fn name_of(o: &Map<String, Value>) -> Option<&str> {
    ["name", "publicKey", "location"].iter().find_map(|k| o.get(*k)).and_then(Value::as_str)
}

/// What a value consists of, as a set of texts.
pub fn atoms(v: &Value, path: &str) -> BTreeSet<String> {
    match v {
        Value::Object(o) => o.iter().flat_map(|(k, x)| atoms(x, &format!("{path}.{k}"))).collect(),
        Value::Array(a) => a
            .iter()
            .enumerate()
            .flat_map(|(i, x)| match x {
                Value::Object(o) => {
                    let name = name_of(o).map_or_else(|| i.to_string(), str::to_owned);
                    atoms(x, &format!("{path}[{name}]"))
                }
                Value::Array(_) => atoms(x, &format!("{path}[{i}]")),
                Value::String(s) if path.is_empty() => BTreeSet::from([s.clone()]),
                Value::String(s) => BTreeSet::from([format!("{path}={s}")]),
                Value::Null | Value::Bool(_) | Value::Number(_) => BTreeSet::from([format!("{path}={x}")]),
            })
            .collect(),
        Value::String(s) => BTreeSet::from([format!("{path}={s}")]),
        Value::Null | Value::Bool(_) | Value::Number(_) => BTreeSet::from([format!("{path}={v}")]),
    }
}

/// The statements of a DOT graph, sorted.
pub fn statements(dot: &str) -> Value {
    let mut lines: Vec<&str> = dot.lines().map(str::trim).filter(|l| !l.is_empty() && *l != ";").collect();
    lines.sort_unstable();
    lines.into_iter().map(Value::from).collect()
}
