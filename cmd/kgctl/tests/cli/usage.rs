//! Usage, exit codes, errors and the commands that need no mesh.

use crate::common::{kgctl, kgctl_stdin};

const MESH: &str = "{}/mesh.yaml";

#[test]
fn help_and_version_are_no_errors() {
    for args in [&["--help"][..], &[], &["help"], &["showconf"], &["plan", "--help"], &["-v"], &["version"]] {
        let run = kgctl(args);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{args:?}");
        assert!(!run.stdout.is_empty(), "{args:?}");
    }
    let version = concat!("kgctl version ", env!("CARGO_PKG_VERSION"), "\n");
    for args in [&["-v"][..], &["--version"], &["version"], &["graph", "--version"]] {
        assert_eq!(kgctl(args).stdout, version, "{args:?}");
    }
}

#[test]
fn wrong_usage_is_2_and_names_what_is_wrong() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["bogus"], &["bogus"]),
        (&["plan", "--bogus"], &["--bogus"]),
        (&["graph", "--mesh-granularity", "wide"], &["wide", "auto", "location", "full"]),
        (&["--port", "0", "graph"], &["--port", "1..=65535"]),
        (&["plan", "--encapsulate", "sometimes"], &["sometimes", "never", "crosssubnet", "always"]),
        (&["plan", "--compatibility", "calico"], &["calico", "flannel", "cilium"]),
        (&["plan", "--subnet", "10.4.0.0/99"], &["--subnet", "10.4.0.0/99"]),
        (&["plan", "--mtu", "large"], &["--mtu", "large", "auto"]),
        (&["plan", "-o", "xml"], &["xml", "text", "json", "yaml"]),
        (&["showconf", "node"], &["NAME"]),
        (&["showconf", "node", "n1", "-o", "ini"], &["ini", "wireguard", "json", "yaml"]),
        (&["showconf", "peer", "alice", "--allowed-ips", "10.0.0.0"], &["--allowed-ips", "10.0.0.0"]),
        (&["graph", "--backend", "etcd"], &["etcd", "kubernetes"]),
        (&["diff", "-f", "a.yaml"], &["--to"]),
        (&["completion", "tcsh"], &["tcsh", "bash", "zsh", "fish"]),
    ];
    for (args, words) in cases {
        let run = kgctl(args);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{args:?}");
        assert!(run.stderr.starts_with("error: "), "{args:?}: {}", run.stderr);
        for word in *words {
            assert!(run.stderr.contains(word), "{args:?} does not name {word}: {}", run.stderr);
        }
    }
}

#[test]
fn bad_input_is_1_and_one_line_that_names_it() {
    let cases: &[(&[&str], &str, &[&str])] = &[
        (&["graph", "-f", "/nowhere/a.yaml"], "", &["/nowhere/a.yaml", "does not exist"]),
        (&["plan", "-f", "-"], "a: [b", &["stdin", "line 1"]),
        (&["plan", "-f", "-"], "{\"kind\": \"Plan\"}", &["stdin", "no input"]),
        (&["plan", "-f", "-", "-"], "", &["only once"]),
        (&["plan", "-f", "-", "--facts", "-"], "", &["only once"]),
        (&["plan", "-f", MESH, "--node", "n9"], "", &["node \"n9\" not found"]),
        (&["plan", "-f", MESH, "--facts", "-"], "{\"now\": \"noon\"}", &["stdin", "now"]),
        (
            &["plan", "-f", MESH, "--facts", "-"],
            "hosts: {n1: {internalIP: 10.0.0.1/99}}",
            &["hosts.n1.internalIP"],
        ),
        (&["graph", "-f", "-"], "", &["no node is ready"]),
        (&["showconf", "node", "n9", "-f", MESH], "", &["node \"n9\" not found"]),
        (&["showconf", "node", "gone", "-f", MESH], "", &["node \"gone\" is not ready", "5600 s ago"]),
        (&["showconf", "peer", "bob", "-f", MESH], "", &["peer \"bob\" not found"]),
        (
            &["showconf", "peer", "broken", "-f", MESH],
            "",
            &["Peer/broken", "spec.allowedIPs[0]", "10.7.0.300/32"],
        ),
        (&["connect", "laptop", "--kubeconfig", "/nowhere"], "", &["/nowhere"]),
    ];
    for (args, stdin, words) in cases {
        let run = kgctl_stdin(args, stdin);
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{args:?}: {}", run.stderr);
        let error = run.stderr.lines().last().unwrap_or_default();
        assert!(error.starts_with("error: "), "{args:?}: {error}");
        for word in *words {
            assert!(error.contains(word), "{args:?} does not name {word}: {error}");
        }
    }
}

#[test]
fn an_error_of_diff_is_2() {
    let run = kgctl(&["diff", "-f", MESH, "--to", "/nowhere/b.yaml"]);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""));
    assert!(run.stderr.contains("/nowhere/b.yaml"), "{}", run.stderr);
}

#[test]
fn one_bad_object_is_reported_and_stops_no_other() {
    let text =
        "apiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {name: odd}\nspec: {allowedIPs: 7}\n";
    let run = kgctl_stdin(&["plan", "-f", MESH, "-", "-o", "json"], text);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let plan: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    let objects: Vec<_> = plan["findings"].as_array().expect("a list").iter().map(|f| &f["object"]).collect();
    assert!(objects.contains(&&"Peer/odd".into()) && objects.contains(&&"Peer/broken".into()), "{objects:?}");
    assert_eq!(plan["translated"]["nodes"].as_array().map(Vec::len), Some(4));
}

#[test]
fn global_flags_stand_before_or_after_the_command() {
    let before = kgctl(&["--mesh-granularity", "full", "--topology-label", "zone", "graph", "-f", MESH]);
    let after = kgctl(&["graph", "-f", MESH, "--mesh-granularity=full", "--topology-label=zone"]);
    assert_eq!((before.code, &before.stdout), (0, &after.stdout), "{}", before.stderr);
    assert!(before.stdout.contains("node:n1"), "{}", before.stdout);
}

#[test]
fn scripts_and_pages_name_the_commands() {
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef kgctl"), ("fish", "complete -c kgctl")] {
        let run = kgctl(&["completion", shell]);
        assert_eq!(run.code, 0, "{shell}");
        assert!(run.stdout.contains(word) && run.stdout.contains("showconf"), "{shell}: {}", run.stdout);
    }
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("man1");
    assert_eq!(kgctl(&["man", "--dir", path.to_str().expect("a path")]).code, 0);
    for page in ["kgctl.1", "kgctl-plan.1", "kgctl-showconf-peer.1"] {
        let text = std::fs::read_to_string(path.join(page)).expect(page);
        assert!(text.contains(".SH OPTIONS"), "{page}: {text}");
    }
}

#[test]
fn colours_are_for_terminals_only() {
    for args in [&["plan", "-f", MESH][..], &["diff", "-f", MESH, "--to", "-"]] {
        assert!(!kgctl(args).stdout.contains('\u{1b}'), "{args:?}");
    }
}

#[cfg(not(feature = "cluster"))]
#[test]
fn without_the_feature_there_is_no_cluster() {
    let run = kgctl(&["graph"]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("-f"), "{}", run.stderr);
}
