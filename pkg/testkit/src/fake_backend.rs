//! A cluster in memory: objects go in, events come out, and our own Node can be written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kilo_agent::{
    Backend, BackendError, Event, Kind, NodePatch, PolicyEvent, PolicyFinding, WatchKind, WatchState,
};
use kilo_mesh::{NodeObject, PeerObject};
use serde_json::Value;
use tokio::sync::{broadcast, mpsc};

/// The objects of a fake cluster and what was written to it.
#[derive(Debug, Default)]
pub struct Cluster {
    nodes: BTreeMap<String, NodeObject>,
    peers: BTreeMap<String, PeerObject>,
    policy: BTreeMap<(Kind, String, String), Value>,
    /// Kinds of which the list never ends.
    pub endless: BTreeSet<Kind>,
    /// Every finding that was shown.
    pub shown: Vec<PolicyFinding>,
    /// Every patch, with the name of its Node.
    pub patches: Vec<(String, NodePatch)>,
    /// Patches fail while this is set.
    pub refuse_patches: bool,
    /// Patches are forbidden while this is set.
    pub forbid_patches: bool,
}

/// A handle on a fake cluster; its clones are the same cluster.
#[derive(Clone, Debug)]
pub struct FakeBackend {
    cluster: Arc<Mutex<Cluster>>,
    events: broadcast::Sender<Event>,
    policy_events: broadcast::Sender<PolicyEvent>,
}

impl Default for FakeBackend {
    fn default() -> Self {
        let (events, policy_events) = (broadcast::channel(4096).0, broadcast::channel(4096).0);
        Self { cluster: Arc::default(), events, policy_events }
    }
}

impl FakeBackend {
    /// The cluster, to look at. Held only between two awaits.
    pub fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The Node of this name.
    pub fn node(&self, name: &str) -> Option<NodeObject> {
        self.cluster().nodes.get(name).cloned()
    }

    /// Creates or changes a Node.
    pub fn apply_node(&self, node: NodeObject) {
        self.cluster().nodes.insert(node.metadata.name.clone(), node.clone());
        self.tell(Event::NodeApplied(Box::new(node)));
    }

    /// Creates or changes a Peer.
    pub fn apply_peer(&self, peer: PeerObject) {
        self.cluster().peers.insert(peer.metadata.name.clone(), peer.clone());
        self.tell(Event::PeerApplied(Box::new(peer)));
    }

    /// Deletes a Peer.
    pub fn delete_peer(&self, name: &str) {
        self.cluster().peers.remove(name);
        self.tell(Event::PeerDeleted(name.to_owned()));
    }

    /// Creates or changes an object that network policies are about.
    pub fn apply_policy(&self, kind: Kind, object: Value) {
        self.cluster().policy.insert(key(kind, &object), object.clone());
        self.tell_policy(PolicyEvent::Applied(kind, object));
    }

    /// Deletes one.
    pub fn delete_policy(&self, kind: Kind, namespace: &str, name: &str) {
        self.cluster().policy.remove(&(kind, namespace.to_owned(), name.to_owned()));
        self.tell_policy(PolicyEvent::Deleted(kind, namespace.to_owned(), name.to_owned()));
    }

    /// Takes one away of which nobody hears before the next list.
    pub fn lose_policy(&self, kind: Kind, namespace: &str, name: &str) {
        self.cluster().policy.remove(&(kind, namespace.to_owned(), name.to_owned()));
    }

    /// Lists a kind anew.
    pub fn list_policy(&self, kind: Kind) {
        let events = self.cluster().list(kind);
        events.into_iter().for_each(|event| self.tell_policy(event));
    }

    /// Tells any event about such objects.
    pub fn tell_policy(&self, event: PolicyEvent) {
        // Without a listener there is nobody to tell.
        let _ = self.policy_events.send(event);
    }

    /// Tells any event.
    pub fn tell(&self, event: Event) {
        // Without a listener there is nobody to tell.
        let _ = self.events.send(event);
    }
}

/// All kinds that network policies are about.
const KINDS: [Kind; 5] =
    [Kind::Pod, Kind::Namespace, Kind::NetworkPolicy, Kind::Service, Kind::EndpointSlice];

fn key(kind: Kind, object: &Value) -> (Kind, String, String) {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    (kind, text("namespace"), text("name"))
}

impl Cluster {
    /// A list of a kind, as events; its end is missing where it never comes.
    fn list(&self, kind: Kind) -> Vec<PolicyEvent> {
        let objects = self.policy.iter().filter(|((of, _, _), _)| *of == kind);
        let applied = objects.map(|(_, object)| PolicyEvent::Applied(kind, object.clone()));
        let end = (!self.endless.contains(&kind)).then_some(PolicyEvent::Synced(kind));
        std::iter::once(PolicyEvent::Restarted(kind)).chain(applied).chain(end).collect()
    }
}

impl Backend for FakeBackend {
    async fn run(&self, events: mpsc::Sender<Event>) -> Result<(), BackendError> {
        let (mut heard, first) = {
            let cluster = self.cluster();
            let nodes = Event::Nodes(cluster.nodes.values().cloned().collect(), Vec::new());
            let peers = Event::Peers(cluster.peers.values().cloned().collect(), Vec::new());
            let up = [WatchKind::Nodes, WatchKind::Peers].map(|kind| Event::Watch(kind, WatchState::Up));
            (self.events.subscribe(), [nodes, peers].into_iter().chain(up))
        };
        for event in first {
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
        while let Ok(event) = heard.recv().await {
            if events.send(event).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn run_policy(&self, events: mpsc::Sender<PolicyEvent>) -> Result<(), BackendError> {
        let (mut heard, first) = {
            let cluster = self.cluster();
            let first: Vec<_> = KINDS.into_iter().flat_map(|kind| cluster.list(kind)).collect();
            (self.policy_events.subscribe(), first)
        };
        for event in first {
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
        while let Ok(event) = heard.recv().await {
            if events.send(event).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn show(&self, finding: &PolicyFinding) -> Result<(), BackendError> {
        self.cluster().shown.push(finding.clone());
        Ok(())
    }

    async fn patch_node(&self, name: &str, patch: &NodePatch) -> Result<(), BackendError> {
        let changed = {
            let mut cluster = self.cluster();
            if cluster.refuse_patches {
                let action = format!("patching node {name}");
                return Err(BackendError::Failed { action, source: "told to refuse".into() });
            }
            if cluster.forbid_patches {
                let action = format!("patching node {name}");
                return Err(BackendError::Forbidden { action, source: "told to forbid".into() });
            }
            cluster.patches.push((name.to_owned(), patch.clone()));
            let node =
                cluster.nodes.get_mut(name).ok_or_else(|| BackendError::NoSuchNode(name.to_owned()))?;
            for (key, value) in patch {
                match value {
                    Some(value) => drop(node.metadata.annotations.insert(key.clone(), value.clone())),
                    None => drop(node.metadata.annotations.remove(key)),
                }
            }
            node.clone()
        };
        self.tell(Event::NodeApplied(Box::new(changed)));
        Ok(())
    }
}
