//! Two locations with two nodes each and the people on the road, in one world: what the demo and the tests of
//! the mesh stand on.
//!
//! ```text
//!  west 10.1.0.0/24          internet              east 192.168.2.0/24
//!  a1 ─┬─ 203.0.113.11 ──────┐      ┌── 198.51.100.2 NAT ─┬─ b1
//!      │                     ├──────┤                     │
//!  a2 ─┴─ 203.0.113.12 ──────┘      └── laptop, phone     └─ b2
//! ```

mod place;
mod reach;

pub use place::{Node, Place};
pub use reach::{Cell, Host, Reach};
