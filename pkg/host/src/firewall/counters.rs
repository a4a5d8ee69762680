//! The named counters of a table.

use kilo_agent::Counted;
use kilo_nftables::Attributes;

use crate::netlink::nftables::{body, message};
use crate::netlink::socket::{Message, Refused, Socket};

const NFT_MSG_GETOBJ: u16 = 19;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFT_OBJECT_COUNTER: u32 = 1;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;

/// Reads the counters of a table, none where there is no such table.
pub(super) fn read(socket: &mut Socket, family: u8, table: &str) -> Result<Vec<Counted>, Refused> {
    let get = message(NFT_MSG_GETOBJ, 0, family, |to| {
        to.text(NFTA_OBJ_TABLE, table);
        to.number(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
    });
    socket.dump(&get, |message: &Message<'_>| {
        let object = body(message);
        let ours = object.text(NFTA_OBJ_TABLE) == Some(table)
            && object.number(NFTA_OBJ_TYPE) == Some(NFT_OBJECT_COUNTER);
        let data = if ours { object.nest(NFTA_OBJ_DATA)? } else { return None };
        Some(Counted {
            name: object.text(NFTA_OBJ_NAME)?.to_owned(),
            packets: long(data, NFTA_COUNTER_PACKETS)?,
            bytes: long(data, NFTA_COUNTER_BYTES)?,
        })
    })
}

/// A number of 64 bits in network order.
fn long(attributes: Attributes<'_>, number: u16) -> Option<u64> {
    Some(u64::from_be_bytes(attributes.get(number)?.try_into().ok()?))
}
