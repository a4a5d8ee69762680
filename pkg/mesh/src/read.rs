//! From an object as JSON, whoever wrote it, to a Node or a Peer, or to a finding that names the field.

use kilo_object::{Finding, called, is_name, scalar, shorten};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use crate::{NodeObject, PeerObject};

const MAPS: [(&str, &str); 5] = [
    ("", ""),
    ("/metadata", "metadata"),
    ("/spec", "spec"),
    ("/spec/endpoint", "spec.endpoint"),
    ("/spec/endpoint/dnsOrIP", "spec.endpoint.dnsOrIP"),
];

/// Reads a `v1` Node. `apiVersion` and `kind` are not looked at.
///
/// # Errors
/// What is wrong with the first field that cannot be read; it never holds a preshared key.
pub fn read_node(value: &Value) -> Result<NodeObject, Finding> {
    let node: NodeObject = read("Node", value)?;
    check_name("Node", &node.metadata.name)?;
    Ok(node)
}

/// Reads a `kilo.squat.ai/v1alpha1` Peer. `apiVersion` and `kind` are not looked at.
///
/// # Errors
/// As [`read_node`].
pub fn read_peer(value: &Value) -> Result<PeerObject, Finding> {
    let peer: PeerObject = read("Peer", value)?;
    check_name("Peer", &peer.metadata.name)?;
    Ok(peer)
}

fn read<T: DeserializeOwned>(kind: &str, value: &Value) -> Result<T, Finding> {
    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    // serde would take a list for a map, its items by position.
    for (pointer, field) in MAPS {
        if let Some(there) = value.pointer(pointer)
            && !(there.is_object() || there.is_null())
        {
            return Err(Finding::new(
                format!("{kind}/{}", shorten(name)),
                field,
                "",
                format!("must be a map, not {}; the object is left out", called(Some(there))),
            ));
        }
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let secret = error.path().iter().any(|s| matches!(s, Segment::Map { key } if key == "presharedKey"));
        let there = at(value, error.path());
        let shown = match there {
            Some(v) if !secret => scalar(v),
            _ => String::new(),
        };
        Finding::new(
            format!("{kind}/{}", shorten(name)),
            field(error.path()),
            shown,
            format!("must be {}, not {}; the object is left out", expected(error.inner()), called(there)),
        )
    })
}

fn check_name(kind: &str, name: &str) -> Result<(), Finding> {
    if is_name(name) {
        return Ok(());
    }
    Err(Finding::new(
        format!("{kind}/{}", shorten(name)),
        "metadata.name",
        shorten(name),
        "must be a DNS name in lower case; the object is left out",
    ))
}

/// `spec.allowedIPs[2]`; an annotation by its own name.
fn field(path: &Path) -> String {
    let segments: Vec<_> = path.iter().collect();
    if let [Segment::Map { key: a }, Segment::Map { key: b }, Segment::Map { key }, ..] = segments[..]
        && a == "metadata"
        && b == "annotations"
    {
        return shorten(key);
    }
    path.to_string()
}

fn at<'v>(value: &'v Value, path: &Path) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, segment| match segment {
        Segment::Seq { index } => value.get(index),
        Segment::Map { key } => value.get(key),
        Segment::Enum { .. } | Segment::Unknown => None,
    })
}

/// What serde wanted, without the value that its messages repeat.
fn expected(error: &serde_json::Error) -> &'static str {
    let text = error.to_string();
    match text.rsplit_once("expected ") {
        Some((_, "a string")) => "text in quotes",
        Some((_, "a sequence")) => "a list",
        Some((_, "a map")) => "a map",
        Some((_, wanted)) if wanted.starts_with("struct ") => "a map",
        Some((_, wanted)) if wanted.starts_with(['i', 'u']) => "a whole number",
        Some(_) | None => "of another type",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn peer(spec: &Value) -> Result<PeerObject, Finding> {
        read_peer(&json!({"metadata": {"name": "alice"}, "spec": spec}))
    }

    #[test]
    fn names_the_field() {
        let cases = [
            (json!({"allowedIPs": ["10.0.0.1/32", 7]}), "spec.allowedIPs[1]", "7", "text in quotes"),
            (json!({"allowedIPs": "10.0.0.1/32"}), "spec.allowedIPs", "10.0.0.1/32", "a list"),
            (json!({"persistentKeepalive": "25"}), "spec.persistentKeepalive", "25", "a whole number"),
            (json!({"endpoint": {"port": 1.5}}), "spec.endpoint.port", "1.5", "a whole number"),
            (json!({"endpoint": {"dnsOrIP": [1]}}), "spec.endpoint.dnsOrIP", "", "a map"),
            (json!("all of it"), "spec", "", "a map"),
        ];
        for (spec, field, value, wanted) in cases {
            let finding = peer(&spec).expect_err(field);
            assert_eq!((finding.object.as_str(), finding.field.as_str()), ("Peer/alice", field));
            assert_eq!(finding.value, value, "{finding}");
            assert!(finding.reason.starts_with(&format!("must be {wanted}, not ")), "{finding}");
        }
    }

    #[test]
    fn names_the_annotation() {
        let node = json!({"metadata": {"name": "n1", "annotations": {"kilo.squat.ai/leader": true}}});
        let finding = read_node(&node).expect_err("not text");
        assert_eq!((finding.field.as_str(), finding.value.as_str()), ("kilo.squat.ai/leader", "true"));
    }

    #[test]
    fn never_shows_a_preshared_key() {
        for secret in [json!(123_454_321), json!([123_454_321]), json!({"a": "123454321"})] {
            let finding = peer(&json!({"presharedKey": secret})).expect_err("not text");
            assert!(!finding.to_string().contains("123454321"), "{finding}");
            assert_eq!(finding.field, "spec.presharedKey");
        }
        let finding = peer(&json!("presharedKey: 123454321")).expect_err("not a map");
        assert!(!finding.to_string().contains("123454321"), "{finding}");
    }

    #[test]
    fn takes_null_for_nothing() {
        let node = read_node(&json!({"metadata": {"name": "n1", "annotations": null}, "spec": null}));
        assert_eq!(node.map(|n| n.metadata.name), Ok("n1".to_owned()));
    }

    #[test]
    fn refuses_names_that_are_none() {
        for name in ["", "a/b", "../a", "A", "a b", "-a", "a.", &"a".repeat(300)] {
            let finding = read_node(&json!({"metadata": {"name": name}})).expect_err(name);
            assert_eq!(finding.field, "metadata.name");
            assert!(finding.object.len() < 300, "{finding}");
        }
        assert!(read_node(&json!({})).is_err());
        assert!(read_node(&json!({"metadata": {"name": "ip-10-0-0-1.ec2.internal"}})).is_ok());
    }
}
