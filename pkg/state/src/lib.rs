//! What a host's network should be, what it is, and the operations that lead from one to the other.
//!
//! `diff(desired, observed)` is the only place that decides what is changed; a host carries the operations
//! out without a choice of its own. Everything here is plain, ordered data: no kernel, no clock, no names
//! resolved.
#![forbid(unsafe_code)]

mod apply;
mod device;
mod diff;
mod merge;
mod op;
mod part;
mod peers;
mod routes;
mod text;
mod types;

pub use apply::{apply, apply_all};
pub use device::{Device, DevicePeer, PeerChange};
pub use diff::diff;
pub use op::{DeviceChange, Op, Stage};
pub use part::{Touched, diff_touched};
pub use text::{Names, OpText, names};
pub use types::{
    Address, CniFile, Desired, Dev, ForwardAccept, Leftover, Link, LinkKind, MAIN_TABLE, Observed,
    ObservedLink, ObservedRoute, PROTOCOL, PROTOCOL_STATIC, RULE_PRIORITY, Route, Rule, TABLE, UpstreamChain,
};
