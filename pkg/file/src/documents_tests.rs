//! Tests of reading texts.

use super::*;

fn objects(text: &str) -> Objects {
    read_objects("t.yaml", text.as_bytes()).into_iter().collect()
}

fn names(objects: &Objects) -> Vec<&str> {
    objects
        .nodes
        .iter()
        .map(|n| n.metadata.name.as_str())
        .chain(objects.peers.iter().map(|p| p.metadata.name.as_str()))
        .collect()
}

#[test]
fn reads_documents_of_yaml() {
    let read = objects(
        "# a comment\n%YAML 1.2\n---\napiVersion: v1\nkind: Node\nmetadata: {name: a, annotations: {kilo.squat.ai/leader: \"\"}}\nspec: {podCIDR: 10.2.0.0/24}\n\
         ---\n\n--- # nothing\n---\napiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata:\n  name: alice\nspec:\n  allowedIPs:\n  - 10.5.0.1/32\n  publicKey: K\n  endpoint:\n    dnsOrIP: {ip: \"::1\"}\n    port: 51820\n...\n\
         --- {apiVersion: v1, kind: ConfigMap, metadata: {name: b}}\n",
    );
    assert!(read.findings.is_empty(), "{:?}", read.findings);
    assert_eq!(names(&read), ["a", "alice"]);
    assert_eq!(read.nodes[0].spec.pod_cidr, "10.2.0.0/24");
    assert_eq!(read.nodes[0].metadata.annotations["kilo.squat.ai/leader"], "");
    assert_eq!(read.peers[0].spec.endpoint.as_ref().map(|e| e.dns_or_ip.ip.as_str()), Some("::1"));
}

#[test]
fn reads_json_and_lists() {
    let node = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"NAME"}}"#;
    let text = format!(
        "{}\n{}",
        node.replace("NAME", "a"),
        r#"{"apiVersion":"v1","kind":"List","items":[
            {"apiVersion":"v1","kind":"NodeList","items":[{"metadata":{"name":"b"}},{"metadata":{"name":"c"}}]},
            {"apiVersion":"kilo.squat.ai/v1alpha1","kind":"PeerList","items":[{"metadata":{"name":"p"}}]},
            {"apiVersion":"v1","kind":"NodeList","items":null}]}"#
    );
    let read = objects(&text);
    assert!(read.findings.is_empty(), "{:?}", read.findings);
    assert_eq!(names(&read), ["a", "b", "c", "p"]);
    // The same as YAML, in which JSON may stand as well.
    assert_eq!(names(&objects(&format!("---\n{}", node.replace("NAME", "a")))), ["a"]);
    assert_eq!(names(&objects("{apiVersion: v1, kind: Node, metadata: {name: flow}}")), ["flow"]);
}

#[test]
fn one_bad_document_hides_no_other() {
    let good = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n");
    let bad = [
        "a: [1, 2\n",
        "a: b: c\n",
        "\"open\n",
        "a: 1\na: 2\n",
        "- just a list\n",
        "text\n",
        "kind: Node\nmetadata: {name: x}\n",
        "apiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {name: x}\nspec: {allowedIPs: 7}\n",
        "apiVersion: kilo.squat.ai/v2\nkind: Peer\nmetadata: {name: x}\n",
        "apiVersion: v1\nkind: List\nitems: 5\n",
        "a: *nowhere\n",
        "\u{7}\n",
        "apiVersion: v1\nkind: Node\nmetadata: {name: ../../etc/passwd}\n",
    ];
    for bad in bad {
        let read = objects(&format!("{}---\n{bad}---\n{}", good("a"), good("b")));
        assert_eq!(names(&read), ["a", "b"], "{bad}");
        assert_eq!(read.findings.len(), 1, "{bad}: {:?}", read.findings);
    }
}

#[test]
fn says_where() {
    let read = objects(
        "apiVersion: v1\nkind: Node\nmetadata: {name: a}\n---\na: 1\nb: [\n---\nkind: Peer\nmetadata: {name: x}\n",
    );
    let line: u32 =
        read.findings[0].field.strip_prefix("line ").and_then(|l| l.parse().ok()).expect("a line");
    assert!((5..=7).contains(&line), "{:?}", read.findings[0]);
    assert_eq!(read.findings[0].object, "File/t.yaml");
    assert_eq!((read.findings[1].object.as_str(), read.findings[1].field.as_str()), ("Peer/x", "apiVersion"));
    let json: Objects = read_objects("t.json", b"{\"kind\": \"Node\",\n").into_iter().collect();
    assert_eq!(json.findings[0].field, "line 2");
    let latin: Objects = read_objects("t.yaml", b"a: 1\nb: \xff\n").into_iter().collect();
    assert_eq!(latin.findings[0].field, "line 2");
}

#[test]
fn never_quotes_the_text() {
    let secret = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0czE=";
    for broken in
        ["'S", "\"S", "S: S: S", "[S", "{S", "*S", "&S\n- x", "!S [", "|\nS", "S\n x: y", "@S", "`S", "%S"]
    {
        let text = format!(
            "apiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {{name: x}}\nspec:\n  presharedKey: {}\n",
            broken.replace('S', secret)
        );
        for finding in objects(&text).findings {
            assert!(!finding.to_string().contains("c2Vjc"), "{finding}");
        }
    }
}

#[test]
fn aliases_cannot_blow_up() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..40 {
        let item = format!("*a{}, ", i - 1).repeat(10);
        text.push_str(&format!("a{i}: &a{i} [{item}]\n"));
    }
    let began = std::time::Instant::now();
    assert_eq!(objects(&text).findings.len(), 1);
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn yes_and_numbers_are_told_apart_from_text() {
    let node = |value: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: a, annotations: {{kilo.squat.ai/location: {value}}}}}\n"
        )
    };
    for text in ["\"25\"", "'yes'", "no", "y", "off", "eu-west", "10.0.0.1/24", "1.2.3"] {
        assert!(objects(&node(text)).findings.is_empty(), "{text}");
    }
    for other in ["25", "true", "1.5"] {
        let findings = objects(&node(other)).findings;
        assert_eq!(
            (findings[0].field.as_str(), findings[0].value.as_str()),
            ("kilo.squat.ai/location", other)
        );
    }
}
