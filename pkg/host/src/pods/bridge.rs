//! Pods on one bridge. The kernel passes frames from port to port by itself, past every rule of family `inet`.
//! Isolated ports do not exchange frames; the bridge then answers for the neighbours (ARP and neighbour discovery),
//! the packets come to this machine, and go out again through FORWARD.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use kilo_agent::{AttachedPod, BridgeSight};
use kilo_nftables::{Attributes, Writer};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rustix::io::Errno;

use crate::netlink::socket::{Message, Refused, Request, Socket};
use crate::sysctl;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;
/// `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// `struct ndmsg`.
const NEIGH_HEADER: usize = 12;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const NTF_PROXY: u8 = 8;
const NDA_DST: u16 = 1;

/// What br_netfilter is switched on with.
const BRIDGE_NETFILTER: [&str; 2] =
    ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];

/// A link that may be a port of a bridge.
#[derive(Clone, Debug)]
struct Port {
    index: u32,
    name: String,
    master: u32,
    /// It is a port of a bridge; whether it is isolated.
    isolated: Option<bool>,
}

fn parse(message: &Message<'_>) -> Option<Port> {
    let header = message.payload.get(..LINK_HEADER)?;
    if message.kind != RTM_NEWLINK || header[0] != 0 {
        return None;
    }
    let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    let mut port = Port { index, name: String::new(), master: 0, isolated: None };
    for (kind, value) in Attributes(&message.payload[LINK_HEADER..]) {
        match kind {
            IFLA_IFNAME => port.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            IFLA_MASTER => port.master = u32::from_ne_bytes(value.try_into().ok()?),
            IFLA_LINKINFO if Attributes(value).text(IFLA_INFO_SLAVE_KIND) == Some("bridge") => {
                let data = Attributes(value).nest(IFLA_INFO_SLAVE_DATA);
                let isolated = data.and_then(|data| data.get(IFLA_BRPORT_ISOLATED)?.first().copied());
                port.isolated = Some(isolated == Some(1));
            }
            _ => {}
        }
    }
    Some(port)
}

fn ports(socket: &mut Socket) -> Result<Vec<Port>, Refused> {
    socket.dump(&Request { kind: RTM_GETLINK, flags: 0, payload: vec![0; LINK_HEADER] }, parse)
}

/// The names of all links.
pub(super) fn links(socket: &mut Socket) -> Result<BTreeSet<String>, Refused> {
    Ok(ports(socket)?.into_iter().map(|port| port.name).collect())
}

fn one(socket: &mut Socket, request: Request) -> Result<(), Refused> {
    socket.transact(&[request], || ()).pop().unwrap_or(Ok(()))
}

fn isolate(socket: &mut Socket, port: u32, on: bool) -> Result<(), Refused> {
    let mut payload = Writer(vec![AF_BRIDGE, 0, 0, 0]);
    payload.0.extend(port.to_ne_bytes());
    payload.0.resize(LINK_HEADER, 0);
    payload.nest(IFLA_PROTINFO, |to| to.bytes(IFLA_BRPORT_ISOLATED, &[u8::from(on)]));
    one(socket, Request { kind: RTM_SETLINK, flags: 0, payload: payload.0 })
}

fn proxy(kind: u16, flags: u16, bridge: u32, address: Ipv6Addr) -> Request {
    let mut payload = Writer(vec![AF_INET6, 0, 0, 0]);
    payload.0.extend(bridge.to_ne_bytes());
    payload.0.extend([0, 0, NTF_PROXY, 0]);
    payload.bytes(NDA_DST, &address.octets());
    Request { kind, flags, payload: payload.0 }
}

/// The addresses that a bridge answers for.
fn proxies(socket: &mut Socket, bridge: u32) -> Result<BTreeSet<Ipv6Addr>, Refused> {
    let mut payload = vec![0; NEIGH_HEADER];
    payload[0] = AF_INET6;
    payload[10] = NTF_PROXY;
    let found = socket.dump(&Request { kind: RTM_GETNEIGH, flags: 0, payload }, |message| {
        let header = message.payload.get(..NEIGH_HEADER)?;
        let here = header[4..8] == bridge.to_ne_bytes() && header[10] & NTF_PROXY != 0;
        let address = Attributes(&message.payload[NEIGH_HEADER..]).get(NDA_DST)?;
        here.then(|| <[u8; 16]>::try_from(address).ok().map(Ipv6Addr::from)).flatten()
    })?;
    Ok(found.into_iter().collect())
}

/// Makes a bridge answer for the pods on it at once, and route between its ports.
fn settings(bridge: &str) -> io::Result<()> {
    sysctl::ensure([
        (format!("net/ipv4/conf/{bridge}/proxy_arp_pvlan"), "1"),
        (format!("net/ipv6/conf/{bridge}/proxy_ndp"), "1"),
        // By default an answer comes up to 0.8 s later.
        (format!("net/ipv4/neigh/{bridge}/proxy_delay"), "0"),
        (format!("net/ipv6/neigh/{bridge}/proxy_delay"), "0"),
    ])
}

/// Takes a pod's link out of the bridge's own switching, its neighbours first. A link that is no port of this bridge
/// is left alone.
pub(super) fn route_through(
    socket: &mut Socket,
    bridge: &str,
    link: &str,
    addresses: &[IpAddr],
) -> Result<(), Refused> {
    let links = ports(socket)?;
    let Some(index) = links.iter().find(|port| port.name == bridge).map(|port| port.index) else {
        return Ok(());
    };
    let Some(port) = links.iter().find(|port| port.name == link && port.master == index) else {
        return Ok(());
    };
    settings(bridge)?;
    for address in addresses {
        if let IpAddr::V6(address) = address {
            one(socket, proxy(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, index, *address))?;
        }
    }
    if port.isolated == Some(false) { isolate(socket, port.index, true) } else { Ok(()) }
}

/// What this process has answered for.
#[derive(Default)]
pub(super) struct Answered(Option<BTreeSet<Ipv6Addr>>);

impl Answered {
    /// Brings the bridge to these pods, as [`route_through`] does with each.
    pub(super) fn reach(
        &mut self,
        socket: &mut Socket,
        bridge: &str,
        pods: &[AttachedPod],
    ) -> Result<(), Refused> {
        let links = ports(socket)?;
        let Some(index) = links.iter().find(|port| port.name == bridge).map(|port| port.index) else {
            return Ok(());
        };
        settings(bridge)?;
        let on_it =
            |pod: &&AttachedPod| links.iter().any(|port| port.name == pod.link && port.master == index);
        let wanted: BTreeSet<Ipv6Addr> = pods
            .iter()
            .filter(on_it)
            .flat_map(|pod| &pod.addresses)
            .filter_map(|address| if let IpAddr::V6(address) = address { Some(*address) } else { None })
            .collect();
        let there = proxies(socket, index)?;
        for address in wanted.difference(&there) {
            one(socket, proxy(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, index, *address))?;
        }
        // A plugin may be setting up one that this process has not heard of yet: only those that it knew go, and at
        // first what the process before left. An address that is answered for could not be given to a pod again.
        for address in self.0.as_ref().unwrap_or(&there).difference(&wanted).filter(|a| there.contains(a)) {
            forget(socket, index, *address)?;
        }
        self.0 = Some(wanted);
        for pod in pods {
            if let Some(port) = links.iter().find(|port| port.name == pod.link && port.master == index)
                && port.isolated == Some(false)
            {
                isolate(socket, port.index, true)?;
                tracing::info!(link = %port.name, "Routed the traffic between this pod and others of the node");
            }
        }
        Ok(())
    }
}

/// Answers no longer for these addresses.
pub(super) fn release(socket: &mut Socket, bridge: &str, addresses: &[IpAddr]) -> Result<(), Refused> {
    let links = ports(socket)?;
    let Some(index) = links.iter().find(|port| port.name == bridge).map(|port| port.index) else {
        return Ok(());
    };
    for address in addresses {
        if let IpAddr::V6(address) = address {
            forget(socket, index, *address)?;
        }
    }
    Ok(())
}

fn forget(socket: &mut Socket, bridge: u32, address: Ipv6Addr) -> Result<(), Refused> {
    match one(socket, proxy(RTM_DELNEIGH, 0, bridge, address)) {
        Err(refused) if refused.errno != Errno::NOENT => Err(refused),
        _ => Ok(()),
    }
}

/// Undoes it: all ports of the bridge exchange frames again, then nobody is answered for.
pub(super) fn undo(socket: &mut Socket, bridge: &str) -> Result<(), Refused> {
    let links = ports(socket)?;
    let Some(index) = links.iter().find(|port| port.name == bridge).map(|port| port.index) else {
        return Ok(());
    };
    for port in links.iter().filter(|port| port.master == index && port.isolated == Some(true)) {
        isolate(socket, port.index, false)?;
    }
    for address in proxies(socket, index)? {
        forget(socket, index, address)?;
    }
    sysctl::ensure([
        (format!("net/ipv4/conf/{bridge}/proxy_arp_pvlan"), "0"),
        (format!("net/ipv6/conf/{bridge}/proxy_ndp"), "0"),
    ])?;
    Ok(())
}

/// Whether what these pods send each other is seen.
pub(super) fn sight(socket: &mut Socket, pods: &[AttachedPod]) -> Result<BridgeSight, Refused> {
    let open: BTreeSet<String> = ports(socket)?
        .into_iter()
        .filter(|port| port.isolated == Some(false))
        .map(|port| port.name)
        .collect();
    let links: Vec<String> =
        pods.iter().map(|pod| pod.link.clone()).filter(|link| open.contains(link)).collect();
    let off: Vec<&str> =
        BRIDGE_NETFILTER.into_iter().filter(|path| sysctl::get(path).as_deref() != Some("1")).collect();
    if links.is_empty() || off.is_empty() {
        return Ok(BridgeSight::Seen);
    }
    let reason = format!("load the module br_netfilter and set to 1: {}", off.join(", "));
    Ok(BridgeSight::Unseen { links, reason })
}

/// Lets no packet choose or change its way by redirects and source routes on these links.
pub(super) fn harden<'a>(links: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
    for link in links {
        sysctl::ensure([
            (format!("net/ipv4/conf/{link}/accept_source_route"), "0"),
            (format!("net/ipv4/conf/{link}/accept_redirects"), "0"),
            (format!("net/ipv4/conf/{link}/send_redirects"), "0"),
            (format!("net/ipv6/conf/{link}/accept_source_route"), "0"),
            (format!("net/ipv6/conf/{link}/accept_redirects"), "0"),
        ])?;
    }
    // Redirects are sent where a link or this says so; other links have their own.
    sysctl::ensure([("net/ipv4/conf/all/send_redirects", "0")])
}
