//! Facts as a document: `{now, dns, held, hosts: {NODE: {…}}}`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kilo_mesh::{Facts, HostFacts, Node};
use kilo_wireguard::PrivateKey;
use serde::Serialize;
use serde_json::{Map, Value};

/// What an agent knows about the moment and its machine, or what somebody says about several machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FactsView {
    /// Always `Facts`.
    pub kind: Kind,
    /// Seconds since 1970 (UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<u64>,
    /// The names that resolve, with what they resolve to.
    pub dns: BTreeMap<String, Vec<IpAddr>>,
    /// The nodes that take part although their last check-in is too old, because nobody could have heard of another.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub held: BTreeSet<String>,
    /// Machines by the name of their Node.
    pub hosts: BTreeMap<String, HostFacts>,
}

/// The `kind` of a facts document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// The only one.
    #[default]
    Facts,
}

/// Why a document is not facts. It never holds a private key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FactsError {
    /// Where, `hosts.n1.internalIP`.
    pub field: String,
    /// What is wrong there.
    pub reason: String,
}

impl FactsError {
    fn new(field: impl Into<String>, reason: impl ToString) -> Self {
        Self { field: field.into(), reason: reason.to_string() }
    }
}

impl FactsView {
    /// The facts that a plan of this node was made from, and which nodes it held.
    pub fn new(facts: &Facts, node: &str, held: &BTreeSet<String>) -> Self {
        Self {
            kind: Kind::Facts,
            now: Some(facts.now),
            dns: facts.dns.clone(),
            held: held.clone(),
            hosts: BTreeMap::from([(node.to_owned(), facts.host.clone())]),
        }
    }

    /// Marks the nodes that are held.
    pub fn hold(&self, nodes: &mut [Node]) {
        nodes.iter_mut().for_each(|node| node.held = self.held.contains(&*node.name));
    }

    /// Reads a document. A host's `privateKey` becomes its `publicKey`; unknown fields are skipped.
    ///
    /// # Errors
    /// The first field that cannot be read.
    pub fn parse(document: Value) -> Result<Self, FactsError> {
        let mut document = map("facts", document)?;
        let now = match document.remove("now") {
            None | Some(Value::Null) => None,
            Some(value) => {
                Some(value.as_u64().ok_or_else(|| FactsError::new("now", "must be seconds since 1970"))?)
            }
        };
        let mut view = Self { now, ..Self::default() };
        for (name, addresses) in children("dns", document.remove("dns"))? {
            let addresses: Vec<IpAddr> = serde_json::from_value(addresses)
                .map_err(|error| FactsError::new(format!("dns.{name}"), error))?;
            view.dns.insert(name, addresses.iter().map(IpAddr::to_canonical).collect());
        }
        if let Some(held) = document.remove("held").filter(|held| !held.is_null()) {
            view.held = serde_json::from_value(held).map_err(|error| FactsError::new("held", error))?;
        }
        for (name, host) in children("hosts", document.remove("hosts"))? {
            let host = parse_host(&format!("hosts.{name}"), host)?;
            view.hosts.insert(name, host);
        }
        Ok(view)
    }
}

fn parse_host(field: &str, value: Value) -> Result<HostFacts, FactsError> {
    let mut value = map(field, value)?;
    let private = match value.remove("privateKey") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(
            text.parse::<PrivateKey>()
                .map_err(|error| FactsError::new(format!("{field}.privateKey"), error))?,
        ),
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            return Err(FactsError::new(format!("{field}.privateKey"), "must be text"));
        }
    };
    value.retain(|_, value| !value.is_null());
    let mut host: HostFacts = serde_path_to_error::deserialize(Value::Object(value))
        .map_err(|error| FactsError::new(format!("{field}.{}", error.path()), error.inner()))?;
    if let Some(key) = private {
        host.public_key = Some(key.public_key());
    }
    Ok(host)
}

fn map(field: &str, value: Value) -> Result<Map<String, Value>, FactsError> {
    match value {
        Value::Object(map) => Ok(map),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(FactsError::new(field, "must be a map"))
        }
    }
}

fn children(field: &str, value: Option<Value>) -> Result<Map<String, Value>, FactsError> {
    match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(value) => map(field, value),
    }
}

#[cfg(test)]
mod tests {
    use kilo_mesh::DeviceFact;
    use serde_json::json;

    use super::*;

    /// A pair that `wg pubkey` made.
    const PRIVATE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqXXf3pR25LCo=";
    const PUBLIC: &str = "i/UpUiSOHF5hVIvHsfguIQagj1GnI2eQYkOGQo+in3E=";

    #[test]
    fn a_private_key_becomes_the_public_key() {
        let view = FactsView::parse(json!({"hosts": {"n1": {"privateKey": PRIVATE, "internalIP": null}}}))
            .expect("facts");
        let text = serde_json::to_string(&view).expect("JSON");
        assert!(text.contains(PUBLIC) && !text.contains(PRIVATE), "{text}");
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let facts = Facts {
            now: 1_767_225_600,
            dns: BTreeMap::from([("a.example".to_owned(), vec!["10.0.0.1".parse().expect("an address")])]),
            host: HostFacts {
                public_key: PUBLIC.parse().ok(),
                internal_ip: "10.0.0.1/24".parse().ok(),
                uplink_mtu: Some(1500),
                device: vec![DeviceFact {
                    public_key: PUBLIC.parse().expect("a key"),
                    endpoint: "[2001:db8::1]:51820".parse().ok(),
                    latest_handshake: 1_767_225_599,
                }],
                programmed: BTreeMap::from([(
                    PUBLIC.parse().expect("a key"),
                    "203.0.113.1:51820".parse().expect("an endpoint"),
                )]),
                ..HostFacts::default()
            },
        };
        let view = FactsView::new(&facts, "n1", &BTreeSet::from(["n2".to_owned()]));
        let document = serde_json::to_value(&view).expect("JSON");
        assert_eq!(FactsView::parse(document), Ok(view));
    }

    #[test]
    fn an_error_names_the_field_and_no_private_key() {
        let cases = [
            (json!([1]), "facts"),
            (json!({"now": "soon"}), "now"),
            (json!({"now": -1}), "now"),
            (json!({"dns": {"a.example": "10.0.0.1"}}), "dns.a.example"),
            (json!({"held": "n2"}), "held"),
            (json!({"hosts": []}), "hosts"),
            (json!({"hosts": {"n1": {"internalIP": "10.0.0.300/24"}}}), "hosts.n1.internalIP"),
            (json!({"hosts": {"n1": {"device": [{"publicKey": "?"}]}}}), "hosts.n1.device[0].publicKey"),
            (json!({"hosts": {"n1": {"privateKey": "secret"}}}), "hosts.n1.privateKey"),
            (json!({"hosts": {"n1": {"privateKey": 4711}}}), "hosts.n1.privateKey"),
        ];
        for (document, field) in cases {
            let error = FactsView::parse(document).expect_err(field);
            assert_eq!(error.field, field);
            assert!(!error.to_string().contains("secret") && !error.to_string().contains("4711"), "{error}");
        }
    }
}
