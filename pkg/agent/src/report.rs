//! What the agent tells about itself: the state of the moment, read by HTTP and metrics, and counters.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kilo_mesh::{Facts, Finding, NodeObject, Outcome, PeerObject, Plan};
use tokio::sync::oneshot;

use crate::{WatchKind, WatchState};

/// The state of the moment.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Both kinds of object have been listed.
    pub synced: bool,
    /// How each watch is doing.
    pub watches: BTreeMap<WatchKind, WatchState>,
    /// What came out of the last plan.
    pub plan: Option<Summary>,
    /// All findings: the plan's and those on single objects.
    pub findings: Arc<BTreeSet<Finding>>,
    /// Why the host is not as planned after the last apply; `None` when it is.
    pub apply_error: Option<String>,
    /// Why our own Node cannot be written, where waiting does not mend it: others then never learn of us.
    pub write_refused: Option<String>,
    /// When everything last was as planned, in seconds since 1970; `None` for never.
    pub last_success: Option<u64>,
    /// The WireGuard device is there.
    pub device: bool,
}

/// What came out of a plan, in few words; all of it is made again from [`Query::Input`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Whether there is a mesh.
    pub outcome: Outcome,
    /// Why not.
    pub error: Option<String>,
    /// How many nodes take part.
    pub nodes: usize,
    /// How many Peers take part.
    pub peers: usize,
    /// This node leads its segment.
    pub leader: bool,
    /// How many nodes do not lead because others report them.
    pub deposed: usize,
}

impl From<&Plan> for Summary {
    fn from(plan: &Plan) -> Self {
        let topology = plan.mesh.as_ref().map(|mesh| &mesh.topology);
        Self {
            outcome: plan.outcome,
            error: plan.error.clone(),
            nodes: plan.ready_nodes.len(),
            peers: topology.map_or(0, |topology| topology.peers.len()),
            leader: topology.is_some_and(|topology| topology.leader),
            deposed: topology.map_or(0, |topology| topology.deposed.len()),
        }
    }
}

/// A question that only the agent's loop can answer.
#[derive(Debug)]
pub enum Query {
    /// Whether it goes round.
    Alive(oneshot::Sender<()>),
    /// What the next plan would be made from.
    Input(oneshot::Sender<Input>),
}

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct Input {
    /// Nodes, by name.
    pub nodes: Vec<NodeObject>,
    /// Peers, by name.
    pub peers: Vec<PeerObject>,
    /// Time, names and the machine.
    pub facts: Facts,
    /// The nodes that take part although their last check-in is too old.
    pub held: BTreeSet<String>,
}

/// What failed: the `event` label of `kilo_errors_total`, with upstream's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorEvent {
    /// Making the host what the plan says.
    Apply,
    /// Writing our own Node's annotations because they changed.
    Local,
    /// Writing our own Node's annotations because it was time.
    CheckIn,
    /// Anything of the loop itself.
    Run,
    /// The graceful stop.
    CleanUp,
}

impl ErrorEvent {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Local => "local",
            Self::CheckIn => "checkin",
            Self::Run => "run",
            Self::CleanUp => "cleanUp",
        }
    }
}

/// Upper bounds of the histogram of reconcile durations, in seconds.
pub const DURATION_BUCKETS: [f64; 12] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Counters of the agent; they only grow.
#[derive(Debug, Default)]
pub struct Stats {
    /// Plans made and applied.
    pub reconciles: AtomicU64,
    /// Those of them whose plan followed single Peers; the others made a whole one.
    pub followed: AtomicU64,
    /// Nodes that ceased to lead, or to come next, because others report them.
    pub failovers: AtomicU64,
    /// Nodes that this node has found unreachable.
    pub unreachable: AtomicU64,
    /// Errors by event.
    errors: Mutex<BTreeMap<ErrorEvent, u64>>,
    /// Operations by kind and whether they succeeded.
    ops: Mutex<BTreeMap<(&'static str, bool), u64>>,
    /// Operations that put right what others had changed, by kind.
    repairs: Mutex<BTreeMap<&'static str, u64>>,
    durations: Mutex<Durations>,
}

/// A histogram: not cumulative, one count for each bucket and one for what is beyond.
#[derive(Clone, Copy, Debug, Default)]
pub struct Durations {
    /// Counts by bucket of [`DURATION_BUCKETS`]; the last is for all that took longer.
    pub counts: [u64; DURATION_BUCKETS.len() + 1],
    /// Seconds in all.
    pub sum: f64,
}

impl Durations {
    pub(crate) fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = DURATION_BUCKETS.iter().position(|&b| seconds <= b).unwrap_or(DURATION_BUCKETS.len());
        self.counts[bucket] += 1;
        self.sum += seconds;
    }
}

impl Stats {
    pub(crate) fn error(&self, event: ErrorEvent) {
        *lock(&self.errors).entry(event).or_default() += 1;
    }

    pub(crate) fn op(&self, kind: &'static str, ok: bool) {
        *lock(&self.ops).entry((kind, ok)).or_default() += 1;
    }

    pub(crate) fn repair(&self, kind: &'static str) {
        *lock(&self.repairs).entry(kind).or_default() += 1;
    }

    pub(crate) fn reconciled(&self, took: Duration) {
        self.reconciles.fetch_add(1, Ordering::Relaxed);
        lock(&self.durations).add(took);
    }

    /// Errors by event.
    pub fn errors(&self) -> BTreeMap<ErrorEvent, u64> {
        lock(&self.errors).clone()
    }

    /// Operations by kind and whether they succeeded.
    pub fn ops(&self) -> BTreeMap<(&'static str, bool), u64> {
        lock(&self.ops).clone()
    }

    /// Operations that put right what others had changed, by kind.
    pub fn repairs(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.repairs).clone()
    }

    /// How long reconciles took.
    pub fn durations(&self) -> Durations {
        *lock(&self.durations)
    }
}

/// A counter is right even if a thread died while it held the lock.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
