//! Small worlds of network namespaces that vanish with the process that made them.
//!
//! ```text
//! runner ── unshare(1): net, mount, pid (, user) ── test: tmpfs on /run, lo up
//!                                                    ├─ ip netns n1 ── kg, ping, tcp …
//!                                                    └─ ip netns n2 ── …
//! ```

pub mod helper;
mod ns;
mod pinger;
mod process;
mod sandbox;
mod skip;
mod wait;
mod world;

pub use ns::Ns;
pub use pinger::{PingReport, Pinger, Pingers};
pub use process::Process;
pub use sandbox::{Sandbox, die_with_parent, enter};
pub use skip::Skip;
pub use wait::eventually;
pub use world::World;
