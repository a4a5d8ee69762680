//! The enforcer's way to the kernel: adopt, commit, repair.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::{Compile, Enforcer, Reread};
use crate::apply::chain;
use crate::{Backend, Firewall, HostError, Pods};

/// More repairs than these in [`REPAIRS_IN`] are a fight: then it waits longer each time.
const REPAIRS: usize = 20;
const REPAIRS_IN: Duration = Duration::from_secs(10);

/// How often a fight is told.
const TELL: Duration = Duration::from_secs(60);

/// The repairs of late.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    times: VecDeque<Instant>,
    told: Option<Instant>,
}

impl Repairs {
    /// Notes one; whether it is worth a line, and whether there are too many.
    fn note(&mut self, now: Instant) -> (bool, bool) {
        while self.times.front().is_some_and(|at| now.duration_since(*at) > REPAIRS_IN) {
            self.times.pop_front();
        }
        self.times.push_back(now);
        let tell = self.told.is_none_or(|at| now.duration_since(at) > TELL);
        if tell {
            self.told = Some(now);
        }
        (tell, self.times.len() > REPAIRS)
    }
}

impl<B: Backend, F: Firewall, C: Compile, P: Pods> Enforcer<B, F, C, P> {
    /// Makes the kernel's tables what they should be, as far as may be said already. While a failure is waited out only
    /// events are worked in.
    pub(super) async fn work(&mut self) {
        if self.backoff.retry_at().is_some() && !self.backoff.is_due() {
            return;
        }
        let mut repair = None;
        if let Some(why) = self.reread.clone() {
            match self.firewall.read().await {
                Ok(tables) => {
                    let begins = !std::mem::replace(&mut self.began, true);
                    self.bare |= begins && tables.is_empty();
                    if begins && !tables.is_empty() {
                        info!(tables = tables.len(), "Policy tables of an earlier agent are adopted");
                    }
                    if let Reread::Verify { by } = &why
                        && !self.compiler.is(&tables)
                    {
                        let gone = tables.len() < self.there;
                        repair = Some((if gone { "foreign_flush" } else { "mismatch" }, by.clone()));
                    }
                    self.there = tables.len();
                    self.reread = None;
                    // An honest comparison needs both sides: what was not in force yet is no repair.
                    if repair.is_some() || why == Reread::Adopt {
                        self.compiler.adopt(&tables);
                    }
                }
                Err(error) => return self.fail("Policy tables cannot be read", &error),
            }
        }
        if !self.open && !self.bare && repair.is_none() {
            return;
        }
        let transactions = self.compiler.take();
        if transactions.is_empty() {
            if self.open {
                self.settled();
            }
            return;
        }
        let began = Instant::now();
        if let Some(mask) = self.compiler.sweep() {
            self.sweep = Some(mask);
        }
        if let Some(mask) = self.sweep {
            match self.firewall.sweep(mask).await {
                Ok(connections) => {
                    self.sweep = None;
                    debug!(connections, "Marks of former connections are cleared");
                }
                // Where there is no table yet, a closed one is better than none.
                Err(error) if self.bare => {
                    warn!(error = %chain(&error), "Marks of former connections cannot be cleared yet");
                }
                // They would be taken for marks of what is allowed now.
                Err(error) => {
                    self.compiler.failed();
                    self.reread = Some(Reread::Adopt);
                    return self.fail("Marks of former connections cannot be cleared", &error);
                }
            }
        }
        match self.firewall.commit(&transactions).await {
            Ok(committed) => {
                let now = Instant::now();
                let tables = transactions.iter().map(|t| (t.family, &t.table)).collect::<BTreeSet<_>>();
                self.there = self.there.max(tables.len());
                let waited = std::mem::take(&mut self.waiting).into_iter();
                let waited = waited.map(|(kind, since)| (kind, now.duration_since(since)));
                self.stats.committed(
                    now.duration_since(began),
                    committed,
                    self.compiler.programmed(),
                    waited,
                );
                debug!(messages = committed.messages, bytes = committed.bytes, "Policy tables changed");
                if std::mem::take(&mut self.bare) {
                    info!("Policy tables made, and closed until the cluster is known");
                }
                self.settled();
                if let Some((cause, by)) = repair {
                    self.repaired(cause, by.as_deref(), now);
                }
            }
            Err(error) => {
                self.compiler.failed();
                self.reread = Some(Reread::Adopt);
                let errno = errno(&error);
                self.stats.with(|status| *status.commit_errors.entry(errno).or_default() += 1);
                self.fail("Policy tables cannot be changed", &error);
            }
        }
    }

    /// Everything that is known is in force.
    fn settled(&mut self) {
        self.backoff.reset();
        self.waiting.clear();
        self.stats.with(|status| status.in_force = true);
        self.let_go();
    }

    /// Lets the CNI calls go on whose pods are in force.
    fn let_go(&mut self) {
        let Self { open, calls, compiler, .. } = self;
        if *open {
            calls.tell_those(|address| compiler.knows(address));
        }
    }

    fn repaired(&mut self, cause: &'static str, by: Option<&str>, now: Instant) {
        self.stats.with(|status| *status.repairs.entry(cause).or_default() += 1);
        let (tell, too_many) = self.repairs.note(now);
        if tell {
            warn!(cause, by, "Somebody changed the policy tables, and they have been put right");
        }
        if too_many {
            let wait = self.backoff.step(now);
            warn!(cause, by, next_in = ?wait, "Somebody keeps changing the policy tables");
        }
    }

    fn fail(&mut self, message: &str, error: &HostError) {
        let wait = self.backoff.step(Instant::now());
        self.stats.with(|status| status.in_force = false);
        warn!(error = %chain(error), next_in = ?wait, "{message}");
    }

    /// Reads the counters for the metrics.
    pub(super) async fn count(&mut self) {
        match self.firewall.counters().await {
            Ok(counters) => self.stats.with(|status| status.counters = counters),
            Err(error) => debug!(error = %chain(&error), "Counters cannot be read"),
        }
    }
}

/// What the kernel said; 0 where it said nothing.
fn errno(error: &HostError) -> i32 {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&*error.source);
    while let Some(error) = cause {
        if let Some(errno) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return errno;
        }
        cause = error.source();
    }
    0
}
