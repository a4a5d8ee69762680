//! Who is masqueraded, forwarded and allowed to send IPIP, as ranges of addresses.

use ipnet::IpNet;
use serde::Serialize;

use crate::order::sorted;
use crate::topology::Topology;
use crate::{Config, Encapsulate, Encapsulator, Facts, Finding, Inside, LegacyTable, parse};

/// The firewall of one host. Lists are sorted and without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Firewall {
    /// Whose source address is replaced by the node's.
    pub masquerade: Masquerade,
    /// Ranges accepted in both directions in FORWARD.
    pub forward: Forward,
    /// Who may send IPIP to this host.
    pub ipip: Ipip,
}

/// A packet is masqueraded if its source is in `sources` or its destination in `destinations`, and its
/// destination is not in `except_destinations`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Masquerade {
    /// Our own pods (with `--cni`) and Peers.
    pub sources: Vec<IpNet>,
    /// The allowed-location-ips of our own location.
    pub destinations: Vec<IpNet>,
    /// Services, pods, nodes and Peers.
    pub except_destinations: Vec<IpNet>,
}

/// What `--iptables-forward-rules` accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Forward {
    /// Ranges accepted as source and as destination.
    pub accept: Vec<IpNet>,
}

/// Who may send IPIP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ipip {
    /// The private addresses of the own location. Empty where nobody sends IPIP to us.
    pub allow_sources: Vec<IpNet>,
    /// IPIP from anybody else is dropped: a tunnel of ours is up, or still has to go.
    pub filtered: bool,
}

/// The tunnel inside the location that is ours to give an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tunnel {
    /// There is none, or it is somebody else's.
    Unused,
    /// It has this address, if there is one.
    Used(Option<IpNet>),
    /// It is not wanted any more, but still up with nothing but the address that we gave it. Without a filter it
    /// would take in what strangers send.
    Left,
}

impl Tunnel {
    /// What the tunnel is, given how packets travel.
    pub(crate) fn new(topology: &Topology, facts: &Facts, inside: Inside) -> Self {
        let address = first_host(topology.local().subnet);
        let ours = matches!(inside.encapsulator, Encapsulator::Ipip | Encapsulator::Cilium);
        let left = inside.strategy == Encapsulate::Never
            && facts.host.interfaces.tunnel == "tunl0"
            && address.is_some_and(|address| facts.host.tunnel_addresses == [address]);
        if ours && inside.local && inside.strategy != Encapsulate::Never {
            Self::Used(address)
        } else if left {
            Self::Left
        } else {
            Self::Unused
        }
    }
}

/// The first address after a range's own, as a range by itself.
fn first_host(net: IpNet) -> Option<IpNet> {
    let (v6, first) = parse::number(net.network());
    let ip = parse::address(v6, first.checked_add(1)?)?;
    net.contains(&ip).then(|| parse::one(ip))
}

/// The firewall of the local node.
/// Beside it: whether some range is there for two nodes.
pub(crate) fn firewall(topology: &Topology, config: &Config, tunnel: Tunnel) -> (Firewall, bool) {
    let own = topology.local_segment();
    let own_ranges = || own.allowed_location_ips.iter().map(IpNet::trunc);

    let mut sources = topology.peer_ranges.clone();
    if config.cni {
        sources.extend(topology.local().subnets());
    }
    let mut except = Vec::with_capacity(topology.members.len() * 3 + topology.peer_ranges.len());
    for segment in &topology.segments {
        except.extend(topology.segment_ranges(segment));
    }
    except.extend_from_slice(&topology.peer_ranges);
    let all = except.len();
    let mut except = sorted(except);
    let twice = except.len() != all;
    if !config.service_cidrs.is_empty() {
        except.extend(config.service_cidrs.iter().map(IpNet::trunc));
        except = sorted(except);
    }

    let mut accept = Vec::new();
    if config.cni && config.iptables_forward_rules {
        if topology.leader {
            for node in topology.members(own) {
                accept.extend(node.subnets().chain(node.private_ip.map(parse::one)));
            }
            accept.extend(own_ranges());
        } else {
            accept.extend(topology.local().subnets());
        }
    }
    let firewall = Firewall {
        masquerade: Masquerade {
            sources: sorted(sources),
            destinations: sorted(own_ranges()),
            except_destinations: except,
        },
        forward: Forward { accept: sorted(accept) },
        ipip: Ipip {
            allow_sources: sorted(ipip_sources(topology, tunnel)),
            filtered: tunnel != Tunnel::Unused,
        },
    };
    (firewall, twice)
}

/// What a person must do about each accepted range whose family has a filter table of iptables-legacy: a rule
/// elsewhere cannot override a drop there.
pub(crate) fn legacy_findings(forward: &Forward, facts: &Facts) -> Vec<Finding> {
    let host = &facts.host;
    let concerned =
        |net: &&IpNet| if net.addr().is_ipv4() { host.legacy_filter_v4 } else { host.legacy_filter_v6 };
    let finding = |net: &IpNet| {
        let command = if net.addr().is_ipv4() { "iptables-legacy" } else { "ip6tables-legacy" };
        let rule = |way: &str, side: &str| {
            let comment = format!("Kilo: forward packets {way} the pod subnet");
            format!("{command} -I FORWARD {side} {net} -m comment --comment \"{comment}\" -j ACCEPT")
        };
        let (from, to) = (rule("from", "-s"), rule("to", "-d"));
        let reason = format!(
            "{command} has a filter table here, whose DROP no rule of ours overrides; run: {from} && {to}"
        );
        Finding::new("Host", "--iptables-forward-rules", net.to_string(), reason)
    };
    forward.accept.iter().filter(concerned).map(finding).collect()
}

/// What a person must do about each table of iptables-legacy in which an upstream agent left rules. One change
/// of the table takes out every rule with Kilo's comment, and then the empty chains.
pub(crate) fn leftover_findings(facts: &Facts) -> Vec<Finding> {
    let finding = |left: &LegacyTable| {
        let LegacyTable { ipv6, table, rules, chains } = left;
        let command = if *ipv6 { "ip6tables-legacy" } else { "iptables-legacy" };
        let chains: String = chains.iter().map(|chain| format!("; echo -X {chain}")).collect();
        let reason = format!(
            "{rules} rules of another Kilo stay, which is the business of {command}; run: \
             {{ echo '*{table}'; {command}-save -t {table} | sed -n '/\"Kilo: /s/^-A/-D/p'{chains}; echo COMMIT; }} \
             | {command}-restore --noflush"
        );
        Finding::new("Host", command, table.as_str(), reason)
    };
    facts.host.legacy_leftovers.iter().map(finding).collect()
}

/// Upstream's list: the private addresses of the *location*, so nobody in full granularity.
fn ipip_sources(topology: &Topology, tunnel: Tunnel) -> Vec<IpNet> {
    let Tunnel::Used(_) = tunnel else { return Vec::new() };
    let location = topology.segments.iter().find(|s| !s.name.node && s.name.name == topology.location);
    let members = location.map(|s| topology.members(s)).unwrap_or_default();
    members.iter().filter_map(|n| n.private_ip).map(parse::one).collect()
}
