//! The netfilter socket: batches that land whole or not at all, dumps, and what notifications are about. What
//! the messages say is the business of `kilo_nftables` and of `iptables_forward`.

use std::net::IpAddr;

use kilo_nftables::{Attributes, Dump, Query, Table, TableFamily, Transaction, Writer};
use netlink_packet_core::NLM_F_ACK;
use rustix::io::Errno;

use super::socket::{Message, Refused, Request, Socket};

pub(crate) const NFPROTO_INET: u8 = 1;
pub(crate) const NFPROTO_IPV4: u8 = 2;
pub(crate) const NFPROTO_IPV6: u8 = 10;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_BATCH_GENID: u16 = 1;
const NFTA_GEN_ID: u16 = 1;
const NFTA_GEN_PROC_PID: u16 = 2;
const NFTA_GEN_PROC_NAME: u16 = 3;

pub(crate) const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
pub(crate) const NFT_MSG_DELTABLE: u16 = 2;
pub(crate) const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
pub(crate) const NFT_MSG_DELCHAIN: u16 = 5;
pub(crate) const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;
pub(crate) const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFT_MSG_NEWGEN: u16 = 15;
const NFT_MSG_GETGEN: u16 = 16;
/// The kind of message without the subsystem.
const KIND: u16 = 0xff;
/// `struct nfgenmsg`: family, version, resource.
const HEADER: usize = 4;
/// How often a change is tried again that somebody else's came in between.
const TRIES: u32 = 5;

/// An `nf_tables` message for a family, whose attributes `fill` writes.
pub(crate) fn message(kind: u16, flags: u16, family: u8, fill: impl FnOnce(&mut Writer)) -> Request {
    let mut payload = Writer(vec![family, 0, 0, 0]);
    fill(&mut payload);
    Request { kind: NFNL_SUBSYS_NFTABLES << 8 | kind, flags, payload: payload.0 }
}

/// The attributes of an `nf_tables` message.
pub(crate) fn body<'a>(message: &Message<'a>) -> Attributes<'a> {
    Attributes(message.payload.get(HEADER..).unwrap_or_default())
}

/// The kind of an `nf_tables` message.
pub(crate) fn kind(message: &Message<'_>) -> u16 {
    message.kind & KIND
}

/// Whether a message is this one of `nf_tables`.
pub(crate) fn is_nftables(message: &Message<'_>, kind: u16) -> bool {
    message.kind == NFNL_SUBSYS_NFTABLES << 8 | kind
}

/// The number of the rule set as it is; each change by anybody makes another.
fn generation(socket: &mut Socket) -> Result<u32, Refused> {
    let get = message(NFT_MSG_GETGEN, 0, 0, |_| {});
    socket.get(&get, |answer| body(answer).number(NFTA_GEN_ID))?.ok_or_else(|| Errno::PROTO.into())
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

/// What a message at one of the ends of a batch holds: there the "resource" is the subsystem.
fn end_of_batch() -> Vec<u8> {
    let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    vec![0, 0, high, low]
}

/// Sends changes as one batch and waits for the verdict.
fn send(socket: &mut Socket, changes: &[Request], generation: u32) -> Result<(), Refused> {
    let mut payload = Writer(end_of_batch());
    payload.number(NFNL_BATCH_GENID, generation);
    let begin = Request { kind: NFNL_MSG_BATCH_BEGIN, flags: 0, payload: payload.0 };
    let end = Request { kind: NFNL_MSG_BATCH_END, flags: 0, payload: end_of_batch() };

    let first = socket.reserve(changes.len() as u32 + 2);
    let last = first.wrapping_add(changes.len() as u32);
    let mut bytes = Vec::new();
    let mut number = first;
    for request in std::iter::once(&begin).chain(changes).chain([&end]) {
        // The end of a batch is not answered by all kernels, nor when it failed: the last change is.
        request.append(&mut bytes, if number == last { NLM_F_ACK } else { 0 }, number);
        number = number.wrapping_add(1);
    }
    socket.commit(&bytes, first, last).map_err(|(_, refused)| refused)
}

/// What `each` makes of the rules of a table, or of one chain of it: their attributes. There are none without the
/// table, or in a kernel without nftables for this family.
pub(crate) fn rules<T>(
    socket: &mut Socket,
    family: u8,
    table: &str,
    chain: Option<&str>,
    mut each: impl FnMut(Attributes<'_>) -> Option<T>,
) -> Result<Vec<T>, Refused> {
    let get = message(NFT_MSG_GETRULE, 0, family, |to| {
        to.text(1, table);
        if let Some(chain) = chain {
            to.text(2, chain);
        }
    });
    // Old kernels tell more than they were asked for.
    let found = socket.dump(&get, |message| {
        let rule = body(message);
        let here = message.payload.first() == Some(&family)
            && rule.text(1) == Some(table)
            && (chain.is_none() || rule.text(2) == chain);
        here.then(|| each(rule)).flatten()
    });
    found.or_else(|refused| if is_absent(&refused) { Ok(Vec::new()) } else { Err(refused) })
}

/// Whether a chain of a table is there.
pub(crate) fn chain_exists(
    socket: &mut Socket,
    family: u8,
    (table, chain): (&str, &str),
) -> Result<bool, Refused> {
    let get = message(NFT_MSG_GETCHAIN, 0, family, |to| {
        to.text(1, table);
        to.text(3, chain);
    });
    let found = socket.get(&get, |_| true);
    found.or_else(|refused| if is_absent(&refused) { Ok(false) } else { Err(refused) })
}

/// Whether there is no such thing, or no nftables for the family.
pub(crate) fn is_absent(refused: &Refused) -> bool {
    matches!(refused.errno, Errno::NOENT | Errno::OPNOTSUPP | Errno::AFNOSUPPORT)
}

/// Whether a table is there.
pub(crate) fn table_exists(socket: &mut Socket, family: u8, name: &str) -> Result<bool, Refused> {
    let found = socket.get(&message(NFT_MSG_GETTABLE, 0, family, |to| to.text(1, name)), |_| true);
    found.or_else(|refused| if is_absent(&refused) { Ok(false) } else { Err(refused) })
}

/// Removes a table with all that is in it.
pub(crate) fn delete_table(socket: &mut Socket, family: u8, name: &str) -> Result<(), Refused> {
    commit(socket, |_| Ok(vec![message(NFT_MSG_DELTABLE, 0, family, |to| to.text(1, name))]))
}

/// Takes an address out of a set or map of a table of family `inet`.
pub(crate) fn delete_element(
    socket: &mut Socket,
    table: &str,
    set: &str,
    address: IpAddr,
) -> Result<(), Refused> {
    let key = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    // Elements, an element, its key, the key's value.
    commit(socket, |_| {
        Ok(vec![message(NFT_MSG_DELSETELEM, 0, NFPROTO_INET, |to| {
            to.text(1, table);
            to.text(2, set);
            to.nest(3, |to| to.nest(1, |to| to.nest(1, |to| to.bytes(1, &key))));
        })])
    })
}

/// Reads a table as it was at one moment; `None` where there is none.
pub(crate) fn read_table(
    socket: &mut Socket,
    family: TableFamily,
    name: &str,
) -> Result<Option<Table>, Refused> {
    for _ in 0..TRIES {
        let before = generation(socket)?;
        if let Some(table) = read_once(socket, family, name)?
            && generation(socket)? == before
        {
            return Ok(table);
        }
    }
    Err(Errno::BUSY.into())
}

/// The table, if it was not changed while one part of it was read.
fn read_once(socket: &mut Socket, family: TableFamily, name: &str) -> Result<Option<Option<Table>>, Refused> {
    let mut dump = Dump::new(family, name);
    let mut interrupted = false;
    let mut ask = |dump: &mut Dump, query: Query<'_>| {
        let sequence = socket.reserve(1);
        socket.query(&query.encode(family, name, sequence), sequence, |datagram| {
            interrupted |= dump.read(datagram).is_err();
        })
    };
    let result = Query::ALL.into_iter().try_for_each(|query| ask(&mut dump, query)).and_then(|()| {
        let sets: Vec<String> = dump.sets().map(str::to_owned).collect();
        sets.iter().try_for_each(|set| ask(&mut dump, Query::Elements(set)))
    });
    match result {
        // Not this table, or not this family.
        Err(refused) if is_absent(&refused) => Ok(Some(None)),
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

/// Reads the end of somebody's transaction: the number of the process, and its name.
pub(crate) fn parse_end<'a>(message: &Message<'a>) -> Option<(u32, &'a str)> {
    let is_end = message.kind == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN;
    let attributes = is_end.then(|| body(message))?;
    Some((attributes.number(NFTA_GEN_PROC_PID)?, attributes.text(NFTA_GEN_PROC_NAME)?))
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
    let attributes = body(message);
    // The table is attribute 1 of all of them.
    let table = attributes.text(1)?;
    let chain = chain_attribute.and_then(|wanted| attributes.text(wanted));
    Some(Event { family: *message.payload.first()?, table, chain })
}
