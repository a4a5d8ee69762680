//! Tracked connections: bits of their marks are cleared.

use kilo_nftables::{Attributes, Writer};
use rustix::io::Errno;

use crate::netlink::socket::{Message, Refused, Request, Socket};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = NFNL_SUBSYS_CTNETLINK << 8;
const IPCTNL_MSG_CT_GET: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 1;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_MARK: u16 = 8;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
/// `struct nfgenmsg`.
const HEADER: usize = 4;

/// Clears these bits of the marks of all connections of the namespace; how many had one of them. The kernel clears
/// them in one step each, so that other bits, which others write meanwhile, are not touched.
pub(super) fn sweep(socket: &mut Socket, mask: u32) -> Result<usize, Refused> {
    let get = Request { kind: IPCTNL_MSG_CT_GET, flags: 0, payload: vec![0; HEADER] };
    let marked = socket.dump(&get, |message| clear(message, mask))?;
    let answers = socket.transact(&marked, || ());
    for answer in answers {
        match answer {
            // It has ended meanwhile.
            Err(refused) if refused.errno == Errno::NOENT => {}
            other => other?,
        }
    }
    Ok(marked.len())
}

/// The request that clears the bits of a connection that has one of them.
fn clear(message: &Message<'_>, mask: u32) -> Option<Request> {
    if message.kind != IPCTNL_MSG_CT_NEW {
        return None;
    }
    let family = *message.payload.first()?;
    let connection = Attributes(message.payload.get(HEADER..)?);
    if connection.number(CTA_MARK)? & mask == 0 {
        return None;
    }
    let mut payload = Writer(vec![family, 0, 0, 0]);
    let tuple = connection.get(CTA_TUPLE_ORIG)?;
    payload.nest(CTA_TUPLE_ORIG, |to| to.0.extend(tuple));
    if let Some(zone) = connection.get(CTA_ZONE) {
        payload.bytes(CTA_ZONE, zone);
    }
    payload.number(CTA_MARK, 0);
    // The bits that are replaced.
    payload.number(CTA_MARK_MASK, mask);
    Some(Request { kind: IPCTNL_MSG_CT_NEW, flags: 0, payload: payload.0 })
}
