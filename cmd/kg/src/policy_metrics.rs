//! The metrics of the policy engine, by name; none of them where it does not run.

use kilo_agent::{BridgeSight, EnforcerStatus, WatchState};
use prometheus::proto::{Metric, MetricFamily};

use crate::metrics::{Labels, counter, durations, family, gauge, histogram};

/// All of them.
pub fn collect(status: &EnforcerStatus, out: &mut Vec<MetricFamily>) {
    let programmed = &status.programmed;
    let one = |value: usize| [(Labels::new(), value as f64)];
    out.push(gauge(
        "kilo_policy_in_force",
        "Whether the kernel has what is known.",
        [(vec![], f64::from(u8::from(status.in_force)))],
    ));
    out.push(gauge(
        "kilo_policy_watch_up",
        "Whether objects of this kind are being watched for policies.",
        status.watches.iter().map(|(kind, state)| {
            (vec![("kind", kind.name().to_owned())], f64::from(u8::from(*state == WatchState::Up)))
        }),
    ));
    let unseen = match &status.sight {
        Some(BridgeSight::Unseen { links, .. }) => links.len(),
        Some(BridgeSight::Seen) | None => 0,
    };
    out.push(gauge(
        "kilo_policy_unseen_links",
        "Number of links of pods whose traffic with pods of this node passes by policies.",
        one(unseen),
    ));
    out.push(gauge(
        "kilo_policy_findings",
        "Number of objects that are not understood as a whole, by kind.",
        status.findings.iter().map(|(kind, n)| (vec![("kind", kind.name().to_owned())], *n as f64)),
    ));
    out.push(gauge(
        "kilo_policy_profiles",
        "Number of classes of pods with the same policies.",
        one(programmed.profiles),
    ));
    out.push(gauge("kilo_policy_sets", "Number of sets in the policy tables.", one(programmed.sets)));
    out.push(gauge(
        "kilo_policy_set_elements",
        "Number of elements of these sets, by how they are found.",
        [("hash", programmed.hash_elements), ("interval", programmed.interval_elements)]
            .map(|(kind, n)| (vec![("kind", kind.to_owned())], n as f64)),
    ));
    out.push(gauge("kilo_policy_rules", "Number of rules in the policy tables.", one(programmed.rules)));
    out.push(gauge(
        "kilo_policy_unprogrammed_pods",
        "Number of addresses of pods of this node that are closed since nothing else is known of them.",
        one(programmed.unprogrammed),
    ));
    out.push(durations(
        "kilo_policy_commit_seconds",
        "How long the kernel took for a transaction.",
        status.commits,
    ));
    let programming: Vec<Metric> = status
        .programming
        .iter()
        .map(|(kind, durations)| histogram(vec![("kind", (*kind).to_owned())], *durations))
        .collect();
    out.push(family(
        "kilo_policy_programming_seconds",
        "From the first event to the kernel's answer, by what the event was about.",
        prometheus::proto::MetricType::HISTOGRAM,
        programming,
    ));
    let one = |value: usize| [(Labels::new(), value as u64)];
    out.push(counter(
        "kilo_policy_commit_messages",
        "Netlink messages of all transactions.",
        one(status.committed.messages),
    ));
    out.push(counter("kilo_policy_commit_bytes", "Bytes of these messages.", one(status.committed.bytes)));
    out.push(counter(
        "kilo_policy_commit_errors_total",
        "Number of transactions that failed, by errno.",
        status.commit_errors.iter().map(|(errno, n)| (vec![("errno", errno.to_string())], *n)),
    ));
    out.push(counter(
        "kilo_policy_drift_repairs_total",
        "Number of times that what others had done to the policy tables was put right, by cause.",
        status.repairs.iter().map(|(cause, n)| (vec![("cause", (*cause).to_owned())], *n)),
    ));
}

/// Those that the kernel counts. What is dropped and what is only counted is a matter of the flags.
pub fn counted(status: &EnforcerStatus, out: &mut Vec<MetricFamily>, drops: (bool, bool)) {
    let action = |drops: bool| if drops { "drop" } else { "audit" }.to_owned();
    let spoof = status.counters.iter().filter_map(|counted| {
        let reason = counted.name.strip_prefix("spoof_")?;
        let action = action(drops.1 && reason != "weak");
        Some((vec![("reason", reason.to_owned()), ("action", action)], counted.packets))
    });
    out.push(counter(
        "kilo_policy_spoof_total",
        "Packets with a source that was not proved, by reason.",
        spoof,
    ));
    let verdicts = status.counters.iter().filter_map(|counted| {
        let (verdict, direction) = match counted.name.as_str() {
            "allow" => ("allow", "any"),
            "deny_ingress" => ("deny", "ingress"),
            "deny_egress" => ("deny", "egress"),
            _ => return None,
        };
        let verdict = if verdict == "deny" && !drops.0 { "audit" } else { verdict };
        let labels = [("direction", direction), ("tier", "networkpolicy"), ("verdict", verdict)];
        Some((labels.map(|(name, value)| (name, value.to_owned())).to_vec(), counted.packets))
    });
    out.push(counter("kilo_policy_verdicts_total", "Packets that were judged, by verdict.", verdicts));
    let unknown: Vec<u64> = status
        .counters
        .iter()
        .filter(|counted| counted.name.starts_with("deny_unknown_"))
        .map(|counted| counted.packets)
        .collect();
    if !unknown.is_empty() {
        out.push(counter(
            "kilo_policy_unknown_pod_drops_total",
            "Packets of addresses of this node's pods of which nothing is known.",
            [(Labels::new(), unknown.iter().sum())],
        ));
    }
}
