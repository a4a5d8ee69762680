//! The HTTP server on `--listen`: metrics, health, the graph, the plan. It reads what the agent tells and
//! changes nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query as Params, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use kilo_agent::view::{FactsView, PlanSource, PlanView};
use kilo_agent::{Handle, Input, Query, Status, WatchKind, WatchState};
use kilo_mesh::{Config, Finding, Layout, Node, Outcome, Peer, Plan, svg};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::metrics::{Metrics, PolicySource};

/// How long the agent may take to answer a question: it may be in the middle of an apply.
const ANSWER: Duration = Duration::from_secs(10);

/// A graph of more edges would take tens of MiB, for whoever asks.
const MOST_EDGES: usize = 200_000;

const INDEX: &str = "<!DOCTYPE html><html><head><title>Internal Kilo API</title></head><body>\
<h1>Internal Kilo API</h1><ul>\
<li><a href=\"/metrics\">/metrics</a>: Prometheus metrics</li>\
<li><a href=\"/health\">/health</a>, <a href=\"/livez\">/livez</a>, <a href=\"/readyz?verbose\">/readyz?verbose</a>: health</li>\
<li><a href=\"/graph\">/graph</a>: the mesh as a picture (<a href=\"/graph?format=dot\">?format=dot</a>, ?layout=)</li>\
<li><a href=\"/plan\">/plan</a>: what this node should be, as JSON</li>\
<li><a href=\"/facts\">/facts</a>: what the plan takes from this machine, as JSON</li>\
</ul></body></html>";

/// What the pages need.
struct Pages {
    agent: Handle,
    config: Config,
    metrics: Metrics,
}

/// Serves until the process ends.
pub async fn serve(
    listener: TcpListener,
    agent: Handle,
    config: Config,
    policy: Option<PolicySource>,
) -> anyhow::Result<()> {
    let metrics = Metrics::new(agent.clone(), policy)?;
    let app = Router::new()
        .route("/metrics", get(metrics_page))
        .route("/livez", get(livez))
        .route("/health", get(health))
        .route("/readyz", get(readyz))
        .route("/graph", get(graph))
        .route("/plan", get(plan))
        .route("/facts", get(facts))
        .fallback(async || Html(INDEX))
        .with_state(Arc::new(Pages { agent, config, metrics }));
    axum::serve(listener, app).await?;
    Ok(())
}

fn text(code: StatusCode, text: impl Into<String>) -> Response {
    (code, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text.into()).into_response()
}

fn failed(reason: impl std::fmt::Display) -> Response {
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("{reason}\n"))
}

async fn metrics_page(State(pages): State<Arc<Pages>>) -> Response {
    match pages.metrics.text() {
        Ok((kind, body)) => ([(header::CONTENT_TYPE, kind)], body).into_response(),
        Err(error) => failed(error),
    }
}

/// Whether the agent's loop answers.
async fn livez(State(pages): State<Arc<Pages>>) -> Response {
    match ask(&pages, Query::Alive).await {
        Ok(()) => text(StatusCode::OK, "ok\n"),
        Err(reason) => failed(reason),
    }
}

/// One check of `/readyz`: its name, and why it fails.
type Check = (&'static str, Result<(), String>);

fn checks(status: &Status) -> Vec<Check> {
    let watch = |kind: WatchKind| match status.watches.get(&kind) {
        Some(WatchState::Up) => Ok(()),
        Some(WatchState::Down(reason)) => Err(reason.clone()),
        None => Err("not started".to_owned()),
    };
    let yes = |fine: bool, otherwise: &str| if fine { Ok(()) } else { Err(otherwise.to_owned()) };
    let planned = match &status.plan {
        None => Err("no plan yet".to_owned()),
        Some(plan) if plan.outcome == Outcome::Ok => Ok(()),
        Some(plan) => Err(plan.error.clone().unwrap_or_else(|| plan.outcome.to_string())),
    };
    vec![
        ("synced", yes(status.synced, "the first lists of nodes and peers have not arrived")),
        ("watch-nodes", watch(WatchKind::Nodes)),
        ("watch-peers", watch(WatchKind::Peers)),
        ("plan", planned),
        ("own-node", status.write_refused.clone().map_or(Ok(()), Err)),
        ("device", yes(status.device, "the WireGuard device is not there")),
        ("apply", status.apply_error.clone().map_or(Ok(()), Err)),
    ]
}

/// Whether this node's network is as planned. A watch that is down leaves the network as it is.
fn fails(check: &Check) -> bool {
    check.1.is_err() && !check.0.starts_with("watch-")
}

async fn health(State(pages): State<Arc<Pages>>) -> Response {
    let status = pages.agent.status.borrow().clone();
    // Before the first apply there is nothing to be ill.
    let ill = status.plan.is_some()
        && checks(&status).iter().any(|c| matches!(c.0, "device" | "apply") && fails(c));
    if ill {
        text(StatusCode::SERVICE_UNAVAILABLE, "not healthy: see /readyz?verbose\n")
    } else {
        text(StatusCode::OK, "")
    }
}

async fn readyz(
    State(pages): State<Arc<Pages>>,
    Params(params): Params<BTreeMap<String, String>>,
) -> Response {
    let status = pages.agent.status.borrow().clone();
    let checks = checks(&status);
    let ready = !checks.iter().any(fails);
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = String::new();
    for (name, result) in &checks {
        // Writing to a String does not fail.
        let _ = match result {
            Ok(()) => writeln!(body, "[+]{name} ok"),
            Err(reason) => writeln!(body, "[-]{name} failed: {reason}"),
        };
    }
    match (params.contains_key("verbose"), ready) {
        (false, true) => text(code, "ok\n"),
        (true, true) => text(code, format!("{body}readyz check passed\n")),
        (_, false) => text(code, format!("{body}readyz check failed\n")),
    }
}

/// Asks the agent's loop, and waits for its answer for a while.
async fn ask<T>(
    pages: &Pages,
    question: impl FnOnce(oneshot::Sender<T>) -> Query,
) -> Result<T, &'static str> {
    let (answer, answered) = oneshot::channel();
    let asked = async {
        pages.agent.queries.send(question(answer)).await.ok()?;
        answered.await.ok()
    };
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err("the agent has stopped"),
        Err(_) => Err("the agent does not answer"),
    }
}

async fn graph(
    State(pages): State<Arc<Pages>>,
    Params(params): Params<BTreeMap<String, String>>,
) -> Response {
    if pages.agent.status.borrow().plan.is_none() {
        return failed("there is no plan yet");
    }
    let snapshot = match Snapshot::now(&pages).await {
        Ok(snapshot) => snapshot,
        Err(reason) => return failed(reason),
    };
    let plan = snapshot.plan(&pages.config);
    let Some(topology) = plan.mesh.as_ref().map(|mesh| &mesh.topology) else {
        return failed(
            plan.error.clone().unwrap_or_else(|| format!("there is no topology: {}", plan.outcome)),
        );
    };
    let format = params.get("format").map_or("", String::as_str);
    match format {
        "dot" | "gv" if topology.dot_edges() > MOST_EDGES => {
            failed(format!("the graph has {} edges, which is too many: ask for svg", topology.dot_edges()))
        }
        "dot" | "gv" => text(StatusCode::OK, topology.dot()),
        "" | "svg" => match params.get("layout").map_or("", String::as_str).parse::<Layout>() {
            Ok(layout) => ([(header::CONTENT_TYPE, "image/svg+xml")], svg(topology, layout)).into_response(),
            Err(error) => failed(error),
        },
        _ => failed("unsupported format: dot, gv and svg are supported"),
    }
}

fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body + "\n").into_response(),
        Err(error) => failed(error),
    }
}

/// What a plan of the moment is made from, translated, and what is wrong with single objects.
struct Snapshot {
    input: Input,
    nodes: Vec<Node>,
    peers: Vec<Peer>,
    findings: Vec<Finding>,
}

impl Snapshot {
    async fn now(pages: &Pages) -> Result<Self, &'static str> {
        let input = ask(pages, Query::Input).await?;
        let config = &pages.config;
        let read = |object| Node::from_object(object, &config.topology_label);
        let (mut nodes, of_nodes): (Vec<_>, Vec<_>) = input.nodes.iter().map(read).unzip();
        let (peers, of_peers): (Vec<_>, Vec<_>) = input.peers.iter().map(Peer::from_object).unzip();
        FactsView::new(&input.facts, &config.hostname, &input.held).hold(&mut nodes);
        let findings = of_nodes.into_iter().chain(of_peers).flatten().collect();
        Ok(Self { input, nodes, peers, findings })
    }

    fn plan(&self, config: &Config) -> Plan {
        let (nodes, peers): (Vec<_>, Vec<_>) = (self.nodes.iter().collect(), self.peers.iter().collect());
        kilo_mesh::plan(config, &nodes, &peers, &self.input.facts)
    }
}

/// The plan of the moment together with what it was made from.
async fn plan(State(pages): State<Arc<Pages>>) -> Response {
    let snapshot = match Snapshot::now(&pages).await {
        Ok(snapshot) => snapshot,
        Err(reason) => return failed(reason),
    };
    let config = &pages.config;
    let mut findings = Vec::from_iter(pages.agent.status.borrow().findings.iter().cloned());
    findings.extend_from_slice(&snapshot.findings);
    json(&PlanView::new(
        &snapshot.plan(config),
        &PlanSource {
            config,
            node_objects: &snapshot.input.nodes.iter().collect::<Vec<_>>(),
            peer_objects: &snapshot.input.peers.iter().collect::<Vec<_>>(),
            nodes: &snapshot.nodes.iter().collect::<Vec<_>>(),
            peers: &snapshot.peers.iter().collect::<Vec<_>>(),
            facts: &snapshot.input.facts,
            findings: &findings,
        },
    ))
}

async fn facts(State(pages): State<Arc<Pages>>) -> Response {
    match ask(&pages, Query::Input).await {
        Ok(input) => json(&FactsView::new(&input.facts, &pages.config.hostname, &input.held)),
        Err(reason) => failed(reason),
    }
}
