//! `kgctl plan`: the page, the document, replay, and that no secret is in any of them.

use crate::common::{assert_golden, golden, kgctl, kgctl_stdin};
use serde_json::Value;

const MESH: &str = "{}/mesh.yaml";
const FACTS: &str = "{}/facts.yaml";
/// The private key of n1 and the preshared key of alice; both tests use the same.
const SECRET: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqXXf3pR25LCo=";
const PUBLIC: &str = "i/UpUiSOHF5hVIvHsfguIQagj1GnI2eQYkOGQo+in3E=";

fn json(args: &[&str]) -> Value {
    let run = kgctl(args);
    assert_eq!(run.code, 0, "{args:?}: {}", run.stderr);
    serde_json::from_str(&run.stdout).expect("JSON")
}

#[test]
fn pages_for_people() {
    for (name, args) in [
        ("objects.txt", &["plan", "-f", MESH][..]),
        ("leader.txt", &["plan", "-f", MESH, "--facts", FACTS, "--node", "n1"]),
        ("member.txt", &["plan", "-f", MESH, "--facts", FACTS, "--node", "n2", "--encapsulate=crosssubnet"]),
        ("exhausted.txt", &["plan", "-f", MESH, "--node", "n1", "--subnet", "10.9.0.0/31"]),
    ] {
        let run = kgctl(args);
        assert_eq!(run.code, 0, "{name}: {}", run.stderr);
        assert_golden(name, &run.stdout);
    }
}

#[test]
fn no_secret_is_printed_and_no_conf_text() {
    for node in ["n1", "n2", "n3"] {
        for format in ["text", "json", "yaml"] {
            for args in [
                &["plan", "-f", MESH, "--facts", FACTS, "--node", node, "-o", format][..],
                &["plan", "-f", MESH, "--facts", FACTS, "-o", format],
            ] {
                let run = kgctl(args);
                assert_eq!(run.code, 0, "{}", run.stderr);
                for text in [&run.stdout, &run.stderr] {
                    for word in
                        [SECRET, "privateKey", "presharedKey", "PrivateKey", "PresharedKey", "[Interface]"]
                    {
                        assert!(!text.contains(word), "{args:?} prints {word}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_private_key_in_the_facts_counts_as_its_public_key() {
    let plan = json(&["plan", "-f", MESH, "--facts", FACTS, "--node", "n1", "-o", "json"]);
    assert_eq!(plan["annotations"]["kilo.squat.ai/key"], PUBLIC);
    let plan = json(&["plan", "-f", MESH, "--node", "n1", "-o", "json"]);
    assert_eq!(plan["annotations"]["kilo.squat.ai/key"], "Iy+WC3+YWwKy0NaEXbJUfczAZutuqIn9yMRmgtwg9nY=");
}

#[test]
fn without_facts_the_time_is_that_of_the_newest_check_in() {
    let plan = json(&["plan", "-f", MESH, "--node", "n1", "-o", "json"]);
    assert_eq!(plan["now"], 1_767_225_600);
    assert_eq!(plan["readyNodes"], serde_json::json!(["n1", "n2", "n3"]));
    let late = kgctl_stdin(&["plan", "-f", MESH, "--facts", "-", "-o", "json"], "now: 1767225655");
    let late: Value = serde_json::from_str(&late.stdout).expect("JSON");
    let ready: Vec<_> =
        late["translated"]["nodes"].as_array().expect("a list").iter().map(|n| &n["ready"]).collect();
    assert_eq!(ready, [false, true, false, false], "59 s and 60 s after the last check-in");
}

#[test]
fn a_plan_and_its_facts_replay_byte_for_byte() {
    let args =
        ["plan", "-f", MESH, "--facts", FACTS, "--node", "n1", "--encapsulate", "never", "--port", "51999"];
    let facts = golden("facts.yaml");
    let facts = facts.to_str().expect("a path");
    let plan = kgctl(&[&args[..], &["-o", "json"]].concat());
    for format in ["json", "yaml"] {
        let first = kgctl(&[&args[..], &["-o", format]].concat());
        assert_eq!(first.code, 0, "{}", first.stderr);
        let again = kgctl_stdin(&["plan", "-f", "-", "--facts", facts, "-o", "json"], &first.stdout);
        assert_eq!((again.code, &again.stdout), (0, &plan.stdout), "{format}: {}", again.stderr);
    }
    let other =
        kgctl_stdin(&["plan", "-f", "-", "--facts", facts, "-o", "json", "--port", "4"], &plan.stdout);
    assert_ne!(other.stdout, plan.stdout, "flags win over the settings of a plan");
}

#[test]
fn objects_come_from_several_files_folders_and_the_standard_input() {
    let whole = kgctl(&["plan", "-f", MESH, "-o", "json"]).stdout;
    let text = std::fs::read_to_string(golden("mesh.yaml")).expect("a file");
    assert_eq!(kgctl_stdin(&["plan", "-f", "-", "-o", "json"], &text).stdout, whole);
    let dir = tempfile::tempdir().expect("a folder");
    let (first, rest) = text.split_once("\n---\n").expect("several documents");
    std::fs::create_dir(dir.path().join("b")).expect("a folder");
    std::fs::write(dir.path().join("a.yml"), first).expect("a file");
    std::fs::write(dir.path().join("b/c.yaml"), rest).expect("a file");
    std::fs::write(dir.path().join("notes.txt"), "not a manifest").expect("a file");
    let path = dir.path().to_str().expect("a path");
    assert_eq!(kgctl(&["plan", "-f", path, "-o", "json"]).stdout, whole);
    let (a, c) = (format!("{path}/a.yml"), format!("{path}/b/c.yaml"));
    assert_eq!(kgctl(&["plan", "-f", &a, &c, "-o", "json"]).stdout, whole);
    assert_eq!(kgctl(&["plan", "-f", &a, "-f", &c, "-o", "json"]).stdout, whole);
    let twice = json(&["plan", "-f", &a, &c, &a, "-o", "json"]);
    let findings = twice["findings"].to_string();
    assert!(findings.contains("Node/n1") && findings.contains("more than once"), "{findings}");
    let newer = "{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.42.77.0/24}}";
    let run = kgctl_stdin(&["plan", "-f", &a, &c, "-", "-o", "json"], newer);
    let plan: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let n1 = &plan["translated"]["nodes"][0];
    assert_eq!((&n1["name"], &n1["subnet"]), (&"n1".into(), &"10.42.77.0/24".into()), "the last one counts");
}

#[test]
fn every_outcome_is_a_document() {
    let plan = json(&["plan", "-f", MESH, "--node", "n1", "--subnet", "10.9.0.0/31", "-o", "json"]);
    assert_eq!(plan["outcome"], "topology-error");
    assert!(plan["error"].as_str().is_some_and(|e| e.contains("10.9.0.0/31")), "{}", plan["error"]);
    assert!(plan.get("segments").is_none() && plan.get("routes").is_none());
    let bare = "{apiVersion: v1, kind: Node, metadata: {name: bare}, spec: {podCIDR: 10.42.0.0/24}}";
    let run = kgctl_stdin(&["plan", "-f", "-", "--node", "bare", "-o", "json"], bare);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let plan: Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert_eq!(plan["outcome"], "local-node-not-ready");
}
