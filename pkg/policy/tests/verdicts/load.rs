//! What a large cluster costs: 50,000 pods in memory, and answers beside ten thousand policies that have nothing to do
//! with them.

use std::io::Write as _;
use std::time::{Duration, Instant};

use kilo_policy::{Evaluator, Kind, Options, Probe, Profiles, Protocol, Snapshot, Traffic};
use serde_json::{Value, json};

const PODS: usize = 50_000;

/// A pod as a cluster has them: a deployment's, with labels, named ports and two addresses.
fn pod(n: usize) -> Value {
    let (app, namespace) = (n / 10 % 500, n / 5000);
    json!({
        "metadata": {"namespace": format!("team-{namespace}"), "name": format!("app-{app}-7c9d8b6f5d-{n:05}"),
            "uid": format!("2f1f8a52-93a4-4f6c-9d2c-{n:012}"), "creationTimestamp": format!("2026-01-01T{:02}:{:02}:{:02}Z", n / 3600 % 24, n / 60 % 60, n % 60),
            "labels": {"app": format!("app-{app}"), "pod-template-hash": format!("7c9d8b{app}"), "tier": format!("t{}", n % 3), "team": namespace.to_string()}},
        "spec": {"nodeName": format!("node-{}.example.internal", n % 1000), "containers": [{"ports": [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255)}, {"ip": format!("fd00::{n:x}")}]},
    })
}

/// Bytes of this process's own memory that are in use.
fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok().map(|kib| kib * 1024)
}

/// The processor's time that this thread has used, since others work on this machine; else the time.
fn processor() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let used = text.and_then(|text| text.split(' ').next()?.parse().ok());
    used.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

pub fn tell(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("a place to write");
}

#[test]
fn a_pod_takes_at_most_500_bytes() {
    let Some(before) = resident() else {
        tell("skipped: this system does not say how much memory a process uses");
        return;
    };
    // Other tests of this process allocate meanwhile; the figure is taken in a process of its own.
    if std::env::var_os("KILO_MEASURE").is_none() {
        let program = std::env::current_exe().expect("this program");
        let run = std::process::Command::new(program)
            .args(["--exact", "load::a_pod_takes_at_most_500_bytes", "--nocapture"])
            .env("KILO_MEASURE", "1")
            .output()
            .expect("run");
        let said = String::from_utf8_lossy(&run.stderr);
        tell(said.lines().find(|line| line.contains(" bytes a pod")).expect("a figure"));
        assert!(run.status.success(), "{said}");
        return;
    }
    let mut snapshot = Snapshot::default();
    for n in 0..PODS {
        snapshot.apply(Kind::Pod, &pod(n));
    }
    let bytes = (resident().expect("as before") - before) / PODS;
    tell(&format!("{PODS} pods: {bytes} bytes a pod"));
    assert!(bytes <= 500, "{bytes} bytes a pod");
    assert_eq!(snapshot.pods().count(), PODS);
}

/// A cluster of `pods` pods and of policies in the same namespace: `others` that select none of the pods asked about.
fn cluster(pods: usize, others: usize) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for n in 0..pods {
        snapshot.apply(Kind::Pod, &pod(n));
    }
    for n in 0..others {
        let spec = json!({"podSelector": {"matchLabels": {"app": format!("absent-{n}")}}, "ingress": [{"from": [{"podSelector": {}}]}]});
        snapshot.apply(
            Kind::NetworkPolicy,
            &json!({"metadata": {"namespace": "team-0", "name": format!("other-{n}")}, "spec": spec}),
        );
    }
    for n in 0..5 {
        let spec = json!({"podSelector": {"matchLabels": {"tier": "t0"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": format!("app-{n}")}}}], "ports": [{"port": "http"}]}]});
        snapshot.apply(
            Kind::NetworkPolicy,
            &json!({"metadata": {"namespace": "team-0", "name": format!("ours-{n}")}, "spec": spec}),
        );
    }
    snapshot
}

/// Microseconds for finding a pod with its policies and for one answer, and how many were allowed.
fn ask(snapshot: &Snapshot) -> (f64, f64, usize) {
    let evaluator = Evaluator::new(snapshot, Options::default());
    let started = Instant::now();
    let ends: Vec<_> = evaluator.ends().take(500).flat_map(|(_, _, ends)| ends.into_iter().take(1)).collect();
    let found = started.elapsed();
    let started = Instant::now();
    let mut allowed = 0;
    for from in &ends {
        for to in &ends {
            let connection = evaluator.connection(from, to, Traffic::Port(Protocol::Tcp, 8080));
            allowed += usize::from(connection.is_allowed());
        }
    }
    let each = |time: Duration, n: usize| time.as_secs_f64() * 1e6 / n as f64;
    (each(found, ends.len()), each(started.elapsed(), ends.len() * ends.len()), allowed)
}

#[test]
fn an_answer_costs_what_the_pods_own_policies_cost() {
    let (few, many) = (cluster(10_000, 0), cluster(10_000, 10_000));
    // The best of three: others work on this machine.
    let best = |snapshot| {
        let runs = [ask(snapshot), ask(snapshot), ask(snapshot)];
        (
            runs.iter().map(|r| r.0).fold(f64::MAX, f64::min),
            runs.iter().map(|r| r.1).fold(f64::MAX, f64::min),
            runs[0].2,
        )
    };
    let (few, many) = (best(&few), best(&many));
    tell(&format!(
        "10,000 pods: an answer {:.2} µs with 5 policies, {:.2} µs with 10,005; a pod's policies found in {:.1} µs and {:.1} µs",
        few.1, many.1, few.0, many.0
    ));
    assert_eq!(few.2, many.2);
    assert!(many.1 < 5.0 * few.1 + 1.0 && many.0 < 5.0 * few.0 + 20.0, "{few:?} {many:?}");
}

#[test]
fn a_node_needs_few_sets() {
    let mut snapshot = Snapshot::default();
    for n in 0..5_000 {
        snapshot.apply(Kind::Pod, &pod(n));
    }
    for n in 0..1_000 {
        let (app, friend) =
            (json!({"app": format!("app-{}", n % 500)}), json!({"app": format!("app-{}", n * 7 % 500)}));
        let from = json!([{"podSelector": {"matchLabels": friend}}, {"ipBlock": {"cidr": "10.200.0.0/16"}}]);
        let spec = json!({"podSelector": {"matchLabels": app}, "ingress": [{"from": from, "ports": [{"port": "http"}]}], "egress": [{"to": from}]});
        let policy = json!({"metadata": {"namespace": "team-0", "name": format!("p-{n}")}, "spec": spec});
        snapshot.apply(Kind::NetworkPolicy, &policy);
    }
    let started = Instant::now();
    let evaluator = Evaluator::new(&snapshot, Options::default());
    let made = Profiles::new(&evaluator, |pod| {
        &*pod.pod.node == "node-7.example.internal" || pod.name.ends_with('3')
    });
    let elements: usize = made.sets.values().map(|set| set.len()).sum();
    tell(&format!(
        "5,000 pods and 1,000 policies: {} addresses of pods judged here, {} profiles, {} sets, {elements} elements, {:.0?}",
        made.dispatch.len(),
        made.profiles.len(),
        made.sets.len(),
        started.elapsed()
    ));
    assert!(made.dispatch.len() > 1_000 && made.sets.len() <= 1_000 && elements <= 10 * 5_000);
    assert!(made.profiles.len() < made.dispatch.len());
}

#[test]
fn objects_of_a_stranger_cost_their_size() {
    let time = |size: usize| {
        let blocks: Vec<_> = (0..size).map(|n| json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": [format!("10.{}.{}.{}/32", n >> 16 & 255, n >> 8 & 255, n & 255)]}})).collect();
        let excepts: Vec<_> =
            (0..size).map(|n| format!("10.{}.{}.{}/32", n >> 15 & 255, n >> 7 & 255, n << 1 & 255)).collect();
        let labels: serde_json::Map<_, _> = (0..size).map(|n| (format!("k{n}"), json!("v"))).collect();
        let terms: Vec<_> =
            (0..size).map(|n| json!({"key": format!("k{n}"), "operator": "Sounds"})).collect();
        let ports: Vec<_> =
            (0..size).map(|n| json!({"name": format!("p{n}"), "containerPort": n % 60_000 + 1})).collect();
        let spec = json!({"podSelector": {"matchExpressions": terms}, "ingress": [{"from": blocks}, {"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": excepts}}]}]});
        let started = processor();
        let mut snapshot = Snapshot::default();
        snapshot
            .apply(Kind::NetworkPolicy, &json!({"metadata": {"namespace": "a", "name": "p"}, "spec": spec}));
        snapshot.apply(Kind::Pod, &json!({"metadata": {"namespace": "a", "name": "p", "labels": labels}, "spec": {"containers": [{"ports": ports}]}, "status": {"podIP": "10.0.0.1"}}));
        let evaluator = Evaluator::new(&snapshot, Options::default());
        let probe: Probe = "80/tcp".parse().expect("a probe");
        let externals = ["198.51.100.1".parse().expect("an address")];
        let rows = kilo_policy::Table::new(&evaluator, &[probe], &externals).rows().count();
        assert_eq!(rows, 2);
        processor().saturating_sub(started)
    };
    let best = |size| (0..3).map(|_| time(size)).min().expect("three");
    let (small, large) = (best(2_000), best(16_000));
    tell(&format!("a policy and a pod of 2,000 parts of each kind: {small:.0?}, of 16,000: {large:.0?}"));
    // Eight times as many; what is quadratic would take 64 times as long.
    assert!(large < 30 * small + Duration::from_millis(100), "{small:?} {large:?}");
}
