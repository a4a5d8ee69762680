//! Several transactions as one batch, and whose the tables are.

use std::collections::BTreeSet;

use kilo_agent::{Committed, HostError};
use kilo_nftables::{Batch, TableFamily, Transaction, Writer, flags};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rustix::io::Errno;

use crate::error::{refused, retry};
use crate::netlink::nftables::{self, NFPROTO_INET, NFT_MSG_DELTABLE, NFT_MSG_NEWTABLE, body, is_nftables};
use crate::netlink::socket::{Refused, Socket, messages};

/// Only the socket that made the table, or took it over, changes it.
pub(super) const OWNER: u32 = flags::OWNER;
/// The table stays when its owner ends.
pub(super) const PERSIST: u32 = flags::PERSIST;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
/// It never stays: it is made and removed in one step.
const PROBE: &str = "kilo_probe";

/// Whether the kernel has owners that are outlived, and which tables are ours.
#[derive(Default)]
pub(super) struct Flags {
    known: bool,
    owned: BTreeSet<Owned>,
}

/// Family and name of a table.
type Owned = (u8, String);

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
    pub(super) fn owned(&mut self, family: TableFamily, name: &str) {
        self.owned.insert((family.number(), name.to_owned()));
    }

    /// The table has gone.
    pub(super) fn forget(&mut self, family: TableFamily, name: &str) {
        self.owned.remove(&(family.number(), name.to_owned()));
    }
}

fn table(to: &mut Writer, name: &str, flags: u32) {
    to.text(NFTA_TABLE_NAME, name);
    to.number(NFTA_TABLE_FLAGS, flags);
}

/// Makes a table that has lost its owner this socket's.
pub(super) fn own(socket: &mut Socket, family: TableFamily, name: &str) -> Result<(), Refused> {
    nftables::commit(socket, |_| {
        Ok(vec![nftables::message(NFT_MSG_NEWTABLE, 0, family.number(), |to| {
            table(to, name, OWNER | PERSIST)
        })])
    })
}

/// Carries out all transactions in one step or none of them.
pub(super) fn commit(
    socket: &mut Socket,
    flags: &mut Flags,
    transactions: &[Transaction],
) -> Result<Committed, HostError> {
    let count: usize = transactions.iter().map(|transaction| transaction.changes.len()).sum();
    if count == 0 {
        return Ok(Committed::default());
    }
    let first = socket.reserve(1);
    let mut batch = Batch::encode(transactions, first, None);
    let messages = batch.acknowledged.wrapping_sub(first).wrapping_add(1);
    socket.reserve(messages);
    let mut owned = flags.owned.clone();
    if flags.known {
        for (place, wanted) in owners(&batch.bytes, &mut owned) {
            batch.bytes[place..place + 4].copy_from_slice(&wanted.to_be_bytes());
        }
    }
    socket.commit(&batch.bytes, first, batch.acknowledged).map_err(|(number, why)| {
        let place = batch.place(number).and_then(|(at, change)| Some((transactions.get(at)?, change)));
        error(place, why)
    })?;
    flags.owned = owned;
    Ok(Committed { messages: messages as usize + 1, bytes: batch.bytes.len() })
}

/// What was refused in words.
fn error(refused_at: Option<(&Transaction, usize)>, why: Refused) -> HostError {
    let action = match refused_at {
        Some((transaction, change)) => {
            let text = transaction.to_string();
            let change = text.lines().nth(change).unwrap_or("the whole transaction");
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

/// Where in a batch the flags of tables are that get an owner, and what they are to be; `owned` becomes what is ours
/// afterwards.
fn owners(bytes: &[u8], owned: &mut BTreeSet<Owned>) -> Vec<(usize, u32)> {
    let mut found = Vec::new();
    let mut messages = messages(bytes).peekable();
    while let Some(message) = messages.next() {
        let family = message.payload.first().copied().unwrap_or_default();
        let of = |name: &str| (family, name.to_owned());
        let name = body(&message).text(NFTA_TABLE_NAME).unwrap_or_default();
        if is_nftables(&message, NFT_MSG_DELTABLE) {
            owned.remove(&of(name));
        } else if is_nftables(&message, NFT_MSG_NEWTABLE) {
            // One that is removed at once is made only so that there is one to remove.
            let goes = messages.peek().is_some_and(|next| is_nftables(next, NFT_MSG_DELTABLE));
            if !goes || owned.contains(&of(name)) {
                if let Some(flags) = body(&message).get(NFTA_TABLE_FLAGS)
                    && let Ok(wanted) = flags.try_into().map(u32::from_be_bytes)
                {
                    let place = flags.as_ptr() as usize - bytes.as_ptr() as usize;
                    found.push((place, wanted | OWNER | PERSIST));
                }
                owned.insert(of(name));
            }
        }
    }
    found
}
