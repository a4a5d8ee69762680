//! The enforcer: a loop of its own that keeps the policy tables of this node. Events in, one transaction out; it goes on
//! when the mesh's loop does not, and the other way round. Its end leaves everything in force.

mod compile;
mod findings;
mod policy;
mod report;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kilo_policy::Kind;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

pub use compile::{Compile, Explained, Programmed};
pub use policy::Policies;
pub use report::{EnforcerStats, EnforcerStatus};

use crate::backoff::Backoff;
use crate::{
    AgentError, Backend, BridgeSight, Firewall, FirewallEvent, Logged, PodCalls, Pods, PodsChanged,
    PolicyEvent, PolicyFinding, WatchState,
};
use findings::Findings;
use tables::Repairs;

/// More events than these are not worked into one transaction, so that a flood cannot hold it off.
const GATHER_AT_MOST: usize = 4096;

/// How many kinds there are.
const KINDS: usize = 5;

/// How often counters are read.
const COUNT: Duration = Duration::from_secs(15);

/// What an enforcer is to do.
#[derive(Clone, Debug)]
pub struct EnforcerSettings {
    /// The name of this node.
    pub node: String,
    /// How long a start waits for all lists before it programs what is known.
    pub sync_bound: Duration,
    /// How often the tables are read and compared, whether anything was heard or not.
    pub verify: Duration,
}

impl EnforcerSettings {
    /// The usual ones for this node.
    pub fn new(node: impl Into<String>) -> Self {
        let (sync_bound, verify) = (Duration::from_secs(30), Duration::from_secs(600));
        Self { node: node.into(), sync_bound, verify }
    }
}

/// What the mesh's loop tells after each plan.
#[derive(Clone, Debug)]
pub struct MeshNews<M> {
    /// For the compiler.
    pub mesh: M,
    /// The nodes that take part, by name.
    pub nodes: Vec<Arc<str>>,
}

/// The enforcer of one node.
#[derive(Debug)]
pub struct Enforcer<B, F, C: Compile, P> {
    backend: Arc<B>,
    firewall: F,
    compiler: C,
    /// Taken when it begins.
    pods: Option<P>,
    /// The pods of this node were told, or nobody tells them.
    pods_known: bool,
    /// CNI calls about what is not in force yet.
    calls: PodCalls,
    settings: EnforcerSettings,
    mesh: watch::Receiver<Option<MeshNews<C::Mesh>>>,
    nodes: Vec<Arc<str>>,
    stats: Arc<EnforcerStats>,
    findings: Findings,
    synced: BTreeSet<Kind>,
    /// What is known may be programmed: all kinds were listed, or have had their time.
    open: bool,
    /// The tables were read once.
    began: bool,
    /// How many the kernel had when last heard of.
    there: usize,
    /// There was no table at the start, and the closed skeleton is not there yet.
    bare: bool,
    /// The bits of marks that have to be cleared before anything is committed.
    sweep: Option<u32>,
    /// Why the tables are to be read before the next transaction.
    reread: Option<Reread>,
    /// The first events that are not in force yet, by what metrics call them.
    waiting: BTreeMap<&'static str, Instant>,
    backoff: Backoff,
    repairs: Repairs,
}

/// Why the kernel's tables are read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reread {
    /// To begin with, or since a transaction failed.
    Adopt,
    /// Somebody changed them, or it is time to look.
    Verify { by: Option<String> },
}

/// Why the loop goes round.
enum Wake<M> {
    Event(Option<PolicyEvent>),
    Mesh(Option<MeshNews<M>>),
    Pods(PodsChanged),
    Firewall(FirewallEvent),
    Bound,
    Verify,
    Count,
    Retry,
    Stop,
}

impl<B: Backend, F: Firewall, C: Compile, P: Pods> Enforcer<B, F, C, P> {
    /// An enforcer that has done nothing yet, and what others see of it. Without `pods` it knows those of this node only as
    /// the cluster tells them.
    pub fn new(
        backend: Arc<B>,
        firewall: F,
        compiler: C,
        pods: Option<P>,
        mesh: watch::Receiver<Option<MeshNews<C::Mesh>>>,
        settings: EnforcerSettings,
    ) -> (Self, Arc<EnforcerStats>) {
        let stats = Arc::new(EnforcerStats::default());
        let enforcer = Self {
            backend,
            firewall,
            compiler,
            pods_known: pods.is_none(),
            pods,
            calls: PodCalls::default(),
            settings,
            mesh,
            nodes: Vec::new(),
            stats: stats.clone(),
            findings: Findings::default(),
            synced: BTreeSet::new(),
            open: false,
            began: false,
            there: 0,
            bare: false,
            sweep: None,
            reread: Some(Reread::Adopt),
            waiting: BTreeMap::new(),
            backoff: Backoff::default(),
            repairs: Repairs::default(),
        };
        (enforcer, stats)
    }

    /// Runs until `stop` is ready. What is in force stays so.
    ///
    /// # Errors
    /// When the backend gives up.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) -> Result<(), AgentError> {
        let mut stop = std::pin::pin!(stop);
        let bound = tokio::time::sleep(self.settings.sync_bound);
        let mut bound = std::pin::pin!(bound);
        let (mut verify, mut count) = (every(self.settings.verify), every(COUNT));
        // Beyond the closed skeleton nothing is known before the cluster answers.
        self.work().await;
        let (events_tx, mut events) = mpsc::channel(1024);
        let backend = self.backend.clone();
        let mut watching = tokio::spawn(async move { backend.run_policy(events_tx).await });
        let (show, shown) = mpsc::channel(256);
        let showing = tokio::spawn(show_all(self.backend.clone(), shown));
        // The kernel is asked about links there, which shall hold nothing up here.
        let (pods_tx, mut pods) = mpsc::channel(1);
        let attaching = tokio::spawn(tell_pods(self.pods.take(), pods_tx));
        self.mesh.mark_changed();
        let mut mesh_lives = true;
        let ended = loop {
            let retry = self.backoff.retry_at().unwrap_or_else(|| Instant::now() + self.settings.verify);
            // In no order: a flood of one sort shall not hide another.
            let wake = tokio::select! {
                () = &mut stop => Wake::Stop,
                event = events.recv() => Wake::Event(event),
                changed = self.mesh.changed(), if mesh_lives => {
                    mesh_lives = changed.is_ok();
                    Wake::Mesh(self.mesh.borrow_and_update().clone())
                }
                Some(changed) = pods.recv() => Wake::Pods(changed),
                event = self.firewall.next() => Wake::Firewall(event),
                () = &mut bound, if !self.open => Wake::Bound,
                () = tokio::time::sleep_until(retry.into()), if self.backoff.retry_at().is_some() => Wake::Retry,
                _ = verify.tick() => Wake::Verify,
                _ = count.tick() => Wake::Count,
            };
            match wake {
                Wake::Stop => break Ok(()),
                Wake::Event(None) => {
                    let ended = (&mut watching).await;
                    break if let Ok(Err(error)) = ended { Err(AgentError::Backend(error)) } else { Ok(()) };
                }
                Wake::Event(Some(event)) => {
                    self.hear(event);
                    for _ in 0..GATHER_AT_MOST {
                        let Ok(event) = events.try_recv() else { break };
                        self.hear(event);
                    }
                    let findings = self.findings.count();
                    self.stats.with(|status| status.findings.clone_from(findings));
                }
                Wake::Mesh(Some(news)) => {
                    self.waiting.entry("peer").or_insert_with(Instant::now);
                    self.nodes = news.nodes;
                    self.compiler.set_mesh(news.mesh);
                }
                Wake::Mesh(None) | Wake::Retry => {}
                Wake::Pods(changed) => self.attached(changed),
                Wake::Firewall(FirewallEvent::Changed { by }) => {
                    self.reread.get_or_insert(Reread::Verify { by });
                }
                Wake::Firewall(FirewallEvent::Logged(logged)) => {
                    self.tell(&logged);
                    continue;
                }
                Wake::Verify => {
                    self.reread.get_or_insert(Reread::Verify { by: None });
                }
                Wake::Bound => {
                    let missing = self.missing();
                    warn!(?missing, "Not all lists have come in time, and what is known is programmed");
                    self.open = true;
                }
                Wake::Count => {
                    self.count().await;
                    continue;
                }
            }
            self.work().await;
            for finding in self.findings.take_shown(&self.settings.node, &self.nodes) {
                // Who has so many has heard enough.
                let _full = show.try_send(finding);
            }
        };
        watching.abort();
        showing.abort();
        attaching.abort();
        ended
    }

    /// Works in what CNI says about the pods of this node.
    fn attached(&mut self, changed: PodsChanged) {
        self.wait(Kind::Pod);
        self.compiler.set_local(&changed.pods);
        self.calls.join(changed.programmed);
        self.pods_known = true;
        self.open |= self.synced.len() == KINDS;
        let last = self.stats.with(|status| status.sight.replace(changed.sight.clone()));
        match changed.sight {
            BridgeSight::Unseen { links, reason } => {
                if !matches!(last, Some(BridgeSight::Unseen { .. })) {
                    warn!(?links, %reason, "Network policy is not in force between pods of this node");
                }
            }
            BridgeSight::Seen => {
                if let Some(BridgeSight::Unseen { .. }) = last {
                    info!("Network policy is in force between pods of this node");
                }
            }
        }
    }

    fn hear(&mut self, event: PolicyEvent) {
        match event {
            PolicyEvent::Restarted(kind) => {
                self.compiler.restarted(kind);
                self.findings.restarted(kind);
            }
            PolicyEvent::Applied(kind, object) => {
                self.wait(kind);
                let findings = self.compiler.apply(kind, &object);
                let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
                self.findings.applied(kind, text("namespace"), text("name"), findings);
            }
            PolicyEvent::Synced(kind) => {
                self.wait(kind);
                self.compiler.synced(kind);
                self.findings.synced(kind);
                self.state(kind, WatchState::Up);
                self.stats.with(|status| status.synced.insert(kind));
                self.synced.insert(kind);
                self.open |= self.synced.len() == KINDS && self.pods_known;
            }
            PolicyEvent::Deleted(kind, namespace, name) => {
                self.wait(kind);
                self.compiler.remove(kind, &namespace, &name);
                self.findings.removed(kind, &namespace, &name);
            }
            PolicyEvent::Watch(kind, state) => self.state(kind, state),
        }
    }

    fn state(&self, kind: Kind, state: WatchState) {
        let last = self.stats.with(|status| status.watches.insert(kind, state.clone()));
        match (&state, last) {
            (WatchState::Down(reason), _) => warn!(kind = kind.name(), %reason, "Watch is down"),
            (WatchState::Up, Some(WatchState::Down(_))) => info!(kind = kind.name(), "Watch is up"),
            (WatchState::Up, Some(WatchState::Up) | None) => {}
        }
    }

    fn missing(&self) -> Vec<&'static str> {
        let kinds = [Kind::Pod, Kind::Namespace, Kind::NetworkPolicy, Kind::Service, Kind::EndpointSlice];
        kinds.into_iter().filter(|kind| !self.synced.contains(kind)).map(Kind::name).collect()
    }

    fn wait(&mut self, kind: Kind) {
        let called = match kind {
            Kind::Pod => "pod",
            Kind::Namespace => "namespace",
            Kind::NetworkPolicy => "policy",
            Kind::Service | Kind::EndpointSlice => "service",
        };
        self.waiting.entry(called).or_insert_with(Instant::now);
    }

    /// Tells of a packet that a rule logged. The kernel limits how many there are.
    fn tell(&self, logged: &Logged) {
        let hook = logged.hook.map_or("", |hook| hook.name());
        let (input, output) = (logged.input.as_deref(), logged.output.as_deref());
        let Some(packet) = &logged.packet else {
            info!(hook, input, output, "Packet denied that cannot be read");
            return;
        };
        let (source, destination) = (packet.source, packet.destination);
        let Some(explained) = self.compiler.explain(&logged.prefix, source, destination) else { return };
        let message = if explained.dropped { "Packet denied" } else { "Packet would be denied" };
        let (source_port, port) = packet.ports.unzip();
        info!(
            hook,
            input,
            output,
            %source,
            %destination,
            protocol = packet.protocol(),
            source_port,
            port,
            from = self.compiler.whose(source),
            to = self.compiler.whose(destination),
            direction = explained.direction,
            isolated_by = ?explained.isolated_by,
            why = explained.why,
            "{message}"
        );
    }
}

/// Tells of the pods of this node, one change after the other.
async fn tell_pods<P: Pods>(pods: Option<P>, to: mpsc::Sender<PodsChanged>) {
    let Some(mut pods) = pods else { return };
    loop {
        let changed = pods.changed().await;
        if to.send(changed).await.is_err() {
            return;
        }
    }
}

/// A timer that begins with a pause.
fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period.max(Duration::from_millis(1)));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval.reset();
    interval
}

/// Shows one finding after the other; says once why that fails.
async fn show_all<B: Backend>(backend: Arc<B>, mut findings: mpsc::Receiver<PolicyFinding>) {
    let mut said = None;
    while let Some(finding) = findings.recv().await {
        let Err(error) = backend.show(&finding).await else { continue };
        let error = crate::apply::chain(&error);
        let object: Value = format!("{}/{}/{}", finding.kind.name(), finding.namespace, finding.name).into();
        if said.as_ref() != Some(&error) {
            warn!(%object, %error, "A finding cannot be shown on its object");
            said = Some(error);
        }
    }
}
