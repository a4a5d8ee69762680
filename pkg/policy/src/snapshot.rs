//! The objects of a cluster that policies are about, trimmed as they come in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kilo_object::{Field, Finding, Notes, is_name, shorten};
use serde_json::Value;

use crate::index::Named;
use crate::intern::{Interner, Text};
use crate::labels::Labels;
use crate::pod::{Pod, read_namespace};
use crate::policy::Policy;
use crate::service::{Service, Slice};

/// A kind of object that a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Pod.
    Pod,
    /// `v1` Namespace.
    Namespace,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
}

impl Kind {
    /// The kind that objects call themselves so, if a snapshot holds it.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Pod") => Some(Self::Pod),
            ("v1", "Namespace") => Some(Self::Namespace),
            ("networking.k8s.io/v1", "NetworkPolicy") => Some(Self::NetworkPolicy),
            ("v1", "Service") => Some(Self::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(Self::EndpointSlice),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
        }
    }
}

/// What became of an object that was given to a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Its name in findings, `Pod/shop/web-0`; empty if it was left out.
    pub object: String,
    /// It took the place of one of its name.
    pub replaced: bool,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

/// Objects by namespace and name.
type Namespaced<T> = BTreeMap<Text, BTreeMap<Text, T>>;

/// Pods, Namespaces, NetworkPolicies, and the Services that stand before pods. What is equal in many objects is kept once.
#[derive(Debug, Default)]
pub struct Snapshot {
    pods: Namespaced<Pod>,
    /// Nothing for a namespace whose labels could not be read.
    namespaces: BTreeMap<Text, Option<Arc<Labels>>>,
    policies: Namespaced<Policy>,
    services: Namespaced<Service>,
    slices: Namespaced<Slice>,
    interner: Interner,
}

impl Snapshot {
    /// Puts an object in, in place of one of its kind and name. One without a usable name is left out.
    pub fn apply(&mut self, kind: Kind, object: &Value) -> Applied {
        let root = Field::root(object);
        let (namespace, name) = match key(kind, &root) {
            Ok(key) => key,
            Err(findings) => return Applied { findings, ..Applied::default() },
        };
        let object = called(kind, namespace, name);
        let mut notes = Notes::new(object.as_str(), "");
        let interner = &mut self.interner;
        let replaced = match kind {
            Kind::Pod => {
                let pod = Pod::read(&root, interner, &mut notes);
                put(&mut self.pods, interner.text(namespace), name.into(), pod)
            }
            Kind::NetworkPolicy => {
                let policy = Policy::read(&root, interner, &mut notes);
                put(&mut self.policies, interner.text(namespace), name.into(), policy)
            }
            Kind::Service => {
                let service = Service::read(&root, interner, &mut notes);
                put(&mut self.services, interner.text(namespace), name.into(), service)
            }
            Kind::EndpointSlice => {
                let slice = Slice::read(&root, interner, &mut notes);
                put(&mut self.slices, interner.text(namespace), name.into(), slice)
            }
            Kind::Namespace => {
                let labels = read_namespace(&root, name, interner, &mut notes);
                self.namespaces.insert(interner.text(name), labels).is_some()
            }
        };
        Applied { object, replaced, findings: notes.into_findings() }
    }

    /// Takes an object out; whether it was there. A Namespace has no namespace.
    pub fn remove(&mut self, kind: Kind, namespace: &str, name: &str) -> bool {
        match kind {
            Kind::Pod => take(&mut self.pods, namespace, name),
            Kind::NetworkPolicy => take(&mut self.policies, namespace, name),
            Kind::Service => take(&mut self.services, namespace, name),
            Kind::EndpointSlice => take(&mut self.slices, namespace, name),
            Kind::Namespace => self.namespaces.remove(name).is_some(),
        }
    }

    /// The pods with namespace and name, sorted by these.
    pub fn pods(&self) -> impl Iterator<Item = (&Text, &Text, &Pod)> {
        each(&self.pods)
    }

    /// The policies with namespace and name, sorted by these.
    pub fn policies(&self) -> impl Iterator<Item = (&Text, &Text, &Policy)> {
        each(&self.policies)
    }

    /// The Services with namespace and name, sorted by these.
    pub fn services(&self) -> impl Iterator<Item = (&Text, &Text, &Service)> {
        each(&self.services)
    }

    /// The EndpointSlices with namespace and name, sorted by these.
    pub fn slices(&self) -> impl Iterator<Item = (&Text, &Text, &Slice)> {
        each(&self.slices)
    }

    /// The labels of a namespace, if they are known.
    pub fn namespace(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)?.as_deref()
    }

    /// The names of the namespaces, sorted.
    pub fn namespaces(&self) -> impl Iterator<Item = &Text> {
        self.namespaces.keys()
    }

    /// A policy by its name.
    pub(crate) fn policy(&self, namespace: &str, name: &str) -> Option<Named<'_>> {
        let (namespace, policies) = self.policies.get_key_value(namespace)?;
        let (name, policy) = policies.get_key_value(name)?;
        Some(Named { namespace, name, policy })
    }

    /// The names of all objects of a kind.
    pub(crate) fn names(&self, kind: Kind) -> BTreeSet<(Text, Text)> {
        fn all<T>(objects: &Namespaced<T>) -> BTreeSet<(Text, Text)> {
            each(objects).map(|(namespace, name, _)| (namespace.clone(), name.clone())).collect()
        }
        match kind {
            Kind::Pod => all(&self.pods),
            Kind::NetworkPolicy => all(&self.policies),
            Kind::Service => all(&self.services),
            Kind::EndpointSlice => all(&self.slices),
            Kind::Namespace => self.namespaces.keys().map(|name| ("".into(), name.clone())).collect(),
        }
    }

    /// A pod by its name, with namespace and name as they are kept.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<(&Text, &Text, &Pod)> {
        let (namespace, pods) = self.pods.get_key_value(namespace)?;
        let (name, pod) = pods.get_key_value(name)?;
        Some((namespace, name, pod))
    }
}

/// Namespace and name of an object; the namespace is `default` where none is given, and empty for a Namespace.
pub(crate) fn key<'v>(kind: Kind, root: &Field<'v, '_>) -> Result<(&'v str, &'v str), Vec<Finding>> {
    let metadata = root.get("metadata");
    let (namespace, name) = (metadata.get("namespace"), metadata.get("name"));
    let shown = |field: &Field<'v, '_>| field.value().as_str().unwrap_or_default();
    let object = called(kind, &shorten(shown(&namespace)), &shorten(shown(&name)));
    let mut notes = Notes::new(object, "the object is left out");
    let mut text = |field: &Field<'v, '_>, missing: &'v str| match field.text(&mut notes) {
        Ok(text) if is_name(text.unwrap_or(missing)) => Some(text.unwrap_or(missing)),
        Ok(_) => {
            notes.wrong(field, "must be a DNS name in lower case");
            None
        }
        Err(_) => None,
    };
    let namespace = if kind == Kind::Namespace { Some("") } else { text(&namespace, "default") };
    let name = text(&name, "");
    namespace.zip(name).ok_or_else(|| notes.into_findings())
}

/// An object's name in findings: `Pod/shop/web-0`, `Namespace/shop`.
fn called(kind: Kind, namespace: &str, name: &str) -> String {
    match kind {
        Kind::Namespace => format!("Namespace/{name}"),
        Kind::Pod | Kind::NetworkPolicy | Kind::Service | Kind::EndpointSlice => {
            format!("{}/{namespace}/{name}", kind.name())
        }
    }
}

fn put<T>(objects: &mut Namespaced<T>, namespace: Text, name: Text, object: T) -> bool {
    objects.entry(namespace).or_default().insert(name, object).is_some()
}

fn take<T>(objects: &mut Namespaced<T>, namespace: &str, name: &str) -> bool {
    let Some(of) = objects.get_mut(namespace) else { return false };
    let there = of.remove(name).is_some();
    if of.is_empty() {
        objects.remove(namespace);
    }
    there
}

fn each<T>(objects: &Namespaced<T>) -> impl Iterator<Item = (&Text, &Text, &T)> {
    objects.iter().flat_map(|(namespace, of)| of.iter().map(move |(name, object)| (namespace, name, object)))
}
