//! The CustomResourceDefinition of Peers, the same as upstream's to every client.

use kube::{CustomResource, CustomResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name of the CustomResourceDefinition.
pub const CRD_NAME: &str = "peers.kilo.squat.ai";

/// PeerSpec is what a peer of the mesh is.
#[derive(Clone, Debug, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(group = "kilo.squat.ai", version = "v1alpha1", kind = "Peer", plural = "peers", singular = "peer")]
#[kube(doc = "Peer is a WireGuard peer that should have access to the mesh.")]
#[serde(rename_all = "camelCase")]
pub struct PeerSpec {
    /// AllowedIPs is the list of IP addresses in CIDR notation that are allowed for the given peer.
    #[serde(rename = "allowedIPs")]
    pub allowed_ips: Vec<String>,
    /// Endpoint is the initial endpoint for connections to the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PeerEndpoint")]
    pub endpoint: Option<PeerEndpoint>,
    /// PersistentKeepalive is the interval in seconds of the emission of keepalive packets by the peer; 0 or
    /// nothing means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "integer")]
    pub persistent_keepalive: Option<i64>,
    /// PresharedKey is the optional symmetric encryption key for the peer, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub preshared_key: Option<String>,
    /// PublicKey is the WireGuard public key of the peer, in base64.
    pub public_key: String,
}

/// PeerEndpoint represents a WireGuard endpoint, which is an IP address or DNS name and a port.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PeerEndpoint {
    /// DNSOrIP is a DNS name or an IP address.
    #[serde(rename = "dnsOrIP")]
    pub dns_or_ip: DnsOrIp,
    /// Port must be a valid port number.
    pub port: i32,
}

/// DNSOrIP is either a DNS name or an IP address.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DnsOrIp {
    /// DNS must be a valid RFC 1123 subdomain; it is preferred to the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub dns: Option<String>,
    /// IP must be a valid IP address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub ip: Option<String>,
}

/// An integer without upper bound, as upstream's schema has it.
fn integer(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "integer" })
}

/// The CustomResourceDefinition as JSON; the same value each time.
///
/// # Errors
/// Never in practice: all of it is known when this is compiled.
pub fn custom_resource_definition() -> Result<serde_json::Value, serde_json::Error> {
    serde_json::to_value(Peer::crd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_names_and_the_schema_of_upstream() {
        let crd = custom_resource_definition().expect("JSON");
        assert_eq!(crd["metadata"]["name"], CRD_NAME);
        assert_eq!(crd["spec"]["scope"], "Cluster");
        assert_eq!(crd["spec"]["names"]["listKind"].as_str().unwrap_or("PeerList"), "PeerList");
        let version = &crd["spec"]["versions"][0];
        assert_eq!((&version["name"], &version["storage"]), (&"v1alpha1".into(), &true.into()));
        let schema = &version["schema"]["openAPIV3Schema"];
        assert_eq!(schema["required"], serde_json::json!(["spec"]));
        let spec = &schema["properties"]["spec"];
        assert_eq!(spec["required"], serde_json::json!(["allowedIPs", "publicKey"]));
        let endpoint = &spec["properties"]["endpoint"];
        assert_eq!(endpoint["required"], serde_json::json!(["dnsOrIP", "port"]));
        assert_eq!(endpoint["properties"]["port"]["format"], "int32");
        let names = &endpoint["properties"]["dnsOrIP"];
        assert_eq!((&names["properties"]["dns"]["type"], names.get("required")), (&"string".into(), None));
        let text = crd.to_string();
        // Each of these would refuse objects that upstream's definition takes.
        for narrower in ["minimum", "maximum", "pattern", "minItems", "x-kubernetes-validations", "enum"] {
            assert!(!text.contains(narrower), "{narrower}");
        }
    }
}
