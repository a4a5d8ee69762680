//! Transactions as one netlink batch, and the requests that read a table.

use crate::attr::{Header, Writer};
use crate::kernel::{self, batch, chain, element, flag, msg, object, rule, set, table};
use crate::{
    Base, ChainType, Change, Element, Hook, Place, Policy, Rule, SetKind, TableFamily, Transaction, expr,
};

/// An attribute that holds attributes is limited to 64 KiB.
const BYTES_PER_MESSAGE: usize = 60_000;
/// Elements that the kernel is given at once.
const ELEMENTS_PER_MESSAGE: usize = 1_000;

/// A batch to be sent as one datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The datagram.
    pub bytes: Vec<u8>,
    /// The sequence number of the last operation: the one acknowledgement there is, when all went well.
    pub acknowledged: u32,
    /// The sequence number of the batch's first message.
    first: u32,
    /// The transaction and the change that each message between the first and the last belongs to.
    changes: Vec<(usize, usize)>,
}

impl Batch {
    /// The index of the change that the message of this sequence number carries out, for errors that name it.
    pub fn change(&self, seq: u32) -> Option<usize> {
        self.place(seq).map(|(_, change)| change)
    }

    /// The index of the transaction, and that of the change in it, that the message of this sequence number
    /// carries out.
    pub fn place(&self, seq: u32) -> Option<(usize, usize)> {
        let i = seq.wrapping_sub(self.first).checked_sub(1)?;
        self.changes.get(usize::try_from(i).ok()?).copied()
    }

    /// The batch of several transactions, all or nothing, its messages numbered from `seq`. With a generation
    /// the kernel refuses the batch (`ERESTART`) once anybody has changed any table since.
    pub fn encode(transactions: &[Transaction], seq: u32, generation: Option<u32>) -> Self {
        let mut messages = Vec::new();
        for (t, transaction) in transactions.iter().enumerate() {
            for (i, change) in transaction.changes.iter().enumerate() {
                messages.extend(parts(change).into_iter().map(|part| ((t, i), transaction, part)));
            }
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
        for (i, (_, transaction, part)) in messages.iter().enumerate() {
            next = next.wrapping_add(1);
            // Kernels before 6.10 never acknowledge the end of a batch, later ones not when it failed.
            let ack = if i + 1 == messages.len() { flag::ACK } else { 0 };
            let (message, flags) = kind(part.change());
            let (flags, family) = (flag::REQUEST | flags | ack, transaction.family);
            let header = Header { message, flags, seq: next, family: family.number(), resource: 0 };
            w.message(&header, |w| {
                // The table's name has the same number in messages of all kinds.
                w.text(table::NAME, &transaction.table);
                write_part(w, family, part, next);
            });
        }
        w.message(&Header { seq: next.wrapping_add(1), ..end(msg::BATCH_END) }, |_| {});
        let changes = messages.iter().map(|(place, ..)| *place).collect();
        Self { bytes: w.0, acknowledged: next, first: seq, changes }
    }
}

/// What of a table is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query<'a> {
    /// The table itself; the kernel answers `ENOENT` where it is not there.
    Table,
    /// The chains of all tables of the family.
    Chains,
    /// The rules of the table.
    Rules,
    /// The sets of the table, without elements.
    Sets,
    /// The named counters of the table.
    Counters,
    /// The elements of the set of this name.
    Elements(&'a str),
}

impl Query<'_> {
    /// All but the elements, in the order in which a [`crate::Dump`] asks for them.
    pub const ALL: [Self; 5] = [Self::Table, Self::Counters, Self::Chains, Self::Rules, Self::Sets];

    /// The request for the table of this family and name, with this sequence number.
    pub fn encode(self, family: TableFamily, name: &str, seq: u32) -> Vec<u8> {
        let (message, flags) = match self {
            Self::Table => (msg::GET_TABLE, flag::ACK),
            Self::Chains => (msg::GET_CHAIN, flag::DUMP),
            Self::Rules => (msg::GET_RULE, flag::DUMP),
            Self::Sets => (msg::GET_SET, flag::DUMP),
            Self::Counters => (msg::GET_OBJECT, flag::DUMP),
            Self::Elements(_) => (msg::GET_ELEMENTS, flag::DUMP),
        };
        let mut w = Writer::default();
        let flags = flag::REQUEST | flags;
        w.message(&Header { message, flags, seq, family: family.number(), resource: 0 }, |w| {
            // The number of the attribute is the same for all kinds.
            w.text(table::NAME, name);
            match self {
                Self::Elements(set) => w.text(element::SET, set),
                Self::Counters => w.number(object::TYPE, object::COUNTER),
                Self::Table | Self::Chains | Self::Rules | Self::Sets => {}
            }
        });
        w.0
    }
}

impl Transaction {
    /// The batch of this transaction alone.
    pub fn encode(&self, seq: u32, generation: Option<u32>) -> Batch {
        Batch::encode(std::slice::from_ref(self), seq, generation)
    }
}

/// A change, or some of the elements of one.
enum Part<'a> {
    Whole(&'a Change),
    Add(&'a Change, &'a str, &'a [Element]),
    Delete(&'a Change, &'a str, &'a [Place]),
}

impl<'a> Part<'a> {
    fn change(&self) -> &'a Change {
        match self {
            Self::Whole(change) | Self::Add(change, ..) | Self::Delete(change, ..) => change,
        }
    }
}

fn parts(change: &Change) -> Vec<Part<'_>> {
    match change {
        Change::AddElements { set, elements } => {
            let size = |e: &Element| crate::element::size(&e.place, Some(&e.item));
            chunks(elements, size).map(|some| Part::Add(change, set, some)).collect()
        }
        Change::DeleteElements { set, places } => {
            let size = |place: &Place| crate::element::size(place, None);
            chunks(places, size).map(|some| Part::Delete(change, set, some)).collect()
        }
        Change::AddTable { .. }
        | Change::DeleteTable
        | Change::AddSet { .. }
        | Change::DeleteSet(_)
        | Change::AddCounter(_)
        | Change::DeleteCounter(_)
        | Change::AddChain { .. }
        | Change::FlushChain(_)
        | Change::DeleteChain(_)
        | Change::AddRule { .. } => vec![Part::Whole(change)],
    }
}

/// A list cut into parts that fit into a message each.
fn chunks<T>(mut rest: &[T], size: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |item: &T| {
            bytes += size(item);
            bytes <= BYTES_PER_MESSAGE
        };
        let len = rest.iter().take(ELEMENTS_PER_MESSAGE).map(fits).take_while(|fits| *fits).count();
        let (some, more) = rest.split_at(len.max(1).min(rest.len()));
        rest = more;
        (!some.is_empty()).then_some(some)
    })
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
        Change::AddCounter(_) => (msg::NEW_OBJECT, flag::CREATE),
        Change::DeleteCounter(_) => (msg::DELETE_OBJECT, 0),
        Change::AddChain { .. } => (msg::NEW_CHAIN, flag::CREATE),
        Change::FlushChain(_) => (msg::DELETE_RULE, 0),
        Change::DeleteChain(_) => (msg::DELETE_CHAIN, 0),
        Change::AddRule { .. } => (msg::NEW_RULE, flag::CREATE | flag::APPEND),
    }
}

fn write_part(w: &mut Writer, family: TableFamily, part: &Part<'_>, seq: u32) {
    match part {
        Part::Whole(change) => write_change(w, family, change, seq),
        Part::Add(_, set, elements) => {
            w.text(element::SET, set);
            w.nest(element::ELEMENTS, |w| elements.iter().for_each(|e| crate::element::write(w, e)));
        }
        Part::Delete(_, set, places) => {
            w.text(element::SET, set);
            w.nest(element::ELEMENTS, |w| places.iter().for_each(|p| crate::element::write_gone(w, p)));
        }
    }
}

fn write_change(w: &mut Writer, family: TableFamily, change: &Change, seq: u32) {
    match change {
        Change::AddTable { flags } => w.number(table::FLAGS, *flags),
        // Elements are parts of their change.
        Change::DeleteTable | Change::AddElements { .. } | Change::DeleteElements { .. } => {}
        Change::AddSet { name, kind } => {
            w.text(set::NAME, name);
            match kind {
                SetKind::Known(of) => of.write(w, seq),
                SetKind::Unknown { key_type, key_len, flags } => {
                    w.number(set::FLAGS, *flags);
                    w.number(set::KEY_TYPE, *key_type);
                    w.number(set::KEY_LEN, *key_len);
                    w.number(set::ID, seq);
                }
            }
        }
        Change::DeleteSet(name) => w.text(set::NAME, name),
        Change::AddCounter(name) => {
            w.text(object::NAME, name);
            w.number(object::TYPE, object::COUNTER);
            w.nest(object::DATA, |_| {});
        }
        Change::DeleteCounter(name) => {
            w.text(object::NAME, name);
            w.number(object::TYPE, object::COUNTER);
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
            write_rule(w, family, rule);
        }
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

fn write_rule(w: &mut Writer, family: TableFamily, rule: &Rule) {
    w.nest(rule::EXPRESSIONS, |w| expr::write(w, family, rule.exprs()));
    if let Some(comment) = rule.comment() {
        let mut user_data = vec![rule::COMMENT, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
        user_data.extend(comment.as_bytes());
        user_data.push(0);
        w.bytes(rule::USER_DATA, &user_data);
    }
}
