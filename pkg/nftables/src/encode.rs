//! Transactions as one netlink batch, and the requests that read a table.

use std::net::IpAddr;

use crate::attr::{Header, Writer};
use crate::kernel::{self, batch, chain, data, element, flag, msg, rule, set, table};
use crate::{Base, ChainType, Change, Family, Hook, IpRange, Policy, Rule, SetKey, Transaction};

/// An attribute that holds attributes is limited to 64 KiB, and a range of IPv6 takes 64 bytes.
const RANGES_PER_MESSAGE: usize = 500;

/// A batch to be sent as one datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The datagram.
    pub bytes: Vec<u8>,
    /// The sequence number of the last operation: the one acknowledgement there is, when all went well.
    pub acknowledged: u32,
    /// The sequence number of the batch's first message.
    first: u32,
    /// The change that each message between the first and the last belongs to.
    changes: Vec<usize>,
}

impl Batch {
    /// The index of the change that the message of this sequence number carries out, for errors that name it.
    pub fn change(&self, seq: u32) -> Option<usize> {
        let i = seq.wrapping_sub(self.first).checked_sub(1)?;
        self.changes.get(usize::try_from(i).ok()?).copied()
    }
}

/// What of a table is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query<'a> {
    /// The table itself; the kernel answers `ENOENT` where it is not there.
    Table,
    /// The chains of all tables of family `inet`.
    Chains,
    /// The rules of the table.
    Rules,
    /// The sets of the table, without elements.
    Sets,
    /// The elements of the set of this name.
    Elements(&'a str),
}

impl Query<'_> {
    /// The request for the table of this name, with this sequence number.
    pub fn encode(self, name: &str, seq: u32) -> Vec<u8> {
        let (message, flags) = match self {
            Self::Table => (msg::GET_TABLE, flag::ACK),
            Self::Chains => (msg::GET_CHAIN, flag::DUMP),
            Self::Rules => (msg::GET_RULE, flag::DUMP),
            Self::Sets => (msg::GET_SET, flag::DUMP),
            Self::Elements(_) => (msg::GET_ELEMENTS, flag::DUMP),
        };
        let mut w = Writer::default();
        let flags = flag::REQUEST | flags;
        w.message(&Header { message, flags, seq, family: kernel::INET, resource: 0 }, |w| {
            // The number of the attribute is the same for all kinds.
            w.text(table::NAME, name);
            if let Self::Elements(set) = self {
                w.text(element::SET, set);
            }
        });
        w.0
    }
}

impl Transaction {
    /// The batch of this transaction, its messages numbered from `seq`. With a generation the kernel refuses
    /// the batch (`ERESTART`) once anybody has changed any table since.
    pub fn encode(&self, seq: u32, generation: Option<u32>) -> Batch {
        let mut messages = Vec::new();
        for (i, change) in self.changes.iter().enumerate() {
            messages.extend(parts(change).map(|part| (i, part)));
        }
        let mut w = Writer::default();
        let mut next = seq;
        let end = |message| Header {
            message,
            flags: flag::REQUEST,
            seq: 0,
            family: 0,
            resource: kernel::SUBSYSTEM,
        };
        w.message(&Header { seq, ..end(msg::BATCH_BEGIN) }, |w| {
            if let Some(generation) = generation {
                w.number(batch::GENERATION, generation);
            }
        });
        for (i, (_, part)) in messages.iter().enumerate() {
            next = next.wrapping_add(1);
            // Kernels before 6.10 never acknowledge the end of a batch, later ones not when it failed.
            let ack = if i + 1 == messages.len() { flag::ACK } else { 0 };
            let (message, flags) = kind(part.change);
            let flags = flag::REQUEST | flags | ack;
            let header = Header { message, flags, seq: next, family: kernel::INET, resource: 0 };
            w.message(&header, |w| write_change(w, &self.table, part, next));
        }
        w.message(&Header { seq: next.wrapping_add(1), ..end(msg::BATCH_END) }, |_| {});
        let changes = messages.iter().map(|(i, _)| *i).collect();
        Batch { bytes: w.0, acknowledged: next, first: seq, changes }
    }
}

/// A change, or some of the ranges of one.
struct Part<'a> {
    change: &'a Change,
    ranges: &'a [IpRange],
}

fn parts(change: &Change) -> Box<dyn Iterator<Item = Part<'_>> + '_> {
    match change {
        Change::AddElements { ranges, .. } | Change::DeleteElements { ranges, .. } => {
            Box::new(ranges.chunks(RANGES_PER_MESSAGE).map(move |ranges| Part { change, ranges }))
        }
        Change::AddTable { .. }
        | Change::DeleteTable
        | Change::AddSet { .. }
        | Change::DeleteSet(_)
        | Change::AddChain { .. }
        | Change::FlushChain(_)
        | Change::DeleteChain(_)
        | Change::AddRule { .. } => Box::new(std::iter::once(Part { change, ranges: &[] })),
    }
}

/// The message that carries a change out, and its flags.
fn kind(change: &Change) -> (u16, u16) {
    match change {
        Change::AddTable { .. } => (msg::NEW_TABLE, flag::CREATE),
        Change::DeleteTable => (msg::DELETE_TABLE, 0),
        Change::AddSet { .. } => (msg::NEW_SET, flag::CREATE),
        Change::DeleteSet(_) => (msg::DELETE_SET, 0),
        Change::AddElements { .. } => (msg::NEW_ELEMENTS, flag::CREATE),
        Change::DeleteElements { .. } => (msg::DELETE_ELEMENTS, 0),
        Change::AddChain { .. } => (msg::NEW_CHAIN, flag::CREATE),
        Change::FlushChain(_) => (msg::DELETE_RULE, 0),
        Change::DeleteChain(_) => (msg::DELETE_CHAIN, 0),
        Change::AddRule { .. } => (msg::NEW_RULE, flag::CREATE | flag::APPEND),
    }
}

fn write_change(w: &mut Writer, name: &str, part: &Part<'_>, seq: u32) {
    // The table's name has the same number in messages of all kinds.
    w.text(table::NAME, name);
    match part.change {
        Change::AddTable { flags } => w.number(table::FLAGS, *flags),
        Change::DeleteTable => {}
        Change::AddSet { name, key } => {
            w.text(set::NAME, name);
            write_set(w, *key, seq);
        }
        Change::DeleteSet(name) => w.text(set::NAME, name),
        Change::AddElements { set, .. } | Change::DeleteElements { set, .. } => {
            w.text(element::SET, set);
            w.nest(element::ELEMENTS, |w| part.ranges.iter().for_each(|range| write_range(w, range)));
        }
        Change::AddChain { name, base } => {
            w.text(chain::NAME, name);
            if let Some(base) = base {
                write_base(w, base);
            }
        }
        Change::FlushChain(name) => w.text(rule::CHAIN, name),
        Change::DeleteChain(name) => w.text(chain::NAME, name),
        Change::AddRule { chain, rule } => {
            w.text(rule::CHAIN, chain);
            write_rule(w, rule);
        }
    }
}

fn write_set(w: &mut Writer, key: SetKey, id: u32) {
    let (key_type, key_len, flags) = match key {
        SetKey::Address(Family::V4) => (set::IPV4_ADDR, 4, set::INTERVAL),
        SetKey::Address(Family::V6) => (set::IPV6_ADDR, 16, set::INTERVAL),
        SetKey::Unknown { key_type, key_len, flags } => (key_type, key_len, flags),
    };
    w.number(set::FLAGS, flags);
    w.number(set::KEY_TYPE, key_type);
    w.number(set::KEY_LEN, key_len);
    // The kernel asks for an identifier, unique in the batch, by which other messages may name the set.
    w.number(set::ID, id);
    let mut order = vec![set::KEY_BYTE_ORDER, 4];
    order.extend(set::BIG_ENDIAN.to_ne_bytes());
    w.bytes(set::USER_DATA, &order);
}

/// A range is two elements: its first address, and an end mark at the address behind its last, if there is
/// one.
fn write_range(w: &mut Writer, range: &IpRange) {
    let key = |w: &mut Writer, ip: IpAddr| w.nest(element::KEY, |w| write_address(w, ip));
    w.nest(element::LIST_ITEM, |w| key(w, range.first()));
    if let Some(after) = range.after() {
        w.nest(element::LIST_ITEM, |w| {
            w.number(element::FLAGS, element::INTERVAL_END);
            key(w, after);
        });
    }
}

fn write_address(w: &mut Writer, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => w.bytes(data::VALUE, &ip.octets()),
        IpAddr::V6(ip) => w.bytes(data::VALUE, &ip.octets()),
    }
}

fn write_base(w: &mut Writer, base: &Base) {
    w.text(
        chain::TYPE,
        match &base.chain_type {
            ChainType::Filter => "filter",
            ChainType::Nat => "nat",
            ChainType::Unknown(name) => name,
        },
    );
    w.number(
        chain::POLICY,
        match base.policy {
            Policy::Accept => chain::ACCEPT,
            Policy::Drop => chain::DROP,
        },
    );
    w.nest(chain::HOOK, |w| {
        let hook = match base.hook {
            Hook::Prerouting => 0,
            Hook::Input => 1,
            Hook::Forward => 2,
            Hook::Output => 3,
            Hook::Postrouting => 4,
            Hook::Unknown(number) => number,
        };
        w.number(chain::HOOK_NUMBER, hook);
        w.number(chain::HOOK_PRIORITY, base.priority.cast_unsigned());
    });
}

fn write_rule(w: &mut Writer, rule: &Rule) {
    w.nest(rule::EXPRESSIONS, |w| crate::expr::write(w, rule.exprs()));
    if let Some(comment) = rule.comment() {
        let mut user_data = vec![rule::COMMENT, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
        user_data.extend(comment.as_bytes());
        user_data.push(0);
        w.bytes(rule::USER_DATA, &user_data);
    }
}
