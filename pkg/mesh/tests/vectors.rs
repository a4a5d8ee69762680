//! The planner against 183 recordings of upstream Kilo: each answer is upstream's, or differs by a quirk that
//! `docs/compatibility.md` names.
#![allow(clippy::disallowed_methods, reason = "a test reads its recordings")]

mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use judge::quirks::{explained, shadowing};
use judge::scenario::Scenario;
use serde_json::Value;

fn recordings() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).expect("recordings").map(|e| e.expect("a file").path()).collect();
    files.sort();
    files
}

/// The rows of the first table in `docs/compatibility.md`, that on plans: quirk and number of scenarios.
fn documented() -> BTreeMap<String, usize> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compatibility.md");
    let text = std::fs::read_to_string(path).expect("docs/compatibility.md");
    let plans = text.split("\n## ").find(|s| s.starts_with("Plans")).expect("a section on plans");
    let rows = plans.lines().filter_map(|l| l.strip_prefix("| `"));
    rows.map(|row| {
        let (tag, rest) = row.split_once('`').expect("a tag in back quotes");
        let last = rest.trim_end().trim_end_matches('|').rsplit('|').next().expect("columns").trim();
        (tag.to_owned(), last.parse().expect("a number in the last column"))
    })
    .collect()
}

#[test]
fn plans_are_those_of_upstream() {
    let files = recordings();
    let table = documented();
    let allowed: BTreeSet<&str> = table.keys().map(String::as_str).collect();
    let (mut identical, mut differ, mut comparisons) = (0, 0, 0);
    let mut used: BTreeMap<String, usize> = table.keys().map(|tag| (tag.clone(), 0)).collect();
    let mut wrong = Vec::new();
    for file in &files {
        let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(file).expect("a recording");
        let scenario = Scenario::new(serde_json::from_str(&text).expect("JSON"));
        let verdict = scenario.judge();
        let d = &scenario.document;
        comparisons += verdict.comparisons;
        assert!(verdict.comparisons > 0, "{name}: nothing was compared");
        let mut tags: BTreeSet<&str> =
            d["quirks"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !shadowing(d).is_empty() {
            tags.insert("peer-may-shadow-node");
        }
        let tags: BTreeSet<&str> = tags.intersection(&allowed).copied().collect();
        let differences = &verdict.differences;
        let bad: Vec<_> = differences.iter().filter(|x| !explained(x, &tags, d)).collect();
        for (what, got, want) in bad.iter().take(2) {
            wrong.push(format!("{name}: {what}\n  got  {got:.1500}\n  want {want:.1500}"));
        }
        if !bad.is_empty() {
            continue;
        } else if differences.is_empty() {
            identical += 1;
            continue;
        }
        differ += 1;
        for tag in &tags {
            let mut without = tags.clone();
            without.remove(tag);
            if !differences.iter().all(|x| explained(x, &without, d)) {
                *used.entry((*tag).to_owned()).or_default() += 1;
            }
        }
    }
    let by: Vec<String> = used.iter().map(|(tag, n)| format!("{tag} {n}")).collect();
    let by = by.join(", ");
    let report = format!(
        "{identical} of {} scenarios identical, {differ} differ by: {by}; {comparisons} comparisons\n",
        files.len()
    );
    std::io::Write::write_all(&mut std::io::stderr(), report.as_bytes()).expect("a place to write");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(files.len(), 183);
    assert_eq!(used, table, "docs/compatibility.md names other quirks or numbers than these");
}
