//! What network policies need of an object: the rest is skipped while it is parsed and never held.

use std::borrow::Cow;
use std::fmt;

use kilo_mesh::PREFIX;
use kilo_policy::Kind;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// What is kept of a value. Lists are looked through; a scalar where there should be none is kept, as it is wrong.
#[derive(Clone, Copy, Debug)]
enum Keep {
    All,
    /// Keys that begin with our prefix.
    Ours,
    Only(&'static [(&'static str, Keep)]),
}

use Keep::{All, Only, Ours};

const METADATA: Keep = Only(&[
    ("name", All),
    ("namespace", All),
    ("uid", All),
    ("resourceVersion", All),
    ("creationTimestamp", All),
    ("deletionTimestamp", All),
    ("labels", All),
    ("annotations", Ours),
]);

const POD: Keep = Only(&[
    ("metadata", METADATA),
    (
        "spec",
        Only(&[
            ("nodeName", All),
            ("hostNetwork", All),
            ("containers", Only(&[("ports", All)])),
            ("initContainers", Only(&[("ports", All), ("restartPolicy", All)])),
        ]),
    ),
    ("status", Only(&[("phase", All), ("podIP", All), ("podIPs", All)])),
]);

const NAMESPACE: Keep = Only(&[("metadata", METADATA)]);

const POLICY: Keep = Only(&[("metadata", METADATA), ("spec", All)]);

const SERVICE: Keep = Only(&[
    ("metadata", METADATA),
    (
        "spec",
        Only(&[("clusterIP", All), ("clusterIPs", All), ("externalIPs", All), ("ports", All), ("type", All)]),
    ),
    ("status", Only(&[("loadBalancer", All)])),
]);

const SLICE: Keep = Only(&[
    ("metadata", METADATA),
    ("addressType", All),
    ("endpoints", Only(&[("addresses", All), ("conditions", All), ("nodeName", All)])),
    ("ports", All),
]);

/// Reads an object of a kind, without what network policies do not ask for: `managedFields`, the annotations of others,
/// most of a pod. It is a seed for serde, so that what is skipped is never allocated.
#[derive(Clone, Copy, Debug)]
pub struct Trim(Keep);

impl Trim {
    /// For objects of this kind.
    pub fn of(kind: Kind) -> Self {
        Self(match kind {
            Kind::Pod => POD,
            Kind::Namespace => NAMESPACE,
            Kind::NetworkPolicy => POLICY,
            Kind::Service => SERVICE,
            Kind::EndpointSlice => SLICE,
        })
    }

    /// The same of an object that is there already.
    pub fn value(self, object: Value) -> Value {
        // A tree that exists cannot fail to be walked.
        self.deserialize(object).unwrap_or_default()
    }

    /// What is kept of the value of a key, if anything is.
    fn key(self, key: &str) -> Option<Self> {
        match self.0 {
            All => Some(self),
            Ours => key.starts_with(PREFIX).then_some(Self(All)),
            Only(keys) => keys.iter().find(|(name, _)| *name == key).map(|(_, keep)| Self(*keep)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Trim {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Trim {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            kept.push(item);
        }
        Ok(Value::Array(kept))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match self.key(&key) {
                Some(keep) => {
                    let value = map.next_value_seed(keep)?;
                    if kept.insert(key.into_owned(), value).is_some() {
                        return Err(A::Error::custom("a key stands there twice"));
                    }
                }
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(kept))
    }
}

#[cfg(test)]
mod tests {
    use kilo_policy::Snapshot;
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web-0", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "creationTimestamp": "2026-01-31T23:59:59Z", "labels": {"app": "web", "x": 7},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "much", "kilo.squat.ai/a": "b"},
                "managedFields": [{"manager": "m", "fieldsV1": {"f:status": {}}}],
            },
            "spec": {
                "nodeName": "n", "hostNetwork": false, "tolerations": [{"key": "a"}],
                "containers": [{"name": "c", "image": "i", "env": [{"name": "SECRET", "value": "s"}],
                    "ports": [{"name": "http", "containerPort": 80}]}, 5],
                "initContainers": [{"restartPolicy": "Always", "ports": [{"name": "m", "containerPort": 81}]}],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "conditions": [{"type": "Ready"}], "containerStatuses": [{"name": "c"}]},
        })
    }

    #[test]
    fn nothing_that_policies_ask_for_is_lost() {
        let objects = [
            (Kind::Pod, pod()),
            (Kind::Pod, json!({"metadata": {"name": "p", "namespace": "n"}, "spec": 5, "status": []})),
            (Kind::Pod, json!({"metadata": 5})),
            (
                Kind::Namespace,
                json!({"metadata": {"name": "n", "labels": {"a": "b"}}, "status": {"phase": "Active"}}),
            ),
            (
                Kind::NetworkPolicy,
                json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"],
                    "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}], "ports": [{"port": 1.5}]}]}}),
            ),
            (
                Kind::Service,
                json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"clusterIPs": ["10.96.0.1"],
                    "externalIPs": ["192.0.2.1"], "ports": [{"name": "a", "port": 80}], "selector": {"a": "b"}},
                    "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}]}}}),
            ),
            (
                Kind::EndpointSlice,
                json!({"metadata": {"name": "s-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "s"}},
                    "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": {"name": "p"}}],
                    "ports": [{"name": "a", "port": 8080}]}),
            ),
        ];
        let (mut whole, mut trimmed) = (Snapshot::default(), Snapshot::default());
        for (kind, object) in objects {
            let text = object.to_string();
            let read =
                Trim::of(kind).deserialize(&mut serde_json::Deserializer::from_str(&text)).expect("readable");
            assert_eq!(read, Trim::of(kind).value(object.clone()));
            assert_eq!(whole.apply(kind, &object), trimmed.apply(kind, &read), "{object}");
        }
        let all = |s: &Snapshot| {
            let objects = (s.pods().count(), s.policies().count(), s.services().count(), s.slices().count());
            (objects, format!("{s:?}"))
        };
        assert_eq!(all(&whole), all(&trimmed));
        assert_eq!(all(&whole).0, (2, 1, 1, 1));
    }

    #[test]
    fn the_rest_is_gone() {
        let read = Trim::of(Kind::Pod).value(pod()).to_string();
        for gone in ["managedFields", "SECRET", "last-applied", "tolerations", "conditions", "image"] {
            assert!(!read.contains(gone), "{gone}: {read}");
        }
        assert!(read.contains("kilo.squat.ai/a") && read.len() < 600, "{}: {read}", read.len());
    }
}
