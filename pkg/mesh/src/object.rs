//! Node and Peer objects of Kubernetes, as much of them as a mesh is made from. Unknown fields are skipped.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The part of `metadata` that matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// The object's name.
    pub name: String,
    /// RFC 3339, as the API server writes it. Absent in manifests that were never applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    /// Labels.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations; a backend may leave out those without Kilo's prefix.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A `v1` Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeObject {
    /// Name, labels and annotations.
    pub metadata: Metadata,
    /// Pod ranges.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: NodeSpec,
}

/// The `spec` of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// The first pod range.
    #[serde(
        rename = "podCIDR",
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub pod_cidr: String,
    /// All pod ranges.
    #[serde(
        rename = "podCIDRs",
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub pod_cidrs: Vec<String>,
}

/// A `kilo.squat.ai/v1alpha1` Peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerObject {
    /// Name.
    pub metadata: Metadata,
    /// What the peer is.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: PeerSpec,
}

/// The `spec` of a Peer, before any of it is understood.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerSpec {
    /// Ranges.
    #[serde(rename = "allowedIPs", deserialize_with = "null_is_default")]
    pub allowed_ips: Vec<String>,
    /// Where the peer is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<PeerEndpoint>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_keepalive: Option<i64>,
    /// Base64; never printed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<SecretText>,
    /// Base64.
    #[serde(deserialize_with = "null_is_default")]
    pub public_key: String,
}

/// The `spec.endpoint` of a Peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerEndpoint {
    /// A name or an address.
    #[serde(rename = "dnsOrIP", deserialize_with = "null_is_default")]
    pub dns_or_ip: DnsOrIp,
    /// UDP port.
    pub port: i64,
}

/// The `spec.endpoint.dnsOrIP` of a Peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsOrIp {
    /// A DNS name.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub dns: String,
    /// An address.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub ip: String,
}

/// A text that is a secret: wiped from memory and never shown by `Debug`. It can be read from an object and
/// is left out when one is written.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// The secret of this text.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl Serialize for SecretText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_none()
    }
}

/// Kubernetes writes `null` where it means nothing.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
