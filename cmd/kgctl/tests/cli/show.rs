//! `kgctl graph`, `showconf` and `diff`.

use crate::common::{assert_golden, golden, kgctl, kgctl_stdin};

const MESH: &str = "{}/mesh.yaml";
const FACTS: &str = "{}/facts.yaml";

#[test]
fn a_graph() {
    let run = kgctl(&["graph", "-f", MESH, "--facts", FACTS]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_golden("graph.dot", &run.stdout);
    assert!(run.stderr.contains("Peer/broken"), "what is left out is told: {}", run.stderr);
}

#[test]
fn configurations() {
    for (name, args) in [
        ("node.conf", &["showconf", "node", "n1", "--port", "51999"][..]),
        ("peer.conf", &["showconf", "peer", "alice"]),
        (
            "node-as-peer.conf",
            &["showconf", "node", "n3", "--as-peer", "--allowed-ips", "10.43.0.0/16,10.4.0.2/32"],
        ),
        ("node-as-peer.yaml", &["showconf", "node", "n3", "--as-peer", "-o", "yaml"]),
        ("peer-as-peer.yaml", &["showconf", "peer", "alice", "--as-peer", "-o", "yaml"]),
        ("peer-as-peer.json", &["showconf", "peer", "site", "--as-peer", "-o", "json"]),
    ] {
        let run = kgctl(&[args, &["-f", MESH, "--facts", FACTS]].concat());
        assert_eq!(run.code, 0, "{name}: {}", run.stderr);
        assert_golden(name, &run.stdout);
    }
}

/// A Peer that is printed is a Peer that can be read.
#[test]
fn a_printed_peer_is_valid() {
    for args in [
        &["showconf", "node", "n3", "--as-peer"][..],
        &["showconf", "peer", "alice", "--as-peer"],
        &["showconf", "peer", "site", "--as-peer"],
    ] {
        for format in ["yaml", "json"] {
            let run = kgctl(&[args, &["-f", MESH, "--facts", FACTS, "-o", format]].concat());
            let read = kgctl_stdin(&["plan", "-f", "-", "-o", "json"], &run.stdout);
            let read: serde_json::Value = serde_json::from_str(&read.stdout).expect("JSON");
            assert_eq!(read["findings"], serde_json::json!([]), "{args:?} {format}");
            assert_eq!(read["translated"]["peers"][0]["valid"], true, "{args:?} {format}");
        }
    }
}

#[test]
fn a_node_that_does_not_lead_has_no_configuration_and_that_is_no_error() {
    for more in [&[][..], &["--as-peer"], &["--as-peer", "-o", "yaml"]] {
        let run = kgctl(&[&["showconf", "node", "n2", "-f", MESH, "--facts", FACTS], more].concat());
        assert_eq!((run.code, run.stdout.as_str()), (0, ""), "{more:?}");
        assert!(run.stderr.ends_with("Node \"n2\" is not a leader node\n"), "{}", run.stderr);
    }
}

#[test]
fn what_does_not_change_is_not_told() {
    let run = kgctl(&["diff", "-f", MESH, "--to", MESH, "--facts", FACTS]);
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (0, "", ""));
    // A later check-in changes no host.
    let later = mesh().replace("1767225600", "1767225601");
    assert_ne!(later, mesh());
    let run = kgctl_stdin(&["diff", "-f", MESH, "--to", "-"], &later);
    assert_eq!((run.code, run.stdout.as_str()), (0, ""), "{}", run.stderr);
}

#[test]
fn what_changes_is_told_in_words() {
    let changed = mesh()
        .replace("podCIDR: 10.42.2.0/24", "podCIDR: 10.42.22.0/24")
        .replace("allowedIPs: [10.5.0.1/32]", "allowedIPs: [10.5.0.1/32, 10.5.1.0/24]")
        .replace("persistentKeepalive: 25", "persistentKeepalive: 10")
        .replace("  presharedKey: dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqXXf3pR25LCo=\n", "")
        .replace("10.1.0.3/24", "10.1.0.4/24")
        .replace("kilo.squat.ai/last-seen: \"1767220000\"", "kilo.squat.ai/last-seen: \"1767225599\"")
        .replace("\"site\"", "\"other\"")
        .replace("\"port\": 51821", "\"port\": 51822");
    let run = kgctl_stdin(&["diff", "-f", MESH, "--to", "-", "--facts", FACTS], &changed);
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert_golden("diff.txt", &run.stdout);
    let again = kgctl_stdin(&["diff", "-f", MESH, "--to", "-", "--facts", FACTS], &changed);
    assert_eq!(again.stdout, run.stdout, "the words have one order");
    assert!(!run.stdout.contains("dwdtCn") && !run.stderr.contains("dwdtCn"));
}

#[test]
fn back_and_forth_are_opposite() {
    let changed = mesh().replace("allowedIPs: [10.5.0.1/32]", "allowedIPs: [10.5.0.1/32, 10.5.1.0/24]");
    let forth = kgctl_stdin(&["diff", "-f", MESH, "--to", "-"], &changed);
    let back = kgctl_stdin(&["diff", "-f", "-", "--to", MESH], &changed);
    assert_eq!((forth.code, back.code), (1, 1));
    assert!(forth.stdout.contains("+ route 10.5.1.0/24 dev kilo0"), "{}", forth.stdout);
    let turned = |text: &str| text.replace("  + ", "  ± ").replace("  - ", "  ± ");
    assert_eq!(turned(&forth.stdout), turned(&back.stdout));
    assert!(!back.stdout.contains("  + "), "{}", back.stdout);
}

fn mesh() -> String {
    std::fs::read_to_string(golden("mesh.yaml")).expect("a file")
}
