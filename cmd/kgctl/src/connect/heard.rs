//! What the watches have told about the cluster, and what of it is news.

use std::collections::BTreeMap;

use kilo_agent::{Event, WatchState};
use kilo_mesh::{Finding, NodeObject, PeerObject};
use tracing::{info, warn};

use crate::input::Input;

/// The annotation that changes with each check-in of a node and says nothing else.
const LAST_SEEN: &str = "kilo.squat.ai/last-seen";

/// All Nodes and Peers, by name.
#[derive(Debug, Default)]
pub struct Heard {
    nodes: BTreeMap<String, NodeObject>,
    peers: BTreeMap<String, PeerObject>,
    /// What is wrong with objects that are left out, by kind and name.
    findings: BTreeMap<String, Finding>,
    listed: (bool, bool),
}

impl Heard {
    /// Takes an event in. Whether the mesh may be another one now.
    pub fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Nodes(nodes, findings) => {
                self.nodes = nodes.into_iter().map(|node| (node.metadata.name.clone(), node)).collect();
                self.left_out("Node/", findings);
                self.listed.0 = true;
            }
            Event::Peers(peers, findings) => {
                self.peers = peers.into_iter().map(|peer| (peer.metadata.name.clone(), peer)).collect();
                self.left_out("Peer/", findings);
                self.listed.1 = true;
            }
            Event::NodeApplied(node) => {
                self.findings.remove(&format!("Node/{}", node.metadata.name));
                let before = self.nodes.get(&node.metadata.name);
                let news = before.is_none_or(|before| !is_check_in(before, &node));
                self.nodes.insert(node.metadata.name.clone(), *node);
                return news;
            }
            Event::NodeDeleted(name) => {
                self.findings.remove(&format!("Node/{name}"));
                self.nodes.remove(&name);
            }
            Event::PeerApplied(peer) => {
                self.findings.remove(&format!("Peer/{}", peer.metadata.name));
                self.peers.insert(peer.metadata.name.clone(), *peer);
            }
            Event::PeerDeleted(name) => {
                self.findings.remove(&format!("Peer/{name}"));
                self.peers.remove(&name);
            }
            Event::Malformed(kind, name, finding) => {
                match kind {
                    kilo_agent::WatchKind::Nodes => drop(self.nodes.remove(&name)),
                    kilo_agent::WatchKind::Peers => drop(self.peers.remove(&name)),
                }
                self.findings.insert(finding.object.clone(), finding);
            }
            Event::Watch(kind, WatchState::Up) => {
                info!(kind = kind.as_str(), "Watch is up");
                return false;
            }
            Event::Watch(kind, WatchState::Down(reason)) => {
                warn!(kind = kind.as_str(), %reason, "Watch is down");
                return false;
            }
        }
        true
    }

    fn left_out(&mut self, kind: &str, findings: Vec<Finding>) {
        self.findings.retain(|object, _| !object.starts_with(kind));
        self.findings.extend(findings.into_iter().map(|finding| (finding.object.clone(), finding)));
    }

    /// Whether all there is was told once.
    pub fn is_complete(&self) -> bool {
        self.listed == (true, true)
    }

    /// Whether there is a Peer of this name.
    pub fn has_peer(&self, name: &str) -> bool {
        self.peers.contains_key(name)
    }

    /// All objects as they are known.
    pub fn input(&self) -> Input {
        Input {
            nodes: self.nodes.values().cloned().collect(),
            peers: self.peers.values().cloned().collect(),
            findings: self.findings.values().cloned().collect(),
            ..Input::default()
        }
    }

    /// The time that check-ins are measured with, which never runs ahead of what is heard: in an outage of the API
    /// server, and with a clock that is wrong, nobody seems to be gone.
    pub fn now(&self, clock: u64) -> u64 {
        let seen = |node: &NodeObject| node.metadata.annotations.get(LAST_SEEN)?.parse::<u64>().ok();
        self.nodes.values().filter_map(seen).max().unwrap_or(clock).min(clock)
    }
}

/// Whether a Node differs by its last check-in only.
fn is_check_in(before: &NodeObject, now: &NodeObject) -> bool {
    let others = |node: &NodeObject| {
        let mut node = node.clone();
        node.metadata.annotations.remove(LAST_SEEN);
        node
    };
    others(before) == others(now)
}

#[cfg(test)]
mod tests {
    use kilo_agent::WatchKind;
    use kilo_mesh::Metadata;

    use super::*;

    fn node(name: &str, seen: u64, leader: bool) -> NodeObject {
        let mut annotations = BTreeMap::from([(LAST_SEEN.to_owned(), seen.to_string())]);
        if leader {
            annotations.insert("kilo.squat.ai/leader".to_owned(), String::new());
        }
        let metadata = Metadata { name: name.to_owned(), annotations, ..Metadata::default() };
        NodeObject { metadata, ..NodeObject::default() }
    }

    #[test]
    fn a_check_in_is_no_news_and_moves_the_time() {
        let mut heard = Heard::default();
        assert_eq!(heard.now(500), 500);
        assert!(heard.take(Event::Nodes(vec![node("a", 100, false)], Vec::new())) && !heard.is_complete());
        assert!(heard.take(Event::Peers(Vec::new(), Vec::new())) && heard.is_complete());
        assert_eq!((heard.now(500), heard.now(50)), (100, 50));
        assert!(!heard.take(Event::NodeApplied(Box::new(node("a", 130, false)))));
        assert_eq!(heard.now(500), 130);
        assert!(heard.take(Event::NodeApplied(Box::new(node("a", 130, true)))));
        assert!(heard.take(Event::NodeDeleted("a".to_owned())) && heard.input().nodes.is_empty());
    }

    #[test]
    fn an_object_that_cannot_be_read_counts_as_gone_and_is_a_finding_until_it_can() {
        let mut heard = Heard::default();
        let finding = |name: &str| Finding::new(format!("Peer/{name}"), "spec", "", "must be a map");
        let peer = |name: &str| {
            let metadata = Metadata { name: name.to_owned(), ..Metadata::default() };
            Box::new(PeerObject { metadata, ..PeerObject::default() })
        };
        heard.take(Event::PeerApplied(peer("p")));
        assert!(heard.has_peer("p"));
        heard.take(Event::Malformed(WatchKind::Peers, "p".to_owned(), finding("p")));
        assert!(!heard.has_peer("p") && heard.input().findings == [finding("p")]);
        heard.take(Event::PeerApplied(peer("p")));
        assert!(heard.has_peer("p") && heard.input().findings.is_empty());
        heard.take(Event::Peers(Vec::new(), vec![finding("q")]));
        assert!(heard.input().findings == [finding("q")] && !heard.has_peer("p"));
    }
}
