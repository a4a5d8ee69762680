//! A machine in memory: it has state, carries operations out as the model says, and fails when told to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kilo_agent::{DiscoverConfig, Host, HostError, HostEvent, Severity};
use kilo_mesh::HostFacts;
use kilo_state::{Observed, Op};
use tokio::sync::Notify;

/// What a fake machine is and what was done to it.
#[derive(Debug, Default)]
pub struct Machine {
    /// What the machine tells about itself.
    pub facts: HostFacts,
    /// Its network.
    pub observed: Observed,
    /// Every operation that was carried out or refused, in order.
    pub ops: Vec<Op>,
    /// How often everything was read.
    pub observations: u64,
    /// Operations of these kinds fail, this many times each.
    pub fail: BTreeMap<&'static str, u64>,
    /// Names that resolve.
    pub dns: BTreeMap<String, Vec<IpAddr>>,
    /// Addresses that do not answer; all others do.
    pub silent: BTreeSet<IpAddr>,
    /// Every address that was asked, in order.
    pub probed: Vec<IpAddr>,
    /// The agent has let go.
    pub closed: bool,
    events: Vec<HostEvent>,
}

/// A handle on a fake machine; its clones are the same machine.
#[derive(Clone, Debug, Default)]
pub struct FakeHost {
    machine: Arc<Mutex<Machine>>,
    wake: Arc<Notify>,
}

impl FakeHost {
    /// A machine that tells this about itself.
    pub fn new(facts: HostFacts) -> Self {
        let fake = Self::default();
        fake.machine().facts = facts;
        fake
    }

    /// The machine, to look at or to change. Held only between two awaits.
    pub fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the agent that somebody else changed something.
    pub fn disturb(&self, event: HostEvent) {
        self.machine().events.push(event);
        self.wake.notify_one();
    }
}

impl Host for FakeHost {
    async fn discover(&mut self, _: &DiscoverConfig) -> Result<HostFacts, HostError> {
        Ok(self.machine().facts.clone())
    }

    async fn facts(&mut self) -> Result<HostFacts, HostError> {
        Ok(self.machine().facts.clone())
    }

    async fn observe(&mut self) -> Result<Observed, HostError> {
        let mut machine = self.machine();
        machine.observations += 1;
        Ok(machine.observed.clone())
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), HostError>> {
        let mut machine = self.machine();
        let carry_out = |op: &Op| {
            machine.ops.push(op.clone());
            if let Some(left) = machine.fail.get_mut(op.kind()).filter(|left| **left > 0) {
                *left -= 1;
                return Err(HostError {
                    action: format!("faking a failure of {}", op.kind()),
                    severity: Severity::Retry,
                    source: "told to fail".into(),
                });
            }
            kilo_state::apply(&mut machine.observed, op);
            Ok(())
        };
        ops.iter().map(carry_out).collect()
    }

    async fn changed(&mut self) -> HostEvent {
        loop {
            if let Some(event) = self.machine().events.pop() {
                return event;
            }
            self.wake.notified().await;
        }
    }

    async fn close(&mut self) {
        self.machine().closed = true;
    }

    fn resolve(&self, name: String) -> impl Future<Output = Option<Vec<IpAddr>>> + Send + 'static {
        let found = self.machine().dns.get(&name).cloned();
        async move { found }
    }

    fn probe(&self, target: IpAddr) -> impl Future<Output = bool> + Send + 'static {
        let answers = {
            let mut machine = self.machine();
            machine.probed.push(target);
            !machine.silent.contains(&target)
        };
        async move { answers }
    }
}
