//! What a host's network should be, from a topology, its routes and its firewall.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use kilo_state::{CniFile, Desired, Dev, ForwardAccept, Link, LinkKind, MAIN_TABLE, Route, Rule, TABLE};

use crate::device::{Unsettled, device, one_for_each_range};
use crate::endpoint::Known;
use crate::firewall::Tunnel;
use crate::topology::Topology;
use crate::{
    Config, Encapsulate, Encapsulator, Facts, Finding, Firewall, Inside, MtuDecision, Node, Routing, mtu,
    parse, table,
};

const FORWARDING6: &str = "net/ipv6/conf/all/forwarding";

/// What a plan has found out before the host's part is drawn up.
pub(crate) struct Input<'a> {
    pub(crate) config: &'a Config,
    /// All nodes, ready or not.
    pub(crate) nodes: &'a [&'a Node],
    pub(crate) facts: &'a Facts,
    pub(crate) known: &'a Known,
    pub(crate) topology: &'a Topology,
    pub(crate) inside: Inside,
    pub(crate) firewall: &'a Firewall,
    pub(crate) mtu: &'a MtuDecision,
    pub(crate) tunnel: Tunnel,
    /// Some range is there for two nodes.
    pub(crate) twice: bool,
}

/// The host's part.
pub(crate) struct Drawn {
    pub(crate) desired: Desired,
    /// The routes and rules that no host can have: two of one destination, or over what is not there.
    pub(crate) left_out: Routing,
    /// Whose endpoints may be others without any change of the mesh.
    pub(crate) unsettled: Vec<Unsettled>,
    /// Two nodes have one key.
    pub(crate) key_twice: bool,
}

/// The host's part of a plan.
pub(crate) fn desired(input: &Input<'_>, routing: Routing, findings: &mut Vec<Finding>) -> Drawn {
    let Input { config, facts, topology, .. } = *input;
    let ipv6 = facts.host.ipv6 != Some(false);
    let (routes, left_out) = possible(input, routing.routes, findings);
    // The kernel refuses a rule of two families.
    let possible_rule = |r: &Rule| {
        r.src.is_none_or(|src| parse::same_family(src.addr(), r.dst.addr()))
            && (ipv6 || r.dst.addr().is_ipv4())
    };
    let (rules, rules_left_out) = routing.rules.into_iter().partition(possible_rule);
    let left_out = Routing { routes: left_out, rules: rules_left_out };
    let drawn = device(topology, facts, input.known, findings);
    let mut device = drawn.device;
    if input.twice || topology.segments.iter().any(|s| !s.allowed_location_ips.is_empty()) {
        one_for_each_range(&mut device, topology);
    }
    let desired = Desired {
        links: links(input),
        remove_links: Vec::new(),
        device: Some(device),
        neighbours: neighbours(input.nodes, &topology.location),
        rules,
        table: Some(table::table(input.firewall)),
        forward: input.firewall.forward.accept.iter().map(|&net| ForwardAccept(net)).collect(),
        sysctls: sysctls(input, &routes),
        cni: config.cni.then(|| CniFile {
            path: config.cni_path.as_str().into(),
            ranges: topology.local().subnets().collect(),
        }),
        routes,
    };
    Drawn { desired, left_out, unsettled: drawn.unsettled, key_twice: drawn.twice }
}

/// The private addresses of a location's nodes, sorted.
fn neighbours(nodes: &[&Node], location: &str) -> Vec<IpAddr> {
    let here = nodes.iter().filter(|n| *n.location == *location);
    let mut list: Vec<IpAddr> = here.filter_map(|n| n.internal_ip).map(|net| net.addr()).collect();
    list.sort_unstable();
    list.dedup();
    list
}

fn links(input: &Input<'_>) -> Vec<Link> {
    let Input { config, facts, topology, inside, .. } = *input;
    let names = &facts.host.interfaces;
    let mut links = vec![Link {
        dev: Dev::WireGuard,
        name: names.wireguard.as_str().into(),
        kind: LinkKind::WireGuard,
        create: config.create_interface,
        mtu: Some(input.mtu.value),
        up: topology.leader,
        addresses: Some(if topology.leader { vec![topology.wireguard_cidr()] } else { Vec::new() }),
    }];
    let ours = matches!(inside.encapsulator, Encapsulator::Ipip | Encapsulator::Cilium);
    if ours && inside.strategy != Encapsulate::Never {
        // Cilium renames the tunnel when it takes it over; then only the address is ours.
        let foreign = names.tunnel != "tunl0";
        links.push(Link {
            dev: Dev::Tunnel,
            name: names.tunnel.as_str().into(),
            kind: if foreign { LinkKind::Foreign } else { LinkKind::Ipip },
            create: !foreign,
            mtu: facts.host.private_mtu.filter(|_| !foreign).map(|m| m.saturating_sub(mtu::IPIP_OVERHEAD)),
            up: true,
            addresses: match input.tunnel {
                Tunnel::Used(address) => Some(address.into_iter().collect()),
                Tunnel::Unused | Tunnel::Left => None,
            },
        });
    }
    if input.tunnel == Tunnel::Left {
        links.push(Link {
            dev: Dev::Tunnel,
            name: names.tunnel.as_str().into(),
            kind: LinkKind::Ipip,
            create: false,
            mtu: None,
            up: false,
            addresses: Some(Vec::new()),
        });
    }
    links
}

fn sysctls(input: &Input<'_>, routes: &[Route]) -> BTreeMap<Box<str>, Box<str>> {
    let Input { facts, topology, .. } = *input;
    let mut out: BTreeMap<Box<str>, Box<str>> = BTreeMap::new();
    out.insert("net/ipv4/ip_forward".into(), "1".into());
    forward_ipv6(&mut out, routes);
    // Packets of a node whose private address is also its endpoint come in over WireGuard, and the route
    // back is not there: strict reverse path filtering would drop them.
    let endpoint_is_private = topology.segments.iter().enumerate().any(|(i, s)| {
        let endpoint = topology.segment_addr(s).map(|a| a.ip());
        i != topology.local_segment
            && endpoint.is_some()
            && topology.members(s).iter().any(|m| m.private_ip == endpoint)
    });
    if topology.leader && endpoint_is_private {
        let name = &facts.host.interfaces.wireguard;
        out.insert(format!("net/ipv4/conf/{name}/rp_filter").into(), "2".into());
    }
    out
}

/// Has IPv6 forwarded where there is a route of that family.
pub(crate) fn forward_ipv6(sysctls: &mut BTreeMap<Box<str>, Box<str>>, routes: &[Route]) {
    // In each table IPv6 comes last.
    let last_of =
        |table| routes.partition_point(|r| r.table <= table).checked_sub(1).and_then(|i| routes.get(i));
    let ipv6 = |r: &Route| r.dst.addr().is_ipv6();
    if [MAIN_TABLE, TABLE].into_iter().filter_map(last_of).any(ipv6) {
        sysctls.insert(FORWARDING6.into(), "1".into());
    } else {
        sysctls.remove(FORWARDING6);
    }
}

/// Whether routes over the tunnel must wait until flannel has made it.
pub(crate) fn lacks_tunnel(facts: &Facts, inside: Inside) -> bool {
    facts.host.tunnel == Some(false) && inside.encapsulator == Encapsulator::Flannel
}

/// Sorts out the routes that the kernel would refuse or that would break the own location.
fn possible(input: &Input<'_>, routes: Vec<Route>, findings: &mut Vec<Finding>) -> (Vec<Route>, Vec<Route>) {
    let Input { facts, topology, inside, .. } = *input;
    let mut left_out = Vec::new();
    let no_ipv6 = facts.host.ipv6 == Some(false);
    let no_tunnel = lacks_tunnel(facts, inside);
    let impossible = |r: &Route| (no_ipv6 && r.dst.addr().is_ipv6()) || (no_tunnel && r.dev == Dev::Tunnel);
    let mut routes = routes;
    if no_ipv6 || no_tunnel {
        let (gone, rest) = routes.into_iter().partition(impossible);
        (left_out, routes) = (gone, rest);
        if !left_out.is_empty() {
            let why = if no_tunnel { "flannel's link is not there yet" } else { "the kernel has no IPv6" };
            let reason = format!("{} routes are left out: {why}", left_out.len());
            findings.push(Finding::new("Host", "", "", reason));
        }
    }
    if input.twice || topology.segments.iter().any(|s| !s.allowed_location_ips.is_empty()) {
        left_out.extend(contradictory(topology, &mut routes, findings));
    }
    (routes, left_out)
}

/// Takes out routes of one table and destination but the best, and those that would send the own location's
/// packets elsewhere: own ranges win, then the first segment.
fn contradictory(topology: &Topology, routes: &mut Vec<Route>, findings: &mut Vec<Finding>) -> Vec<Route> {
    let own: BTreeSet<IpNet> = topology.segment_ranges(topology.local_segment()).collect();
    let ours = |r: &Route| topology.leader && r.dev == Dev::WireGuard && own.contains(&r.dst);
    let rank = |r: &Route| (r.dev == Dev::WireGuard, r.via.is_none(), r.via, *r);
    let mut left_out = Vec::new();
    let mut kept = Vec::with_capacity(routes.len());
    for group in routes.chunk_by(|a, b| (a.table, a.dst) == (b.table, b.dst)) {
        let best = group.iter().filter(|r| !ours(r)).min_by_key(|r| rank(r));
        kept.extend(best.copied());
        for route in group.iter().filter(|r| Some(*r) != best) {
            let reason = "two nodes or locations have this range; it is routed to one of them only";
            findings.push(Finding::new("Mesh", "routes", route.dst.to_string(), reason));
            left_out.push(*route);
        }
    }
    *routes = kept;
    left_out
}
