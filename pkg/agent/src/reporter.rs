//! What the agent has told so far: the published status, and in the log what is new about it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kilo_mesh::{Deposed, Finding, Outcome, Plan};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::BackendError;
use crate::apply::chain;
use crate::health::News;
use crate::machine::Carried;
use crate::report::{Stats, Status, Summary};
use crate::store::Store;

/// Lines of the log about what is new or settled about one object: one object with thousands of faults shall not fill it.
const LINES: usize = 8;

/// Tells others, each thing once.
#[derive(Debug)]
pub(crate) struct Reporter {
    status: watch::Sender<Arc<Status>>,
    summary: Option<Summary>,
    findings: Arc<BTreeSet<Finding>>,
    deposed: Vec<Deposed>,
}

impl Reporter {
    /// Has told nothing yet.
    pub(crate) fn new(status: watch::Sender<Arc<Status>>) -> Self {
        Self { status, summary: None, findings: Arc::default(), deposed: Vec::new() }
    }

    /// Tells what is wrong with objects and no longer.
    pub(crate) fn findings(&mut self, findings: BTreeSet<Finding>) {
        for (told, more) in by_object(findings.difference(&self.findings)) {
            for Finding { object, field, value, reason } in &told {
                warn!(%object, %field, %value, %reason, "Finding");
            }
            if let (Some(Finding { object, .. }), 1..) = (told.first(), more) {
                warn!(%object, more, "There are more findings, which /plan lists");
            }
        }
        for (told, _) in by_object(self.findings.difference(&findings)) {
            for Finding { object, field, .. } in told {
                info!(%object, %field, "Finding is settled");
            }
        }
        if findings != *self.findings {
            self.findings = Arc::new(findings);
        }
    }

    /// Tells how the round at this time ended, and when it is tried again if it failed.
    pub(crate) fn round(&mut self, plan: &Plan, carried: &Carried, now: u64, retry_in: Option<Duration>) {
        let first = carried.errors.first().map(|e| chain(e));
        let held = carried.held;
        let waits = (held > 0).then(|| format!("{held} repairs wait, since somebody undoes them"));
        self.status.send_modify(|status| {
            let status = Arc::make_mut(status);
            status.apply_error = first.clone().or(waits);
            if status.apply_error.is_none() && plan.outcome == Outcome::Ok {
                status.last_success = Some(now);
            }
        });
        let told =
            self.summary.as_ref().is_some_and(|s| (s.outcome, &s.error) == (plan.outcome, &plan.error));
        if plan.outcome != Outcome::Ok && !told {
            let error = plan.error.as_deref().unwrap_or_default();
            error!(outcome = %plan.outcome, error, "Nothing to apply");
        }
        self.summary = Some(Summary::from(plan));
        if let Some(error) = first {
            let retry_in = retry_in.map(tracing::field::debug);
            error!(%error, failed = carried.errors.len(), retry_in, "Host is not as planned");
        }
    }

    /// Tells which nodes have ceased to answer or answer again; whether there are any.
    pub(crate) fn health(&self, news: impl IntoIterator<Item = News>, stats: &Stats) -> bool {
        let mut any = false;
        for news in news {
            any = true;
            match news {
                News::Unreachable(node, hold) => {
                    stats.unreachable.fetch_add(1, Ordering::Relaxed);
                    warn!(%node, ?hold, "Node does not answer and is reported");
                }
                News::Reachable(node) => info!(%node, "Report on a node is taken back"),
            }
        }
        any
    }

    /// Tells who has ceased to lead because of reports, and who may lead again.
    pub(crate) fn leaders(&mut self, plan: &Plan, stats: &Stats) {
        let Some(mesh) = &plan.mesh else { return };
        let deposed = &mesh.topology.deposed;
        if *deposed == self.deposed {
            return;
        }
        let among = |list: &[Deposed], one: &Deposed| list.iter().any(|other| other.node == one.node);
        for one in deposed.iter().filter(|one| !among(&self.deposed, one)) {
            stats.failovers.fetch_add(1, Ordering::Relaxed);
            let by = one.reported_by.join(",");
            info!(node = %one.node, segment = %one.segment, by, "Leader is deposed");
        }
        for one in self.deposed.iter().filter(|one| !among(deposed, one)) {
            info!(node = %one.node, segment = %one.segment, "Leader is restored");
        }
        self.deposed.clone_from(deposed);
    }

    /// Tells how writing our own Node ended.
    pub(crate) fn written(&self, result: &Result<(), BackendError>) {
        let refused = match result {
            Err(error @ (BackendError::Forbidden { .. } | BackendError::NoSuchNode(_))) => Some(chain(error)),
            // Anything else tells nothing about our rights.
            Err(BackendError::Failed { .. }) => self.status.borrow().write_refused.clone(),
            Ok(()) => None,
        };
        if let Err(error) = result {
            warn!(error = %chain(error), "Own node could not be written");
        }
        self.status.send_if_modified(|status| {
            let changed = status.write_refused != refused;
            if changed {
                Arc::make_mut(status).write_refused = refused;
            }
            changed
        });
    }

    /// Publishes what has changed. Whether there is a device is `None` while that is not known.
    pub(crate) fn publish(&self, store: &Store, device: Option<bool>) {
        self.status.send_if_modified(|status| {
            let device = device.unwrap_or(status.device);
            if status.plan == self.summary
                && Arc::ptr_eq(&status.findings, &self.findings)
                && status.synced == store.synced()
                && status.watches == *store.watches()
                && status.device == device
            {
                return false;
            }
            let status = Arc::make_mut(status);
            status.synced = store.synced();
            status.watches = store.watches().clone();
            status.device = device;
            status.plan = self.summary.clone();
            status.findings = self.findings.clone();
            true
        });
    }
}

/// Of each object the first findings, and how many more there are. They are in the order of their objects.
fn by_object<'f>(findings: impl Iterator<Item = &'f Finding>) -> Vec<(Vec<&'f Finding>, usize)> {
    let all: Vec<&Finding> = findings.collect();
    let objects = all.chunk_by(|a, b| a.object == b.object);
    objects.map(|of| (of.iter().copied().take(LINES).collect(), of.len().saturating_sub(LINES))).collect()
}
