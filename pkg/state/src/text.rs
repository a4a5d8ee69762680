//! Operations in the words of `ip`, `wg` and `nft`, behind `+` for what appears, `-` for what goes and `~` for
//! what changes. Secrets are named, never shown.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use ipnet::IpNet;

use crate::{
    Address, Desired, Dev, DeviceChange, DevicePeer, LinkKind, MAIN_TABLE, Observed, Op, PeerChange, Route,
    Rule, UpstreamChain,
};

/// Names of links by the part they play.
pub type Names = BTreeMap<Dev, Box<str>>;

/// The names of all links that stand in a desired or observed state.
pub fn names(desired: &Desired, observed: &Observed) -> Names {
    let there = observed.links.iter().map(|link| (link.dev, link.name.clone()));
    let wanted = desired.links.iter().map(|link| (link.dev, link.name.clone()));
    there.chain(desired.remove_links.iter().cloned()).chain(wanted).collect()
}

/// An operation to be printed; several lines for an nftables transaction, none of them ended.
pub struct OpText<'a> {
    op: &'a Op,
    names: &'a Names,
}

impl Op {
    /// The operation as text, with these names for links.
    pub fn display<'a>(&'a self, names: &'a Names) -> OpText<'a> {
        OpText { op: self, names }
    }
}

/// The name of a link; without one, the part it plays.
struct Name<'a>(&'a Names, Dev);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (self.0.get(&self.1), self.1) {
            (Some(name), _) => f.write_str(name),
            (None, Dev::WireGuard) => f.write_str("(wireguard)"),
            (None, Dev::Private) => f.write_str("(private)"),
            (None, Dev::Tunnel) => f.write_str("(tunnel)"),
            (None, Dev::Other(index)) => write!(f, "if{index}"),
        }
    }
}

impl Display for OpText<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = |dev: Dev| Name(self.names, dev);
        match self.op {
            Op::SetSysctl { path, value } => write!(f, "~ sysctl {path}={value}"),
            Op::CreateLink { dev, kind, mtu, .. } => {
                let kind = match kind {
                    LinkKind::WireGuard => "wireguard",
                    LinkKind::Ipip => "ipip",
                    LinkKind::Foreign => "foreign",
                };
                write!(f, "+ link {} type {kind}", name(*dev))?;
                mtu.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))
            }
            Op::SetMtu(dev, mtu) => write!(f, "~ link {} mtu {mtu}", name(*dev)),
            Op::SetUp(dev) => write!(f, "~ link {} up", name(*dev)),
            Op::SetDown(dev) => write!(f, "~ link {} down", name(*dev)),
            Op::DeleteLink { name, .. } => write!(f, "- link {name}"),
            Op::AddAddress(Address { dev, net }) => write!(f, "+ address {net} dev {}", name(*dev)),
            Op::DeleteAddress(Address { dev, net }) => write!(f, "- address {net} dev {}", name(*dev)),
            Op::Nftables(transaction) => {
                for (i, line) in transaction.to_string().lines().enumerate() {
                    let gap = if i == 0 { "" } else { "\n" };
                    write!(f, "{gap}~ nft {line}")?;
                }
                Ok(())
            }
            Op::AddForward(range) => write!(f, "+ forward {} accept", range.0),
            Op::DeleteForward(range) => write!(f, "- forward {} accept", range.0),
            Op::ConfigureDevice(change) => write_device(f, self.names, change),
            Op::RemovePeer(key) => write!(f, "- peer {key}"),
            Op::UpdatePeer(change) => write_change(f, change),
            Op::AddPeer(peer) => write_peer(f, peer),
            Op::AddRoute(route) => write_route(f, "+", self.names, route),
            Op::ReplaceRoute(route) => write_route(f, "~", self.names, route),
            Op::DeleteRoute(route) => write_route(f, "-", self.names, route),
            Op::AddRule(rule) => write_rule(f, "+", self.names, rule),
            Op::DeleteRule(rule) => write_rule(f, "-", self.names, rule),
            Op::RemoveChain { ipv6, chain } => {
                let command = if *ipv6 { "ip6tables" } else { "iptables" };
                let chain = match chain {
                    UpstreamChain::Nat => "nat KILO-NAT",
                    UpstreamChain::Ipip => "filter KILO-IPIP",
                };
                write!(f, "- {command} {chain} and what leads there")
            }
            Op::WriteCni(file) => write!(f, "~ cni {} ranges {}", file.path, List(&file.ranges)),
        }
    }
}

/// Networks as `wg` prints them: with commas, or `(none)`.
struct List<'a>(&'a [IpNet]);

impl Display for List<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("(none)");
        }
        for (i, net) in self.0.iter().enumerate() {
            let gap = if i == 0 { "" } else { "," };
            write!(f, "{gap}{net}")?;
        }
        Ok(())
    }
}

fn write_device(f: &mut Formatter<'_>, names: &Names, change: &DeviceChange) -> fmt::Result {
    write!(f, "~ device {}", Name(names, Dev::WireGuard))?;
    if let Some(key) = change.public_key {
        write!(f, " public-key {key}")?;
    }
    if let Some(port) = change.listen_port {
        write!(f, " listen-port {port}")?;
    }
    Ok(())
}

fn write_change(f: &mut Formatter<'_>, change: &PeerChange) -> fmt::Result {
    write!(f, "~ peer {}", change.public_key)?;
    match &change.preshared_key {
        Some(Some(_)) => write!(f, " preshared-key (hidden)")?,
        Some(None) => write!(f, " preshared-key (none)")?,
        None => {}
    }
    if let Some(endpoint) = change.endpoint {
        write!(f, " endpoint {endpoint}")?;
    }
    if let Some(seconds) = change.persistent_keepalive {
        write!(f, " persistent-keepalive {seconds}")?;
    }
    change.allowed_ips.as_ref().map_or(Ok(()), |ranges| write!(f, " allowed-ips {}", List(ranges)))
}

fn write_peer(f: &mut Formatter<'_>, peer: &DevicePeer) -> fmt::Result {
    write!(f, "+ peer {}", peer.public_key)?;
    if peer.preshared_key.is_some() {
        write!(f, " preshared-key (hidden)")?;
    }
    if let Some(endpoint) = peer.endpoint {
        write!(f, " endpoint {endpoint}")?;
    }
    if peer.persistent_keepalive != 0 {
        write!(f, " persistent-keepalive {}", peer.persistent_keepalive)?;
    }
    write!(f, " allowed-ips {}", List(&peer.allowed_ips))
}

fn write_route(f: &mut Formatter<'_>, sign: &str, names: &Names, route: &Route) -> fmt::Result {
    write!(f, "{sign} route {}", route.dst)?;
    if let Some(via) = route.via {
        write!(f, " via {via}")?;
    }
    write!(f, " dev {}", Name(names, route.dev))?;
    if route.table != MAIN_TABLE {
        write!(f, " table {}", route.table)?;
    }
    if let Some(src) = route.src {
        write!(f, " src {src}")?;
    }
    if route.onlink { f.write_str(" onlink") } else { Ok(()) }
}

fn write_rule(f: &mut Formatter<'_>, sign: &str, names: &Names, rule: &Rule) -> fmt::Result {
    match rule.src {
        Some(src) => write!(f, "{sign} rule from {src}")?,
        None => write!(f, "{sign} rule from all")?,
    }
    write!(f, " to {}", rule.dst)?;
    if let Some(iif) = rule.iif {
        write!(f, " iif {}", Name(names, iif))?;
    }
    write!(f, " lookup {}", rule.table)
}
