//! Policies with every kind of mistake: each is named by object, field and value, the pods that are selected stay
//! isolated, and other policies work.

use serde_json::{Value, json};

use crate::{snapshot, table};

fn policy(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "a", "name": name}, "spec": spec})
}

fn pods() -> Vec<Value> {
    [("web", "10.0.0.1"), ("db", "10.0.0.2")]
        .map(|(name, ip)| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "a", "name": name, "labels": {"app": name}},
                "status": {"podIP": ip}})
        })
        .into()
}

/// Whether db reaches web: the letters of ingress and egress.
fn web_from_db(objects: &[Value]) -> String {
    let cells = table(objects, &["80/tcp".parse().expect("a probe")], &[]);
    let (_, letters) =
        cells.into_iter().find(|(row, _)| row.starts_with("pod/a/db pod/a/web")).expect("a row");
    letters
}

/// The findings on a policy with this spec, which must isolate web for ingress and let nobody in.
fn closed(spec: &Value) -> Vec<String> {
    let mut objects = pods();
    objects.push(policy("p", spec));
    assert_eq!(web_from_db(&objects), "da", "{spec}");
    // Another policy is not disturbed.
    objects.push(policy("good", &json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{}]})));
    assert_eq!(web_from_db(&objects), "aa", "{spec}");
    snapshot(&objects).1
}

fn in_rule(rule: &Value) -> String {
    let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}, rule]});
    let findings = closed(&spec);
    assert_eq!(findings.len(), 1, "{rule}: {findings:?}");
    findings[0].strip_prefix("NetworkPolicy/a/p: spec.ingress[1]").expect("the place").to_owned()
}

#[test]
fn mistakes_in_rules_match_nothing() {
    let nothing = "; it matches nothing";
    let block = |cidr: &str| json!({"from": [{"ipBlock": {"cidr": cidr}}]});
    let selector = |s: Value| json!({"from": [{"podSelector": s}]});
    let port = |p: Value| json!({"ports": [p]});
    let range = "must be a range of addresses such as 10.5.0.0/16";
    let operators = "must be In, NotIn, Exists or DoesNotExist";
    let cases = [
        (block("10.0.0.0/33"), format!(".from[0].ipBlock.cidr \"10.0.0.0/33\": {range}")),
        (block(""), format!(".from[0].ipBlock.cidr: {range}")),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.x/32"]}}]}),
            format!(".from[0].ipBlock.except[0] \"10.0.0.x/32\": {range}"),
        ),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/8"]}}]}),
            ".from[0].ipBlock.except[0] \"fd00::/8\": must be of the family of the cidr".to_owned(),
        ),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}),
            ".from[0].ipBlock: must stand alone, without selectors".to_owned(),
        ),
        (
            json!({"from": [{}]}),
            ".from[0]: must hold a podSelector, a namespaceSelector or an ipBlock".to_owned(),
        ),
        (json!({"from": [7]}), ".from[0] \"7\": must be a map, not this number".to_owned()),
        (json!({"from": {"podSelector": {}}}), ".from: must be a list, not a map".to_owned()),
        (json!({"form": [{"podSelector": {}}]}), ".form: is an unknown field".to_owned()),
        (json!({"from": [{"podSelecter": {}}]}), ".from[0].podSelecter: is an unknown field".to_owned()),
        (
            json!({"from": [{"podSelector": {}, "nodeSelector": {}}]}),
            ".from[0].nodeSelector: is an unknown field".to_owned(),
        ),
        (json!(null), ": must be a map, not nothing".to_owned()),
        (json!("all"), " \"all\": must be a map, not text".to_owned()),
        (
            selector(json!({"matchExpressions": [{"key": "app", "operator": "Like", "values": ["db"]}]})),
            format!(".from[0].podSelector.matchExpressions[0].operator \"Like\": {operators}"),
        ),
        (
            selector(json!({"matchExpressions": [{"key": "app", "operator": "In"}]})),
            ".from[0].podSelector.matchExpressions[0].values: must hold a value".to_owned(),
        ),
        (
            selector(json!({"matchExpressions": [{"key": "app", "operator": "Exists", "values": ["db"]}]})),
            ".from[0].podSelector.matchExpressions[0].values: must be empty with this operator".to_owned(),
        ),
        (
            selector(json!({"matchExpressions": [{"operator": "Exists"}]})),
            ".from[0].podSelector.matchExpressions[0].key: must be the key of a label, not nothing"
                .to_owned(),
        ),
        (
            selector(json!({"matchLabels": {"app": null}})),
            ".from[0].podSelector.matchLabels.app: must be text in quotes, not nothing".to_owned(),
        ),
        (
            selector(json!({"matchLabels": ["app"]})),
            ".from[0].podSelector.matchLabels: must be a map, not a list".to_owned(),
        ),
        (
            port(json!({"protocol": "ICMP"})),
            ".ports[0].protocol \"ICMP\": must be TCP, UDP or SCTP".to_owned(),
        ),
        (port(json!({"protocol": "tcp"})), ".ports[0].protocol \"tcp\": must be TCP, UDP or SCTP".to_owned()),
        (
            port(json!({"port": 80, "endPort": 79})),
            ".ports[0].endPort \"79\": must not be below the port".to_owned(),
        ),
        (
            port(json!({"endPort": 80})),
            ".ports[0].endPort \"80\": must stand beside a port that is a number".to_owned(),
        ),
        (
            port(json!({"port": "http", "endPort": 80})),
            ".ports[0].endPort \"80\": must stand beside a port that is a number".to_owned(),
        ),
        (
            port(json!({"port": 0})),
            ".ports[0].port \"0\": must be a port from 1 to 65535, not this number".to_owned(),
        ),
        (
            port(json!({"port": 70000})),
            ".ports[0].port \"70000\": must be a port from 1 to 65535, not this number".to_owned(),
        ),
        (
            port(json!({"port": "80"})),
            ".ports[0].port \"80\": must be a port from 1 to 65535, not text".to_owned(),
        ),
        (
            port(json!({"port": 80.5})),
            ".ports[0].port \"80.5\": must be a port from 1 to 65535, not this number".to_owned(),
        ),
        (port(json!(null)), ".ports[0]: must be a map, not nothing".to_owned()),
    ];
    for (rule, want) in cases {
        assert_eq!(in_rule(&rule), want + nothing, "{rule}");
    }
}

#[test]
fn mistakes_in_the_selector_isolate_what_the_rest_selects() {
    let follows = "the pods that the rest selects are isolated, and this policy allows nothing";
    let odd = json!({"key": "tier", "operator": "Like", "values": ["x"]});
    let spec =
        json!({"podSelector": {"matchLabels": {"app": "web"}, "matchExpressions": [odd]}, "ingress": [{}]});
    let findings = closed(&spec);
    assert_eq!(
        findings,
        [format!(
            "NetworkPolicy/a/p: spec.podSelector.matchExpressions[0].operator \"Like\": must be In, NotIn, Exists or DoesNotExist; {follows}"
        )]
    );
    // Pods that it cannot select, whatever the rest means, are free.
    let mut objects = pods();
    let other = json!({"podSelector": {"matchLabels": {"app": "other"}, "matchExpressions": [odd]}});
    objects.push(policy("p", &other));
    assert_eq!(web_from_db(&objects), "aa");
}

#[test]
fn what_is_no_policy_at_all_isolates_the_namespace() {
    for spec in [json!("none"), json!([]), json!({"podSelector": 7, "ingress": [{}]})] {
        let mut objects = pods();
        objects.push(policy("p", &spec));
        assert_eq!(web_from_db(&objects), "dd", "{spec}");
        let findings = snapshot(&objects).1;
        assert_eq!(findings.len(), 1, "{findings:?}");
    }
    // Nothing at all means all pods, ingress: so the API server would have it.
    assert_eq!(closed(&json!(null)), Vec::<String>::new());
    assert_eq!(
        closed(&json!({"ingress": {}}))[0],
        "NetworkPolicy/a/p: spec.ingress: must be a list, not a map; it matches nothing"
    );
}

#[test]
fn a_type_that_is_not_known_isolates_in_both_directions() {
    for types in [json!(["ingress"]), json!(["Ingress", "Sideways"]), json!("Ingress"), json!([7])] {
        let mut objects = pods();
        objects.push(policy("p", &json!({"policyTypes": types})));
        assert_eq!(web_from_db(&objects), "dd", "{types}");
        assert!(snapshot(&objects).1[0].ends_with("both directions are isolated"), "{types}");
    }
    let mut objects = pods();
    objects.push(policy("p", &json!({"egress": {}})));
    assert_eq!(web_from_db(&objects), "dd", "rules that cannot be read may have been some");
}

#[test]
fn a_misspelt_field_is_told() {
    let findings = closed(&json!({"ingres": [{}]}));
    assert_eq!(findings, ["NetworkPolicy/a/p: spec.ingres: is an unknown field; it is not looked at"]);
}

#[test]
fn sloppy_ranges_are_understood_and_told() {
    let spec = json!({"ingress": [{"from": [
        {"ipBlock": {"cidr": "010.000.00.0/08"}}, {"ipBlock": {"cidr": "10.0.0.2/8", "except": ["11.0.0.0/16"]}}]}]});
    let mut objects = pods();
    objects.push(policy("p", &spec));
    assert_eq!(web_from_db(&objects), "aa");
    assert_eq!(
        snapshot(&objects).1,
        [
            "NetworkPolicy/a/p: spec.ingress[0].from[0].ipBlock.cidr \"010.000.00.0/08\": has leading zeros; read as decimal numbers",
            "NetworkPolicy/a/p: spec.ingress[0].from[1].ipBlock.cidr \"10.0.0.2/8\": has bits set behind its length, which are not looked at",
            "NetworkPolicy/a/p: spec.ingress[0].from[1].ipBlock.except[0] \"11.0.0.0/16\": should be a smaller range in the cidr; taken for what it is",
        ]
    );
}

#[test]
fn objects_without_a_name_are_left_out() {
    let mut nameless = pods();
    nameless[0]["metadata"] = json!({"namespace": "a"});
    nameless[1]["metadata"]["namespace"] = json!("A/b");
    let (snapshot, findings) = snapshot(&nameless);
    assert_eq!(snapshot.pods().count(), 0);
    assert_eq!(
        findings,
        [
            "Pod/a/: metadata.name: must be a DNS name in lower case; the object is left out",
            "Pod/A/b/db: metadata.namespace \"A/b\": must be a DNS name in lower case; the object is left out",
        ]
    );
}

#[test]
fn what_is_wrong_with_a_pod_is_told_and_left_out() {
    let mut objects = pods();
    objects[0]["status"] = json!({"podIPs": [{"ip": "10.0.0.300"}, {"ip": 7}, {"ip": "fd00::1"}]});
    objects[0]["spec"] = json!({"containers": [{"ports": [{"name": "web", "containerPort": 0}, {"name": "web", "containerPort": 80}]}]});
    let (snapshot, findings) = snapshot(&objects);
    let (_, _, pod) = snapshot.pod("a", "web").expect("there");
    assert_eq!((pod.v4, pod.v6), (None, "fd00::1".parse().ok()));
    assert_eq!(pod.port("web", kilo_policy::Protocol::Tcp), Some(80));
    assert!(!pod.held);
    assert_eq!(
        findings,
        [
            "Pod/a/web: status.podIPs[0].ip \"10.0.0.300\": must be an address, not text; it is left out",
            "Pod/a/web: status.podIPs[1].ip \"7\": must be text in quotes, not this number; it is left out",
            "Pod/a/web: spec.containers[0].ports[0].containerPort \"0\": must be a port from 1 to 65535, not this number; it is left out",
        ]
    );
}
