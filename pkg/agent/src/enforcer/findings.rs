//! What is wrong with objects that policies are about: said once each, on this node's log by every agent, on the object by
//! one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kilo_mesh::Finding;
use kilo_policy::Kind;
use tracing::warn;

use crate::PolicyFinding;

/// The most findings of one object that a line names.
const MOST_NAMED: usize = 16;

/// The most objects that wait for it to be known who shows them.
const MOST_WAITING: usize = 1024;

type Key = (Kind, String, String);

/// All objects with findings.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    objects: BTreeMap<Key, Vec<Finding>>,
    count: BTreeMap<Kind, usize>,
    /// What of a kind was applied with findings since its list began.
    listed: BTreeMap<Kind, BTreeSet<Key>>,
    waiting: Vec<PolicyFinding>,
}

impl Findings {
    pub(crate) fn restarted(&mut self, kind: Kind) {
        self.listed.insert(kind, BTreeSet::new());
    }

    pub(crate) fn synced(&mut self, kind: Kind) {
        if let Some(listed) = self.listed.remove(&kind) {
            self.objects.retain(|key, _| key.0 != kind || listed.contains(key));
            self.count.insert(kind, self.objects.keys().filter(|key| key.0 == kind).count());
        }
    }

    pub(crate) fn removed(&mut self, kind: Kind, namespace: &str, name: &str) {
        self.forget(&(kind, namespace.to_owned(), name.to_owned()));
    }

    fn forget(&mut self, key: &Key) {
        if self.objects.remove(key).is_some() {
            *self.count.entry(key.0).or_default() -= 1;
        }
    }

    /// Takes what is wrong with an object, and says so if that is news.
    pub(crate) fn applied(&mut self, kind: Kind, namespace: &str, name: &str, findings: Vec<Finding>) {
        let key = (kind, namespace.to_owned(), name.to_owned());
        if findings.is_empty() {
            self.forget(&key);
            return;
        }
        if let Some(listed) = self.listed.get_mut(&kind) {
            listed.insert(key.clone());
        }
        if self.objects.get(&key) == Some(&findings) {
            return;
        }
        let message = words(&findings);
        warn!(kind = kind.name(), namespace, name, findings = %message, "An object is not understood");
        if self.waiting.len() < MOST_WAITING && !name.is_empty() {
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            self.waiting.push(PolicyFinding { kind, namespace, name, message });
        }
        if self.objects.insert(key, findings).is_none() {
            *self.count.entry(kind).or_default() += 1;
        }
    }

    /// How many objects of each kind have findings.
    pub(crate) fn count(&self) -> &BTreeMap<Kind, usize> {
        &self.count
    }

    /// What is to be shown by this node, once it is known who else is there; what others show is forgotten.
    pub(crate) fn take_shown(&mut self, own: &str, nodes: &[Arc<str>]) -> Vec<PolicyFinding> {
        if nodes.is_empty() {
            return Vec::new();
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|finding| {
            let object = format!("{}/{}/{}", finding.kind.name(), finding.namespace, finding.name);
            shows(&object, nodes) == Some(own)
        });
        waiting
    }
}

/// One line, as long as an Event may be or shorter.
fn words(findings: &[Finding]) -> String {
    let one = |f: &Finding| match f.value.is_empty() {
        true => format!("{}: {}", f.field, f.reason),
        false => format!("{} {:?}: {}", f.field, f.value, f.reason),
    };
    let mut words = findings.iter().take(MOST_NAMED).map(one).collect::<Vec<_>>().join("; ");
    if findings.len() > MOST_NAMED {
        words += &format!("; and {} more", findings.len() - MOST_NAMED);
    }
    words
}

/// Which of the nodes shows something on an object: all of them come to the same answer, and one that goes takes nothing
/// but its own objects with it.
fn shows<'n>(object: &str, nodes: &'n [Arc<str>]) -> Option<&'n str> {
    let weight = |node: &Arc<str>| (fnv(object.bytes().chain([0]).chain(node.bytes())), node.clone());
    nodes.iter().max_by_key(|node| weight(node)).map(|node| &**node)
}

/// FNV-1a with a last mixing, for the weights of names that differ in one letter to be unrelated: the same in every
/// version.
fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn one_node_shows_each_object_and_few_move_when_one_goes() {
        let all = nodes(&["a", "b", "c", "d"]);
        let less = nodes(&["d", "b", "a"]);
        let mut by_node = BTreeMap::new();
        for n in 0..1000 {
            let object = format!("NetworkPolicy/shop/{n}");
            let shown = shows(&object, &all).expect("somebody");
            *by_node.entry(shown.to_owned()).or_insert(0) += 1;
            if shown != "c" {
                assert_eq!(shows(&object, &less), Some(shown));
            }
        }
        assert!(by_node.len() == 4 && by_node.values().all(|n| (150..350).contains(n)), "{by_node:?}");
        assert_eq!(shows("x", &[]), None);
    }

    #[test]
    fn each_is_shown_once_and_again_when_it_changes() {
        let (mut findings, own) = (Findings::default(), nodes(&["a"]));
        let wrong = |value: &str| vec![Finding::new("NetworkPolicy/n/p", "spec.x", value, "is wrong")];
        findings.applied(Kind::NetworkPolicy, "n", "p", wrong("1"));
        assert!(findings.take_shown("a", &[]).is_empty(), "nobody knows whose it is");
        let shown = findings.take_shown("a", &own);
        assert_eq!(shown.iter().map(|f| f.message.as_str()).collect::<Vec<_>>(), ["spec.x \"1\": is wrong"]);
        findings.applied(Kind::NetworkPolicy, "n", "p", wrong("1"));
        assert!(findings.take_shown("a", &own).is_empty());
        findings.applied(Kind::NetworkPolicy, "n", "p", wrong("2"));
        assert!(findings.take_shown("b", &own).is_empty(), "another node shows it");

        // A list without it, and one in which it is right.
        findings.applied(Kind::NetworkPolicy, "n", "q", wrong("3"));
        findings.restarted(Kind::NetworkPolicy);
        findings.applied(Kind::NetworkPolicy, "n", "q", wrong("3"));
        findings.synced(Kind::NetworkPolicy);
        assert_eq!(findings.count(), &BTreeMap::from([(Kind::NetworkPolicy, 1)]));
        findings.applied(Kind::NetworkPolicy, "n", "q", Vec::new());
        assert_eq!(findings.count(), &BTreeMap::from([(Kind::NetworkPolicy, 0)]));
    }
}
