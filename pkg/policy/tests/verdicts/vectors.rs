//! The truth tables of 295 clusters, on which two other engines and the semantics agree: 48 connectivity cases of the
//! upstream Netpol suite by number (case 36 in two steps is `netpol-36-1`, `netpol-36-2`), corner cases, random
//! clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

use kilo_policy::Probe;
use serde::Deserialize;
use serde_json::Value;

use crate::{Cell, oracle, table};

/// A scenario: objects, and for each pair of ends and family the letters of ingress and egress by port.
#[derive(Deserialize)]
struct Scenario {
    ports: Vec<String>,
    externals: Vec<std::net::IpAddr>,
    objects: Vec<Value>,
    rows: BTreeMap<String, BTreeMap<String, String>>,
}

impl Scenario {
    fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for (from, row) in &self.rows {
            for (to, letters) in row {
                for (port, letters) in self.ports.iter().zip(letters.split(' ')) {
                    cells.push((format!("{from} {to} {}", port.to_uppercase()), letters.to_owned()));
                }
            }
        }
        cells.sort();
        cells
    }
}

fn scenarios() -> Vec<(String, Scenario)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let files = std::fs::read_dir(dir).expect("recordings").map(|entry| entry.expect("a file").path());
    let mut scenarios: Vec<_> = files
        .map(|file| {
            let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&file).expect("a recording");
            let scenario = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            (name, scenario)
        })
        .collect();
    scenarios.sort_by(|(a, _), (b, _)| a.cmp(b));
    scenarios
}

/// Compares what `answer` makes of each scenario with its recording, and says how much is identical.
fn compare(who: &str, answer: impl Fn(&Scenario, &[Probe]) -> Vec<Cell>) {
    let scenarios = scenarios();
    let (mut identical, mut cells, mut wrong) = (0, 0, Vec::new());
    for (name, scenario) in &scenarios {
        let probes: Vec<Probe> = scenario.ports.iter().map(|port| port.parse().expect("a port")).collect();
        let (want, got) = (scenario.cells(), answer(scenario, &probes));
        cells += want.len();
        if want == got {
            identical += 1;
            continue;
        }
        let (have, should): (BTreeSet<_>, BTreeSet<_>) = (got.iter().collect(), want.iter().collect());
        wrong.push(format!(
            "{name}: got {:?}, want {:?}",
            have.difference(&should).take(3).collect::<Vec<_>>(),
            should.difference(&have).take(3).collect::<Vec<_>>()
        ));
    }
    let report = format!("{who}: {identical} of {} scenarios identical, {cells} cells\n", scenarios.len());
    std::io::stderr().write_all(report.as_bytes()).expect("a place to write");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((scenarios.len(), cells), (295, 76_624));
}

#[test]
fn tables_are_those_of_the_recordings() {
    compare("evaluator", |scenario, probes| table(&scenario.objects, probes, &scenario.externals));
}

#[test]
fn the_oracle_is_right_about_the_recordings() {
    compare("oracle", |scenario, probes| oracle::table(&scenario.objects, probes, &scenario.externals));
}

#[test]
fn every_connectivity_case_of_upstream_is_there() {
    let numbers: BTreeSet<usize> = scenarios()
        .iter()
        .filter_map(|(name, _)| name.strip_prefix("netpol-")?.split('-').next()?.parse().ok())
        .collect();
    assert_eq!(numbers, (1..=48).collect());
}
