//! From YAML or JSON text to Nodes and Peers: several documents, lists, other kinds in between. What is wrong
//! with one document says nothing about the others.

use kilo_agent::WatchKind;
use kilo_mesh::{Finding, NodeObject, PeerObject, read_node, read_peer};
use serde_json::Value;

/// One object of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// A `v1` Node.
    Node(Box<NodeObject>),
    /// A `kilo.squat.ai/v1alpha1` Peer.
    Peer(Box<PeerObject>),
    /// An object of a kind that is none of ours.
    Other {
        /// Its `apiVersion`.
        api_version: String,
        /// Its `kind`.
        kind: String,
    },
    /// What cannot be read.
    Malformed {
        /// The kind and name, where that much is known.
        object: Option<(WatchKind, String)>,
        /// What is wrong; the object is `File/…` where no name is known.
        finding: Finding,
    },
}

/// The Nodes and Peers of some texts, in their order, and what is wrong with the rest.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Nodes.
    pub nodes: Vec<NodeObject>,
    /// Peers.
    pub peers: Vec<PeerObject>,
    /// One for each document or object that cannot be read.
    pub findings: Vec<Finding>,
}

impl Extend<Document> for Objects {
    fn extend<I: IntoIterator<Item = Document>>(&mut self, documents: I) {
        for document in documents {
            match document {
                Document::Node(node) => self.nodes.push(*node),
                Document::Peer(peer) => self.peers.push(*peer),
                Document::Other { .. } => {}
                Document::Malformed { finding, .. } => self.findings.push(finding),
            }
        }
    }
}

impl FromIterator<Document> for Objects {
    fn from_iter<I: IntoIterator<Item = Document>>(documents: I) -> Self {
        let mut objects = Self::default();
        objects.extend(documents);
        objects
    }
}

/// An object of any kind as it stands in a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Its `apiVersion`, or that of the list it is in.
    pub api_version: String,
    /// Its `kind`, or that of the list it is in.
    pub kind: String,
    /// All of it.
    pub object: Value,
}

/// Reads a text of YAML or JSON documents: objects and lists of them (`List`, `NodeList`, `PeerList`), what
/// `kubectl get nodes,peers -o yaml` prints included. `origin`, a path or `stdin`, is what findings call it.
pub fn read_objects(origin: &str, text: &[u8]) -> Vec<Document> {
    let documents = read_items(origin, text).into_iter().map(|item| match item {
        Ok(item) => recognise(origin, item),
        Err(finding) => Document::Malformed { object: None, finding },
    });
    documents.collect()
}

/// Reads the objects of a text as they are, those of lists one by one; kinds are not looked at. What cannot be read
/// is a finding on `File/…`.
pub fn read_items(origin: &str, text: &[u8]) -> Vec<Result<Item, Finding>> {
    let mut items = Vec::new();
    for tree in read_trees(origin, text) {
        match tree {
            Ok(tree) => flatten(origin, tree, None, &mut items),
            Err(finding) => items.push(Err(finding)),
        }
    }
    items
}

/// The documents of a text as they are, empty ones left out.
pub(crate) fn read_trees(origin: &str, text: &[u8]) -> Vec<Result<Value, Finding>> {
    let text = match std::str::from_utf8(text) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let line = 1 + text[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count();
            return vec![Err(unreadable(origin, line, "is not UTF-8"))];
        }
    };
    if text.trim_start().starts_with(['{', '[']) {
        let trees: Vec<_> = serde_json::Deserializer::from_str(text).into_iter::<Value>().collect();
        let broken = trees.iter().any(Result::is_err);
        // YAML may begin like this as well.
        if !broken || origin.ends_with(".json") {
            return trees
                .into_iter()
                .map(|tree| {
                    tree.map_err(|e| {
                        unreadable(origin, e.line(), &format!("is not JSON at column {}", e.column()))
                    })
                })
                .collect();
        }
    }
    split(text).into_iter().filter_map(|(line, text)| read_yaml(origin, line, text).transpose()).collect()
}

/// The documents of a YAML stream with the line each begins at, from 0. A marker at the start of a line ends a
/// document wherever it stands, inside texts in quotes as well, so no parser is needed to find it; and one that
/// stumbles over a document cannot lose the next.
fn split(text: &str) -> Vec<(usize, &str)> {
    let (mut documents, mut start, mut start_line, mut offset) = (Vec::new(), 0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let rest = line.strip_prefix("---").or_else(|| line.strip_prefix("..."));
        if rest.is_some_and(|r| r.is_empty() || r.starts_with([' ', '\t', '\r', '\n'])) {
            documents.push((start_line, &text[start..offset]));
            // What stands behind `---` belongs to the document.
            start = offset + 3;
            start_line = number;
        }
        offset += line.len();
    }
    documents.push((start_line, &text[start..]));
    documents
}

fn read_yaml(origin: &str, line: usize, text: &str) -> Result<Option<Value>, Finding> {
    let nothing = |l: &str| {
        let l = l.trim();
        l.is_empty() || l.starts_with(['#', '%'])
    };
    if text.lines().all(nothing) {
        return Ok(None);
    }
    let options = serde_saphyr::options! {
        // Texts hold preshared keys: no message may quote them.
        with_snippet: false,
        // As YAML 1.2 has it: `no` is a location, and `y` a name.
        strict_booleans: true,
        budget: budget(),
    };
    match serde_saphyr::from_str_with_options::<Value>(text, options) {
        Ok(Value::Null) => Ok(None),
        Ok(tree) => Ok(Some(tree)),
        Err(error) => {
            let at = error.location().map_or(1, |l| usize::try_from(l.line()).unwrap_or(1));
            Err(unreadable(origin, line + at.max(1), &format!("is not YAML: {}", complaint(&error))))
        }
    }
}

/// Limits for a dump of a large cluster; aliases stay as limited as they are by default.
fn budget() -> Option<serde_saphyr::Budget> {
    serde_saphyr::budget! {
        max_events: 100_000_000,
        max_nodes: 50_000_000,
        max_total_scalar_bytes: 1 << 30,
    }
}

/// The sort of error, in words that never quote the text.
fn complaint(error: &serde_saphyr::Error) -> &'static str {
    let text = error.without_snippet().to_string();
    let text = text.to_lowercase();
    if text.contains("duplicate") {
        "a key stands there twice"
    } else if text.contains("indent") {
        "wrong indentation"
    } else if text.contains("quot") {
        "a quotation mark is missing"
    } else if text.contains("alias") || text.contains("anchor") {
        "an unknown anchor or too many aliases"
    } else if text.contains("budget") || text.contains("limit") {
        "too large or too deep"
    } else {
        "unexpected text"
    }
}

fn unreadable(origin: &str, line: usize, reason: &str) -> Finding {
    Finding::new(format!("File/{origin}"), format!("line {line}"), "", reason)
}

/// Appends an object, or the objects of a list. `implied` is the apiVersion and kind of items that have none.
fn flatten(origin: &str, tree: Value, implied: Option<(&str, &str)>, items: &mut Vec<Result<Item, Finding>>) {
    let text = |key: &str| tree.get(key).and_then(Value::as_str).map(str::to_owned);
    let (api_version, kind) = match (text("apiVersion"), text("kind"), implied) {
        (None, None, Some((api_version, kind))) => (api_version.to_owned(), kind.to_owned()),
        (api_version, kind, _) => (api_version.unwrap_or_default(), kind.unwrap_or_default()),
    };
    let implied = match (api_version.as_str(), kind.strip_suffix("List")) {
        ("v1", Some("")) => None,
        (version, Some(of)) if LISTS.contains(&(version, of)) => Some((version, of)),
        _ => {
            items.push(Ok(Item { api_version, kind, object: tree }));
            return;
        }
    };
    let Value::Object(mut list) = tree else { return };
    match list.remove("items") {
        Some(Value::Array(all)) => {
            all.into_iter().for_each(|item| flatten(origin, item, implied, items));
        }
        None | Some(Value::Null) => {}
        Some(_) => items.push(Err(Finding::new(
            format!("File/{origin}"),
            "items",
            "",
            format!("must be a list in a {kind}"),
        ))),
    }
}

/// The kinds of which there are lists.
const LISTS: [(&str, &str); 7] = [
    ("v1", "Node"),
    (PEER_VERSION, "Peer"),
    ("v1", "Pod"),
    ("v1", "Namespace"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("v1", "Service"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
];

/// The only version of Peers that there is.
const PEER_VERSION: &str = "kilo.squat.ai/v1alpha1";

fn recognise(origin: &str, item: Item) -> Document {
    let Item { api_version, kind, object: tree } = item;
    let name = tree.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let malformed = |watch: WatchKind, finding: Finding| Document::Malformed {
        object: (!name.is_empty()).then(|| (watch, name.to_owned())),
        finding,
    };
    let version = |wanted: &str| {
        let object = format!("{kind}/{name}");
        Finding::new(object, "apiVersion", api_version.as_str(), format!("must be {wanted}"))
    };
    match (api_version.as_str(), kind.as_str()) {
        ("v1", "Node") => match read_node(&tree) {
            Ok(node) => Document::Node(Box::new(node)),
            Err(finding) => malformed(WatchKind::Nodes, finding),
        },
        (PEER_VERSION, "Peer") => match read_peer(&tree) {
            Ok(peer) => Document::Peer(Box::new(peer)),
            Err(finding) => malformed(WatchKind::Peers, finding),
        },
        ("", "Node") => malformed(WatchKind::Nodes, version("v1")),
        (other, "Peer") if other.is_empty() || other.starts_with("kilo.squat.ai/") => {
            malformed(WatchKind::Peers, version(PEER_VERSION))
        }
        (_, "") => Document::Malformed {
            object: None,
            finding: Finding::new(
                format!("File/{origin}"),
                "kind",
                "",
                "a document without kind is no object",
            ),
        },
        _ => Document::Other { api_version, kind },
    }
}

#[cfg(test)]
#[path = "documents_tests.rs"]
mod tests;
