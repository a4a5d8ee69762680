//! The objects that network policies are about: five watches whose objects are passed on one by one, and Events on
//! policies that cannot be understood.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::api::core::v1::{Namespace, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kilo_agent::{Kind, PolicyEvent, PolicyFinding, Trim, WatchState};
use kube::core::{ClusterResourceScope, DynamicObject};
use kube::discovery::ApiResource;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource};
use serde::de::DeserializeSeed;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::watch::{Convert, follow};

/// The most characters of an Event's text, which may have 1,024 bytes.
const LONGEST_NOTE: usize = 250;

/// A kind that policies are about.
pub trait Watched: Resource<DynamicType = ()> + Send + 'static {
    /// What policies call it.
    const KIND: Kind;
}

impl Watched for Pod {
    const KIND: Kind = Kind::Pod;
}

impl Watched for Namespace {
    const KIND: Kind = Kind::Namespace;
}

impl Watched for NetworkPolicy {
    const KIND: Kind = Kind::NetworkPolicy;
}

impl Watched for Service {
    const KIND: Kind = Kind::Service;
}

impl Watched for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;
}

/// An object of which only what policies ask for was read.
struct Slim<W> {
    meta: ObjectMeta,
    object: Value,
    kind: PhantomData<fn() -> W>,
}

impl<W> Clone for Slim<W> {
    fn clone(&self) -> Self {
        Self { meta: self.meta.clone(), object: self.object.clone(), kind: PhantomData }
    }
}

impl<W> fmt::Debug for Slim<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slim").field("meta", &self.meta).finish_non_exhaustive()
    }
}

impl<'de, W: Watched> Deserialize<'de> for Slim<W> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Trim::of(W::KIND).deserialize(deserializer)?;
        let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
        let mut meta = ObjectMeta::default();
        if let Some(metadata) = metadata {
            let text = |key: &str| metadata.get(key).and_then(Value::as_str).map(str::to_owned);
            meta.name = text("name");
            meta.namespace = text("namespace");
            meta.resource_version = text("resourceVersion");
            metadata.remove("resourceVersion");
        }
        Ok(Self { meta, object, kind: PhantomData })
    }
}

/// kube wants to be able to write what it reads; nothing here is ever sent.
impl<W> Serialize for Slim<W> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.meta.serialize(serializer)
    }
}

impl<W: Watched> Resource for Slim<W> {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        W::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        W::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        W::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        W::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// Passes on what it gets; nothing before the server has answered.
struct Passing {
    kind: Kind,
    /// A list has begun and nobody has heard of it.
    restarted: bool,
}

impl Passing {
    fn begin(&mut self, out: &mut Vec<PolicyEvent>) {
        if std::mem::take(&mut self.restarted) {
            out.push(PolicyEvent::Restarted(self.kind));
        }
    }
}

impl<W: Watched> Convert<Slim<W>> for Passing {
    type Event = PolicyEvent;

    fn restarted(&mut self) {
        self.restarted = true;
    }

    fn listed(&mut self, object: Slim<W>, out: &mut Vec<PolicyEvent>) {
        self.begin(out);
        out.push(PolicyEvent::Applied(self.kind, object.object));
    }

    fn synced(&mut self, out: &mut Vec<PolicyEvent>) {
        self.begin(out);
        out.push(PolicyEvent::Synced(self.kind));
    }

    fn applied(&mut self, object: Slim<W>, out: &mut Vec<PolicyEvent>) {
        out.push(PolicyEvent::Applied(self.kind, object.object));
    }

    fn deleted(&mut self, object: &Slim<W>, out: &mut Vec<PolicyEvent>) {
        let namespace = object.meta.namespace.clone().unwrap_or_default();
        out.push(PolicyEvent::Deleted(self.kind, namespace, object.meta.name.clone().unwrap_or_default()));
    }

    fn state(&self, state: WatchState) -> PolicyEvent {
        PolicyEvent::Watch(self.kind, state)
    }
}

/// Watches all objects of a kind for as long as somebody listens.
pub async fn follow_kind<W: Watched>(client: &Client, events: &mpsc::Sender<PolicyEvent>) {
    let api: Api<Slim<W>> = Api::all(client.clone());
    follow(api, Passing { kind: W::KIND, restarted: false }, events).await;
}

/// Writes an Event on an object that cannot be understood.
///
/// # Errors
/// When the object is gone or the server refuses.
pub async fn show(client: &Client, reporter: &Reporter, finding: &PolicyFinding) -> kube::Result<()> {
    let kind = match finding.kind {
        Kind::Pod => ApiResource::erase::<Pod>(&()),
        Kind::Namespace => ApiResource::erase::<Namespace>(&()),
        Kind::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
        Kind::Service => ApiResource::erase::<Service>(&()),
        Kind::EndpointSlice => ApiResource::erase::<EndpointSlice>(&()),
    };
    let mut regarding = ObjectReference {
        api_version: Some(kind.api_version.clone()),
        kind: Some(kind.kind.clone()),
        name: Some(finding.name.clone()),
        namespace: Some(finding.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        ..ObjectReference::default()
    };
    if finding.kind == Kind::NetworkPolicy {
        // Who describes an object sees the Events of its uid.
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &finding.namespace, &kind);
        regarding.uid = api.get_metadata(&finding.name).await?.metadata.uid;
    }
    let event = Event {
        type_: EventType::Warning,
        reason: "Misunderstood".to_owned(),
        note: Some(finding.message.chars().take(LONGEST_NOTE).collect()),
        action: "Programming".to_owned(),
        secondary: None,
    };
    // A recorder that lives longer would keep the first text of each object.
    Recorder::new(client.clone(), reporter.clone()).publish(&event, &regarding).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_trimmed_and_keeps_its_revision() {
        let text = r#"{"metadata":{"name":"p","namespace":"n","resourceVersion":"7","managedFields":[{}]},"spec":{"nodeName":"a","volumes":[]}}"#;
        let slim: Slim<Pod> = serde_json::from_str(text).expect("readable");
        assert_eq!(slim.meta.resource_version.as_deref(), Some("7"));
        let kept =
            serde_json::json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeName": "a"}});
        assert_eq!(slim.object, kept);
        for hostile in ["5", "[]", r#"{"metadata":5}"#, r#"{"metadata":{"name":7}}"#] {
            let slim: Slim<Pod> = serde_json::from_str(hostile).expect("one bad object does not end a watch");
            assert_eq!(slim.meta.name, None);
        }
    }

    #[test]
    fn a_list_begins_when_the_server_answers() {
        let mut passing = Passing { kind: Kind::Pod, restarted: false };
        let slim: Slim<Pod> = serde_json::from_str(r#"{"metadata":{"name":"p"}}"#).expect("readable");
        let mut out = Vec::new();
        let pods: &mut dyn Convert<Slim<Pod>, Event = PolicyEvent> = &mut passing;
        pods.restarted();
        pods.restarted();
        pods.listed(slim.clone(), &mut out);
        pods.synced(&mut out);
        pods.deleted(&slim, &mut out);
        let object = serde_json::json!({"metadata": {"name": "p"}});
        let wanted = [
            PolicyEvent::Restarted(Kind::Pod),
            PolicyEvent::Applied(Kind::Pod, object),
            PolicyEvent::Synced(Kind::Pod),
            PolicyEvent::Deleted(Kind::Pod, String::new(), "p".to_owned()),
        ];
        assert_eq!(out, wanted);
    }
}
