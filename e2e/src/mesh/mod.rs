//! Two locations with two nodes each and the people on the road, in one world: what the demo and the tests of
//! the mesh stand on.
//!
//! ```text
//!  west 10.1.0.0/24          internet              east 192.168.2.0/24
//!  a1 ─┬─ 203.0.113.11 ──────┐      ┌── 198.51.100.2 NAT ─┬─ b1
//!      │                     ├──────┤                     │
//!  a2 ─┴─ 203.0.113.12 ──────┘      └── laptop, phone     └─ b2
//! ```

mod agent;
mod device;
mod failures;
mod kernel;
mod messages;
mod place;
mod reach;
mod state_dir;
mod traveller;
mod upstream;
mod whole;

pub use agent::Agent;
pub use device::{Crowd, crowd_address, helper, stranger};
pub use failures::{Cable, leader};
pub use kernel::differences;
pub use messages::Messages;
pub use place::{Node, Place};
pub use reach::{Cell, Host, Reach};
pub use state_dir::StateDir;
pub use traveller::Traveller;
pub use upstream::{Iptables, add_others, dress, survey};
pub use whole::Mesh;
