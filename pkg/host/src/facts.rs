//! Facts about this machine: its addresses, the names and MTUs of its links, what its kernel can do.

use ipnet::IpNet;
use kilo_agent::{DiscoverConfig, HostError};
use kilo_mesh::{Compatibility, HostFacts, Interfaces, LegacyTable};
use rustix::io::Errno;

use crate::discover::{Listing, discover};
use crate::error::{refused, retry};
use crate::host::{LinuxHost, can_use_ipv6, has_ipv6, tunnel_names};
use crate::iptables_legacy;
use crate::netlink::link::LinkState;
use crate::netlink::monitor::Doing;
use crate::netlink::{address, link, route};
use crate::resolve::{HOSTNAME, resolve};

/// The bridge of Kilo's CNI configuration.
const POD_BRIDGE: &str = "kube-bridge";
/// The link whose address Cilium's agents know a node by.
const CILIUM_HOST: &str = "cilium_host";
/// A link that is there for a moment, to see whether the kernel has IPIP.
const PROBE: &str = "kilo-ipip-probe";

impl LinuxHost {
    /// Finds everything, the hostname's addresses included.
    pub(crate) async fn discover_facts(&mut self, config: &DiscoverConfig) -> Result<HostFacts, HostError> {
        self.discovery = config.clone();
        self.hostname = resolve(config.hostname.clone(), HOSTNAME).await.unwrap_or_default();
        let facts = self.read_facts().await?;
        if facts.external_ip.is_none() {
            let why = "no link has an address but loopback, link-local ones, and those of the mesh";
            return Err(retry("finding an address of this machine", why));
        }
        Ok(facts)
    }

    /// Finds everything again, with the hostname's addresses as they were. What was told before is forgotten: all
    /// is read after this, by [`read_all`](Self::read_all) as well.
    pub(crate) async fn read_facts(&mut self) -> Result<HostFacts, HostError> {
        self.monitor.forget();
        let links = link::list(&mut self.route).map_err(refused("listing links"))?;
        let addresses = address::list(&mut self.route).map_err(refused("listing addresses"))?;
        let ipv6 = has_ipv6();
        let default_link = self.default_link(ipv6)?;

        let tunnels = tunnel_names(self.config.compatibility);
        let mut ignored = vec![self.config.interface.as_str(), POD_BRIDGE, "tunl0"];
        ignored.extend(tunnels);
        let found = discover(
            &Listing {
                links: &links,
                addresses: &addresses,
                default_link,
                hostname: &self.hostname,
                ignored: &ignored,
            },
            &self.discovery,
        );
        let by_index = |index: Option<u32>| links.iter().find(|link| Some(link.index) == index);
        let private = by_index(found.private_link);
        let uplink = by_index(default_link);
        self.private = private.map(|link| link.name.clone());
        let tunnel = best_tunnel(tunnels, &links);
        self.watch(tunnel, uplink);

        let cilium = self.config.compatibility == Compatibility::Cilium;
        let cilium_host: Option<IpNet> =
            links.iter().find(|link| cilium && link.name == CILIUM_HOST).and_then(|link| {
                let mut nets =
                    addresses.iter().filter(|(index, net)| *index == link.index && net.addr().is_ipv4());
                nets.next().map(|(_, net)| *net)
            });
        let defaults = Interfaces::default();
        let has_link = links.iter().any(|link| link.name == self.config.interface);
        let device = self.read_device(has_link).await?;
        Ok(HostFacts {
            public_key: Some(self.key.public_key()),
            internal_ip: found.internal,
            external_ip: found.external,
            cni_compatibility_ip: cilium_host,
            uplink_mtu: uplink.map(|link| link.mtu),
            private_mtu: private.map(|link| link.mtu),
            interfaces: Interfaces {
                wireguard: self.config.interface.clone(),
                private: self.private.clone().unwrap_or(defaults.private),
                tunnel: tunnel.to_owned(),
            },
            ipip: self.has_ipip(&links),
            tunnel: match self.config.compatibility {
                Compatibility::None => None,
                Compatibility::Flannel => Some(links.iter().any(|link| link.name == tunnel)),
                Compatibility::Cilium => Some(links.iter().any(|link| link.name == tunnels[0])),
            },
            tunnel_addresses: links
                .iter()
                .filter(|link| link.name == tunnel && link.up)
                .flat_map(|link| addresses.iter().filter(|(index, _)| *index == link.index))
                .map(|(_, net)| *net)
                .collect(),
            ipv6: Some(can_use_ipv6()),
            legacy_filter_v4: self.config.forward_rules && iptables_legacy::has_filter(false),
            legacy_filter_v6: self.config.forward_rules && iptables_legacy::has_filter(true),
            legacy_leftovers: self.legacy_leftovers(),
            device: device.map(|(_, facts)| facts).unwrap_or_default(),
            ..HostFacts::default()
        })
    }

    /// What an upstream agent left in iptables-legacy. Where nothing was found it is not looked for again: only
    /// an agent that runs beside this one could have put it there.
    fn legacy_leftovers(&mut self) -> Vec<LegacyTable> {
        if self.legacy.as_ref().is_none_or(|found| !found.is_empty()) {
            self.legacy = Some(iptables_legacy::leftovers());
        }
        self.legacy.clone().unwrap_or_default()
    }

    /// The link of the first default route. The routes are read when they may have changed.
    fn default_link(&mut self, ipv6: bool) -> Result<Option<u32>, HostError> {
        let changed = self.monitor.take_default_changed();
        if changed || self.defaults.is_none() {
            let routes = route::list(&mut self.route, ipv6).map_err(refused("listing routes"))?;
            self.defaults = Some(routes.into_iter().filter(route::is_default).collect());
        }
        Ok(self.defaults.iter().flatten().map(|route| route.link).find(|link| *link != 0))
    }

    /// Has the monitor look at the links that these facts come from.
    fn watch(&mut self, tunnel: &str, uplink: Option<&LinkState>) {
        let interest = &mut self.monitor.interest;
        tunnel.clone_into(&mut interest.tunnel);
        interest.others =
            [self.private.clone(), uplink.map(|link| link.name.clone())].into_iter().flatten().collect();
        interest.others.extend(tunnel_names(self.config.compatibility).iter().map(|name| (*name).to_owned()));
        if self.config.compatibility == Compatibility::Cilium {
            interest.others.insert(CILIUM_HOST.to_owned());
        }
    }

    /// Whether the kernel can make IPIP tunnels; found out once.
    fn has_ipip(&mut self, links: &[LinkState]) -> Option<bool> {
        if !self.config.tunnels || self.config.compatibility == Compatibility::Flannel {
            return None;
        }
        if self.ipip.is_none() {
            self.ipip =
                if links.iter().any(|link| link.name == "tunl0") { Some(true) } else { self.probe_ipip() };
        }
        self.ipip
    }

    fn probe_ipip(&mut self) -> Option<bool> {
        let result = match link::create_ipip(&mut self.route, PROBE) {
            Ok(()) => Some(true),
            Err(refused) if matches!(refused.errno, Errno::OPNOTSUPP | Errno::NODEV | Errno::NOENT) => {
                Some(false)
            }
            Err(refused) => {
                tracing::debug!(error = %refused, "Kernel cannot be tried for IPIP");
                None
            }
        };
        // A tunnel without ends that the module made itself stands for ours: then there is no probe.
        let probe =
            link::list(&mut self.route).ok().and_then(|links| links.into_iter().find(|l| l.name == PROBE));
        if let Some(probe) = probe
            && let Err(refused) = link::delete(&mut self.route, probe.index)
        {
            tracing::warn!(link = PROBE, error = %refused, "Link of the IPIP probe stays");
        }
        self.monitor.absorb(PROBE, Doing::Remove);
        result
    }
}

/// The first tunnel that is there, else the one that would be made.
pub(crate) fn best_tunnel<'a>(names: &[&'a str], links: &[LinkState]) -> &'a str {
    let there = names.iter().find(|name| links.iter().any(|link| link.name == **name));
    there.or(names.last()).copied().unwrap_or("tunl0")
}
