//! The loop: events of the cluster and the host in, one plan, operations out, our own Node written back. One task
//! owns all state.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kilo_mesh::{Config, Facts, Plan, Planner};
use kilo_policy::MeshFacts;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::annotations::{self, Write};
use crate::apply::chain;
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::health::Health;
use crate::machine::{Carried, Machine};
use crate::names::Names;
use crate::news::News;
use crate::plans::Next;
use crate::probes::Probes;
use crate::report::{ErrorEvent, Input, Query, Stats, Status};
use crate::reporter::Reporter;
use crate::store::{Changed, Store};
use crate::{Backend, BackendError, DiscoverConfig, Event, Host, HostError, HostEvent, MeshNews, WatchState};

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
    machine: Machine<H>,
    settings: Settings,
    store: Store,
    clock: Clock,
    facts: Facts,
    names: Names,
    health: Health,
    probes: Probes,
    backoff: Backoff,
    planner: Option<Planner>,
    /// Names or the machine are others than they were for the last plan.
    new_facts: bool,
    reporter: Reporter,
    stats: Arc<Stats>,
    queries: mpsc::Receiver<Query>,
    write: Write,
    /// For who wants to know what each plan says.
    news: Option<News>,
}

/// Why the loop goes round.
enum Wake {
    Event(Option<Event>),
    Host(HostEvent),
    Names(Vec<(String, Option<Vec<IpAddr>>)>),
    Answered(Arc<str>, IpAddr),
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
            machine: Machine::new(host),
            settings,
            store,
            clock: Clock::default(),
            facts: Facts::default(),
            names: Names::default(),
            health: Health::default(),
            probes: Probes::default(),
            backoff: Backoff::default(),
            planner: None,
            new_facts: true,
            reporter: Reporter::new(status),
            stats,
            queries,
            write: Write::default(),
            news: None,
        };
        (agent, handle)
    }

    /// Tells after each plan, before it is carried out, what it says about addresses.
    pub fn tell_mesh(&mut self, news: watch::Sender<Option<MeshNews<MeshFacts>>>) {
        self.news = Some(News::new(news));
    }

    /// Runs until `stop` is ready, then cleans up if the settings say so.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) -> Result<(), AgentError> {
        let mut stop = std::pin::pin!(stop);
        self.facts.host = tokio::select! {
            found = self.machine.discover(&self.settings.discover) => found.map_err(AgentError::Discover)?,
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
            self.reporter.publish(&self.store, self.machine.has_device());
            let timer = self.next_timer();
            self.names.start(|name| self.machine.resolve(name));
            let wake = tokio::select! {
                biased;
                () = &mut stop => Wake::Stop,
                event = events.recv() => Wake::Event(event),
                changed = self.machine.changed(), if self.machine.listens() => Wake::Host(changed),
                found = self.names.found() => Wake::Names(found),
                (node, address) = self.probes.answered() => Wake::Answered(node, address),
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
                Wake::Host(event) => self.machine.heard(event),
                Wake::Names(found) => {
                    for (name, addresses) in found {
                        self.new_facts |= self.names.learn(&mut self.facts.dns, name, addresses);
                    }
                    due |= self.new_facts;
                }
                Wake::Answered(node, address) => {
                    let news = self.health.answered(&node, address, Instant::now());
                    due |= self.reporter.health(news, &self.stats);
                }
                Wake::Written(result, event) => {
                    due |= self.written(result, event);
                    due |= self.write.again();
                }
                Wake::Query(query) => due |= self.answer(query),
                Wake::Resync => {
                    self.machine.read_again();
                    due = true;
                }
                Wake::Timer => due |= self.write.check_in_due() || self.backoff.is_due(),
            }
            due |= self.machine.take_due() | self.ask();
        }
        watching.abort();
        if self.settings.clean_up {
            self.clean_up().await;
        }
        self.machine.close().await;
        Ok(())
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

    /// Asks the nodes whose turn it is whether they answer. Tells whether there is something to report.
    fn ask(&mut self) -> bool {
        let (questions, news) = self.health.due(Instant::now());
        for (node, address) in questions {
            self.probes.ask(node, address, self.machine.probe(address));
        }
        self.reporter.health(news, &self.stats)
    }

    /// Looks after the nodes that a plan names.
    fn look_after(&mut self, plan: &Plan) {
        let now = Instant::now();
        if let Some(own) = self.store.node(&self.settings.config.hostname) {
            self.health.restore(&own.unreachable, now);
        }
        let watches = plan.mesh.as_ref().map_or(&[][..], |mesh| &mesh.topology.watches);
        self.health.follow(watches, |name| self.store.node(name).is_some(), now);
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
        [expiry, check_in, self.backoff.retry_at(), self.machine.next(), self.health.next()]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| Instant::now() + self.settings.resync)
    }

    /// One round: facts, plan, difference, operations, our own Node. Tells whether another must follow at
    /// once.
    async fn reconcile(&mut self) -> bool {
        let started = Instant::now();
        self.facts.now = self.now();
        // Judged at the very time that the plan is made for.
        self.store.settle(self.facts.now);
        let mut errors = Vec::new();
        if !self.machine.is_known() {
            self.new_facts = true;
            errors = self.machine.read(&mut self.facts.host).await;
        }
        let next = self.next_plan();
        if let Some(news) = &mut self.news {
            news.tell(next.planner.plan(), &self.settings.config, &self.facts.host, Instant::now());
        }
        let programmed = &mut self.facts.host.programmed;
        let carried = self.machine.carry_out(&next, programmed, &self.stats, errors).await;
        let plan = next.planner.plan();
        if next.touched.is_none() {
            self.look_after(plan);
            self.reporter.leaders(plan, &self.stats);
        }
        self.write_node(plan);
        self.stats.reconciled(started.elapsed());
        let retry_in = self.retry_in(&carried);
        self.reporter.round(plan, &carried, self.facts.now, retry_in);
        self.planner = Some(next.planner);
        carried.again
    }

    /// How long to wait before a failed round is tried again.
    fn retry_in(&mut self, carried: &Carried) -> Option<Duration> {
        if carried.errors.is_empty() {
            self.backoff.reset();
            return None;
        }
        self.stats.error(ErrorEvent::Apply);
        Some(self.backoff.step(Instant::now()))
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
            let of_plan = &next.planner.plan().findings;
            self.reporter.findings(self.store.findings().chain(of_plan).cloned().collect());
        }
        next
    }

    /// Sends what changed about our own Node, or its check-in when that is due.
    fn write_node(&mut self, plan: &Plan) {
        let name = &self.settings.config.hostname;
        let Some(object) = self.store.node_object(name) else { return };
        let ours = (self.settings.config.leader_failover, &*self.health.text());
        let (patch, event) =
            annotations::patch(&object.metadata.annotations, &plan.annotations, &plan.withdrawn, ours);
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
        if result.is_err() {
            self.stats.error(event);
        }
        self.reporter.written(&result);
        let now = self.now();
        answered && self.store.answered(now) == Changed::Plan
    }

    /// Undoes what was done, each step whether or not the others succeed.
    async fn clean_up(&mut self) {
        let plan = self.planner.as_ref().map(Planner::plan);
        let interface = self.settings.clean_up_interface;
        let failed = self.machine.clean_up(plan, interface, &self.stats).await;
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
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
