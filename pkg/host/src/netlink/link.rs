//! Links: listing them, making an IPIP tunnel, MTU, up and down, removal.

use kilo_nftables::{Attributes, Writer};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkFlags, LinkMessage};
use rtnetlink::{LinkIpIp, LinkMessageBuilder, LinkUnspec};
use rustix::io::Errno;

use super::request;
use super::socket::{Message, Refused, Request, Socket};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;

const HEADER: usize = 16;
const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

/// A link of the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkState {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
}

/// Reads a link from `RTM_NEWLINK` or `RTM_DELLINK`. Only what is needed is looked at: of all messages this
/// one has the most attributes, and kernels keep adding to them.
pub(crate) fn parse(payload: &[u8]) -> Option<LinkState> {
    let header = payload.get(..HEADER)?;
    let u32_at = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    // Ports of a bridge are told once more in the bridge's own family.
    if header[0] != 0 {
        return None;
    }
    let mut link = LinkState { index: u32_at(4), name: String::new(), mtu: 0, up: u32_at(8) & IFF_UP != 0 };
    for (kind, value) in Attributes(&payload[HEADER..]) {
        match kind {
            IFLA_IFNAME => link.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            IFLA_MTU => link.mtu = u32::from_ne_bytes(value.try_into().ok()?),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

/// All links in order of their indices.
pub(crate) fn list(socket: &mut Socket) -> Result<Vec<LinkState>, Refused> {
    let mut payload = Writer(vec![0; HEADER]);
    payload.bytes(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let get = Request { kind: RTM_GETLINK, flags: 0, payload: payload.0 };
    let read =
        |message: &Message<'_>| (message.kind == RTM_NEWLINK).then(|| parse(message.payload)).flatten();
    let mut links = socket.dump(&get, read)?;
    links.sort_by_key(|link| link.index);
    Ok(links)
}

fn one(socket: &mut Socket, message: LinkMessage, flags: u16) -> Result<(), Refused> {
    let set = request(&RouteNetlinkMessage::NewLink(message), flags);
    socket.transact(&[set], || ()).pop().unwrap_or(Ok(()))
}

/// Makes an IPIP tunnel without fixed ends, whose peers routes name. One that is there already is as good: the
/// module makes `tunl0` itself when it is loaded.
pub(crate) fn create_ipip(socket: &mut Socket, name: &str) -> Result<(), Refused> {
    match one(socket, LinkIpIp::new(name).build(), NLM_F_CREATE | NLM_F_EXCL) {
        Err(refused) if refused.errno == Errno::EXIST => Ok(()),
        result => result,
    }
}

/// Sets the MTU in bytes.
pub(crate) fn set_mtu(socket: &mut Socket, index: u32, mtu: u32) -> Result<(), Refused> {
    one(socket, LinkMessageBuilder::<LinkUnspec>::default().index(index).mtu(mtu).build(), 0)
}

/// Brings a link up or down.
pub(crate) fn set_up(socket: &mut Socket, index: u32, up: bool) -> Result<(), Refused> {
    let mut message = LinkMessageBuilder::<LinkUnspec>::default().index(index).build();
    message.header.change_mask = LinkFlags::Up;
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    one(socket, message, 0)
}

/// Removes a link. One that is gone is no error.
pub(crate) fn delete(socket: &mut Socket, index: u32) -> Result<(), Refused> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let delete = request(&RouteNetlinkMessage::DelLink(message), 0);
    match socket.transact(&[delete], || ()).pop() {
        Some(Err(refused)) if !matches!(refused.errno, Errno::NODEV) => Err(refused),
        _ => Ok(()),
    }
}
