//! What the enforcer tells about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kilo_policy::Kind;

use super::compile::Programmed;
use crate::{BridgeSight, Committed, Counted, Durations, WatchState};

/// The state of the moment, and counters since the start.
#[derive(Clone, Debug, Default)]
pub struct EnforcerStatus {
    /// Kinds of which a whole list was seen.
    pub synced: BTreeSet<Kind>,
    /// How each watch is doing.
    pub watches: BTreeMap<Kind, WatchState>,
    /// What the kernel had at the last commit is what it should have.
    pub in_force: bool,
    /// Whether the kernel shows us what pods of this node send each other; nothing before that was looked at.
    pub sight: Option<BridgeSight>,
    /// Objects with findings, by kind.
    pub findings: BTreeMap<Kind, usize>,
    /// How large what is programmed is.
    pub programmed: Programmed,
    /// Commits that landed: what took the first event of a kind to be acknowledged by the kernel.
    pub programming: BTreeMap<&'static str, Durations>,
    /// How long the kernel took for a commit.
    pub commits: Durations,
    /// What all commits took.
    pub committed: Committed,
    /// Commits that failed, by errno; 0 where there was none.
    pub commit_errors: BTreeMap<i32, u64>,
    /// Repairs, by cause: `foreign_flush`, `mismatch`.
    pub repairs: BTreeMap<&'static str, u64>,
    /// Named counters of the tables, as last read.
    pub counters: Vec<Counted>,
}

/// The status, shared with who reads it.
#[derive(Debug, Default)]
pub struct EnforcerStats(Mutex<EnforcerStatus>);

impl EnforcerStats {
    /// The state of the moment.
    pub fn status(&self) -> EnforcerStatus {
        self.with(|status| status.clone())
    }

    /// Looks at it or changes it. A status is right even if a thread died while it held the lock.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut EnforcerStatus) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn committed(
        &self,
        took: Duration,
        committed: Committed,
        programmed: Programmed,
        waited: impl Iterator<Item = (&'static str, Duration)>,
    ) {
        self.with(|status| {
            status.in_force = true;
            status.programmed = programmed;
            status.commits.add(took);
            status.committed.messages += committed.messages;
            status.committed.bytes += committed.bytes;
            for (kind, waited) in waited {
                status.programming.entry(kind).or_default().add(waited);
            }
        });
    }
}
