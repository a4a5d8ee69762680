//! The Kubernetes backend against a real API server, with the rights of our own manifests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kilo_agent::{Backend, BackendError, Event, NodePatch, WatchKind, WatchState};
use kilo_e2e::{Place, Skip, World, figure, tests};
use kilo_k8s::{ClientConfig, KubernetesBackend, connect};
use serde_json::Value;
use tokio::sync::mpsc;

tests![backend(place = Place::Host, limit = 600)];

const SEEN: &str = "kilo.squat.ai/last-seen";

/// An API server of our own, stopped at the end.
pub(super) struct Server {
    pub(super) dir: tempfile::TempDir,
}

impl Server {
    pub(super) fn start() -> Result<Self> {
        let probe = Command::new(script("install-control-plane")).output().context("preparing the API server")?;
        if probe.status.code() == Some(3) {
            let text = String::from_utf8_lossy(&probe.stdout).into_owned();
            return Err(Skip::because(text.lines().last().unwrap_or("no API server").to_owned()));
        }
        let server = Self { dir: tempfile::tempdir().context("making a directory")? };
        server.control(&["start"])?;
        Ok(server)
    }

    /// Runs `control-plane VERB DIR ARGS…`.
    pub(super) fn control(&self, args: &[&str]) -> Result<String> {
        let (verb, rest) = args.split_first().context("a verb")?;
        output(Command::new(script("control-plane")).arg(verb).arg(self.dir.path()).args(rest), None)
    }

    pub(super) fn kubectl(&self, args: &[&str], input: Option<&str>) -> Result<String> {
        let kubeconfig = self.dir.path().join("kubeconfig");
        output(Command::new("kubectl").arg("--kubeconfig").arg(kubeconfig).args(args), input)
    }

    /// A kubeconfig with the token of a ServiceAccount.
    pub(super) fn account(&self, account: &str) -> Result<PathBuf> {
        let token = self.kubectl(&["-n", "kube-system", "create", "token", account], None)?;
        let text = self.kubectl(&["config", "view", "--raw", "-o", "json"], None)?;
        let mut config: Value = serde_json::from_str(&text)?;
        config["users"][0]["user"] = serde_json::json!({ "token": token.trim() });
        let path = self.dir.path().join(format!("{account}.kubeconfig"));
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What is left running is a failure of the machine, not of the test.
        let _ = self.control(&["stop"]);
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci").join(name)
}

fn output(command: &mut Command, input: Option<&str>) -> Result<String> {
    use std::io::Write as _;
    let shown = format!("{command:?}");
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().with_context(|| shown.clone())?;
    if let (Some(mut stdin), Some(text)) = (child.stdin.take(), input) {
        stdin.write_all(text.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{shown}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(super) async fn client(kubeconfig: &Path) -> Result<kilo_k8s::Client> {
    let config = ClientConfig::Kubeconfig { path: kubeconfig.to_owned(), master: None };
    connect(&config).await.context("a client")
}

/// Waits for an event that this is true of.
async fn wait(events: &mut mpsc::Receiver<Event>, what: &str, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(90);
    loop {
        match tokio::time::timeout_at(deadline, events.recv()).await {
            Ok(Some(event)) if wanted(&event) => return Ok(event),
            Ok(Some(_)) => {}
            Ok(None) => bail!("the backend ended while waiting for {what}"),
            Err(_) => bail!("no {what} in 90 s"),
        }
    }
}

fn seen(value: Option<&str>) -> NodePatch {
    NodePatch::from([(SEEN.to_owned(), value.map(str::to_owned))])
}

fn peer(name: &str, ip: &str) -> String {
    format!("apiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {{name: {name}}}\nspec: {{allowedIPs: [{ip}/32], publicKey: k}}\n")
}

fn backend(_world: &World) -> Result<()> {
    let server = Server::start()?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(judge(&server))
}

async fn judge(server: &Server) -> Result<()> {
    let admin = server.dir.path().join("kubeconfig");
    server.kubectl(&["create", "-f", "-"], Some("apiVersion: v1\nkind: Node\nmetadata: {name: a, annotations: {example.com/mine: x}, labels: {x: z, topology.kubernetes.io/region: eu}}\nspec: {podCIDR: 10.2.0.0/24}\n"))?;

    // Without a definition of Peers nothing but an error helps.
    let (sender, _events) = mpsc::channel(16);
    let without = KubernetesBackend::new(client(&admin).await?, "x");
    match tokio::time::timeout(Duration::from_secs(30), without.run(sender)).await.context("an end")? {
        Err(BackendError::Failed { source, .. }) => ensure!(source.to_string().contains("crds.yaml"), "{source}"),
        other => bail!("{other:?}"),
    }

    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/overlays/kubeadm");
    let applied = server.kubectl(&["apply", "-k", &manifests.to_string_lossy()], None)?;
    ensure!(applied.contains("daemonset.apps/kilo created"), "{applied}");
    server.kubectl(&["wait", "--for=condition=Established", "crd/peers.kilo.squat.ai", "--timeout=60s"], None)?;

    let account = client(&server.account("kilo")?).await?;
    let backend = std::sync::Arc::new(KubernetesBackend::new(account.clone(), "topology.kubernetes.io/region"));
    let (sender, mut events) = mpsc::channel(64);
    let running = backend.clone();
    tokio::spawn(async move { running.run(sender).await });
    let nodes = wait(&mut events, "Nodes", |e| matches!(e, Event::Nodes(..))).await?;
    let Event::Nodes(nodes, _) = nodes else { bail!("{nodes:?}") };
    ensure!(nodes.len() == 1 && nodes[0].metadata.labels.len() == 1, "{nodes:?}");
    ensure!(nodes[0].metadata.annotations.is_empty() && nodes[0].spec.pod_cidr == "10.2.0.0/24", "{nodes:?}");

    // Created, changed, deleted.
    let began = Instant::now();
    server.kubectl(&["create", "-f", "-"], Some(&peer("p", "10.5.0.1")))?;
    wait(&mut events, "Peer", |e| {
        matches!(e, Event::PeerApplied(p) if p.metadata.name == "p")
            || matches!(e, Event::Peers(all, _) if all.len() == 1)
    })
    .await?;
    let took = began.elapsed();
    server.kubectl(&["apply", "-f", "-"], Some(&peer("p", "10.5.0.2")))?;
    wait(&mut events, "change", |e| matches!(e, Event::PeerApplied(p) if p.spec.allowed_ips == ["10.5.0.2/32"])).await?;
    server.kubectl(&["delete", "peer", "p"], None)?;
    wait(&mut events, "deletion", |e| matches!(e, Event::PeerDeleted(n) if n == "p")).await?;

    // Only annotations of ours change; a Node may have none.
    backend.patch_node("a", &seen(Some("1"))).await?;
    wait(&mut events, "own Node", |e| matches!(e, Event::NodeApplied(n) if n.metadata.annotations.get(SEEN).is_some_and(|s| s == "1"))).await?;
    backend.patch_node("a", &seen(None)).await?;
    let node: Value = serde_json::from_str(&server.kubectl(&["get", "node", "a", "-o", "json"], None)?)?;
    ensure!(node["metadata"]["annotations"]["example.com/mine"] == "x", "{node}");
    ensure!(node["metadata"]["annotations"].get(SEEN).is_none() && node["metadata"]["labels"]["x"] == "z", "{node}");
    server.kubectl(&["create", "-f", "-"], Some("apiVersion: v1\nkind: Node\nmetadata: {name: bare}\n"))?;
    backend.patch_node("bare", &seen(Some("1"))).await?;
    ensure!(matches!(backend.patch_node("none", &seen(Some("1"))).await, Err(BackendError::NoSuchNode(n)) if n == "none"));

    // A definition that checks nothing lets anything in; the watch goes on.
    let loose = r#"[{"op":"replace","path":"/spec/versions/0/schema/openAPIV3Schema","value":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}]"#;
    server.kubectl(&["patch", "crd", "peers.kilo.squat.ai", "--type=json", "-p", loose], None)?;
    let hostile = "apiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {name: bad}\nspec: {allowedIPs: 7}\n";
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = server.kubectl(&["create", "-f", "-"], Some(hostile)) {
        ensure!(Instant::now() < deadline, "{error:#}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    server.kubectl(&["create", "-f", "-"], Some(&peer("good", "10.5.0.3")))?;
    // The server may end its watches when a definition changes: then all comes anew.
    let (mut bad, mut good) = (false, false);
    while !(bad && good) {
        match wait(&mut events, "both Peers", |_| true).await? {
            Event::Malformed(WatchKind::Peers, name, f) => bad |= name == "bad" && f.field == "spec.allowedIPs",
            Event::PeerApplied(p) => good |= p.metadata.name == "good",
            Event::Peers(all, f) => {
                bad |= f.iter().any(|f| f.object == "Peer/bad");
                good |= all.iter().any(|p| p.metadata.name == "good");
            }
            Event::Nodes(..)
            | Event::NodeApplied(_)
            | Event::NodeDeleted(_)
            | Event::PeerDeleted(_)
            | Event::Malformed(..)
            | Event::Watch(..) => {}
        }
    }
    let (nodes, peers, findings) = kilo_k8s::list(&account, "x").await?;
    ensure!((nodes.len(), peers.len(), findings.len()) == (2, 1, 1), "{nodes:?} {peers:?} {findings:?}");

    // A server that hangs blocks nobody for long.
    server.control(&["kill", "kube-apiserver", "STOP"])?;
    let began = Instant::now();
    let hung = backend.patch_node("a", &seen(Some("2"))).await;
    ensure!(matches!(hung, Err(BackendError::Failed { .. })), "{hung:?}");
    ensure!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    server.control(&["kill", "kube-apiserver", "CONT"])?;

    // The server goes away, revisions with it, and comes back.
    server.control(&["expire"])?;
    wait(&mut events, "end of the watch", |e| matches!(e, Event::Watch(_, WatchState::Down(_)))).await?;
    server.kubectl(&["create", "-f", "-"], Some(&peer("later", "10.5.0.4")))?;
    wait(&mut events, "Peer after the restart", |e| {
        matches!(e, Event::Peers(all, _) if all.iter().any(|p| p.metadata.name == "later"))
            || matches!(e, Event::PeerApplied(p) if p.metadata.name == "later")
    })
    .await?;

    // Without the right to patch; what the Node has already is not sent and therefore not refused.
    backend.patch_node("a", &seen(Some("10"))).await?;
    let rules = r#"[{"op":"replace","path":"/rules/0/verbs","value":["list","watch"]}]"#;
    server.kubectl(&["patch", "clusterrole", "kilo", "--type=json", "-p", rules], None)?;
    let deadline = Instant::now() + Duration::from_secs(30);
    let (mut n, mut last) = (10, 10);
    loop {
        n += 1;
        match backend.patch_node("a", &seen(Some(&n.to_string()))).await {
            Err(BackendError::Forbidden { action, .. }) => {
                ensure!(action == "patching node a", "{action}");
                break;
            }
            Ok(()) => ensure!(Instant::now() < deadline, "patching is still allowed"),
            other => bail!("{other:?}"),
        }
        last = n;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    backend.patch_node("a", &seen(Some(&last.to_string()))).await?;
    figure(&format!("a Peer created by kubectl is an event after {} ms, kubectl included", took.as_millis()));
    Ok(())
}
