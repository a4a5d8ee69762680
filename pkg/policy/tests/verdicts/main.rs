//! Verdicts judged from outside: against recordings, against an oracle that shares no code with the evaluator, and
//! case by case.
#![allow(clippy::disallowed_methods, reason = "tests read recordings, and measure")]

mod cases;
mod compiled;
mod findings;
mod kernel;
mod load;
mod oracle;
mod profiles;
mod properties;
mod random;
mod traced;
mod vectors;

use kilo_policy::{Evaluator, Kind, Options, Probe, Snapshot, Table};
use serde_json::Value;

/// A snapshot of these objects, and what is wrong with them.
fn snapshot(objects: &[Value]) -> (Snapshot, Vec<String>) {
    let (mut snapshot, mut findings) = (Snapshot::default(), Vec::new());
    for object in objects {
        let text = |key: &str| object[key].as_str().expect("a kind and its version");
        let kind = Kind::of(text("apiVersion"), text("kind")).expect("one of ours");
        findings.extend(snapshot.apply(kind, object).findings.iter().map(ToString::to_string));
    }
    (snapshot, findings)
}

/// A row as `from to family probe` and two letters: what ingress and egress say, `a`, `d` or `-`.
type Cell = (String, String);

/// The table of these objects, sorted.
fn table(objects: &[Value], probes: &[Probe], externals: &[std::net::IpAddr]) -> Vec<Cell> {
    let (snapshot, _) = snapshot(objects);
    let evaluator = Evaluator::new(&snapshot, Options::default());
    let table = Table::new(&evaluator, probes, externals);
    let mut cells: Vec<_> = table
        .rows()
        .map(|row| {
            let (ingress, egress) = (row.ingress(), row.egress());
            let denied = [ingress, egress].contains(&"deny");
            assert_eq!(row.verdict(), if denied { "deny" } else { "allow" });
            let letters = [ingress, egress].map(letter).concat();
            (format!("{} {} {} {}", row.from, row.to, row.family.name(), row.probe), letters)
        })
        .collect();
    cells.sort();
    cells
}

fn letter(word: &str) -> &'static str {
    match word {
        "allow" => "a",
        "deny" => "d",
        "n/a" => "-",
        other => panic!("{other:?} is no verdict"),
    }
}
