//! The seam to the cluster: where objects come from and where our own Node's annotations go.

use std::collections::BTreeMap;
use std::future::Future;

use kilo_mesh::{Finding, NodeObject, PeerObject};
use kilo_policy::Kind;
use serde_json::Value;
use tokio::sync::mpsc;

/// A kind of object that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WatchKind {
    /// Nodes.
    Nodes,
    /// Peers.
    Peers,
}

impl WatchKind {
    /// The plural, lower-case name, as labels of metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Peers => "peers",
        }
    }
}

/// How a watch is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchState {
    /// Events arrive.
    Up,
    /// They do not, because of this.
    Down(String),
}

/// What a backend tells the agent. Before the first `Nodes` and the first `Peers` the agent changes nothing.
#[derive(Clone, Debug)]
pub enum Event {
    /// All Nodes there are, and what is wrong with those that could not be read.
    Nodes(Vec<NodeObject>, Vec<Finding>),
    /// All Peers there are, and what is wrong with those that could not be read.
    Peers(Vec<PeerObject>, Vec<Finding>),
    /// A Node is there or has changed.
    NodeApplied(Box<NodeObject>),
    /// The Node of this name is gone.
    NodeDeleted(String),
    /// A Peer is there or has changed.
    PeerApplied(Box<PeerObject>),
    /// The Peer of this name is gone.
    PeerDeleted(String),
    /// The object of this name cannot be read: it counts as gone until it can.
    Malformed(WatchKind, String, Finding),
    /// A watch broke or came back. A list says as well that it is up.
    Watch(WatchKind, WatchState),
}

/// What a backend tells about the objects that network policies are about. Each kind is a watch of its own; an object
/// is [trimmed](crate::Trim) as it is read and passed on at once, so that no list is ever held as a whole.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyEvent {
    /// A list of all objects of a kind begins.
    Restarted(Kind),
    /// An object is there or has changed; part of the list until [`PolicyEvent::Synced`].
    Applied(Kind, Value),
    /// The list is complete: what was there before and was not applied since it began is gone.
    Synced(Kind),
    /// The object of this namespace and name is gone. A Namespace has no namespace.
    Deleted(Kind, String, String),
    /// A watch broke or came back. A complete list says as well that it is up.
    Watch(Kind, WatchState),
}

/// What is wrong with an object of a kind, for those who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFinding {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a Namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What is wrong, in one line.
    pub message: String,
}

/// A change of annotations of our own Node; `None` removes one. Nothing else of the Node is touched.
pub type NodePatch = BTreeMap<String, Option<String>>;

/// Why a backend could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// There is no such Node.
    #[error("node {0} does not exist")]
    NoSuchNode(String),
    /// We may not do that.
    #[error("{action} is not allowed")]
    Forbidden {
        /// What was tried, `patching node n1`.
        action: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Anything else; worth another try.
    #[error("{action} failed")]
    Failed {
        /// What was tried, `patching node n1`.
        action: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The cluster.
pub trait Backend: Send + Sync + 'static {
    /// Watches for ever and tells what it sees, errors included, as [`Event`]s; it returns early only on an
    /// error that no waiting mends. It begins with one `Nodes` and one `Peers`.
    fn run(&self, events: mpsc::Sender<Event>) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Watches for ever the objects that network policies are about, independently of [`Backend::run`], and tells what it
    /// sees, errors included; it returns early only on an error that no waiting mends. Each kind begins with
    /// [`PolicyEvent::Restarted`] once the cluster answers.
    fn run_policy(
        &self,
        events: mpsc::Sender<PolicyEvent>,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Shows a finding where those look who made the object. A backend without such a place does nothing.
    fn show(&self, finding: &PolicyFinding) -> impl Future<Output = Result<(), BackendError>> + Send {
        let _ = finding;
        std::future::ready(Ok(()))
    }

    /// Changes annotations of the Node of this name. A patch that changes nothing is not sent.
    fn patch_node(
        &self,
        name: &str,
        patch: &NodePatch,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;
}
