//! `kg webhook` as a real API server asks it: bad Peers are refused with the reason, deletions go through, and
//! SIGTERM is a clean end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kilo_e2e::cluster::{ControlPlane, peer_object};
use kilo_e2e::mesh::stranger;
use kilo_e2e::{World, eventually, figure, program, tests};
use serde_json::{Value, json};

tests![a_webhook_refuses_bad_peers_and_stops_cleanly(limit = 300)];

const SOON: Duration = Duration::from_secs(30);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const MANIFEST: &str = "../manifests/peer-validation.yaml";

fn peer(name: &str, key: &str) -> Value {
    peer_object(name, key, IpAddr::from([10, 100, 9, 1]), None)
}

/// What the server says to an object that it does not take.
fn refused(api: &ControlPlane, verb: &str, object: &Value) -> Result<String> {
    match api.put(verb, object) {
        Err(error) => Ok(format!("{error:#}")),
        Ok(()) => bail!("{verb} {object} is let in"),
    }
}

fn a_webhook_refuses_bad_peers_and_stops_cleanly(world: &World) -> Result<()> {
    let ns = world.ns("api")?;
    let inside = ns.clone();
    let dir = ns.dir().to_path_buf();
    let shell = ns.sh(&format!(
        "cd {dir}; umask 077; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout tls.key \
         -out tls.crt -subj /CN=webhook -addext subjectAltName=IP:127.0.0.1 2>&1; base64 -w 0 tls.crt > bundle",
        dir = dir.display()
    ));
    let kg = program("kg")?;
    let (cert, key) = (dir.join("tls.crt"), dir.join("tls.key"));
    let api = ControlPlane::start(world, ns, LOOPBACK)?;
    shell.context("making a certificate")?;
    let bundle = std::fs::read_to_string(dir.join("bundle")).context("reading the certificate")?;
    api.apply_manifests("kubeadm")?;
    let bad = peer("bad", "no key at all");
    api.put("create", &bad).context("without a webhook anything goes in")?;

    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join(MANIFEST);
    api.kubectl(&["apply", "-f", &manifest.to_string_lossy()])?;
    // No pod runs here: the server is asked on loopback in place of the Service.
    let mut config = api.json(&["get", "validatingwebhookconfiguration", "peers.kilo.squat.ai"])?;
    config["webhooks"][0]["clientConfig"] = json!({"url": "https://127.0.0.1:8443/validate", "caBundle": bundle});
    let operations = config["webhooks"][0]["rules"][0]["operations"].as_array_mut().context("no operations")?;
    operations.push(json!("DELETE"));
    api.put("replace", &config)?;

    let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
    let arguments = [
        kg.to_string_lossy().into_owned(),
        "webhook".to_owned(),
        flag("cert-file", &cert),
        flag("key-file", &key),
        "--log-level=all".to_owned(),
    ];
    let mut webhook = inside.spawn("webhook", &arguments)?;
    let metrics = SocketAddr::new(LOOPBACK, 1107);
    eventually(SOON, "the webhook is there", || inside.http_get(metrics, "/metrics").context(webhook.log()))?;

    // The server takes a moment to know of it: until then, bad Peers come in and go again.
    let (good, other) = (peer("good", &stranger()?.to_string()), peer("good", "x"));
    let said = eventually(SOON, "a bad Peer is refused", || {
        let _gone = api.kubectl(&["delete", "peer", "bad", "--ignore-not-found"]);
        refused(&api, "create", &bad)
    })?;
    for part in ["denied the request", "Peer/bad: spec.publicKey", "the peer is left out"] {
        ensure!(said.contains(part), "no {part:?} in {said}");
    }
    api.put("create", &good)?;
    let said = refused(&api, "replace", &other)?;
    ensure!(said.contains("Peer/good: spec.publicKey"), "{said}");
    api.kubectl(&["delete", "peer", "good"]).context("a deletion is let through")?;
    let counted = inside.http_get(metrics, "/metrics")?;
    for line in [
        "admission_requests_total{operation=\"CREATE\",response=\"allowed\"} 1",
        "admission_requests_total{operation=\"UPDATE\",response=\"denied\"} 1",
        "http_requests_total{handler=\"/validate\",method=\"POST\"}",
        "errors_total 0",
    ] {
        ensure!(counted.contains(line), "no {line} in {counted}");
    }
    let deleted = counted.lines().any(|line| line.starts_with("admission_requests_total{operation=\"DELETE\",response=\"allowed\"}"));
    ensure!(deleted, "no deletion was reviewed: {counted}");

    // The server holds its connection open, and that keeps nobody from stopping.
    let status = webhook.stop(Duration::from_secs(5))?;
    ensure!(status.code() == Some(0), "SIGTERM: {status}: {}", webhook.log());
    let said = refused(&api, "create", &good)?;
    ensure!(said.contains("failed calling webhook"), "{said}");
    let private = std::fs::read_to_string(&key).context("reading the key")?;
    let secret = private.lines().nth(1).context("the key")?;
    ensure!(!webhook.log().contains(secret), "the key is in the log");
    let mut again = inside.spawn("webhook-again", &arguments)?;
    eventually(SOON, "the webhook is back", || inside.http_get(metrics, "/metrics").context(again.log()))?;
    again.signal(rustix::process::Signal::INT)?;
    let status = again.stop(Duration::from_secs(5))?;
    ensure!(status.code() == Some(0), "SIGINT: {status}: {}", again.log());
    figure("a bad Peer refused by the webhook, a good one let in, SIGTERM and SIGINT end with 0");
    Ok(())
}
