//! Unicast routes of the main table and Kilo's, written thousands at a time.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use kilo_state::{MAIN_TABLE, PROTOCOL, PROTOCOL_STATIC, TABLE};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::address::family;
use super::socket::{Message, Refused, Request, Socket};
use super::{decode, request};

pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
/// `RTPROT_KERNEL`: routes that come and go with addresses.
const RTPROT_KERNEL: u8 = 2;
/// `IP6_RT_PRIO_USER`, the metric of IPv6 routes that name none.
const IPV6_METRIC: u32 = 1024;

/// A route with its link by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KernelRoute {
    pub table: u32,
    pub dst: IpNet,
    /// The link; of several next hops that of the first.
    pub link: u32,
    pub via: Option<IpAddr>,
    pub src: Option<IpAddr>,
    pub onlink: bool,
    /// `rtm_protocol`.
    pub protocol: u8,
    /// Has several next hops.
    pub multipath: bool,
    /// Has a metric other than what routes get that name none, as Kilo's do not.
    pub metric: bool,
}

/// What to do with a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Add,
    Replace,
    Delete,
}

/// Reads a unicast route from `RTM_NEWROUTE` or `RTM_DELROUTE`; the kernel's own routes are left out.
pub(crate) fn parse(message: &Message<'_>) -> Option<KernelRoute> {
    let (RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) = decode(message)?
    else {
        return None;
    };
    read(&route)
}

fn read(message: &RouteMessage) -> Option<KernelRoute> {
    let header = &message.header;
    let protocol = u8::from(header.protocol);
    if header.kind != RouteType::Unicast
        || header.flags.contains(RouteFlags::Cloned)
        || protocol == RTPROT_KERNEL
    {
        return None;
    }
    let any: IpAddr = if header.address_family == AddressFamily::Inet {
        Ipv4Addr::UNSPECIFIED.into()
    } else if header.address_family == AddressFamily::Inet6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        return None;
    };
    let mut dst = any;
    let mut route = KernelRoute {
        table: header.table.into(),
        dst: IpNet::from(any),
        link: 0,
        via: None,
        src: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        protocol,
        multipath: false,
        metric: false,
    };
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(address) = attribute {
            dst = ip(address)?;
        } else if let RouteAttribute::Gateway(address) = attribute {
            route.via = ip(address);
        } else if let RouteAttribute::Via(via) = attribute {
            route.via = if let RouteVia::Inet(ip) = via {
                Some((*ip).into())
            } else if let RouteVia::Inet6(ip) = via {
                Some((*ip).into())
            } else {
                None
            };
        } else if let RouteAttribute::PrefSource(address) = attribute {
            route.src = ip(address);
        } else if let RouteAttribute::Oif(index) = attribute {
            route.link = *index;
        } else if let RouteAttribute::Table(table) = attribute {
            route.table = *table;
        } else if let RouteAttribute::Priority(metric) = attribute {
            route.metric = *metric != if any.is_ipv6() { IPV6_METRIC } else { 0 };
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            route.multipath = true;
            route.link = hops.first().map_or(0, |hop| hop.interface_index);
        }
    }
    route.dst = IpNet::new(dst, header.destination_prefix_length).ok()?;
    (header.tos == 0 && header.source_prefix_length == 0).then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(ip) = address {
        Some((*ip).into())
    } else if let RouteAddress::Inet6(ip) = address {
        Some((*ip).into())
    } else {
        None
    }
}

/// All routes of the main table and Kilo's in the kernel's order: IPv4 first, then by destination and metric.
pub(crate) fn list(socket: &mut Socket, ipv6: bool) -> Result<Vec<KernelRoute>, Refused> {
    let mut routes = Vec::new();
    let families = [Some(AddressFamily::Inet), ipv6.then_some(AddressFamily::Inet6)];
    for family in families.into_iter().flatten() {
        for table in [MAIN_TABLE, TABLE] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.attributes.push(RouteAttribute::Table(table));
            let get = request(&RouteNetlinkMessage::GetRoute(message), 0);
            let read = |message: &Message<'_>| {
                (message.kind == RTM_NEWROUTE).then(|| parse(message)).flatten().filter(|r| r.table == table)
            };
            match socket.dump(&get, read) {
                Ok(list) => routes.extend(list),
                // So the kernel calls a table that has never had a route.
                Err(refused) if refused.errno == Errno::NOENT => {}
                Err(refused) => return Err(refused),
            }
        }
    }
    Ok(routes)
}

/// The request for a change.
fn change(action: Action, route: &KernelRoute) -> Request {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.dst.addr());
    header.destination_prefix_length = route.dst.prefix_len();
    header.kind = RouteType::Unicast;
    header.protocol = RouteProtocol::from(route.protocol);
    if action == Action::Delete && route.dst.addr().is_ipv4() {
        // "Any scope": others may have made it with the scope "link".
        header.scope = RouteScope::NoWhere;
    }
    if route.onlink {
        header.flags.insert(RouteFlags::Onlink);
    }
    let attributes = &mut message.attributes;
    match u8::try_from(route.table) {
        Ok(table) => header.table = table,
        Err(_) => attributes.push(RouteAttribute::Table(route.table)),
    }
    attributes.push(RouteAttribute::Destination(route.dst.addr().into()));
    attributes.push(RouteAttribute::Oif(route.link));
    attributes.extend(route.via.map(|via| RouteAttribute::Gateway(via.into())));
    attributes.extend(route.src.map(|src| RouteAttribute::PrefSource(src.into())));
    match action {
        Action::Add => request(&RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL),
        Action::Replace => request(&RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE),
        Action::Delete => request(&RouteNetlinkMessage::DelRoute(message), 0),
    }
}

/// Carries out changes in this order. `ours_alone` tells of a link index whether only Kilo routes over it: an
/// upstream agent's routes of protocol "static" over it are removed, too.
pub(crate) fn apply(
    socket: &mut Socket,
    changes: &[(Action, KernelRoute)],
    ours_alone: impl Fn(u32) -> bool,
    mut pause: impl FnMut(),
) -> Vec<Result<(), Refused>> {
    let requests: Vec<Request> = changes.iter().map(|(action, route)| change(*action, route)).collect();
    let mut answers = socket.transact(&requests, &mut pause);
    let mut existing: Option<BTreeSet<KernelRoute>> = None;
    for ((action, route), answer) in changes.iter().zip(&mut answers) {
        let Err(refused) = answer else { continue };
        match (action, refused.errno) {
            (Action::Delete, Errno::SRCH) => *answer = delete_adopted(socket, route, &ours_alone),
            (Action::Delete, Errno::NODEV) => *answer = Ok(()),
            // The kernel says so of any route to this destination: only the very same one is what was wanted.
            (Action::Add, Errno::EXIST) => {
                let now = existing.get_or_insert_with(|| {
                    let ipv6 = changes.iter().any(|(_, route)| route.dst.addr().is_ipv6());
                    list(socket, ipv6).map(BTreeSet::from_iter).unwrap_or_default()
                });
                if now.contains(route) {
                    *answer = Ok(());
                }
            }
            _ => {}
        }
    }
    answers
}

/// Removes a route that is ours although another agent made it. One that is gone is no error.
fn delete_adopted(
    socket: &mut Socket,
    route: &KernelRoute,
    ours_alone: &impl Fn(u32) -> bool,
) -> Result<(), Refused> {
    let protocol = match route.table {
        // Everything in this table is ours, whatever its protocol.
        TABLE => 0,
        _ if ours_alone(route.link) => PROTOCOL_STATIC,
        // The shape of an upstream agent's over the link with the private address.
        _ if route.onlink && route.via.is_some() && route.src.is_none() => PROTOCOL_STATIC,
        _ => return Ok(()),
    };
    let delete = change(Action::Delete, &KernelRoute { protocol, ..*route });
    match socket.transact(&[delete], || ()).pop() {
        Some(Err(refused)) if !matches!(refused.errno, Errno::SRCH | Errno::NODEV) => Err(refused),
        _ => Ok(()),
    }
}

impl KernelRoute {
    /// A route of ours.
    pub(crate) fn ours(route: &kilo_state::Route, link: u32) -> Self {
        Self {
            table: route.table,
            dst: route.dst,
            link,
            via: route.via,
            src: route.src,
            onlink: route.onlink,
            protocol: PROTOCOL,
            multipath: false,
            metric: false,
        }
    }
}

/// Whether a route of the main table is for all destinations of its family.
pub(crate) fn is_default(route: &KernelRoute) -> bool {
    route.table == MAIN_TABLE && route.dst.prefix_len() == 0
}
