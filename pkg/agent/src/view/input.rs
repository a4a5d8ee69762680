//! What a plan was made from, in the plan itself, so that it can be made again elsewhere.

use kilo_mesh::{Config, Metadata, NodeObject, PREFIX, PeerObject};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The settings and objects of a plan. Labels and annotations that do not matter to Kilo are left out, and so
/// are preshared keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InputView {
    /// The agent's settings.
    pub config: Config,
    /// Nodes and Peers as Kubernetes objects.
    pub objects: Vec<Value>,
}

impl InputView {
    /// The input of a plan.
    pub fn new<'a>(
        config: &Config,
        nodes: impl IntoIterator<Item = &'a NodeObject>,
        peers: impl IntoIterator<Item = &'a PeerObject>,
    ) -> Self {
        let node = |node: &NodeObject| {
            json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": trimmed(&node.metadata, &config.topology_label),
                "spec": node.spec,
            })
        };
        let peer = |peer: &PeerObject| {
            let mut spec = peer.spec.clone();
            spec.preshared_key = None;
            json!({
                "apiVersion": "kilo.squat.ai/v1alpha1",
                "kind": "Peer",
                "metadata": trimmed(&peer.metadata, &config.topology_label),
                "spec": spec,
            })
        };
        let objects = nodes.into_iter().map(node).chain(peers.into_iter().map(peer)).collect();
        Self { config: config.clone(), objects }
    }
}

/// Other annotations may hold whole objects, with their secrets.
fn trimmed(metadata: &Metadata, label: &str) -> Metadata {
    Metadata {
        name: metadata.name.clone(),
        creation_timestamp: metadata.creation_timestamp.clone(),
        labels: metadata.labels.iter().filter(|(name, _)| *name == label).map(owned).collect(),
        annotations: metadata
            .annotations
            .iter()
            .filter(|(name, _)| name.starts_with(PREFIX))
            .map(owned)
            .collect(),
    }
}

fn owned((name, value): (&String, &String)) -> (String, String) {
    (name.clone(), value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_strange_annotations_are_left_out() {
        let peer: PeerObject = serde_json::from_value(json!({
            "metadata": {"name": "alice", "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "hunter2"}},
            "spec": {"allowedIPs": ["10.5.0.1/32"], "publicKey": "k", "presharedKey": "hunter2"},
        }))
        .expect("a Peer");
        let node: NodeObject = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"region": "x", "other": "y"}, "annotations": {"kilo.squat.ai/leader": "", "a/b": "c"}},
            "spec": {"podCIDR": "10.42.0.0/24"},
        }))
        .expect("a Node");
        let config = Config { topology_label: "region".to_owned(), ..Config::default() };
        let text = serde_json::to_string(&InputView::new(&config, [&node], [&peer])).expect("JSON");
        assert!(!text.contains("hunter2") && !text.contains("presharedKey"), "{text}");
        assert!(!text.contains("other") && !text.contains("a/b"), "{text}");
        assert!(
            text.contains(r#""labels":{"region":"x"}"#) && text.contains("kilo.squat.ai/leader"),
            "{text}"
        );
    }
}
