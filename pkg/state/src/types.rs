//! Links, addresses, routes, rules and the rest as values. Their order is the order of every list.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use kilo_nftables::Table;
use serde::{Deserialize, Serialize};

use crate::Device;

/// The kernel's main routing table (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;
/// Kilo's own routing table.
pub const TABLE: u32 = 1107;
/// The route protocol (`rtm_protocol`, `FRA_PROTOCOL`) by which our routes and rules are known again.
pub const PROTOCOL: u8 = 75;
/// `RTPROT_STATIC`, the protocol of upstream Kilo's routes.
pub const PROTOCOL_STATIC: u8 = 4;
/// The priority of our rules: before the main table's 32766, after what administrators usually set.
pub const RULE_PRIORITY: u32 = 32_000;

/// A link by the part it plays; its name stands in [`Desired::links`] or with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dev {
    /// The WireGuard link, `kilo0`.
    WireGuard,
    /// The link that holds the private address, say `eth0`.
    Private,
    /// The tunnel inside a location: `tunl0`, `flannel.1` or `cilium_tunl`.
    Tunnel,
    /// Any other link, by the kernel's index.
    Other(u32),
}

/// What a link of ours is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// A WireGuard link, of the kernel or of a userspace device.
    WireGuard,
    /// The IPv4-in-IPv4 tunnel of the kernel.
    Ipip,
    /// A link of somebody else's that is used as it is.
    Foreign,
}

/// A link that should be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The part it plays.
    pub dev: Dev,
    /// Its name in the kernel.
    pub name: Box<str>,
    /// What it is.
    pub kind: LinkKind,
    /// Made when missing. Without it a missing link is the host's error.
    pub create: bool,
    /// Bytes; `None` leaves the MTU as it is.
    pub mtu: Option<u32>,
    /// Whether it is up.
    pub up: bool,
    /// All the addresses it has, link-local ones aside; `None` leaves them as they are.
    pub addresses: Option<Vec<IpNet>>,
}

/// A link that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedLink {
    /// The part it plays.
    pub dev: Dev,
    /// Its name in the kernel.
    pub name: Box<str>,
    /// The kernel's index.
    pub index: u32,
    /// Bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its addresses with prefix length, sorted, link-local ones aside.
    pub addresses: Vec<IpNet>,
}

/// An address of a link, in operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// The link.
    pub dev: Dev,
    /// Address and prefix length.
    pub net: IpNet,
}

/// A unicast route of universe scope. Table and destination are its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// [`MAIN_TABLE`] or [`TABLE`].
    pub table: u32,
    /// Destination without host bits.
    pub dst: IpNet,
    /// The link it leaves by.
    pub dev: Dev,
    /// The gateway.
    pub via: Option<IpAddr>,
    /// The preferred source.
    pub src: Option<IpAddr>,
    /// The gateway is taken to be on the link (`RTNH_F_ONLINK`).
    pub onlink: bool,
}

/// A route that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObservedRoute {
    /// The route.
    pub route: Route,
    /// Its `rtm_protocol`.
    pub protocol: u8,
}

/// A policy rule of action "look up a table", of protocol [`PROTOCOL`] and priority [`RULE_PRIORITY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// The source it is for.
    pub src: Option<IpNet>,
    /// The destination it is for.
    pub dst: IpNet,
    /// The link packets come in by.
    pub iif: Option<Dev>,
    /// The table to look in.
    pub table: u32,
}

/// One accepted range of `--iptables-forward-rules`: a rule for each direction in `filter FORWARD` of the
/// iptables-nft table of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ForwardAccept(pub IpNet);

/// A chain that upstream Kilo makes in the tables of iptables, with the rules of other chains that go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamChain {
    /// `KILO-NAT` of the table `nat`, and the jumps to it from `POSTROUTING`.
    Nat,
    /// `KILO-IPIP` of the table `filter`, and in `INPUT` the jump to it and the drop of other IPIP.
    Ipip,
}

/// What an upstream agent left behind and only it would have removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leftover {
    /// A chain in a table of iptables-nft. Ours does its work, so it goes.
    Chain {
        /// Of `ip6tables`.
        ipv6: bool,
        /// Which.
        chain: UpstreamChain,
    },
    /// A range that FORWARD accepts in one direction only.
    HalfForward(ForwardAccept),
}

/// The pod ranges in a CNI configuration file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CniFile {
    /// Absolute path.
    pub path: Box<str>,
    /// The `ranges` of each `ipam`.
    pub ranges: Vec<IpNet>,
}

/// What a host's network should be. Lists are sorted and without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The links we manage, in order of [`Dev`]. A link that is there and not named here stays.
    pub links: Vec<Link>,
    /// Links to remove where they are there, by part and name: those we made, when we go.
    pub remove_links: Vec<(Dev, Box<str>)>,
    /// The WireGuard device; `None` leaves it as it is.
    pub device: Option<Device>,
    /// Our routes.
    pub routes: Vec<Route>,
    /// The private addresses of the nodes of our location, ready or not: an upstream agent's routes lead there.
    pub neighbours: Vec<IpAddr>,
    /// Our rules.
    pub rules: Vec<Rule>,
    /// Our nftables table; `None` when there should be none.
    pub table: Option<Table>,
    /// Accepted ranges in the FORWARD chains of iptables-nft.
    pub forward: Vec<ForwardAccept>,
    /// Kernel parameters by their path below `/proc/sys`, such as `net/ipv4/ip_forward`.
    pub sysctls: BTreeMap<Box<str>, Box<str>>,
    /// The CNI file, if we manage one.
    pub cni: Option<CniFile>,
}

/// What a host's network is, as far as it is ours or in our way. Lists are sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Links that play a part.
    pub links: Vec<ObservedLink>,
    /// The WireGuard device.
    pub device: Option<Device>,
    /// All unicast routes of [`TABLE`], and those of the main table.
    pub routes: Vec<ObservedRoute>,
    /// Rules that look up [`TABLE`].
    pub rules: Vec<Rule>,
    /// Our nftables table.
    pub table: Option<Table>,
    /// Our rules in the FORWARD chains of iptables-nft.
    pub forward: Vec<ForwardAccept>,
    /// What upstream Kilo left behind.
    pub leftovers: Vec<Leftover>,
    /// Kernel parameters that a plan may name; absent where the kernel has none of that name.
    pub sysctls: BTreeMap<Box<str>, Box<str>>,
    /// The CNI file, where there is one that can be read.
    pub cni: Option<CniFile>,
}

impl ObservedRoute {
    /// Whether the route is ours to change or remove: made by us, in Kilo's table, or left by an upstream
    /// agent on a link that only Kilo routes to.
    pub fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
            || self.route.table == TABLE
            || (self.protocol == PROTOCOL_STATIC && matches!(self.route.dev, Dev::WireGuard | Dev::Tunnel))
    }

    /// Whether the route has the shape that an upstream agent gives to those over the link with the private
    /// address. Administrators have static routes there, too, but they set "onlink" for gateways outside of the
    /// link's networks, seldom for a node: ours to remove only where the gateway is one.
    pub fn has_upstreams_shape(&self) -> bool {
        let Route { table, dst, dev, via, src, onlink } = self.route;
        let place = table == MAIN_TABLE && dev == Dev::Private && dst.prefix_len() > 0;
        self.protocol == PROTOCOL_STATIC && place && onlink && via.is_some() && src.is_none()
    }

    /// Whether an upstream agent made the route, or ours: of those over the link with the private address, where
    /// `neighbours`, sorted, has the gateway.
    pub(crate) fn is_kilos(&self, neighbours: &[IpAddr]) -> bool {
        let to_node = self.route.via.is_some_and(|via| neighbours.binary_search(&via).is_ok());
        self.is_ours() || (to_node && self.has_upstreams_shape())
    }
}
