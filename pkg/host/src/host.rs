//! The host of one network namespace: its sockets, its WireGuard device, and what it knows between two
//! readings.

use std::net::IpAddr;
use std::path::Path;

use kilo_agent::{DiscoverConfig, Host, HostError, HostEvent};
use kilo_mesh::{Compatibility, HostFacts, LegacyTable};
use kilo_state::{Dev, Observed, Op};
use kilo_wireguard::PrivateKey;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use crate::cni::Seen;
use crate::config::HostConfig;
use crate::leftovers::Search;
use crate::netlink::culprit::Thing;
use crate::netlink::monitor::{Interest, Monitor};
use crate::netlink::route::KernelRoute;
use crate::netlink::socket::Socket;
use crate::probe::answers;
use crate::resolve::{ENDPOINT, resolve};
use crate::watch::FileWatch;
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
    /// The CNI file as it last was, and the watch on it.
    pub(crate) cni_seen: Option<Seen>,
    pub(crate) cni_watch: Option<FileWatch>,
}

impl LinuxHost {
    /// Opens the sockets, and reads or makes the private key. Must be called within a Tokio runtime.
    pub fn open(config: HostConfig) -> Result<Self, HostError> {
        let key = key::load_or_create(&config.data_dir)
            .map_err(|source| error::fatal("taking up the private key", source))?;
        Self::with_key(config, key)
    }

    /// Opens the sockets for a device with this key; no key file is read or made. Must be called within a Tokio
    /// runtime.
    pub fn with_key(config: HostConfig, key: PrivateKey) -> Result<Self, HostError> {
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
        let cni_watch = config.cni_path.as_deref().and_then(|path| {
            let watch = FileWatch::new(Path::new(path));
            // There is a limit to them on each machine; without it the file is read at each resync.
            watch.inspect_err(|error| tracing::warn!(path, %error, "CNI file cannot be watched")).ok()
        });
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
            cni_seen: None,
            cni_watch,
        })
    }
}

impl LinuxHost {
    /// Who else last changed what an operation puts right.
    fn who_changed(&self, op: &Op) -> Option<String> {
        let link = |dev: &Dev| {
            let name = match dev {
                Dev::WireGuard => Some(self.config.interface.clone()),
                Dev::Tunnel => Some(self.monitor.interest.tunnel.clone()),
                Dev::Private => self.private.clone(),
                Dev::Other(_) => None,
            };
            name.map(Thing::Link)
        };
        let thing = match op {
            Op::AddRoute(route) | Op::ReplaceRoute(route) | Op::DeleteRoute(route) => {
                Thing::Route(route.table, route.dst)
            }
            Op::AddRule(_) | Op::DeleteRule(_) => Thing::Rules,
            Op::Nftables(_) => Thing::Table,
            Op::AddForward(_) | Op::DeleteForward(_) => Thing::Forward,
            Op::CreateLink { dev, .. } | Op::DeleteLink { dev, .. } => link(dev)?,
            Op::SetMtu(dev, _) | Op::SetUp(dev) | Op::SetDown(dev) => link(dev)?,
            Op::AddAddress(address) | Op::DeleteAddress(address) => link(&address.dev)?,
            // The kernel does not tell.
            Op::SetSysctl { .. }
            | Op::ConfigureDevice(_)
            | Op::RemovePeer(_)
            | Op::UpdatePeer(_)
            | Op::AddPeer(_)
            | Op::RemoveChain { .. }
            | Op::WriteCni(_) => return None,
        };
        self.monitor.culprits.of(&thing).map(ToString::to_string)
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
        let Self { monitor, cni_watch, wireguard, .. } = self;
        let file = async {
            match cni_watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = monitor.changed() => event,
            () = file => HostEvent::Files,
            () = wireguard.touched() => HostEvent::Device,
        }
    }

    fn culprit(&self, op: &Op) -> Option<String> {
        self.who_changed(op)
    }

    async fn close(&mut self) {
        self.wireguard.close().await;
    }

    fn resolve(&self, name: String) -> impl Future<Output = Option<Vec<IpAddr>>> + Send + 'static {
        resolve(name, ENDPOINT)
    }

    fn probe(&self, target: IpAddr) -> impl Future<Output = bool> + Send + 'static {
        answers(target)
    }
}
