//! A directory of manifests as a backend: a mesh without Kubernetes. The reader of objects serves `kgctl -f` too.
#![forbid(unsafe_code)]

mod documents;

pub use documents::{Document, Objects, read_objects};
