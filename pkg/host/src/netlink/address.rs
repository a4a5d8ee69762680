//! Addresses of links. Link-local ones are the kernel's and are left out.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::socket::{Message, Refused, Socket};
use super::{decode, request};

pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;

/// An address and the index of its link.
pub(crate) type LinkAddress = (u32, IpNet);

/// Whether an address is of the kind that the kernel gives to each link by itself.
pub(crate) fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Reads an address from `RTM_NEWADDR` or `RTM_DELADDR`.
pub(crate) fn parse(message: &Message<'_>) -> Option<LinkAddress> {
    let (RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address)) =
        decode(message)?
    else {
        return None;
    };
    let (mut own, mut peer) = (None, None);
    for attribute in &address.attributes {
        if let AddressAttribute::Local(ip) = attribute {
            own = Some(*ip);
        } else if let AddressAttribute::Address(ip) = attribute {
            peer = Some(*ip);
        }
    }
    // On a link between two points "address" is the other end's.
    let ip = own.or(peer)?;
    let net = IpNet::new(ip, address.header.prefix_len).ok()?;
    (!is_link_local(ip)).then_some((address.header.index, net))
}

/// All addresses by link, IPv4 first.
pub(crate) fn list(socket: &mut Socket) -> Result<Vec<LinkAddress>, Refused> {
    let get = request(&RouteNetlinkMessage::GetAddress(AddressMessage::default()), 0);
    let mut addresses = socket.dump(&get, |m| (m.kind == RTM_NEWADDR).then(|| parse(m)).flatten())?;
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

fn message(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    message
}

/// The address family of an address.
pub(crate) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Gives a link an address, if it has it not.
pub(crate) fn add(socket: &mut Socket, index: u32, net: IpNet) -> Result<(), Refused> {
    let add = request(&RouteNetlinkMessage::NewAddress(message(index, net)), NLM_F_CREATE | NLM_F_EXCL);
    match socket.transact(&[add], || ()).pop() {
        Some(Err(refused)) if refused.errno != Errno::EXIST => Err(refused),
        _ => Ok(()),
    }
}

/// Takes an address from a link, if it has it.
pub(crate) fn delete(socket: &mut Socket, index: u32, net: IpNet) -> Result<(), Refused> {
    let delete = request(&RouteNetlinkMessage::DelAddress(message(index, net)), 0);
    match socket.transact(&[delete], || ()).pop() {
        Some(Err(refused)) if !matches!(refused.errno, Errno::ADDRNOTAVAIL | Errno::NODEV) => Err(refused),
        _ => Ok(()),
    }
}
