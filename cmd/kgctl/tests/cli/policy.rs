//! `kgctl policy table`: the page, the document, what is said about bad objects and bad flags.

use serde_json::{Value, json};

use crate::common::{assert_golden, golden, kgctl, kgctl_stdin};

const CLUSTER: &str = "{}/policy.yaml";
const EXTERNAL: &str = "10.5.0.9,10.5.9.9";

#[test]
fn a_page_for_people() {
    let run = kgctl(&["policy", "table", "-f", CLUSTER, "--ports", "5432/tcp,icmp", "--external", EXTERNAL]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_golden("policy.txt", &run.stdout);
    assert_eq!(
        run.stderr,
        "NetworkPolicy/shop/db-from-vpn: spec.ingress[0].from[0].ipBlock.cidr \"10.5.0.0/33\": must be a range of \
         addresses such as 10.5.0.0/16; it matches nothing\n"
    );
}

#[test]
fn a_document_for_programs() {
    let file = std::fs::read_to_string(golden("policy.yaml")).expect("a file");
    let args =
        ["policy", "table", "-f", "-", "--ports", "5432/tcp,icmp", "--external", EXTERNAL, "-o", "json"];
    let run = kgctl_stdin(&args, &file);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let table: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let rows = table["rows"].as_array().expect("rows");
    let row = |from: &str, to: &str, protocol: &str| {
        rows.iter().find(|r| r["from"] == from && r["to"] == to && r["protocol"] == protocol).expect(from)
    };
    assert_eq!(
        *row("pod/shop/web", "pod/shop/db", "TCP"),
        json!({"from": "pod/shop/web", "to": "pod/shop/db", "family": "IPv4", "port": 5432, "protocol": "TCP",
            "ingress": "allow", "egress": "allow", "verdict": "allow",
            "ingressBy": {"because": "rule", "policy": "shop/db-from-web", "rule": 0, "peer": 0, "port": 0},
            "egressBy": {"because": "notIsolated"}})
    );
    assert_eq!(
        *row("ip/10.5.9.9", "pod/shop/db", "ICMP"),
        json!({"from": "ip/10.5.9.9", "to": "pod/shop/db", "family": "IPv4", "port": null, "protocol": "ICMP",
            "ingress": "deny", "egress": "n/a", "verdict": "deny",
            "ingressBy": {"because": "isolated", "isolatedBy": ["shop/db-from-vpn", "shop/db-from-web"], "rule": null},
            "egressBy": null})
    );
    assert_eq!(row("pod/tools/exporter", "pod/shop/db", "TCP")["ingressBy"], json!({"because": "ownNode"}));
    // Everybody with everybody else in IPv4, the two addresses outside not with each other; in IPv6 the two pods.
    assert_eq!(rows.len(), 2 * ((5 * 4 - 2) + 2));
}

#[test]
fn echo_can_be_let_through() {
    let table = |flag: &str| {
        let args = ["policy", "table", "-f", CLUSTER, "--ports", "icmp", "--external", "10.5.9.9", flag];
        kgctl(&args).stdout.lines().filter(|line| line.contains(" deny ")).count()
    };
    assert_eq!((table("--policy-icmp-echo=evaluate"), table("--policy-icmp-echo=allow")), (3, 0));
}

#[test]
fn bad_input_is_named() {
    let run = kgctl_stdin(&["policy", "table", "-f", "-"], "kind: [");
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert!(run.stderr.starts_with("error: stdin: line "), "{}", run.stderr);
    let twice = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n";
    let run = kgctl_stdin(&["policy", "table", "-f", "-"], &twice.repeat(2));
    assert_eq!(run.code, 0);
    assert_eq!(run.stderr, "Namespace/a: metadata.name: stands there more than once; the last one counts\n");
    for (flag, value) in
        [("--ports", "80/tpc"), ("--ports", "0/tcp"), ("--ports", "http/tcp"), ("--external", "web")]
    {
        let run = kgctl(&["policy", "table", "-f", CLUSTER, flag, value]);
        assert_eq!(run.code, 2, "{flag} {value}");
        assert!(run.stderr.contains(value), "{}", run.stderr);
    }
    assert_eq!(kgctl(&["policy", "table"]).code, 2);
}
