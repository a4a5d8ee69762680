//! Kubernetes as a backend: watches become events, and annotations of our own Node go back. The definition of
//! Peers is here as well.
#![forbid(unsafe_code)]

mod backend;
mod client;
mod crd;
mod error;
mod object;
mod peer;
mod policies;
mod watch;

pub use backend::{KubernetesBackend, list};
pub use client::{ClientConfig, ClientError, connect};
pub use crd::{CRD_NAME, custom_resource_definition};
pub use error::CallError;
pub use kube::Client;
pub use peer::{MadePeer, create_peer, delete_peer, find_peer};
