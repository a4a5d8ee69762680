//! The loop: events of the cluster and the host in, one plan, operations out, our own Node written back.
//!
//! One task owns all state. Between two readings of the kernel it knows what it applied itself, so that a
//! change of the cluster costs a plan, a difference and the operations, and no dump.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kilo_mesh::{Config, Facts, Finding, Outcome, Plan, Planner};
use kilo_state::{Desired, Link, LinkKind, Observed, Op};
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use crate::annotations::{self, Write};
use crate::apply::{apply, chain};
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::drift::Drift;
use crate::names::Names;
use crate::plans::Next;
use crate::report::{ErrorEvent, Input, Query, Stats, Status, Summary};
use crate::store::{Changed, Store};
use crate::{Backend, BackendError, DiscoverConfig, Event, Host, HostError, HostEvent, WatchState};

/// More events than these are not worked into one plan, so that a flood cannot hold it off.
const GATHER_AT_MOST: usize = 4096;

/// What an agent is to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What its plans depend on.
    pub config: Config,
    /// What the discovery of addresses depends on.
    pub discover: DiscoverConfig,
    /// How often everything is read and compared, whether anything was heard or not.
    pub resync: Duration,
    /// `--clean-up`: undo on a graceful stop.
    pub clean_up: bool,
    /// `--clean-up-interface`: remove the WireGuard link as well.
    pub clean_up_interface: bool,
}

/// Why an agent ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// This machine cannot be used as it is.
    #[error("looking at this machine")]
    Discover(#[source] HostError),
    /// The backend gave up.
    #[error("watching the cluster")]
    Backend(#[source] BackendError),
}

/// What others see of a running agent.
#[derive(Clone, Debug)]
pub struct Handle {
    /// The state of the moment.
    pub status: watch::Receiver<Arc<Status>>,
    /// Counters.
    pub stats: Arc<Stats>,
    /// Questions to the loop.
    pub queries: mpsc::Sender<Query>,
}

/// An agent of one node.
#[derive(Debug)]
pub struct Agent<B, H> {
    backend: Arc<B>,
    host: H,
    settings: Settings,
    store: Store,
    clock: Clock,
    facts: Facts,
    /// What the kernel has, as last read and changed by us since; `None` when that is not known.
    observed: Option<Observed>,
    /// What it was taken to have before that was read again, to tell what others changed.
    believed: Option<Observed>,
    names: Names,
    backoff: Backoff,
    drift: Drift,
    /// The last round left the host as planned, but for repairs that wait.
    settled: bool,
    /// Whether there are any.
    repairs_wait: bool,
    /// The last round made a link.
    made_link: bool,
    planner: Option<Planner>,
    /// Names or the machine are others than they were for the last plan.
    new_facts: bool,
    summary: Option<Summary>,
    known_findings: Arc<BTreeSet<Finding>>,
    status: watch::Sender<Arc<Status>>,
    stats: Arc<Stats>,
    queries: mpsc::Receiver<Query>,
    write: Write,
}

/// Why the loop goes round.
enum Wake {
    Event(Option<Event>),
    Host(HostEvent),
    Names(Vec<(String, Option<Vec<IpAddr>>)>),
    Written(Result<(), BackendError>, ErrorEvent),
    Query(Query),
    Resync,
    Timer,
    Stop,
}

impl<B: Backend, H: Host> Agent<B, H> {
    /// An agent that has done nothing yet, and what others see of it.
    pub fn new(backend: Arc<B>, host: H, settings: Settings) -> (Self, Handle) {
        let (status, status_rx) = watch::channel(Arc::default());
        let (queries_tx, queries) = mpsc::channel(16);
        let stats = Arc::new(Stats::default());
        let handle = Handle { status: status_rx, stats: stats.clone(), queries: queries_tx };
        let config = &settings.config;
        let store = Store::new(&config.hostname, &config.topology_label, config.node_expiry);
        let agent = Self {
            backend,
            host,
            settings,
            store,
            clock: Clock::default(),
            facts: Facts::default(),
            observed: None,
            believed: None,
            names: Names::default(),
            backoff: Backoff::default(),
            drift: Drift::default(),
            settled: false,
            repairs_wait: false,
            made_link: false,
            planner: None,
            new_facts: true,
            summary: None,
            known_findings: Arc::default(),
            status,
            stats,
            queries,
            write: Write::default(),
        };
        (agent, handle)
    }

    /// Runs until `stop` is ready, then cleans up if the settings say so.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) -> Result<(), AgentError> {
        let mut stop = std::pin::pin!(stop);
        self.facts.host = tokio::select! {
            found = self.host.discover(&self.settings.discover) => found.map_err(AgentError::Discover)?,
            () = &mut stop => return Ok(()),
        };

        let (events_tx, mut events) = mpsc::channel(1024);
        let backend = self.backend.clone();
        let mut watching = tokio::spawn(async move { backend.run(events_tx).await });
        let mut resync = tokio::time::interval(self.settings.resync.max(Duration::from_secs(1)));
        resync.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        resync.reset();
        let mut due = false;
        loop {
            due |= self.settle();
            if due && self.store.synced() && self.is_named() {
                due = self.reconcile().await;
            }
            self.publish();
            let timer = self.next_timer();
            self.names.start(|name| self.host.resolve(name));
            let wake = tokio::select! {
                biased;
                () = &mut stop => Wake::Stop,
                event = events.recv() => Wake::Event(event),
                changed = self.host.changed(), if self.drift.listens() => Wake::Host(changed),
                found = self.names.found() => Wake::Names(found),
                (result, event) = self.write.finished() => Wake::Written(result, event),
                Some(query) = self.queries.recv() => Wake::Query(query),
                _ = resync.tick() => Wake::Resync,
                () = tokio::time::sleep_until(timer.into()) => Wake::Timer,
            };
            match wake {
                Wake::Stop => break,
                Wake::Event(None) => {
                    let ended = (&mut watching).await;
                    let Ok(Err(error)) = ended else { break };
                    self.stats.error(ErrorEvent::Run);
                    return Err(AgentError::Backend(error));
                }
                Wake::Event(Some(event)) => {
                    due |= self.hear(event);
                    due |= self.gather(&mut events);
                }
                Wake::Host(event) => {
                    debug!(?event, "Host changed");
                    self.drift.heard(Instant::now());
                }
                Wake::Names(found) => {
                    for (name, addresses) in found {
                        self.new_facts |= self.names.learn(&mut self.facts.dns, name, addresses);
                    }
                    due |= self.new_facts;
                }
                Wake::Written(result, event) => {
                    due |= self.written(result, event);
                    due |= self.write.again();
                }
                Wake::Query(query) => due |= self.answer(query),
                Wake::Resync => {
                    self.read_again();
                    due = true;
                }
                Wake::Timer => due |= self.write.check_in_due() || self.backoff.is_due(),
            }
            let now = Instant::now();
            if self.drift.take_due(now) {
                self.read_again();
                due = true;
            }
            due |= self.drift.take_retry(now);
        }
        watching.abort();
        if self.settings.clean_up {
            self.clean_up().await;
        }
        self.host.close().await;
        Ok(())
    }

    /// Has the host read again, whose state was known until now.
    fn read_again(&mut self) {
        self.believed = self.observed.take().or(self.believed.take());
    }

    /// Works in what else has arrived meanwhile. Nothing is waited for: at rest a change is carried out at once.
    fn gather(&mut self, events: &mut mpsc::Receiver<Event>) -> bool {
        let mut due = false;
        for _ in 0..GATHER_AT_MOST {
            let Ok(event) = events.try_recv() else { break };
            due |= self.hear(event);
        }
        due
    }

    fn hear(&mut self, event: Event) -> bool {
        if let Event::Watch(kind, state) = &event {
            match state {
                WatchState::Up => info!(kind = kind.as_str(), "Watch is up"),
                WatchState::Down(reason) => warn!(kind = kind.as_str(), %reason, "Watch is down"),
            }
        }
        let now = self.now();
        let changed = self.store.apply(event, now) == Changed::Plan;
        let news = self.store.take_news();
        changed | news.is_some_and(|seen| self.clock.compare(seen, Instant::now(), unix_now()))
    }

    /// The time that check-ins are measured with, in seconds since 1970.
    fn now(&mut self) -> u64 {
        let alone = self.settings.config.node_expiry == 0 || !self.store.has_others();
        self.clock.now(Instant::now(), unix_now(), alone)
    }

    /// Looks who has not checked in for too long; whether somebody is gone. When it takes news to tell, our own
    /// check-in brings them.
    fn settle(&mut self) -> bool {
        let now = self.now();
        let waited = self.store.waits_for_news();
        let gone = self.store.settle(now);
        if self.store.waits_for_news() && !waited {
            self.write.hurry();
        }
        gone
    }

    /// Answers a question; who asked may be gone. Tells whether a plan may come out differently.
    fn answer(&mut self, query: Query) -> bool {
        match query {
            Query::Alive(answer) => {
                let _gone = answer.send(());
                false
            }
            Query::Input(answer) => {
                let gone = self.settle();
                let (nodes, peers) = self.store.objects();
                self.facts.now = self.now();
                let held = self.store.held();
                drop(answer.send(Input { nodes, peers, facts: self.facts.clone(), held }));
                gone
            }
        }
    }

    /// Whether the names that a plan depends on have been looked up once.
    fn is_named(&mut self) -> bool {
        self.planner.is_some() || self.names.ready(self.store.names_of_nodes(), &mut self.facts.dns)
    }

    /// When to go round although nothing was heard: a check-in, a node that expires, a retry.
    fn next_timer(&mut self) -> Instant {
        if let Some(until) = self.names.waits() {
            return until;
        }
        let now = self.now();
        let expiry =
            self.store.next_expiry().map(|at| Instant::now() + Duration::from_secs(at.saturating_sub(now)));
        // Without a Node of ours there is nothing to renew, and nothing to wake up for.
        let own = self.store.synced() && self.store.node_object(&self.settings.config.hostname).is_some();
        let check_in = if own { self.write.next_check_in() } else { None };
        [expiry, check_in, self.backoff.retry_at(), self.drift.next()]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| Instant::now() + self.settings.resync)
    }

    /// One round: facts, plan, difference, operations, our own Node. Tells whether another must follow at
    /// once.
    async fn reconcile(&mut self) -> bool {
        let mut again = false;
        let started = Instant::now();
        self.facts.now = self.now();
        // Judged at the very time that the plan is made for.
        self.store.settle(self.facts.now);
        let mut errors = Vec::new();
        let mut held = 0;
        if self.observed.is_none() {
            self.new_facts = true;
            match self.host.facts().await {
                Ok(host) => {
                    self.facts.host = kilo_mesh::HostFacts {
                        programmed: std::mem::take(&mut self.facts.host.programmed),
                        ..host
                    }
                }
                Err(error) => errors.push(error),
            }
            match self.host.observe().await {
                Ok(observed) => self.observed = Some(observed),
                Err(error) => errors.push(error),
            }
            self.drift.read(Instant::now(), started.elapsed());
        }
        let Next { planner, touched, same } = self.next_plan();
        let plan = planner.plan();
        if let (Some(mesh), Some(observed)) = (&plan.mesh, &mut self.observed) {
            let desired = &mesh.desired;
            // Beside what is touched the host is as planned, or it would have been read again.
            let mut ops = match &touched {
                Some(touched) if !self.repairs_wait => kilo_state::diff_touched(desired, observed, touched),
                Some(_) | None => kilo_state::diff(desired, observed),
            };
            let names = kilo_state::names(desired, observed);
            let mut repairs = Vec::new();
            // A link that was just made brings what was not there to be compared.
            let believed = self.believed.take().filter(|_| self.settled && !self.made_link);
            let was_right = self.settled && !self.made_link && same;
            if !ops.is_empty() && (believed.is_some() || was_right) {
                // What would have been done anyway is nobody's fault.
                let ours = match &believed {
                    Some(believed) if !same => kilo_state::diff(desired, believed),
                    Some(_) | None => Vec::new(),
                };
                let verdict = self.drift.judge(ops, &ours, Instant::now());
                for op in &verdict.feuds {
                    let by = self.host.culprit(op);
                    warn!(change = %op.display(&names), by, "Somebody undoes this again and again");
                }
                (ops, repairs, held) = (verdict.now, verdict.repairs, verdict.held);
            } else {
                self.drift.peace();
            }
            let programmed = &mut self.facts.host.programmed;
            let outcome =
                apply(&mut self.host, &ops, &repairs, &names, observed, programmed, &self.stats).await;
            // A new link brings parameters that were not there to be compared.
            let made = outcome.is_empty() && ops.iter().any(|op| matches!(op, Op::CreateLink { .. }));
            // Once only: a link that somebody removes as fast as it is made must not keep us busy.
            let before = std::mem::replace(&mut self.made_link, made);
            again = made && !before;
            if again || !outcome.is_empty() {
                // What a failed operation left behind is not known either.
                self.observed = None;
            }
            errors.extend(outcome);
        }
        self.write_node(plan);
        self.finish(plan, errors, held, started.elapsed());
        self.planner = Some(planner);
        again
    }

    /// Plans, and deals with what has changed beside.
    fn next_plan(&mut self) -> Next {
        let changes = self.store.take_changes();
        let (last, new_facts) = (self.planner.take(), std::mem::take(&mut self.new_facts));
        let input = (&self.settings.config, &self.store, &self.facts);
        let next = Next::plan(last, new_facts, &changes, input, &self.stats);
        if changes.names {
            self.names.want(self.store.names(), &mut self.facts.dns);
        }
        if changes.findings || next.touched.is_none() {
            self.log_findings(next.planner.plan());
        }
        next
    }

    fn finish(&mut self, plan: &Plan, errors: Vec<HostError>, held: usize, took: Duration) {
        self.stats.reconciled(took);
        self.settled = errors.is_empty();
        self.repairs_wait = held > 0;
        let failed = errors.len();
        let first = errors.first().map(|e| chain(e));
        let waits = (held > 0).then(|| format!("{held} repairs wait, since somebody undoes them"));
        self.status.send_modify(|status| {
            let status = Arc::make_mut(status);
            status.apply_error = first.clone().or(waits);
            if status.apply_error.is_none() && plan.outcome == Outcome::Ok {
                status.last_success = Some(self.facts.now);
            }
        });
        let summary = Summary::from(plan);
        let said =
            self.summary.as_ref().is_some_and(|s| (s.outcome, &s.error) == (plan.outcome, &plan.error));
        if plan.outcome != Outcome::Ok && !said {
            let error = plan.error.as_deref().unwrap_or_default();
            error!(outcome = %plan.outcome, error, "Nothing to apply");
        }
        self.summary = Some(summary);
        match first {
            None => self.backoff.reset(),
            Some(error) => {
                self.stats.error(ErrorEvent::Apply);
                self.observed = None;
                let wait = self.backoff.step(Instant::now());
                error!(%error, failed, retry_in = ?wait, "Host is not as planned");
            }
        }
    }

    fn log_findings(&mut self, plan: &Plan) {
        let findings: BTreeSet<Finding> = self.store.findings().chain(&plan.findings).cloned().collect();
        for finding in findings.difference(&self.known_findings) {
            warn!(object = %finding.object, field = %finding.field, value = %finding.value, reason = %finding.reason, "Finding");
        }
        for finding in self.known_findings.difference(&findings) {
            info!(object = %finding.object, field = %finding.field, "Finding is settled");
        }
        if findings != *self.known_findings {
            self.known_findings = Arc::new(findings);
        }
    }

    /// Sends what changed about our own Node, or its check-in when that is due.
    fn write_node(&mut self, plan: &Plan) {
        let name = &self.settings.config.hostname;
        let Some(object) = self.store.node_object(name) else { return };
        let (patch, event) =
            annotations::patch(&object.metadata.annotations, &plan.annotations, &plan.withdrawn);
        let Some(event) = event.or_else(|| self.write.check_in_due().then_some(ErrorEvent::CheckIn)) else {
            return;
        };
        let (backend, name, what) = (self.backend.clone(), name.clone(), patch.clone());
        let wait = self.write.start(event, &patch, async move { backend.patch_node(&name, &what).await });
        if let Some(wait) = wait.filter(|wait| *wait > Duration::from_secs(1)) {
            let keys = Vec::from_iter(patch.keys());
            warn!(?keys, next_in = ?wait, "Somebody else keeps changing our own node");
        }
    }

    /// Takes the outcome of a write; whether a plan may come out differently.
    fn written(&mut self, result: Result<(), BackendError>, event: ErrorEvent) -> bool {
        let answered = matches!(result, Err(BackendError::Forbidden { .. } | BackendError::NoSuchNode(_)));
        let refused = match &result {
            Err(error @ (BackendError::Forbidden { .. } | BackendError::NoSuchNode(_))) => Some(chain(error)),
            // Anything else tells nothing about our rights.
            Err(BackendError::Failed { .. }) => self.status.borrow().write_refused.clone(),
            Ok(()) => None,
        };
        if let Err(error) = result {
            self.stats.error(event);
            warn!(error = %chain(&error), "Own node could not be written");
        }
        self.status.send_if_modified(|status| {
            let changed = status.write_refused != refused;
            if changed {
                Arc::make_mut(status).write_refused = refused;
            }
            changed
        });
        let now = self.now();
        answered && self.store.answered(now) == Changed::Plan
    }

    fn publish(&self) {
        let known = self.observed.as_ref().map(|o| o.device.is_some());
        self.status.send_if_modified(|status| {
            let device = known.unwrap_or(status.device);
            if status.plan == self.summary
                && Arc::ptr_eq(&status.findings, &self.known_findings)
                && status.synced == self.store.synced()
                && status.watches == *self.store.watches()
                && status.device == device
            {
                return false;
            }
            let status = Arc::make_mut(status);
            status.synced = self.store.synced();
            status.watches = self.store.watches().clone();
            status.device = device;
            status.plan = self.summary.clone();
            status.findings = self.known_findings.clone();
            true
        });
    }

    /// Undoes what was done, each step whether or not the others succeed.
    async fn clean_up(&mut self) {
        let mut failed = Vec::new();
        match self.host.observe().await {
            Ok(mut observed) => {
                let desired = self.parting();
                let ops = kilo_state::diff(&desired, &observed);
                let names = kilo_state::names(&desired, &observed);
                let mut programmed = BTreeMap::new();
                failed =
                    apply(&mut self.host, &ops, &[], &names, &mut observed, &mut programmed, &self.stats)
                        .await;
            }
            Err(error) => failed.push(error),
        }
        for error in failed {
            self.stats.error(ErrorEvent::CleanUp);
            warn!(error = %chain(&error), "Clean-up failed");
        }
        let name = &self.settings.config.hostname;
        if let Some(object) = self.store.node_object(name) {
            let patch = annotations::removal(&object.metadata.annotations);
            self.write.cancel();
            if let Err(error) = self.backend.patch_node(name, &patch).await {
                self.stats.error(ErrorEvent::CleanUp);
                warn!(error = %chain(&error), "Clean-up of annotations failed");
            }
        }
    }

    /// What a host should be after a graceful stop: nothing of ours, apart from links others may use.
    fn parting(&self) -> Desired {
        let links = self
            .planner
            .iter()
            .filter_map(|planner| planner.plan().mesh.as_ref())
            .flat_map(|m| &m.desired.links);
        let goes = |link: &&Link| match link.kind {
            LinkKind::WireGuard => self.settings.clean_up_interface,
            LinkKind::Ipip => link.create,
            LinkKind::Foreign => false,
        };
        let remove_links = links.filter(goes).map(|link| (link.dev, link.name.clone())).collect();
        Desired { remove_links, ..Desired::default() }
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
