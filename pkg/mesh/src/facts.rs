//! What a plan takes from the machine and the moment: the time, resolved names, addresses, the device.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use kilo_wireguard::PublicKey;
use serde::{Deserialize, Serialize};

/// Everything that a plan takes from outside the cluster. Two equal values give two equal plans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Seconds since 1970 (UTC).
    pub now: u64,
    /// The names that resolve, with what they resolve to; any other name does not.
    pub dns: BTreeMap<String, Vec<IpAddr>>,
    /// The local machine.
    pub host: HostFacts,
}

/// What an agent finds on its machine. All of it may be shown to anybody: there is no secret in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostFacts {
    /// The public key that belongs to the private key in the key file.
    pub public_key: Option<PublicKey>,
    /// The discovered private address with its prefix length.
    #[serde(rename = "internalIP")]
    pub internal_ip: Option<IpNet>,
    /// The discovered address for the endpoint, with its prefix length.
    #[serde(rename = "externalIP")]
    pub external_ip: Option<IpNet>,
    /// The first IPv4 address of `cilium_host`, in Cilium mode.
    #[serde(rename = "cniCompatibilityIP")]
    pub cni_compatibility_ip: Option<IpNet>,
    /// The MTU of the link of the default route, in bytes.
    pub uplink_mtu: Option<u32>,
    /// The MTU of the link that holds the private address, in bytes.
    pub private_mtu: Option<u32>,
    /// Links by the part they play.
    pub interfaces: Interfaces,
    /// Whether the kernel can make IPIP tunnels; `None` where nobody looked.
    pub ipip: Option<bool>,
    /// The flannel or Cilium tunnel link is there; `None` where nobody looked.
    pub tunnel: Option<bool>,
    /// The addresses of the tunnel; none while it is down.
    pub tunnel_addresses: Vec<IpNet>,
    /// Whether the kernel has IPv6; `None` where nobody looked.
    pub ipv6: Option<bool>,
    /// iptables-legacy has an IPv4 filter table; rules of iptables-nft cannot override its drops.
    pub legacy_filter_v4: bool,
    /// ip6tables-legacy has a filter table.
    pub legacy_filter_v6: bool,
    /// Tables of iptables-legacy in which an upstream agent left rules.
    pub legacy_leftovers: Vec<LegacyTable>,
    /// The peers of the WireGuard device as it is.
    pub device: Vec<DeviceFact>,
    /// Endpoints that this agent last gave to the device, by key.
    pub programmed: BTreeMap<PublicKey, SocketAddr>,
}

/// The names of the links that a plan speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interfaces {
    /// The WireGuard link.
    pub wireguard: String,
    /// The link with the private address.
    pub private: String,
    /// The tunnel inside a location.
    pub tunnel: String,
}

impl Default for Interfaces {
    fn default() -> Self {
        Self { wireguard: "kilo0".into(), private: "eth0".into(), tunnel: "tunl0".into() }
    }
}

/// A table of iptables-legacy in which an upstream agent left rules or chains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LegacyTable {
    /// Of `ip6tables-legacy`.
    pub ipv6: bool,
    /// `nat` or `filter`.
    pub table: String,
    /// How many rules have a comment of Kilo's.
    pub rules: u32,
    /// The chains whose names are Kilo's.
    pub chains: Vec<String>,
}

/// A peer of the device as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceFact {
    /// Who the peer is.
    pub public_key: PublicKey,
    /// Where its packets last came from, or were sent to.
    #[serde(default)]
    pub endpoint: Option<SocketAddr>,
    /// Seconds since 1970 (UTC), 0 for never.
    #[serde(default)]
    pub latest_handshake: u64,
}
