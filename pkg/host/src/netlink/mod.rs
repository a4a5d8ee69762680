//! The kernel's network as messages: links, addresses, routes, rules, nftables and what others change. Each
//! file knows one kind of object; `socket` carries the messages.

pub(crate) mod address;
pub(crate) mod culprit;
pub(crate) mod link;
pub(crate) mod monitor;
pub(crate) mod nftables;
pub(crate) mod parameter;
pub(crate) mod route;
pub(crate) mod rule;
pub(crate) mod socket;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use rtnetlink::packet_route::RouteNetlinkMessage;

use socket::{Message, Request};

/// The request that carries this message.
fn request(message: &RouteNetlinkMessage, flags: u16) -> Request {
    let mut payload = vec![0; message.buffer_len()];
    message.serialize(&mut payload);
    Request { kind: message.message_type(), flags, payload }
}

/// The message as a value; `None` for one that this program cannot read, of a later kernel say.
fn decode(message: &Message<'_>) -> Option<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = message.kind;
    match RouteNetlinkMessage::deserialize(&header, message.payload) {
        Ok(message) => Some(message),
        Err(error) => {
            tracing::debug!(kind = message.kind, %error, "Netlink message cannot be read");
            None
        }
    }
}
