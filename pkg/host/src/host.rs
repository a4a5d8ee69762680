//! The host of one network namespace: its sockets, its WireGuard device, and what it knows between two
//! readings.

use std::net::IpAddr;

use kilo_agent::{DiscoverConfig, Host, HostError, HostEvent};
use kilo_mesh::{Compatibility, HostFacts, LegacyTable};
use kilo_state::{Observed, Op};
use kilo_wireguard::PrivateKey;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use crate::config::HostConfig;
use crate::leftovers::Search;
use crate::netlink::monitor::{Interest, Monitor};
use crate::netlink::route::KernelRoute;
use crate::netlink::socket::Socket;
use crate::resolve::{ENDPOINT, resolve};
use crate::wireguard::{WireGuard, WireGuardConfig};
use crate::{error, key};

/// Where the kernel has the settings of IPv6, if it has IPv6.
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// This machine, seen from the network namespace of the thread that made it. All its work is done in that
/// namespace, as long as the threads that poll its futures are in it, too.
pub struct LinuxHost {
    pub(crate) config: HostConfig,
    pub(crate) key: PrivateKey,
    pub(crate) route: Socket,
    pub(crate) nftables: Socket,
    pub(crate) monitor: Monitor,
    pub(crate) wireguard: WireGuard,
    pub(crate) discovery: DiscoverConfig,
    /// What the hostname resolved to when it was last looked up.
    pub(crate) hostname: Vec<IpAddr>,
    /// The name of the link with the private address.
    pub(crate) private: Option<String>,
    /// The default routes in the kernel's order, as long as nobody changed them.
    pub(crate) defaults: Option<Vec<KernelRoute>>,
    /// Whether the kernel can make IPIP tunnels, once it was tried.
    pub(crate) ipip: Option<bool>,
    /// How to look for what an upstream agent left in iptables-nft.
    pub(crate) leftovers: Search,
    /// What an upstream agent left in iptables-legacy, once it was looked for.
    pub(crate) legacy: Option<Vec<LegacyTable>>,
}

impl LinuxHost {
    /// Opens the sockets, and reads or makes the private key. Must be called within a Tokio runtime.
    pub fn open(config: HostConfig) -> Result<Self, HostError> {
        let key = key::load_or_create(&config.data_dir)
            .map_err(|source| error::fatal("taking up the private key", source))?;
        let open = |protocol| Socket::open(protocol).map_err(error::io("opening a netlink socket"));
        let route = open(NETLINK_ROUTE)?;
        route.strict_dumps();
        let nftables = open(NETLINK_NETFILTER)?;
        let interest = Interest {
            wireguard: config.interface.clone(),
            tunnel: tunnel_names(config.compatibility)[0].to_owned(),
            table: config.table.clone(),
            forward: config.forward_rules,
            ..Interest::default()
        };
        let monitor = Monitor::open([route.port(), nftables.port()], interest)
            .map_err(error::io("listening for changes of the network"))?;
        let wireguard = WireGuard::open(WireGuardConfig {
            mode: config.wireguard,
            interface: config.interface.clone(),
            data_dir: config.data_dir.clone(),
            create: config.create_interface,
            socket_dir: config.socket_dir.clone(),
        })?;
        Ok(Self {
            config,
            key,
            route,
            nftables,
            monitor,
            wireguard,
            discovery: DiscoverConfig::default(),
            hostname: Vec::new(),
            private: None,
            defaults: None,
            ipip: None,
            leftovers: Search::Everything,
            legacy: None,
        })
    }
}

/// The tunnel inside a location, the best first.
pub(crate) fn tunnel_names(compatibility: Compatibility) -> &'static [&'static str] {
    match compatibility {
        Compatibility::None => &["tunl0"],
        Compatibility::Flannel => &["flannel.1"],
        Compatibility::Cilium => &["cilium_tunl", "tunl0"],
    }
}

/// Whether the kernel has IPv6. Without it, questions about IPv6 are answered with IPv4.
pub(crate) fn has_ipv6() -> bool {
    std::path::Path::new(IPV6).exists()
}

/// Whether links made from now on can have IPv6 addresses.
pub(crate) fn can_use_ipv6() -> bool {
    let disabled = std::fs::read_to_string(format!("{IPV6}/default/disable_ipv6"));
    disabled.is_ok_and(|text| text.trim() == "0")
}

impl Host for LinuxHost {
    async fn discover(&mut self, config: &DiscoverConfig) -> Result<HostFacts, HostError> {
        self.discover_facts(config).await
    }

    async fn facts(&mut self) -> Result<HostFacts, HostError> {
        self.read_facts().await
    }

    async fn observe(&mut self) -> Result<Observed, HostError> {
        self.read_all().await
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), HostError>> {
        self.carry_out(ops).await
    }

    async fn changed(&mut self) -> HostEvent {
        self.monitor.changed().await
    }

    async fn close(&mut self) {
        self.wireguard.close().await;
    }

    fn resolve(&self, name: String) -> impl Future<Output = Option<Vec<IpAddr>>> + Send + 'static {
        resolve(name, ENDPOINT)
    }
}
