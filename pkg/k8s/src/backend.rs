//! Kubernetes as a backend: two watches, and annotations of our own Node.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kilo_agent::{
    Backend, BackendError, Event, NodePatch, PolicyEvent, PolicyFinding, WatchKind, WatchState,
};
use kilo_mesh::{Finding, NodeObject, PeerObject};
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::events::Reporter;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::mpsc;

use crate::crd::CRD_NAME;
use crate::error::CallError;
use crate::object::{SlimNode, SlimPeer};
use crate::policies;
use crate::watch::{Convert, follow};

/// How long a request may take that is no watch.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many objects a page of a list has.
const PAGE: u32 = 500;

/// A cluster with our Nodes and Peers.
pub struct KubernetesBackend {
    client: Client,
    topology_label: String,
    /// What we are called in Events.
    reporter: Reporter,
    /// Annotations of the Node that was patched last, as the server last told them.
    own: Mutex<Option<(String, BTreeMap<String, String>)>>,
}

impl KubernetesBackend {
    /// A backend that keeps no other label of Nodes than this one.
    pub fn new(client: Client, topology_label: impl Into<String>) -> Self {
        let reporter = Reporter { controller: "kilo.squat.ai/kg".to_owned(), instance: None };
        Self { client, topology_label: topology_label.into(), reporter, own: Mutex::default() }
    }

    fn own(&self) -> MutexGuard<'_, Option<(String, BTreeMap<String, String>)>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what a Node of ours looks like now.
    fn note(&self, node: &NodeObject) {
        if let Some((name, annotations)) = self.own().as_mut()
            && *name == node.metadata.name
        {
            annotations.clone_from(&node.metadata.annotations);
        }
    }
}

impl Backend for KubernetesBackend {
    async fn run(&self, events: mpsc::Sender<Event>) -> Result<(), BackendError> {
        tokio::select! {
            () = events.closed() => return Ok(()),
            checked = check_definition(&self.client) => checked?,
        }
        let nodes = follow(Api::all(self.client.clone()), Listing::new(Nodes(self)), &events);
        let peers = follow(Api::all(self.client.clone()), Listing::new(Peers), &events);
        tokio::join!(nodes, peers);
        Ok(())
    }

    async fn run_policy(&self, events: mpsc::Sender<PolicyEvent>) -> Result<(), BackendError> {
        tokio::join!(
            policies::follow_kind::<Pod>(&self.client, &events),
            policies::follow_kind::<Namespace>(&self.client, &events),
            policies::follow_kind::<NetworkPolicy>(&self.client, &events),
            policies::follow_kind::<Service>(&self.client, &events),
            policies::follow_kind::<EndpointSlice>(&self.client, &events),
        );
        Ok(())
    }

    async fn show(&self, finding: &PolicyFinding) -> Result<(), BackendError> {
        let action =
            format!("writing an Event on {} {}/{}", finding.kind.name(), finding.namespace, finding.name);
        patient(policies::show(&self.client, &self.reporter, finding)).await.map_err(|error| {
            match error.code() {
                Some(403) => BackendError::Forbidden { action, source: Box::new(error) },
                Some(_) | None => BackendError::Failed { action, source: Box::new(error) },
            }
        })
    }

    async fn patch_node(&self, name: &str, patch: &NodePatch) -> Result<(), BackendError> {
        let known = |known: &BTreeMap<String, String>| patch.iter().all(|(k, v)| known.get(k) == v.as_ref());
        if self.own().as_ref().is_some_and(|(own, annotations)| own == name && known(annotations)) {
            return Ok(());
        }
        let action = format!("patching node {name}");
        let api: Api<SlimNode> = Api::all(self.client.clone());
        // A null removes a key; a Node without any annotations gets the map.
        let body = Patch::Strategic(json!({ "metadata": { "annotations": patch } }));
        match patient(api.patch(name, &PatchParams::default(), &body)).await {
            Ok(node) => {
                let node = node.into_node(&self.topology_label);
                *self.own() = Some((node.metadata.name, node.metadata.annotations));
                Ok(())
            }
            Err(error) => Err(match error.code() {
                Some(403) => BackendError::Forbidden { action, source: Box::new(error) },
                Some(404) => BackendError::NoSuchNode(name.to_owned()),
                Some(_) | None => BackendError::Failed { action, source: Box::new(error) },
            }),
        }
    }
}

/// Makes sure that there are Peers in this cluster; waits while the server cannot be asked.
async fn check_definition(client: &Client) -> Result<(), BackendError> {
    let mut pause = Duration::from_secs(1);
    let mut said = None;
    loop {
        let error = match find_definition(client).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if matches!(error, CallError::NoDefinition) {
            return Err(BackendError::Failed {
                action: "starting to watch Peers".to_owned(),
                source: Box::new(error),
            });
        }
        let reason = error.line();
        if error.code() == Some(403) {
            // The watch will tell whether there are Peers.
            tracing::warn!(%reason, "The definition of Peers may not be read");
            return Ok(());
        }
        if said.as_ref() != Some(&reason) {
            tracing::warn!(%reason, "The definition of Peers cannot be read yet");
            said = Some(reason);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(30));
    }
}

async fn find_definition(client: &Client) -> Result<(), CallError> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    match patient(api.get_metadata(CRD_NAME)).await {
        Err(error) if error.code() == Some(404) => Err(CallError::NoDefinition),
        found => found.map(drop),
    }
}

/// Makes a call that must not take for ever.
pub(crate) async fn patient<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
    Ok(tokio::time::timeout(PATIENCE, call).await.map_err(|_| CallError::Silent(PATIENCE))??)
}

/// Lists all Nodes and Peers once; objects that cannot be read become findings.
///
/// # Errors
/// When the server cannot be asked, refuses, or has no definition of Peers.
pub async fn list(
    client: &Client,
    topology_label: &str,
) -> Result<(Vec<NodeObject>, Vec<PeerObject>, Vec<Finding>), CallError> {
    let nodes = list_all::<SlimNode>(client).await?;
    let nodes = nodes.into_iter().map(|node| node.into_node(topology_label)).collect();
    let slim = match list_all::<SlimPeer>(client).await {
        Err(error) if error.code() == Some(404) => return Err(CallError::NoDefinition),
        slim => slim?,
    };
    let (mut peers, mut findings) = (Vec::new(), Vec::new());
    for peer in slim {
        match peer.into_peer() {
            Ok(peer) => peers.push(peer),
            Err(finding) => findings.push(finding),
        }
    }
    Ok((nodes, peers, findings))
}

async fn list_all<K>(client: &Client) -> Result<Vec<K>, CallError>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    let mut params = ListParams::default().limit(PAGE);
    let mut objects = Vec::new();
    loop {
        let page = patient(api.list(&params)).await?;
        objects.extend(page.items);
        match page.metadata.continue_ {
            Some(next) if !next.is_empty() => params.continue_token = Some(next),
            Some(_) | None => return Ok(objects),
        }
    }
}

/// What becomes of the objects of a kind of the mesh.
trait Mesh<K: Resource<DynamicType = ()>>: Send {
    const KIND: WatchKind;
    type Object: Send;
    fn read(&self, object: K) -> Result<Self::Object, Finding>;
    fn all(&self, objects: Vec<Self::Object>, findings: Vec<Finding>) -> Event;
    fn applied(&self, object: Self::Object) -> Event;
    fn deleted(&self, name: String) -> Event;
}

/// The list of a kind of the mesh, while it comes in.
struct Listing<T, O> {
    mesh: T,
    objects: Vec<O>,
    findings: Vec<Finding>,
}

impl<T, O> Listing<T, O> {
    fn new(mesh: T) -> Self {
        Self { mesh, objects: Vec::new(), findings: Vec::new() }
    }
}

impl<K, T> Convert<K> for Listing<T, T::Object>
where
    K: Resource<DynamicType = ()>,
    T: Mesh<K>,
{
    type Event = Event;

    fn restarted(&mut self) {
        self.objects.clear();
        self.findings.clear();
    }

    fn listed(&mut self, object: K, _: &mut Vec<Event>) {
        match self.mesh.read(object) {
            Ok(object) => self.objects.push(object),
            Err(finding) => self.findings.push(finding),
        }
    }

    fn synced(&mut self, out: &mut Vec<Event>) {
        let (objects, findings) = (std::mem::take(&mut self.objects), std::mem::take(&mut self.findings));
        out.push(self.mesh.all(objects, findings));
    }

    fn applied(&mut self, object: K, out: &mut Vec<Event>) {
        let name = object.name_any();
        out.push(match self.mesh.read(object) {
            Ok(object) => self.mesh.applied(object),
            Err(finding) => Event::Malformed(T::KIND, name, finding),
        });
    }

    fn deleted(&mut self, object: &K, out: &mut Vec<Event>) {
        out.push(self.mesh.deleted(object.name_any()));
    }

    fn state(&self, state: WatchState) -> Event {
        Event::Watch(T::KIND, state)
    }
}

struct Nodes<'b>(&'b KubernetesBackend);

impl Mesh<SlimNode> for Nodes<'_> {
    const KIND: WatchKind = WatchKind::Nodes;
    type Object = NodeObject;

    fn read(&self, node: SlimNode) -> Result<NodeObject, Finding> {
        let node = node.into_node(&self.0.topology_label);
        self.0.note(&node);
        Ok(node)
    }

    fn all(&self, nodes: Vec<NodeObject>, findings: Vec<Finding>) -> Event {
        Event::Nodes(nodes, findings)
    }

    fn applied(&self, node: NodeObject) -> Event {
        Event::NodeApplied(Box::new(node))
    }

    fn deleted(&self, name: String) -> Event {
        self.0.own().take_if(|(own, _)| *own == name);
        Event::NodeDeleted(name)
    }
}

struct Peers;

impl Mesh<SlimPeer> for Peers {
    const KIND: WatchKind = WatchKind::Peers;
    type Object = PeerObject;

    fn read(&self, peer: SlimPeer) -> Result<PeerObject, Finding> {
        peer.into_peer()
    }

    fn all(&self, peers: Vec<PeerObject>, findings: Vec<Finding>) -> Event {
        Event::Peers(peers, findings)
    }

    fn applied(&self, peer: PeerObject) -> Event {
        Event::PeerApplied(Box::new(peer))
    }

    fn deleted(&self, name: String) -> Event {
        Event::PeerDeleted(name)
    }
}
