//! Nodes and Peers as they come over the wire: what a mesh needs is kept, the rest is skipped while it is parsed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kilo_mesh::{Finding, Metadata, NodeObject, NodeSpec, PREFIX, PeerObject};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::crd::Peer;

/// A Node: name, labels, Kilo's annotations and pod ranges.
#[derive(Clone, Debug, Default)]
pub struct SlimNode {
    meta: ObjectMeta,
    metadata: Metadata,
    spec: NodeSpec,
}

/// A Peer as JSON: whoever made its CRD weaker than ours must not be able to break the watch.
#[derive(Clone, Debug, Default)]
pub struct SlimPeer {
    meta: ObjectMeta,
    object: Value,
}

impl SlimNode {
    /// The Node, with no other label than this one.
    pub fn into_node(mut self, topology_label: &str) -> NodeObject {
        self.metadata.labels.retain(|key, _| key == topology_label);
        NodeObject { metadata: self.metadata, spec: self.spec }
    }
}

impl SlimPeer {
    /// The Peer, or what is wrong with it.
    ///
    /// # Errors
    /// The first field that cannot be read.
    pub fn into_peer(self) -> Result<PeerObject, Finding> {
        kilo_mesh::read_peer(&self.object)
    }
}

/// `metadata` on the wire.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: String,
    creation_timestamp: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<OurAnnotations>,
}

impl Meta {
    fn standard(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.name.clone()),
            resource_version: self.resource_version.clone(),
            ..ObjectMeta::default()
        }
    }
}

/// Annotations without those of others, which are never allocated.
#[derive(Default)]
struct OurAnnotations(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for OurAnnotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ours;
        impl<'de> Visitor<'de> for Ours {
            type Value = OurAnnotations;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("annotations")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OurAnnotations, A::Error> {
                let mut ours = BTreeMap::new();
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    if key.starts_with(PREFIX) {
                        ours.insert(key.into_owned(), map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(OurAnnotations(ours))
            }
        }
        deserializer.deserialize_map(Ours)
    }
}

impl<'de> Deserialize<'de> for SlimNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Wire {
            metadata: Meta,
            spec: Option<NodeSpec>,
        }
        let Wire { metadata, spec } = Wire::deserialize(deserializer)?;
        Ok(Self {
            meta: metadata.standard(),
            metadata: Metadata {
                name: metadata.name,
                creation_timestamp: metadata.creation_timestamp,
                labels: metadata.labels.unwrap_or_default(),
                annotations: metadata.annotations.unwrap_or_default().0,
            },
            spec: spec.unwrap_or_default(),
        })
    }
}

impl<'de> Deserialize<'de> for SlimPeer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Wire {
            metadata: Meta,
            spec: Value,
        }
        let Wire { metadata, spec } = Wire::deserialize(deserializer)?;
        let mut object = json!({ "metadata": { "name": metadata.name }, "spec": spec });
        if let Some(created) = &metadata.creation_timestamp {
            object["metadata"]["creationTimestamp"] = json!(created);
        }
        Ok(Self { meta: metadata.standard(), object })
    }
}

/// kube wants to be able to write what it reads; nothing here is ever sent.
macro_rules! resource {
    ($slim:ty, $full:ty) => {
        impl Serialize for $slim {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.meta.serialize(serializer)
            }
        }

        impl kube::Resource for $slim {
            type DynamicType = ();
            type Scope = kube::core::ClusterResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                <$full as kube::Resource>::kind(&())
            }

            fn group((): &()) -> Cow<'_, str> {
                <$full as kube::Resource>::group(&())
            }

            fn version((): &()) -> Cow<'_, str> {
                <$full as kube::Resource>::version(&())
            }

            fn plural((): &()) -> Cow<'_, str> {
                <$full as kube::Resource>::plural(&())
            }

            fn meta(&self) -> &ObjectMeta {
                &self.meta
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.meta
            }
        }
    };
}

resource!(SlimNode, k8s_openapi::api::core::v1::Node);
resource!(SlimPeer, Peer);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_what_a_mesh_needs() {
        let text = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"a","resourceVersion":"7","creationTimestamp":"2026-01-01T00:00:00Z",
            "managedFields":[{"manager":"m"}],"labels":{"topology.kubernetes.io/region":"eu","x":"y"},
            "annotations":{"kilo.squat.ai/key":"k","node.alpha.kubernetes.io/ttl":"0"}},
            "spec":{"podCIDR":"10.2.0.0/24","podCIDRs":["10.2.0.0/24"],"taints":[{"key":"t"}]},"status":{"images":[{"names":["i"]}]}}"#;
        let slim: SlimNode = serde_json::from_str(text).expect("readable");
        assert_eq!(slim.meta.resource_version.as_deref(), Some("7"));
        let node = slim.into_node("topology.kubernetes.io/region");
        assert_eq!(node.metadata.labels.len(), 1);
        assert_eq!(node.metadata.annotations.keys().collect::<Vec<_>>(), ["kilo.squat.ai/key"]);
        assert_eq!((node.spec.pod_cidr.as_str(), node.spec.pod_cidrs.len()), ("10.2.0.0/24", 1));
        let bare: SlimNode =
            serde_json::from_str(r#"{"metadata":{"name":"b","annotations":null}}"#).expect("readable");
        assert!(bare.into_node("x").metadata.annotations.is_empty());
    }

    #[test]
    fn a_hostile_peer_is_one_finding() {
        for spec in [
            "5",
            "null",
            "[]",
            r#"{"allowedIPs":{}}"#,
            r#"{"publicKey":[[]]}"#,
            r#"{"endpoint":{"port":1e99}}"#,
        ] {
            let text = format!(r#"{{"metadata":{{"name":"p","resourceVersion":"1"}},"spec":{spec}}}"#);
            let slim: SlimPeer = serde_json::from_str(&text).expect("readable");
            assert_eq!(slim.meta.name.as_deref(), Some("p"));
            let peer = slim.into_peer();
            assert_eq!(peer.is_ok(), spec == "null", "{spec}: {peer:?}");
        }
    }
}
