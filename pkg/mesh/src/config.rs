//! The settings of an agent that its plan depends on: the flags of `kg` that matter, understood.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// How nodes are grouped into segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// One segment for each location.
    #[default]
    Location,
    /// One segment for each node.
    Full,
}

/// When packets inside a location go through the tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encapsulate {
    /// Never.
    Never,
    /// When the other node is outside our private network.
    CrossSubnet,
    /// Always.
    #[default]
    Always,
}

/// Whose tunnel is used inside a location.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compatibility {
    /// Our own IPIP tunnel.
    #[default]
    None,
    /// flannel's VXLAN.
    Flannel,
    /// IPIP over Cilium.
    Cilium,
}

/// How the MTU of the WireGuard link is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mtu {
    /// From the link of the default route.
    #[default]
    Auto,
    /// This many bytes.
    Fixed(u32),
}

/// What makes the leader of a location another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaderFailover {
    /// That others do not reach it, beside the age of its last check-in.
    #[default]
    DataPath,
    /// The age of its last check-in alone, as upstream has it. One node that wants it so is enough for all.
    Age,
}

/// The settings of one agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// The name of the local Node.
    pub hostname: String,
    /// `--mesh-granularity`.
    pub granularity: Granularity,
    /// `--encapsulate`.
    pub encapsulate: Encapsulate,
    /// `--compatibility`.
    pub compatibility: Compatibility,
    /// `--local`: manage routes inside the location.
    pub local: bool,
    /// `--cni`: manage the pod ranges of the CNI file and masquerade what pods send out.
    pub cni: bool,
    /// `--cni-path`.
    pub cni_path: String,
    /// `--iptables-forward-rules`.
    pub iptables_forward_rules: bool,
    /// `--topology-label`.
    pub topology_label: String,
    /// `--subnet`, without host bits.
    pub subnet: IpNet,
    /// `--port`.
    pub port: u16,
    /// `--service-cidr`, without host bits.
    pub service_cidrs: Vec<IpNet>,
    /// `--mtu`.
    pub mtu: Mtu,
    /// `--prioritise-private-addresses`.
    pub prioritise_private_addresses: bool,
    /// `--create-interface`.
    pub create_interface: bool,
    /// Seconds after which a node that has not checked in is left out; 0 for never.
    pub node_expiry: u64,
    /// `--leader-failover`. What counts in a plan is what the nodes say.
    pub leader_failover: LeaderFailover,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hostname: String::new(),
            granularity: Granularity::default(),
            encapsulate: Encapsulate::default(),
            compatibility: Compatibility::default(),
            local: true,
            cni: true,
            cni_path: "/etc/cni/net.d/10-kilo.conflist".into(),
            iptables_forward_rules: false,
            topology_label: "topology.kubernetes.io/region".into(),
            subnet: IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 4, 0, 0), 16)),
            port: kilo_wireguard::DEFAULT_PORT,
            service_cidrs: Vec::new(),
            mtu: Mtu::default(),
            prioritise_private_addresses: false,
            create_interface: true,
            node_expiry: 60,
            leader_failover: LeaderFailover::default(),
        }
    }
}
