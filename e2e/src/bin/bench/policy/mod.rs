//! What network policies cost: a change, a start, and a connection. The compiler and the kernel's tables are the real
//! ones; objects come from memory.

mod change;
mod cluster;
mod flow;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kilo_agent::{Committed, Compile, Firewall, Policies};
use kilo_host::firewall::{FirewallConfig, LinuxFirewall};
use kilo_policy::{CompilerConfig, Kind, MeshFacts};
use serde_json::Value;

use crate::figures::Figure;
use crate::process::cpu;

pub use change::measure as change;
use cluster::NODE;
pub use cluster::Size;
pub use flow::{helper, measure as flow};

/// All kinds, in the order in which their lists arrive.
const KINDS: [Kind; 5] =
    [Kind::Namespace, Kind::NetworkPolicy, Kind::Service, Kind::EndpointSlice, Kind::Pod];

/// What one change took, from the event to the kernel's answer.
#[derive(Clone, Copy, Debug, Default)]
struct Took {
    wall: Duration,
    cpu: Duration,
    committed: Committed,
}

/// A compiler and the kernel's tables of the namespace of this process.
struct Engine {
    policies: Policies,
    firewall: LinuxFirewall,
}

impl Engine {
    async fn new(facts: MeshFacts) -> Result<Self> {
        let config = CompilerConfig { node: NODE.into(), own_cni: false, ..CompilerConfig::default() };
        let mut firewall =
            LinuxFirewall::open(FirewallConfig { log_group: None, ..FirewallConfig::default() })?;
        let mut policies = Policies::new(config);
        policies.set_mesh(facts);
        policies.adopt(&firewall.read().await?);
        let mut engine = Self { policies, firewall };
        // What keeps everything closed until the cluster is known.
        engine.commit().await?;
        Ok(engine)
    }

    async fn commit(&mut self) -> Result<Committed> {
        let transactions = self.policies.take();
        if let Some(mask) = self.policies.sweep() {
            self.firewall.sweep(mask).await?;
        }
        if transactions.is_empty() {
            return Ok(Committed::default());
        }
        Ok(self.firewall.commit(&transactions).await?)
    }

    /// All lists, up to the last object; what is left is that one, and the answer.
    async fn start(&mut self, objects: impl IntoIterator<Item = (Kind, Value)>) -> Result<Took> {
        KINDS.into_iter().for_each(|kind| self.policies.restarted(kind));
        for (kind, object) in objects {
            self.policies.apply(kind, &object);
        }
        KINDS.into_iter().for_each(|kind| self.policies.synced(kind));
        self.took(|_| ()).await
    }

    async fn took(&mut self, change: impl FnOnce(&mut Policies)) -> Result<Took> {
        let (wall, before) = (Instant::now(), cpu());
        change(&mut self.policies);
        let committed = self.commit().await?;
        Ok(Took { wall: wall.elapsed(), cpu: cpu() - before, committed })
    }
}

fn wait<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().context("starting the runtime")?.block_on(work)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The value that this part of all values is not above.
fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * part) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// The figures of many changes of one sort.
fn told(name: &str, took: &[Took]) -> Vec<Figure> {
    let of = |value: fn(&Took) -> f64| took.iter().map(value).collect::<Vec<_>>();
    let (mut walls, mut cpus) = (of(|t| millis(t.wall)), of(|t| millis(t.cpu)));
    let (mut messages, mut bytes) = (of(|t| t.committed.messages as f64), of(|t| t.committed.bytes as f64));
    [
        ("event-to-ack-p50-ms", quantile(&mut walls, 0.5)),
        ("event-to-ack-p99-ms", quantile(&mut walls, 0.99)),
        ("cpu-p50-ms", quantile(&mut cpus, 0.5)),
        ("messages", quantile(&mut messages, 0.5)),
        ("bytes", quantile(&mut bytes, 0.5)),
    ]
    .map(|(what, value)| Figure::new(format!("{name}/{what}"), value))
    .into()
}
