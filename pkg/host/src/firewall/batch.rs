//! Several transactions as one batch, and whose the tables are.

use std::collections::BTreeSet;

use kilo_agent::{Committed, HostError};
use kilo_nftables::{Batch, Transaction, Writer};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rustix::io::Errno;

use crate::error::{refused, retry};
use crate::netlink::nftables::{
    self, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFPROTO_INET, NFT_MSG_DELTABLE, NFT_MSG_NEWTABLE, body,
    is_nftables,
};
use crate::netlink::socket::{Message, Refused, Request, Socket, messages};

/// `NFT_TABLE_F_OWNER`: only the socket that made the table, or took it over, changes it.
pub(super) const OWNER: u32 = 2;
/// `NFT_TABLE_F_PERSIST`: the table stays when its owner ends.
pub(super) const PERSIST: u32 = 4;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
/// It never stays: it is made and removed in one step.
const PROBE: &str = "kilo_probe";

/// Whether the kernel has owners that are outlived, and which tables are ours.
#[derive(Default)]
pub(super) struct Flags {
    known: bool,
    owned: BTreeSet<String>,
}

impl Flags {
    /// Tries it.
    pub(super) fn probe(socket: &mut Socket) -> Result<Self, Refused> {
        let tried = nftables::commit(socket, |_| {
            Ok(vec![
                nftables::message(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, NFPROTO_INET, |to| {
                    table(to, PROBE, OWNER | PERSIST);
                }),
                nftables::message(NFT_MSG_DELTABLE, 0, NFPROTO_INET, |to| to.text(NFTA_TABLE_NAME, PROBE)),
            ])
        });
        match tried {
            Ok(()) => Ok(Self { known: true, owned: BTreeSet::new() }),
            Err(why) if matches!(why.errno, Errno::OPNOTSUPP | Errno::INVAL) => {
                Ok(Self { known: false, owned: BTreeSet::new() })
            }
            Err(why) => Err(why),
        }
    }

    /// Whether the kernel has them.
    pub(super) fn known(&self) -> bool {
        self.known
    }

    /// The table is this process's.
    pub(super) fn owned(&mut self, name: &str) {
        self.owned.insert(name.to_owned());
    }

    /// The table has gone.
    pub(super) fn forget(&mut self, name: &str) {
        self.owned.remove(name);
    }
}

fn table(to: &mut Writer, name: &str, flags: u32) {
    to.text(NFTA_TABLE_NAME, name);
    to.number(NFTA_TABLE_FLAGS, flags);
}

/// Makes a table that has lost its owner this socket's.
pub(super) fn own(socket: &mut Socket, name: &str) -> Result<(), Refused> {
    nftables::commit(socket, |_| {
        Ok(vec![nftables::message(NFT_MSG_NEWTABLE, 0, NFPROTO_INET, |to| table(to, name, OWNER | PERSIST))])
    })
}

/// Carries out all transactions in one step or none of them.
pub(super) fn commit(
    socket: &mut Socket,
    flags: &mut Flags,
    transactions: &[Transaction],
) -> Result<Committed, HostError> {
    let composed = compose(socket, flags, transactions);
    let Composed { bytes, first, last, messages, batches, owned } = composed;
    if last == first {
        return Ok(Committed::default());
    }
    let answer = socket.commit(&bytes, first, last);
    if let Err((number, why)) = answer {
        let transaction = batches
            .iter()
            .find(|(_, batch)| batch.change(number).is_some())
            .map(|(at, batch)| (&transactions[*at], batch.change(number)));
        return Err(error(transaction, why));
    }
    flags.owned = owned;
    Ok(Committed { messages, bytes: bytes.len() })
}

/// What was refused in words.
fn error(refused_at: Option<(&Transaction, Option<usize>)>, why: Refused) -> HostError {
    let action = match refused_at {
        Some((transaction, change)) => {
            let text = transaction.to_string();
            let change = change.and_then(|at| text.lines().nth(at)).unwrap_or("the whole transaction");
            // A line may hold ten thousands of elements.
            let change: String = change.chars().take(200).collect();
            format!("changing nftables table {}: {change}", transaction.table)
        }
        None => "changing nftables tables".to_owned(),
    };
    if why.errno == Errno::PERM {
        // The right to do it was needed for the probe already.
        return retry(format!("{action} (another process owns the table)"), why);
    }
    refused(action)(why)
}

struct Composed {
    bytes: Vec<u8>,
    /// The number of the batch's beginning, and of its last change.
    first: u32,
    last: u32,
    messages: usize,
    /// The transactions that change something, by their places.
    batches: Vec<(usize, Batch)>,
    /// The tables that are ours when it was carried out.
    owned: BTreeSet<String>,
}

/// Joins the batches of the transactions; tables that are made become ours.
fn compose(socket: &mut Socket, flags: &Flags, transactions: &[Transaction]) -> Composed {
    let first = socket.reserve(1);
    let mut composed = Composed {
        bytes: Vec::new(),
        first,
        last: first,
        messages: 0,
        batches: Vec::with_capacity(transactions.len()),
        owned: flags.owned.clone(),
    };
    for (at, transaction) in transactions.iter().enumerate() {
        if transaction.changes.is_empty() {
            continue;
        }
        // The number of its beginning is that of the last change before it, which has none of its own.
        let batch = transaction.encode(composed.last, None);
        composed.last = batch.acknowledged;
        let mut changes = changes(&batch.bytes, composed.messages == 0).peekable();
        while let Some(change) = changes.next() {
            composed.messages += 1;
            let name = body(&change.message).text(NFTA_TABLE_NAME).unwrap_or_default();
            if flags.known && is_nftables(&change.message, NFT_MSG_NEWTABLE) {
                // One that is removed at once is made only so that there is one to remove.
                let goes = changes.peek().is_some_and(|next| is_nftables(&next.message, NFT_MSG_DELTABLE));
                let wanted = body(&change.message).number(NFTA_TABLE_FLAGS).unwrap_or_default();
                let ours = !goes || composed.owned.contains(name);
                let family = change.message.payload.first().copied().unwrap_or(NFPROTO_INET);
                let request = nftables::message(NFT_MSG_NEWTABLE, change.message.flags, family, |to| {
                    table(to, name, if ours { wanted | OWNER | PERSIST } else { wanted });
                });
                request.append(&mut composed.bytes, 0, change.message.sequence);
                composed.owned.insert(name.to_owned());
            } else {
                if is_nftables(&change.message, NFT_MSG_DELTABLE) {
                    composed.owned.remove(name);
                }
                composed.bytes.extend(change.bytes);
            }
        }
        drop(changes);
        composed.batches.push((at, batch));
    }
    let count = composed.last.wrapping_sub(first);
    socket.reserve(count + 1);
    let end = Request { kind: NFNL_MSG_BATCH_END, flags: 0, payload: nftables::end_of_batch() };
    end.append(&mut composed.bytes, 0, composed.last.wrapping_add(1));
    composed
}

struct Part<'a> {
    message: Message<'a>,
    bytes: &'a [u8],
}

/// The messages of a batch without its end, and without its beginning where that is not wanted.
fn changes(bytes: &[u8], with_beginning: bool) -> impl Iterator<Item = Part<'_>> {
    let mut at = 0;
    messages(bytes).filter_map(move |message| {
        let start = at;
        at += (message.payload.len() + nftables::MESSAGE_HEADER).next_multiple_of(4);
        let wanted = match message.kind {
            NFNL_MSG_BATCH_BEGIN => with_beginning,
            NFNL_MSG_BATCH_END => false,
            _ => true,
        };
        wanted.then(|| Part { message, bytes: &bytes[start..at.min(bytes.len())] })
    })
}
