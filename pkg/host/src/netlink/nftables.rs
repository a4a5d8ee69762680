//! The netfilter socket: batches that land whole or not at all, dumps, and what notifications are about. What
//! the messages say is the business of `kilo_nftables` and of `iptables_forward`.

use kilo_nftables::{Dump, Query, Table, Transaction};
use netlink_packet_core::NLM_F_ACK;
use rustix::io::Errno;

use super::socket::{Message, Refused, Request, Socket, attributes};

pub(crate) const NFPROTO_INET: u8 = 1;
pub(crate) const NFPROTO_IPV4: u8 = 2;
pub(crate) const NFPROTO_IPV6: u8 = 10;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_BATCH_GENID: u16 = 1;
const NFTA_GEN_ID: u16 = 1;

pub(crate) const NFT_MSG_NEWTABLE: u16 = 0;
pub(crate) const NFT_MSG_NEWCHAIN: u16 = 3;
pub(crate) const NFT_MSG_GETCHAIN: u16 = 4;
pub(crate) const NFT_MSG_DELCHAIN: u16 = 5;
pub(crate) const NFT_MSG_NEWRULE: u16 = 6;
pub(crate) const NFT_MSG_GETRULE: u16 = 7;
pub(crate) const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_NEWGEN: u16 = 15;
const NFT_MSG_GETGEN: u16 = 16;
/// The kind of message without the subsystem.
const KIND: u16 = 0xff;
/// `struct nfgenmsg`: family, version, resource.
const HEADER: usize = 4;
/// How often a change is tried again that somebody else's came in between.
const TRIES: u32 = 5;

/// An `nf_tables` message for a family.
pub(crate) fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Request {
    let mut payload = vec![family, 0, 0, 0];
    payload.extend(attributes);
    Request { kind: NFNL_SUBSYS_NFTABLES << 8 | kind, flags, payload }
}

/// The attributes of an `nf_tables` message.
pub(crate) fn body<'a>(message: &Message<'a>) -> &'a [u8] {
    message.payload.get(HEADER..).unwrap_or_default()
}

/// The kind of an `nf_tables` message.
pub(crate) fn kind(message: &Message<'_>) -> u16 {
    message.kind & KIND
}

/// The number of the rule set as it is; each change by anybody makes another.
fn generation(socket: &mut Socket) -> Result<u32, Refused> {
    let get = message(NFT_MSG_GETGEN, 0, 0, &[]);
    let id = socket.get(&get, |answer| {
        let (_, value) = attributes(body(answer)).find(|(kind, _)| *kind == NFTA_GEN_ID)?;
        Some(u32::from_be_bytes(value.try_into().ok()?))
    })?;
    id.ok_or_else(|| Errno::PROTO.into())
}

/// Carries out in one transaction what `compose` makes of the rule set as it is; when somebody changes that in
/// between, it is composed anew. Nothing is sent where nothing is composed.
pub(crate) fn commit(
    socket: &mut Socket,
    mut compose: impl FnMut(&mut Socket) -> Result<Vec<Request>, Refused>,
) -> Result<(), Refused> {
    for _ in 0..TRIES {
        let generation = generation(socket)?;
        let changes = compose(socket)?;
        if changes.is_empty() {
            return Ok(());
        }
        match send(socket, &changes, generation) {
            Err(refused) if refused.errno == RESTART => {}
            result => return result,
        }
    }
    Err(Errno::BUSY.into())
}

/// `ERESTART`, which the kernel answers to a stale batch and which has no name outside of it.
const RESTART: Errno = Errno::from_raw_os_error(85);

/// Sends changes as one batch and waits for the verdict.
fn send(socket: &mut Socket, changes: &[Request], generation: u32) -> Result<(), Refused> {
    let count = changes.len() as u32 + 2;
    let first = socket.reserve(count);
    let mut bytes = Vec::new();
    let mut number = first;
    let mut put = |kind: u16, flags: u16, payload: &[u8]| {
        bytes.extend((16 + payload.len() as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | netlink_packet_core::NLM_F_REQUEST).to_ne_bytes());
        bytes.extend(number.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        number = number.wrapping_add(1);
    };
    let mut begin = vec![0, 0];
    begin.extend(NFNL_SUBSYS_NFTABLES.to_be_bytes());
    let end = begin.clone();
    begin.extend(8u16.to_ne_bytes());
    begin.extend(NFNL_BATCH_GENID.to_ne_bytes());
    begin.extend(generation.to_be_bytes());
    put(NFNL_MSG_BATCH_BEGIN, 0, &begin);
    let last = changes.len() - 1;
    for (at, change) in changes.iter().enumerate() {
        // The end of a batch is not answered by all kernels, nor when it failed: the last change is.
        put(change.kind, change.flags | if at == last { NLM_F_ACK } else { 0 }, &change.payload);
    }
    put(NFNL_MSG_BATCH_END, 0, &end);
    socket.commit(&bytes, first, first.wrapping_add(1 + last as u32)).map_err(|(_, refused)| refused)
}

/// Reads a table of family `inet` as it was at one moment; `None` where there is none.
pub(crate) fn read_table(socket: &mut Socket, name: &str) -> Result<Option<Table>, Refused> {
    for _ in 0..TRIES {
        let before = generation(socket)?;
        if let Some(table) = read_once(socket, name)?
            && generation(socket)? == before
        {
            return Ok(table);
        }
    }
    Err(Errno::BUSY.into())
}

/// The table, if it was not changed while one part of it was read.
fn read_once(socket: &mut Socket, name: &str) -> Result<Option<Option<Table>>, Refused> {
    let mut dump = Dump::new(name);
    let mut interrupted = false;
    let mut ask = |dump: &mut Dump, query: Query<'_>| {
        let sequence = socket.reserve(1);
        socket.query(&query.encode(name, sequence), sequence, |datagram| {
            interrupted |= dump.read(datagram).is_err();
        })
    };
    let result = [Query::Table, Query::Chains, Query::Rules, Query::Sets]
        .into_iter()
        .try_for_each(|query| ask(&mut dump, query))
        .and_then(|()| {
            let sets: Vec<String> = dump.sets().map(str::to_owned).collect();
            sets.iter().try_for_each(|set| ask(&mut dump, Query::Elements(set)))
        });
    match result {
        Err(refused) if refused.errno == Errno::NOENT => Ok(Some(None)),
        Err(refused) => Err(refused),
        Ok(()) if interrupted => Ok(None),
        Ok(()) => Ok(Some(dump.finish())),
    }
}

/// Carries out a transaction whole or not at all; on a refusal, with the change that was refused as text.
pub(crate) fn apply(socket: &mut Socket, transaction: &Transaction) -> Result<(), (String, Refused)> {
    let first = socket.reserve(transaction.changes.len() as u32 + 2);
    let batch = transaction.encode(first, None);
    // Long lists of elements take several messages each.
    let used = batch.acknowledged.wrapping_sub(first).wrapping_add(2);
    socket.reserve(used);
    socket.commit(&batch.bytes, first, batch.acknowledged).map_err(|(number, refused)| {
        let text = transaction.to_string();
        let change = batch.change(number).and_then(|at| text.lines().nth(at));
        (change.unwrap_or("the whole transaction").to_owned(), refused)
    })
}

/// What a notification is about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Event<'a> {
    pub family: u8,
    pub table: &'a str,
    /// The chain, where it is about one.
    pub chain: Option<&'a str>,
}

/// Reads a notification of `nf_tables`; `None` for the end of a transaction.
pub(crate) fn parse_event<'a>(message: &Message<'a>) -> Option<Event<'a>> {
    let kind = kind(message);
    if message.kind >> 8 != NFNL_SUBSYS_NFTABLES || kind == NFT_MSG_NEWGEN {
        return None;
    }
    let chain_attribute = match kind {
        NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN => Some(3),
        NFT_MSG_NEWRULE | NFT_MSG_DELRULE => Some(2),
        _ => None,
    };
    let text = |wanted: u16| {
        let (_, value) = attributes(body(message)).find(|(kind, _)| *kind == wanted)?;
        std::str::from_utf8(value).ok().map(|text| text.trim_end_matches('\0'))
    };
    // The table is attribute 1 of all of them.
    Some(Event { family: *message.payload.first()?, table: text(1)?, chain: chain_attribute.and_then(text) })
}
