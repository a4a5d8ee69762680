//! What upstream's `kgctl` gets wrong about a mesh, and ours must not.

use crate::common::kgctl_stdin;

const KEYS: [&str; 3] = [
    "Iy+WC3+YWwKy0NaEXbJUfczAZutuqIn9yMRmgtwg9nY=",
    "VfedZk6Nldo1qQoZnPvvcx8fTXLaRKDXlpjjojJt210=",
    "x2LFH/9lAPDU34wbMtVrg2cxQQhXI69PA923gkfNi3Y=",
];

/// A ready node of the only location, `n1` to `n3`, with these annotations more.
fn node(n: usize, endpoint: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: n{n}\n  annotations:\n    \
         kilo.squat.ai/endpoint: {endpoint}\n    kilo.squat.ai/key: {key}\n    \
         kilo.squat.ai/last-seen: \"1767225600\"\n    kilo.squat.ai/internal-ip: 192.168.0.{n}/24\n{more}\
         spec:\n  podCIDR: 10.42.{n}.0/24\n---\n",
        key = KEYS[n - 1],
    )
}

fn plan(node: &str, objects: &str) -> serde_json::Value {
    let run = kgctl_stdin(&["plan", "--node", node, "-f", "-", "-o", "json"], objects);
    assert_eq!(run.code, 0, "{}", run.stderr);
    serde_json::from_str(&run.stdout).expect("JSON")
}

/// B19: a node that announces no granularity, or takes no part, has no say in it.
#[test]
fn a_node_without_a_granularity_has_no_say() {
    let full = "    kilo.squat.ai/granularity: full\n";
    let (n1, n2) = (node(1, "203.0.113.1:51820", ""), node(2, "203.0.113.2:51820", ""));
    let n3 = node(3, "203.0.113.3:51820", full);
    let plan = plan("n3", &[&*n1, &n2, &n3].concat());
    assert_eq!(plan["location"], "node:n3", "{plan}");
    let run = kgctl_stdin(&["graph", "-f", "-"], &[&*n1, &n2, &n3].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    // Not ready, and of another opinion.
    let location = "    kilo.squat.ai/granularity: location\n";
    let gone = |n: usize| node(n, "203.0.113.1:51820", location).replace("1767225600", "1");
    let plan = self::plan("n3", &[gone(1), gone(2), n3].concat());
    assert_eq!(plan["location"], "node:n3", "{plan}");
}

/// B17: a name that resolves to a public address makes its node a better leader, as agents see it.
#[test]
fn a_leader_may_have_a_name() {
    let objects = [node(1, "192.168.0.1:51820", ""), node(2, "n3.example.com:51820", "")].concat();
    for (name, leads) in [("n1", false), ("n2", true)] {
        let args = ["showconf", "node", name, "-f", "-", "--facts", "{}/facts.yaml"];
        let run = kgctl_stdin(&args, &objects);
        assert_eq!((run.code, !run.stdout.is_empty()), (0, leads), "{name}: {}", run.stderr);
    }
    let run = kgctl_stdin(&["graph", "-f", "-", "--facts", "{}/facts.yaml"], &objects);
    assert!(run.stdout.contains("203.0.113.3") || run.stdout.contains("n3.example.com"), "{}", run.stdout);
}
