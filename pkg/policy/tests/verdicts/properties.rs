//! What holds of every cluster.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kilo_policy::{Evaluator, Kind, Options, Probe, Snapshot, Table};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{Cell, oracle, random, table};

fn probes() -> Vec<Probe> {
    ["79/tcp", "80/tcp", "81/udp", "82/sctp", "icmp"].map(|p| p.parse().expect("a probe")).into()
}

fn externals() -> Vec<IpAddr> {
    ["198.51.100.7", "10.0.0.200", "10.0.1.5", "2001:db8::7"].map(|ip| ip.parse().expect("an address")).into()
}

fn cells(objects: &[Value]) -> Vec<Cell> {
    table(objects, &probes(), &externals())
}

/// Whether every verdict of the first table is at least as open in the second one.
fn no_narrower(before: &[Cell], after: &[Cell]) -> bool {
    before.len() == after.len()
        && before.iter().zip(after).all(|((a, was), (b, is))| {
            a == b && was.chars().zip(is.chars()).all(|(was, is)| was == is || (was, is) == ('d', 'a'))
        })
}

proptest! {
    #[test]
    fn the_table_is_that_of_the_oracle(objects in random::cluster()) {
        let (got, want) = (cells(&objects), oracle::table(&objects, &probes(), &externals()));
        prop_assert!(!got.is_empty() || want.is_empty());
        prop_assert_eq!(got, want);
    }

    #[test]
    fn the_order_of_objects_rules_and_entries_makes_no_difference(
        (objects, turned) in random::cluster().prop_flat_map(|o| (Just(o.clone()), Just(o).prop_shuffle()))
    ) {
        let mut turned = turned;
        for object in turned.iter_mut().filter(|o| o["kind"] == "NetworkPolicy") {
            for (list, peers) in [("ingress", "from"), ("egress", "to")] {
                let Some(rules) = object["spec"][list].as_array_mut() else { continue };
                rules.reverse();
                for rule in rules {
                    for list in [peers, "ports"] {
                        if let Some(entries) = rule.get_mut(list).and_then(Value::as_array_mut) {
                            entries.reverse();
                        }
                    }
                }
            }
        }
        prop_assert_eq!(cells(&objects), cells(&turned));
    }

    #[test]
    fn one_more_rule_never_narrows(objects in random::cluster(), rule in random::rule("from"), to in random::rule("to")) {
        let mut more = objects.clone();
        for object in more.iter_mut().filter(|o| o["kind"] == "NetworkPolicy") {
            // Without types a first egress rule makes a policy isolate.
            if object["spec"]["policyTypes"].as_array().is_none_or(Vec::is_empty) {
                continue;
            }
            for (list, rule) in [("ingress", &rule), ("egress", &to)] {
                let rules = &mut object["spec"][list];
                match rules.as_array_mut() {
                    Some(rules) => rules.push(rule.clone()),
                    None => *rules = json!([rule]),
                }
            }
        }
        prop_assert!(no_narrower(&cells(&objects), &cells(&more)));
    }

    #[test]
    fn a_policy_that_selects_nothing_changes_nothing(objects in random::cluster(), policy in random::policy("new".into())) {
        let mut policy = policy;
        policy["spec"]["podSelector"] = json!({"matchLabels": {"nobody": "here"}});
        let mut more = objects.clone();
        more.push(policy);
        prop_assert_eq!(cells(&objects), cells(&more));
    }

    #[test]
    fn a_second_policy_of_the_same_pods_never_narrows(objects in random::cluster(), second in random::policy("new".into())) {
        for first in objects.iter().filter(|o| o["kind"] == "NetworkPolicy") {
            let mut second = second.clone();
            second["metadata"]["namespace"] = first["metadata"]["namespace"].clone();
            for field in ["podSelector", "policyTypes"] {
                second["spec"][field] = first["spec"][field].clone();
            }
            if first["spec"]["policyTypes"].as_array().is_none_or(Vec::is_empty) {
                continue;
            }
            let mut more = objects.clone();
            more.push(second);
            prop_assert!(no_narrower(&cells(&objects), &cells(&more)));
        }
    }

    #[test]
    fn what_is_removed_was_never_there(objects in random::cluster(), extra in random::cluster()) {
        let names = |objects: &[Value]| -> BTreeMap<(Kind, String, String), Value> {
            objects.iter().map(|object| {
                let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                let kind = Kind::of(&text(&object["apiVersion"]), &text(&object["kind"])).expect("ours");
                ((kind, text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"])), object.clone())
            }).collect()
        };
        let (kept, extra) = (names(&objects), names(&extra));
        let mut snapshot = Snapshot::default();
        for ((kind, ..), object) in extra.iter().chain(&kept) {
            snapshot.apply(*kind, object);
        }
        for (kind, namespace, name) in extra.keys().filter(|key| !kept.contains_key(key)) {
            prop_assert!(snapshot.remove(*kind, namespace, name));
            prop_assert!(!snapshot.remove(*kind, namespace, name));
        }
        let evaluator = Evaluator::new(&snapshot, Options::default());
        let table = Table::new(&evaluator, &probes(), &externals());
        let rows: Vec<_> = table.rows().map(|row| (row.from.to_owned(), row.to.to_owned(), row.verdict())).collect();
        let mut fresh = Snapshot::default();
        for ((kind, ..), object) in &kept {
            fresh.apply(*kind, object);
        }
        let evaluator = Evaluator::new(&fresh, Options::default());
        let table = Table::new(&evaluator, &probes(), &externals());
        let fresh: Vec<_> = table.rows().map(|row| (row.from.to_owned(), row.to.to_owned(), row.verdict())).collect();
        prop_assert_eq!(rows, fresh);
    }

    #[test]
    fn nothing_that_a_stranger_writes_opens_what_a_policy_isolates(spec in random::anything(), pod in random::anything()) {
        let isolating = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "mine"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}});
        let strangers = [("networking.k8s.io/v1", "NetworkPolicy", spec.clone()), ("v1", "Pod", pod), ("v1", "Namespace", spec)];
        let mut snapshot = Snapshot::default();
        snapshot.apply(Kind::NetworkPolicy, &isolating);
        for (namespace, name, ip) in [("x", "a", "10.0.0.1"), ("y", "b", "10.0.0.2")] {
            snapshot.apply(Kind::Pod, &json!({"metadata": {"namespace": namespace, "name": name}, "status": {"podIP": ip}}));
        }
        for (version, kind, spec) in strangers {
            let kind = Kind::of(version, kind).expect("ours");
            let object = json!({"metadata": {"namespace": "y", "name": "y", "labels": spec}, "spec": spec, "status": spec});
            let applied = snapshot.apply(kind, &object);
            prop_assert!(applied.findings.len() <= 17);
            snapshot.apply(kind, &spec);
        }
        let evaluator = Evaluator::new(&snapshot, Options::default());
        let table = Table::new(&evaluator, &probes(), &externals());
        for row in table.rows() {
            serde_json::to_string(&row).expect("JSON");
            if row.to == "pod/x/a" {
                prop_assert_eq!(row.ingress(), "deny");
            }
        }
    }
}
