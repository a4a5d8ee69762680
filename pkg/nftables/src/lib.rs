//! nftables tables as values: sets, chains and rules, their text, their netlink bytes, and the minimal
//! transaction that leads from one table to another. No socket.
#![forbid(unsafe_code)]

mod table;

pub use table::{Table, Transaction};
