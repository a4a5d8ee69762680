//! A directory of manifests as a backend: a mesh without Kubernetes. The reader of objects serves `kgctl -f` too,
//! and is all there is of this crate on systems other than Linux.
#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
mod backend;
mod documents;
#[cfg(target_os = "linux")]
mod policies;
#[cfg(target_os = "linux")]
mod scan;
#[cfg(target_os = "linux")]
mod store;
#[cfg(target_os = "linux")]
mod watch;
#[cfg(target_os = "linux")]
mod write;

#[cfg(target_os = "linux")]
pub use backend::FileBackend;
pub use documents::{Document, Item, Objects, read_items, read_objects};
