//! Routes and rules: of a leader, of a node that does not lead, and of a Peer's host.

mod leader;
mod member;
mod peer;

use std::net::IpAddr;

use ipnet::IpNet;
use kilo_state::{Dev, MAIN_TABLE, Route, Rule, TABLE};

use crate::topology::{Member, Topology};
use crate::{Compatibility, Encapsulate, order, parse};

/// Whose tunnel carries packets inside a location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulator {
    /// Our own IPIP tunnel: the other node's private address is the gateway.
    Ipip,
    /// flannel's VXLAN: the first address of the other node's pod range is the gateway.
    Flannel,
    /// IPIP over Cilium: the other node's address inside Cilium is the gateway.
    Cilium,
    /// None: the host has no private address.
    Noop,
}

impl From<Compatibility> for Encapsulator {
    fn from(compatibility: Compatibility) -> Self {
        match compatibility {
            Compatibility::None => Self::Ipip,
            Compatibility::Flannel => Self::Flannel,
            Compatibility::Cilium => Self::Cilium,
        }
    }
}

impl Encapsulator {
    /// The next hop to a node of the own location.
    fn gateway(self, node: &Member) -> Option<IpAddr> {
        match self {
            Self::Ipip => node.private_ip,
            Self::Flannel => Some(node.subnet.network()),
            Self::Cilium => {
                Some(node.cni_compatibility_ip.map_or_else(|| node.subnet.network(), |ip| ip.addr()))
            }
            Self::Noop => None,
        }
    }
}

/// How packets travel inside a location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inside {
    /// Whose tunnel.
    pub encapsulator: Encapsulator,
    /// When.
    pub strategy: Encapsulate,
    /// Whether routes inside the location are ours to make.
    pub local: bool,
}

/// The routes and rules of one host, sorted and without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Routes. Two of one table and destination may be among them where the mesh is contradictory.
    pub routes: Vec<Route>,
    /// Rules.
    pub rules: Vec<Rule>,
}

impl Topology {
    /// The routes and rules of the local node.
    pub fn routing(&self, inside: Inside) -> Routing {
        let mut builder = Builder { topology: self, inside, out: Routing::default() };
        if self.leader {
            builder.leader()
        } else {
            builder.member()
        }
        let Routing { routes, mut rules } = builder.out;
        rules.sort_unstable();
        rules.dedup();
        Routing { routes: sorted(&routes), rules }
    }

    /// The local node's route to a range of a Peer. A node that does not lead has none where its leader has no
    /// address of the range's family.
    pub(crate) fn route_to_peer(&self, inside: Inside, dst: IpNet) -> Option<Route> {
        if self.leader {
            Some(over_wireguard(dst, None, self.private_addr()))
        } else {
            self.route_inside(inside, dst, self.gateway_to_leader(inside))
        }
    }

    fn gateway_to_leader(&self, inside: Inside) -> Option<IpAddr> {
        self.leader_of(self.local_segment()).and_then(|node| inside.encapsulator.gateway(node))
    }

    fn private_addr(&self) -> Option<IpAddr> {
        self.private_ip.map(|n| n.addr())
    }

    /// Whether the tunnel carries packets to this address of the own location.
    fn tunnelled(&self, inside: Inside, to: IpAddr) -> bool {
        match inside.strategy {
            Encapsulate::Never => false,
            Encapsulate::Always => true,
            Encapsulate::CrossSubnet => !self.private_ip.is_some_and(|net| net.contains(&to)),
        }
    }

    /// A route over the private network or the tunnel. Without a gateway of the destination's family there is
    /// no such route.
    fn route_inside(&self, inside: Inside, dst: IpNet, gateway: Option<IpAddr>) -> Option<Route> {
        let via = gateway.filter(|ip| parse::same_family(*ip, dst.addr()))?;
        let (dev, src) = if self.tunnelled(inside, via) {
            (Dev::Tunnel, self.private_addr().filter(|ip| parse::same_family(*ip, via)))
        } else {
            (Dev::Private, None)
        };
        Some(Route { table: MAIN_TABLE, dst, dev, via: Some(via), src, onlink: true })
    }
}

/// The routes in their order, each once.
fn sorted(routes: &[Route]) -> Vec<Route> {
    let mut out = Vec::with_capacity(routes.len());
    // Tables come before destinations.
    let (kilo, main): (Vec<u32>, Vec<u32>) =
        (0..routes.len() as u32).partition(|&i| routes[i as usize].table != MAIN_TABLE);
    for table in [main, kilo] {
        let order = order::of_nets(table.iter().map(|&i| routes[i as usize].dst));
        out.extend(order.into_iter().map(|i| routes[table[i as usize] as usize]));
    }
    for same in out.chunk_by_mut(|a, b| (a.table, a.dst) == (b.table, b.dst)) {
        if same.len() > 1 {
            same.sort_unstable();
        }
    }
    out.dedup();
    out
}

struct Builder<'a> {
    topology: &'a Topology,
    inside: Inside,
    out: Routing,
}

/// A route over the WireGuard link. A gateway or source of another family than the destination is left out:
/// the kernel takes neither, and the device finds the peer by the destination alone.
fn over_wireguard(dst: IpNet, via: Option<IpAddr>, src: Option<IpAddr>) -> Route {
    let fits = |ip: &IpAddr| parse::same_family(*ip, dst.addr());
    let via = via.filter(fits);
    Route { table: MAIN_TABLE, dst, dev: Dev::WireGuard, via, src: src.filter(fits), onlink: via.is_some() }
}

impl Builder<'_> {
    fn private_addr(&self) -> Option<IpAddr> {
        self.topology.private_addr()
    }

    fn tunnelled(&self, to: IpAddr) -> bool {
        self.topology.tunnelled(self.inside, to)
    }

    fn inside_location(&mut self, dst: IpNet, gateway: Option<IpAddr>) {
        self.out.routes.extend(self.topology.route_inside(self.inside, dst, gateway));
    }

    /// Routes a private address over the tunnel in Kilo's own table.
    fn private_over_tunnel(&mut self, dst: IpAddr, gateway: Option<IpAddr>, src: Option<IpAddr>) {
        let Some(via) = gateway.filter(|ip| parse::same_family(*ip, dst)) else { return };
        let src = src.filter(|ip| parse::same_family(*ip, dst));
        let (table, dst) = (TABLE, parse::one(dst));
        self.out.routes.push(Route { table, dst, dev: Dev::Tunnel, via: Some(via), src, onlink: true });
    }

    /// Packets that come in over WireGuard look a private address up in Kilo's own table.
    fn rule_from_wireguard(&mut self, dst: IpAddr) {
        self.out.rules.push(Rule {
            src: None,
            dst: parse::one(dst),
            iif: Some(Dev::WireGuard),
            table: TABLE,
        });
    }

    /// Packets of our own pods look a private address up in Kilo's own table. Upstream names only the first
    /// pod range, of whatever family; there is no need to add more that no packet can match.
    fn rules_from_pods(&mut self, dst: IpAddr) {
        let local = self.topology.local();
        let further = local.further_subnets.iter().filter(|net| parse::same_family(net.addr(), dst));
        let rule = |src| Rule { src: Some(src), dst: parse::one(dst), iif: None, table: TABLE };
        self.out.rules.extend([local.subnet].into_iter().chain(further.copied()).map(rule));
    }

    /// What both kinds of node have of another node of their location: its pods, and its private address for
    /// our pods if that goes through the tunnel. Returns whether it does.
    fn neighbour(&mut self, node: &Member, private: IpAddr) -> bool {
        let gateway = self.inside.encapsulator.gateway(node);
        for net in node.subnets() {
            self.inside_location(net, gateway);
        }
        let tunnelled = gateway.is_some() && self.tunnelled(private);
        if tunnelled {
            self.private_over_tunnel(private, gateway, self.private_addr());
            self.rules_from_pods(private);
        }
        tunnelled
    }
}
