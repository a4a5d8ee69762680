//! The objects that network policies are about, from a real API server with the rights of our own manifests.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kilo_agent::{Backend, Kind, PolicyEvent, PolicyFinding, WatchState};
use kilo_e2e::{Place, World, figure, tests};
use kilo_k8s::KubernetesBackend;
use serde_json::Value;
use tokio::sync::mpsc;

use super::api_backend::{Server, client};

tests![five_kinds(place = Place::Host, limit = 600)];

const KINDS: [Kind; 5] =
    [Kind::Pod, Kind::Namespace, Kind::NetworkPolicy, Kind::Service, Kind::EndpointSlice];

const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {tier: front}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {example.com/a: b}}
spec: {nodeName: a, automountServiceAccountToken: false, containers: [{name: c, image: i, env: [{name: E, value: v}], ports: [{name: http, containerPort: 80}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.2.0.5]}]
ports: [{port: 80}]
";

/// What an agent would hold, from the events alone.
struct Held {
    events: mpsc::Receiver<PolicyEvent>,
    objects: BTreeMap<(Kind, String, String), Value>,
    /// What the list that is under way has brought, by kind.
    listing: BTreeMap<Kind, Vec<(Kind, String, String)>>,
    synced: BTreeMap<Kind, usize>,
    down: BTreeMap<Kind, String>,
}

impl Held {
    /// Works events in until this is true.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(90);
        while !wanted(self) {
            match tokio::time::timeout_at(deadline, self.events.recv()).await {
                Ok(Some(event)) => self.take(event)?,
                Ok(None) => bail!("the backend ended while waiting for {what}"),
                Err(_) => bail!("no {what} in 90 s: {:?}, {:?}", self.objects.keys(), self.synced),
            }
        }
        Ok(())
    }

    fn take(&mut self, event: PolicyEvent) -> Result<()> {
        match event {
            PolicyEvent::Restarted(kind) => _ = self.listing.insert(kind, Vec::new()),
            PolicyEvent::Applied(kind, object) => {
                let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
                let key = (kind, text("namespace"), text("name"));
                ensure!(object["metadata"].get("managedFields").is_none(), "{object}");
                if let Some(listing) = self.listing.get_mut(&kind) {
                    listing.push(key.clone());
                }
                self.objects.insert(key, object);
            }
            PolicyEvent::Synced(kind) => {
                let listed = self.listing.remove(&kind).context("a list that did not begin")?;
                self.objects.retain(|key, _| key.0 != kind || listed.contains(key));
                *self.synced.entry(kind).or_default() += 1;
            }
            PolicyEvent::Deleted(kind, namespace, name) => _ = self.objects.remove(&(kind, namespace, name)),
            PolicyEvent::Watch(kind, WatchState::Up) => _ = self.down.remove(&kind),
            PolicyEvent::Watch(kind, WatchState::Down(reason)) => _ = self.down.insert(kind, reason),
        }
        Ok(())
    }

    fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(kind, namespace.to_owned(), name.to_owned()))
    }
}

fn five_kinds(_world: &World) -> Result<()> {
    let server = Server::start()?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(judge(&server))
}

async fn judge(server: &Server) -> Result<()> {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/overlays/kubeadm");
    server.kubectl(&["apply", "-k", &manifests.to_string_lossy()], None)?;
    server.kubectl(&["apply", "-f", "-"], Some(OBJECTS))?;
    let backend = Arc::new(KubernetesBackend::new(client(&server.account("kilo")?).await?, "x"));
    let (sender, events) = mpsc::channel(64);
    let running = backend.clone();
    tokio::spawn(async move { running.run_policy(sender).await });
    let mut held = Held {
        events,
        objects: BTreeMap::new(),
        listing: BTreeMap::new(),
        synced: BTreeMap::new(),
        down: BTreeMap::new(),
    };
    let began = Instant::now();
    held.until("five lists", |h| h.synced.len() == 5).await?;
    let lists = began.elapsed();
    let names = [(Kind::Namespace, "", "shop"), (Kind::Pod, "shop", "web"), (Kind::NetworkPolicy, "shop", "deny")];
    let more = [(Kind::Service, "shop", "web"), (Kind::EndpointSlice, "shop", "web-1")];
    for (kind, namespace, name) in names.into_iter().chain(more) {
        ensure!(held.get(kind, namespace, name).is_some(), "{} is missing", kind.name());
    }
    let pod = held.get(Kind::Pod, "shop", "web").context("the pod")?;
    ensure!(!pod["metadata"].to_string().contains("example.com") && pod["spec"]["containers"][0].get("image").is_none(), "{pod}");
    ensure!(pod["spec"]["containers"][0]["ports"][0]["name"] == "http" && pod["spec"]["nodeName"] == "a", "{pod}");

    // Changed and deleted.
    let began = Instant::now();
    server.kubectl(&["-n", "shop", "label", "pod", "web", "app=db", "--overwrite"], None)?;
    held.until("the label", |h| h.get(Kind::Pod, "shop", "web").is_some_and(|p| p["metadata"]["labels"]["app"] == "db")).await?;
    let label = began.elapsed();
    server.kubectl(&["-n", "shop", "delete", "networkpolicy", "deny"], None)?;
    held.until("the deletion", |h| h.get(Kind::NetworkPolicy, "shop", "deny").is_none()).await?;

    // An Event where who describes the policy sees it; none on one that is gone.
    server.kubectl(&["apply", "-f", "-"], Some(OBJECTS))?;
    let finding = |name: &str| PolicyFinding {
        kind: Kind::NetworkPolicy,
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        message: "spec.ingress[0]: \"x\" is no CIDR".to_owned(),
    };
    backend.show(&finding("deny")).await.context("an Event")?;
    ensure!(backend.show(&finding("none")).await.is_err(), "an Event on nothing");
    let described = server.kubectl(&["-n", "shop", "describe", "networkpolicy", "deny"], None)?;
    let shown: Value = serde_json::from_str(&server.kubectl(&["-n", "shop", "get", "events.v1.events.k8s.io", "-o", "json"], None)?)?;
    let event = &shown["items"][0];
    ensure!(event["regarding"]["uid"].is_string() && event["regarding"]["name"] == "deny", "{shown} {described}");
    ensure!(event["note"].as_str().is_some_and(|n| n.contains("is no CIDR")), "{shown}");

    // Without one right, one watch is down and the others go on; what went meanwhile is gone afterwards.
    held.until("the policy", |h| h.get(Kind::NetworkPolicy, "shop", "deny").is_some()).await?;
    let role = server.kubectl(&["get", "clusterrole", "kilo", "-o", "json"], None)?;
    let mut without: Value = serde_json::from_str(&role)?;
    let rules = without["rules"].as_array_mut().context("rules")?;
    rules.retain(|rule| rule["resources"][0] != "networkpolicies");
    server.kubectl(&["replace", "-f", "-"], Some(&without.to_string()))?;
    let again = held.synced.clone();
    server.control(&["expire"])?;
    held.until("a watch that is down by itself", |h| {
        h.down.get(&Kind::NetworkPolicy).is_some_and(|reason| reason.contains("forbidden"))
    })
    .await?;
    ensure!(held.get(Kind::NetworkPolicy, "shop", "deny").is_some(), "what cannot be watched is not gone");
    server.kubectl(&["-n", "shop", "delete", "networkpolicy", "deny"], None)?;
    server.kubectl(&["-n", "shop", "delete", "service", "web"], None)?;
    held.until("the Service's deletion", |h| h.get(Kind::Service, "shop", "web").is_none()).await?;
    ensure!(held.get(Kind::NetworkPolicy, "shop", "deny").is_some(), "nobody can know of it yet");
    let mut whole: Value = serde_json::from_str(&role)?;
    whole["metadata"].as_object_mut().context("metadata")?.remove("resourceVersion");
    server.kubectl(&["replace", "-f", "-"], Some(&whole.to_string()))?;
    held.until("the policy's deletion", |h| h.get(Kind::NetworkPolicy, "shop", "deny").is_none()).await?;
    held.until("all watches", |h| h.down.is_empty()).await?;
    let relisted = KINDS.iter().filter(|kind| held.synced.get(kind) > again.get(kind)).count();
    figure(&format!(
        "five kinds are complete after {} ms, a label is an event after {} ms, kubectl included; {relisted} of 5 kinds listed anew after the server's restart",
        lists.as_millis(),
        label.as_millis()
    ));
    Ok(())
}
