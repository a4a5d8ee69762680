//! Nodes and Peers as the mesh understands them, before any of them is left out.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use kilo_mesh::{Granularity, Node, Peer};
use kilo_wireguard::{Endpoint, PublicKey};
use serde::Serialize;

/// All objects, in the order of the input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TranslatedView {
    /// Nodes.
    pub nodes: Vec<NodeView>,
    /// Peers, invalid ones too.
    pub peers: Vec<PeerView>,
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// It takes part.
    pub ready: bool,
    /// Where it is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Its WireGuard key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PublicKey>,
    /// Its private address.
    #[serde(rename = "internalIP", skip_serializing_if = "Option::is_none")]
    pub internal_ip: Option<IpNet>,
    /// It is said to have none.
    #[serde(rename = "noInternalIP", skip_serializing_if = "std::ops::Not::not")]
    pub no_internal_ip: bool,
    /// The address by which the CNI's own network reaches it.
    #[serde(rename = "cniCompatibilityIP", skip_serializing_if = "Option::is_none")]
    pub cni_compatibility_ip: Option<IpNet>,
    /// When it last checked in, in seconds since 1970 (UTC).
    pub last_seen: i64,
    /// It asks to lead.
    pub leader: bool,
    /// Its location.
    pub location: String,
    /// Seconds, 0 for none.
    pub persistent_keepalive: u16,
    /// Its first pod range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<IpNet>,
    /// Its other pod ranges.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub further_subnets: Vec<IpNet>,
    /// The WireGuard address it announces.
    #[serde(rename = "wireGuardIP", skip_serializing_if = "Option::is_none")]
    pub wireguard_ip: Option<IpNet>,
    /// Endpoints of others that it has seen.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub discovered_endpoints: BTreeMap<PublicKey, SocketAddr>,
    /// Ranges reached through its location.
    #[serde(rename = "allowedLocationIPs", skip_serializing_if = "Vec::is_empty")]
    pub allowed_location_ips: Vec<IpNet>,
    /// The granularity it announces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<Granularity>,
}

/// A Peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerView {
    /// Its name.
    pub name: String,
    /// It passes the validation; one that does not takes no part.
    pub valid: bool,
    /// It has a key and a range.
    pub ready: bool,
    /// Who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<PublicKey>,
    /// Where it is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Seconds, 0 for none.
    pub persistent_keepalive: u16,
    /// Ranges behind it.
    #[serde(rename = "allowedIPs")]
    pub allowed_ips: Vec<IpNet>,
}

impl TranslatedView {
    /// These objects at this time, in seconds since 1970; `expiry` is `--node-expiry`.
    pub fn new<'a>(
        nodes: impl IntoIterator<Item = &'a Node>,
        peers: impl IntoIterator<Item = &'a Peer>,
        now: u64,
        expiry: u64,
    ) -> Self {
        let node = |node: &Node| NodeView {
            name: node.name.to_string(),
            ready: node.ready(now, expiry),
            endpoint: node.endpoint.clone(),
            key: node.key,
            internal_ip: node.internal_ip,
            no_internal_ip: node.no_internal_ip,
            cni_compatibility_ip: node.cni_compatibility_ip,
            last_seen: node.last_seen,
            leader: node.leader,
            location: node.location.to_string(),
            persistent_keepalive: node.persistent_keepalive,
            subnet: node.subnet,
            further_subnets: node.further_subnets.to_vec(),
            wireguard_ip: node.wireguard_ip,
            discovered_endpoints: node.discovered_endpoints.clone(),
            allowed_location_ips: node.allowed_location_ips.to_vec(),
            granularity: node.granularity,
        };
        let peer = |peer: &Peer| PeerView {
            name: peer.name.to_string(),
            valid: peer.valid,
            ready: peer.has_key_and_ranges(),
            public_key: peer.public_key,
            endpoint: peer.endpoint_text(),
            persistent_keepalive: peer.persistent_keepalive,
            allowed_ips: peer.allowed_ips.to_vec(),
        };
        Self { nodes: nodes.into_iter().map(node).collect(), peers: peers.into_iter().map(peer).collect() }
    }
}
