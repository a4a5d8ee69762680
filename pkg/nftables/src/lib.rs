//! nftables tables as values: sets, maps, counters, chains and rules, their text, their netlink bytes, and the
//! minimal transaction that leads from one table to another. No socket.
//!
//! What a change costs: [`diff`] walks both tables. Who knows what has changed makes [`Change`]s on its own
//! and keeps the table up to date with [`Transaction::apply_to`]: the work is then that of a search for each
//! element and of the rules that are written, whatever else the table has.
#![forbid(unsafe_code)]

mod attr;
mod dump;
mod element;
mod encode;
mod expr;
mod kernel;
mod load;
mod range;
mod rule;
mod set;
mod table;
mod text;
pub mod trace;
mod transaction;

pub use attr::{Attributes, Writer};
pub use dump::{Dump, Interrupted};
pub use encode::{Batch, Query};
pub use expr::{Expr, Mark, ct_state};
pub use load::{CtDirection, Header, Load};
pub use range::{IpRange, Ranges};
pub use rule::{Addresses, Direction, End, Family, IfName, Rule, Verdict};
pub use set::{Data, DataType, Element, Elements, Item, Key, KeyType, Place, Set, SetKind, SetType, Timeout};
pub use table::{Base, Chain, ChainType, Counter, Hook, Policy, Table, TableFamily, flags};
pub use transaction::{Change, Transaction, diff};
