//! nftables tables as values: sets, chains and rules, their text, their netlink bytes, and the minimal
//! transaction that leads from one table to another. No socket.
#![forbid(unsafe_code)]

mod attr;
mod dump;
mod encode;
mod expr;
mod kernel;
mod range;
mod rule;
mod table;
mod text;
mod transaction;

pub use attr::{Attributes, Writer};
pub use dump::{Dump, Interrupted};
pub use encode::{Batch, Query};
pub use range::{IpRange, Ranges};
pub use rule::{Addresses, Direction, End, Expr, Family, IfName, Rule, Verdict};
pub use table::{Base, Chain, ChainType, Hook, Policy, Set, SetKey, Table};
pub use transaction::{Change, Transaction, diff};
