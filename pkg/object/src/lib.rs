//! What all rooms that read objects share: findings, and the fields of an object as JSON, whoever wrote it. What
//! an object means is said elsewhere.
#![forbid(unsafe_code)]

mod field;
mod finding;
mod text;

pub use field::{Field, Notes, Unreadable};
pub use finding::Finding;
pub use text::{called, is_name, scalar, shorten};
