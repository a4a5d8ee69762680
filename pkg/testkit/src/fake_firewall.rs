//! Policy tables in memory: transactions are carried out as the model says, fail when told to, and strangers may do harm.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kilo_agent::{Committed, Counted, Firewall, FirewallEvent, HostError, Severity};
use kilo_nftables::{Table, Transaction};
use tokio::sync::Notify;

/// What a fake kernel has and what was done to it.
#[derive(Debug, Default)]
pub struct Ruleset {
    /// Our tables.
    pub tables: Vec<Table>,
    /// Every commit that landed, in order.
    pub commits: Vec<Vec<Transaction>>,
    /// So many commits fail, with nothing changed.
    pub refuse: usize,
    /// So many sweeps of marks fail.
    pub unswept: usize,
    /// So many readings fail.
    pub unreadable: usize,
    /// How often the tables were read.
    pub reads: usize,
    /// How long a commit takes.
    pub slow: std::time::Duration,
    /// What counters say.
    pub counters: Vec<Counted>,
    events: VecDeque<FirewallEvent>,
}

/// A handle on a fake kernel; its clones are the same kernel.
#[derive(Clone, Debug, Default)]
pub struct FakeFirewall {
    ruleset: Arc<Mutex<Ruleset>>,
    wake: Arc<Notify>,
}

impl FakeFirewall {
    /// The kernel, to look at or to change. Held only between two awaits.
    pub fn ruleset(&self) -> MutexGuard<'_, Ruleset> {
        self.ruleset.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the agent something.
    pub fn tell(&self, event: FirewallEvent) {
        self.ruleset().events.push_back(event);
        self.wake.notify_one();
    }

    /// Somebody removes all tables.
    pub fn flush(&self, by: &str) {
        self.ruleset().tables.clear();
        self.tell(FirewallEvent::Changed { by: Some(by.to_owned()) });
    }
}

fn refused(action: &str) -> HostError {
    let source = Box::new(std::io::Error::from_raw_os_error(16));
    HostError { action: action.to_owned(), severity: Severity::Retry, source }
}

impl Firewall for FakeFirewall {
    async fn read(&mut self) -> Result<Vec<Table>, HostError> {
        let mut ruleset = self.ruleset();
        ruleset.reads += 1;
        if ruleset.unreadable > 0 {
            ruleset.unreadable -= 1;
            return Err(refused("faking a failure of reading"));
        }
        Ok(ruleset.tables.clone())
    }

    async fn commit(&mut self, transactions: &[Transaction]) -> Result<Committed, HostError> {
        let slow = self.ruleset().slow;
        tokio::time::sleep(slow).await;
        let mut ruleset = self.ruleset();
        if ruleset.refuse > 0 {
            ruleset.refuse -= 1;
            return Err(refused("faking a failure of a commit"));
        }
        for transaction in transactions {
            let is = |t: &Table| t.family == transaction.family && t.name == transaction.table;
            let mut table = ruleset.tables.iter().position(is).map(|at| ruleset.tables.remove(at));
            transaction.apply_to(&mut table);
            ruleset.tables.extend(table);
        }
        ruleset.commits.push(transactions.to_vec());
        let messages = transactions.iter().map(|t| t.changes.len()).sum();
        Ok(Committed { messages, bytes: 0 })
    }

    async fn next(&mut self) -> FirewallEvent {
        loop {
            if let Some(event) = self.ruleset().events.pop_front() {
                return event;
            }
            self.wake.notified().await;
        }
    }

    async fn counters(&mut self) -> Result<Vec<Counted>, HostError> {
        Ok(self.ruleset().counters.clone())
    }

    async fn sweep(&mut self, _: u32) -> Result<usize, HostError> {
        let mut ruleset = self.ruleset();
        if ruleset.unswept > 0 {
            ruleset.unswept -= 1;
            return Err(refused("faking a failure of a sweep"));
        }
        Ok(0)
    }
}
