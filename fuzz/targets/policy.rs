//! Objects of strangers as the policy evaluator reads them: every pair of ends gets an answer, no pod that a policy
//! selects is open because another object is odd, and the order in which objects come makes no difference.
#![no_main]

use kilo_file::{Item, read_items};
use kilo_policy::{Evaluator, Kind, Options, Probe, Protocol, Snapshot, Table};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|text: &[u8]| {
    let mut items: Vec<(Kind, Item)> = read_items("fuzz", text)
        .into_iter()
        .filter_map(|item| item.ok().and_then(|item| Some((Kind::of(&item.api_version, &item.kind)?, item))))
        .take(64)
        .collect();
    let forward = lines(&items);
    // Of two objects with one name the last one counts.
    let mut seen = std::collections::BTreeSet::new();
    items.reverse();
    items.retain(|(kind, item)| {
        let metadata = &item.object["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or("default");
        seen.insert((*kind, namespace.to_owned(), metadata["name"].as_str().map(str::to_owned)))
    });
    assert_eq!(forward, lines(&items), "the order of objects makes a difference");
});

/// The table of these objects beside two pods that are isolated.
fn lines(items: &[(Kind, Item)]) -> Vec<String> {
    let mut snapshot = Snapshot::default();
    for (kind, item) in items {
        assert!(snapshot.apply(*kind, &item.object).findings.len() <= 17);
    }
    let pod = |name: &str, ip: &str| {
        json!({"metadata": {"namespace": "ours", "name": name, "uid": "~", "creationTimestamp": "9999-01-01T00:00:00Z"},
            "spec": {"nodeName": "ours"}, "status": {"podIP": ip}})
    };
    let deny = json!({"metadata": {"namespace": "ours", "name": "deny"}, "spec": {"policyTypes": ["Ingress", "Egress"]}});
    // Strangers write nothing into this namespace.
    let names: Vec<String> = snapshot.policies().map(|(_, name, _)| name.to_string()).collect();
    for name in names {
        snapshot.remove(Kind::NetworkPolicy, "ours", &name);
    }
    snapshot.apply(Kind::Pod, &pod("a", "192.0.2.1"));
    snapshot.apply(Kind::Pod, &pod("b", "192.0.2.2"));
    snapshot.apply(Kind::NetworkPolicy, &deny);
    let evaluator = Evaluator::new(&snapshot, Options::default());
    let probes = [Probe::Port(Protocol::Tcp, 80), Probe::Icmp];
    let externals = ["198.51.100.1", "2001:db8::1"].map(|ip| ip.parse().expect("an address"));
    let table = Table::new(&evaluator, &probes, &externals);
    table
        .rows()
        .map(|row| {
            let own_node = row.connection.ingress.as_ref().is_some_and(|v| v.because.name() == "ownNode");
            assert!(own_node || row.to != "pod/ours/a" || row.ingress() == "deny", "a stranger opened it");
            serde_json::to_string(&row).expect("JSON")
        })
        .collect()
}
