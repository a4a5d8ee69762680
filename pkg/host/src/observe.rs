//! Reading all of the host's network that is Kilo's or in its way.

use std::collections::BTreeMap;

use kilo_agent::HostError;
use kilo_mesh::DeviceFact;
use kilo_state::{CniFile, Dev, Device, Leftover, Observed, ObservedLink, ObservedRoute, Route, Rule};

use crate::error::refused;
use crate::facts::best_tunnel;
use crate::host::{LinuxHost, has_ipv6, tunnel_names};
use crate::leftovers::{self, Search};
use crate::netlink::link::LinkState;
use crate::netlink::route::KernelRoute;
use crate::netlink::rule::KernelRule;
use crate::netlink::{address, link, nftables, route, rule};
use crate::{cni, iptables_forward, sysctl};

/// Links by the part they play.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roles {
    by_index: BTreeMap<u32, Dev>,
    links: BTreeMap<Dev, LinkState>,
    /// Names of the parts, whether or not there is such a link, and of all other links.
    names: BTreeMap<Dev, String>,
}

impl Roles {
    /// The link of this part.
    pub(crate) fn link(&self, dev: Dev) -> Option<&LinkState> {
        self.links.get(&dev)
    }

    /// The name of the link of this part; of ours also when it is not there.
    pub(crate) fn name(&self, dev: Dev) -> Option<&str> {
        self.names.get(&dev).map(String::as_str)
    }

    /// The part that the link of this name plays. Rules outlive the links that they name.
    fn named(&self, name: &str) -> Dev {
        self.names.iter().find(|(_, found)| *found == name).map_or(Dev::Other(0), |(dev, _)| *dev)
    }

    /// The part that the link of this index plays.
    pub(crate) fn dev(&self, index: u32) -> Dev {
        self.by_index.get(&index).copied().unwrap_or(Dev::Other(index))
    }
}

impl LinuxHost {
    /// Who plays which part among these links.
    pub(crate) fn roles(&self, links: &[LinkState]) -> Roles {
        let mut roles = Roles::default();
        roles.names.insert(Dev::WireGuard, self.config.interface.clone());
        let tunnel = best_tunnel(tunnel_names(self.config.compatibility), links);
        roles.names.insert(Dev::Tunnel, tunnel.to_owned());
        if let Some(private) = &self.private {
            roles.names.insert(Dev::Private, private.clone());
        }
        for link in links {
            match roles.named(&link.name) {
                Dev::Other(_) => {
                    roles.names.insert(Dev::Other(link.index), link.name.clone());
                }
                dev @ (Dev::WireGuard | Dev::Private | Dev::Tunnel) => {
                    roles.by_index.insert(link.index, dev);
                    roles.links.insert(dev, link.clone());
                }
            }
        }
        roles
    }

    /// The device and the facts about its peers. Without its link a device is none, though it may not have
    /// noticed yet that somebody removed the link.
    pub(crate) async fn read_device(
        &mut self,
        has_link: bool,
    ) -> Result<Option<(Device, Vec<DeviceFact>)>, HostError> {
        if !has_link {
            self.wireguard.close().await;
            return Ok(None);
        }
        self.wireguard.read().await
    }

    /// Reads the CNI file, and watches it from now on.
    fn read_cni(&mut self) -> Option<CniFile> {
        let path = self.config.cni_path.as_deref()?;
        if let Some(watch) = &mut self.cni_watch {
            watch.renew();
        }
        cni::observe(path, &mut self.cni_seen)
    }

    /// Reads everything.
    pub(crate) async fn read_all(&mut self) -> Result<Observed, HostError> {
        let ipv6 = has_ipv6();
        self.defaults = None;
        let links = link::list(&mut self.route).map_err(refused("listing links"))?;
        let addresses = address::list(&mut self.route).map_err(refused("listing addresses"))?;
        let routes = route::list(&mut self.route, ipv6).map_err(refused("listing routes"))?;
        let rules = rule::list(&mut self.route, ipv6).map_err(refused("listing rules"))?;
        let table =
            nftables::read_table(&mut self.nftables, kilo_nftables::TableFamily::Inet, &self.config.table)
                .map_err(refused(format!("reading nftables table {}", self.config.table)))?;
        let (forward, half) = iptables_forward::observe(&mut self.nftables, ipv6)
            .map_err(refused("listing the rules of iptables FORWARD"))?;
        let mut left = leftovers::observe(&mut self.nftables, ipv6, self.leftovers)
            .map_err(refused("looking for chains of another Kilo"))?;
        self.leftovers = if left.is_empty() { Search::Chains } else { Search::Everything };
        left.extend(half.into_iter().map(Leftover::HalfForward));
        let roles = self.roles(&links);
        let device = self.read_device(roles.link(Dev::WireGuard).is_some()).await?.map(|(device, _)| device);
        let observed = Observed {
            links: observed_links(&roles, &addresses),
            device,
            routes: observed_routes(&roles, &routes),
            rules: observed_rules(&roles, &rules),
            table,
            forward,
            leftovers: left,
            sysctls: sysctl::observe(roles.links.values().map(|link| link.name.as_str())),
            cni: self.read_cni(),
        };
        let known = &mut self.monitor.known;
        known.links = links.into_iter().map(|link| (link.index, link)).collect();
        known.addresses = addresses.into_iter().collect();
        let sysctls = observed.sysctls.iter();
        known.sysctls = sysctls.map(|(path, value)| (path.to_string(), value.to_string())).collect();
        known.routes = observed
            .routes
            .iter()
            .filter(|route| route.is_ours())
            .map(|observed| (observed.route.table, observed.route.dst))
            .collect();
        self.defaults = Some(routes.into_iter().filter(route::is_default).collect());
        Ok(observed)
    }
}

fn observed_links(roles: &Roles, addresses: &[address::LinkAddress]) -> Vec<ObservedLink> {
    let of = |index: u32| addresses.iter().filter(move |(link, _)| *link == index).map(|(_, net)| *net);
    let links = roles.links.iter().map(|(dev, link)| ObservedLink {
        dev: *dev,
        name: link.name.as_str().into(),
        index: link.index,
        mtu: link.mtu,
        up: link.up,
        addresses: of(link.index).collect(),
    });
    links.collect()
}

fn observed_routes(roles: &Roles, routes: &[KernelRoute]) -> Vec<ObservedRoute> {
    let mut list: Vec<ObservedRoute> = routes
        .iter()
        .map(|route| ObservedRoute {
            route: Route {
                table: route.table,
                dst: route.dst,
                // Kilo never makes a route of several ways, so its first link says nothing; nor one with a metric.
                dev: if route.multipath || route.metric {
                    Dev::Other(route.link)
                } else {
                    roles.dev(route.link)
                },
                via: route.via,
                src: route.src,
                onlink: route.onlink,
            },
            protocol: route.protocol,
        })
        .collect();
    list.sort_unstable();
    list
}

fn observed_rules(roles: &Roles, rules: &[KernelRule]) -> Vec<Rule> {
    let mut list: Vec<Rule> = rules
        .iter()
        .map(|rule| Rule {
            src: rule.src,
            dst: rule.dst,
            iif: rule.iif.as_deref().map(|name| roles.named(name)),
            table: rule.table,
        })
        .collect();
    list.sort_unstable();
    list.dedup();
    list
}
