//! Every metric of `kg`, by name. Gauges are read from the agent's status when they are asked for; counters
//! and durations are the agent's own.
//!
//! Kilo's names keep their meaning: `kilo_errors_total`, `kilo_leader`, `kilo_nodes`, `kilo_peers`,
//! `kilo_reconciles_total`. Its `kilo_iptables_operations_total` counted runs of a program that is no longer
//! run; `kilo_operations_total` counts what is done instead.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kilo_agent::{DURATION_BUCKETS, Durations, EnforcerStats, Handle, WatchState};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder as _, Registry, TextEncoder};

use crate::args::VERSION;
use crate::policy_metrics;

/// The metrics of one agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// The metrics of the agent behind this handle, and those of the process.
    pub fn new(agent: Handle, policy: Option<PolicySource>) -> anyhow::Result<Self> {
        let registry = Registry::new();
        registry.register(Box::new(AgentCollector { agent, policy }))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self { registry })
    }

    /// The text exposition format and its content type.
    pub fn text(&self) -> anyhow::Result<(String, String)> {
        let encoder = TextEncoder::new();
        let mut out = Vec::new();
        encoder.encode(&self.registry.gather(), &mut out)?;
        Ok((encoder.format_type().to_owned(), String::from_utf8(out)?))
    }
}

/// Reads an agent's state when asked.
struct AgentCollector {
    agent: Handle,
    policy: Option<PolicySource>,
}

/// The policy engine, where it runs.
#[derive(Clone, Debug)]
pub struct PolicySource {
    /// What it tells about itself.
    pub stats: Arc<EnforcerStats>,
    /// What is denied is dropped.
    pub enforces: bool,
    /// Sources that were not proved are dropped.
    pub binds: bool,
}

impl Collector for AgentCollector {
    fn desc(&self) -> Vec<&Desc> {
        // An unchecked collector: which series there are depends on what has happened.
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let status = self.agent.status.borrow().clone();
        let stats = &self.agent.stats;
        let [followed, reconciles] = [&stats.followed, &stats.reconciles].map(|n| n.load(Ordering::Relaxed));
        let mut families = vec![
            gauge(
                "kilo_build_info",
                "Constant 1, with the version.",
                [(vec![("version", VERSION.to_owned())], 1.0)],
            ),
            counter("kilo_reconciles_total", "Number of reconciliation attempts.", [(vec![], reconciles)]),
            counter(
                "kilo_plans_total",
                "Number of plans, by whether they were made as a whole or followed single peers.",
                [("whole", reconciles.saturating_sub(followed)), ("followed", followed)]
                    .map(|(kind, n)| (vec![("kind", kind.to_owned())], n)),
            ),
            counter(
                "kilo_errors_total",
                "Number of errors that occurred while administering the mesh.",
                stats.errors().into_iter().map(|(event, n)| (vec![("event", event.as_str().to_owned())], n)),
            ),
            counter(
                "kilo_operations_total",
                "Number of changes of the host, by kind and result.",
                stats.ops().into_iter().map(|((kind, ok), n)| {
                    let result = if ok { "ok" } else { "error" };
                    (vec![("kind", kind.to_owned()), ("result", result.to_owned())], n)
                }),
            ),
            counter(
                "kilo_repairs_total",
                "Number of changes that put right what somebody else had changed on the host, by kind.",
                stats.repairs().into_iter().map(|(kind, n)| (vec![("kind", kind.to_owned())], n)),
            ),
            counter(
                "kilo_failovers_total",
                "Number of nodes that have ceased to lead because others report them.",
                [(vec![], stats.failovers.load(Ordering::Relaxed))],
            ),
            counter(
                "kilo_unreachable_total",
                "Number of times that this node has found another one unreachable and reported it.",
                [(vec![], stats.unreachable.load(Ordering::Relaxed))],
            ),
            gauge(
                "kilo_watch_up",
                "Whether objects of this kind are being watched.",
                status.watches.iter().map(|(kind, state)| {
                    (vec![("kind", kind.as_str().to_owned())], f64::from(u8::from(*state == WatchState::Up)))
                }),
            ),
            gauge(
                "kilo_findings",
                "Number of findings on objects and the host.",
                [(vec![], status.findings.len() as f64)],
            ),
            durations(
                "kilo_reconcile_duration_seconds",
                "How long a reconciliation took.",
                stats.durations(),
            ),
        ];
        if let Some(at) = status.last_success {
            families.push(gauge(
                "kilo_last_success_timestamp_seconds",
                "When the host last was as planned.",
                [(vec![], at as f64)],
            ));
        }
        if let Some(plan) = &status.plan {
            families.push(gauge(
                "kilo_leader",
                "Leadership status of the node.",
                [(vec![], f64::from(u8::from(plan.leader)))],
            ));
            families.push(gauge(
                "kilo_deposed_nodes",
                "Number of nodes that do not lead because others report them.",
                [(vec![], plan.deposed as f64)],
            ));
            families.push(gauge("kilo_nodes", "Number of nodes in the mesh.", [(vec![], plan.nodes as f64)]));
            families.push(gauge("kilo_peers", "Number of peers in the mesh.", [(vec![], plan.peers as f64)]));
        }
        if let Some(PolicySource { stats, enforces, binds }) = &self.policy {
            let status = stats.status();
            policy_metrics::collect(&status, &mut families);
            policy_metrics::counted(&status, &mut families, (*enforces, *binds));
        }
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

pub(crate) type Labels = Vec<(&'static str, String)>;

pub(crate) fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn metric(labels: Labels) -> Metric {
    let mut metric = Metric::default();
    metric.set_label(
        labels
            .into_iter()
            .map(|(name, value)| {
                let mut label = LabelPair::default();
                label.set_name(name.to_owned());
                label.set_value(value);
                label
            })
            .collect(),
    );
    metric
}

pub(crate) fn gauge(name: &str, help: &str, series: impl IntoIterator<Item = (Labels, f64)>) -> MetricFamily {
    let metrics = series.into_iter().map(|(labels, value)| {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = metric(labels);
        metric.set_gauge(gauge);
        metric
    });
    family(name, help, MetricType::GAUGE, metrics.collect())
}

pub(crate) fn counter(
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels, u64)>,
) -> MetricFamily {
    let metrics = series.into_iter().map(|(labels, value)| {
        let mut counter = Counter::default();
        counter.set_value(value as f64);
        let mut metric = metric(labels);
        metric.set_counter(counter);
        metric
    });
    family(name, help, MetricType::COUNTER, metrics.collect())
}

/// A histogram without labels.
pub(crate) fn durations(name: &str, help: &str, durations: Durations) -> MetricFamily {
    family(name, help, MetricType::HISTOGRAM, vec![histogram(Vec::new(), durations)])
}

/// One series of a histogram.
pub(crate) fn histogram(labels: Labels, durations: Durations) -> Metric {
    let mut histogram = Histogram::default();
    let mut so_far = 0;
    let buckets = DURATION_BUCKETS.iter().zip(durations.counts).map(|(&bound, count)| {
        so_far += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(so_far);
        bucket
    });
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(durations.counts.iter().sum());
    histogram.set_sample_sum(durations.sum);
    let mut metric = metric(labels);
    metric.set_histogram(histogram);
    metric
}
