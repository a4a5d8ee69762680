//! Objects as they were read, and how: from files or the standard input.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kilo_agent::view::{FactsView, InputView};
use kilo_file::{Document, read_objects};
use kilo_mesh::{Config, Finding, Metadata, NodeObject, PeerObject};
use serde_json::{Value, json};

use crate::error::message;

/// What was read.
#[derive(Debug, Default)]
pub struct Input {
    /// Nodes, in the order of the input.
    pub nodes: Vec<NodeObject>,
    /// Peers, in the order of the input.
    pub peers: Vec<PeerObject>,
    /// What is wrong with objects that are left out.
    pub findings: Vec<Finding>,
    /// The settings of a plan that was among the files.
    pub config: Option<Config>,
    /// The time of such a plan.
    pub now: Option<u64>,
    /// The objects are those of a cluster at this moment.
    pub live: bool,
}

/// Reads the objects of these files.
///
/// # Errors
/// When a file cannot be read or holds something that is no object at all.
pub fn read(files: &[PathBuf]) -> anyhow::Result<Input> {
    let mut input = Input::default();
    for text in texts(files)? {
        input.add(&text.origin, &text.bytes)?;
    }
    input.settle();
    Ok(input)
}

/// Reads a facts file: JSON or YAML, `-` is the standard input.
///
/// # Errors
/// When it cannot be read; names the field that is wrong.
pub fn read_facts(path: &Path) -> anyhow::Result<FactsView> {
    let text = text(path)?;
    let document = tree(&text.bytes).map_err(|reason| message(format!("{}: {reason}", text.origin)))?;
    FactsView::parse(document).with_context(|| text.origin.clone())
}

/// A file's name for messages, and what it holds.
pub struct Text {
    /// The path, or `stdin`.
    pub origin: String,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// Reads files, the manifests of folders, and the standard input for `-`.
///
/// # Errors
/// When one cannot be read.
pub fn texts(files: &[PathBuf]) -> anyhow::Result<Vec<Text>> {
    if files.iter().filter(|path| path.as_os_str() == "-").count() > 1 {
        return Err(message("the standard input (-) can be read only once"));
    }
    let mut texts = Vec::new();
    for path in files {
        if path.is_dir() {
            for path in manifests(path)? {
                texts.push(text(&path)?);
            }
        } else {
            texts.push(text(path)?);
        }
    }
    Ok(texts)
}

fn text(path: &Path) -> anyhow::Result<Text> {
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes).context("reading the standard input")?;
        return Ok(Text { origin: "stdin".to_owned(), bytes });
    }
    let origin = path.display().to_string();
    match std::fs::read(path) {
        Ok(bytes) => Ok(Text { origin, bytes }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(message(format!("the path {origin:?} does not exist")))
        }
        Err(error) => Err(error).with_context(|| format!("reading {origin:?}")),
    }
}

/// The manifests below a folder, sorted; what a file backend would read there.
fn manifests(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = || format!("reading the folder {}", folder.display());
        for entry in std::fs::read_dir(&folder).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            let path = entry.path();
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let manifest = path.extension().is_some_and(|x| x == "yaml" || x == "yml" || x == "json");
            let kind = entry.file_type().with_context(failed)?;
            if hidden {
            } else if kind.is_dir() {
                folders.push(path);
            } else if manifest {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

impl Input {
    fn add(&mut self, origin: &str, bytes: &[u8]) -> anyhow::Result<()> {
        if let Some(plan) = plan(bytes) {
            return self.replay(origin, plan);
        }
        self.take(read_objects(origin, bytes))
    }

    fn take(&mut self, documents: Vec<Document>) -> anyhow::Result<()> {
        for document in documents {
            match document {
                Document::Node(node) => self.nodes.push(*node),
                Document::Peer(peer) => self.peers.push(*peer),
                // A dump of a cluster holds all sorts of things.
                Document::Other { .. } => {}
                Document::Malformed { object: Some(_), finding } => self.findings.push(finding),
                Document::Malformed { object: None, finding } => {
                    return Err(message(finding.to_string().trim_start_matches("File/")));
                }
            }
        }
        Ok(())
    }

    /// Takes objects and settings from a plan's own input.
    fn replay(&mut self, origin: &str, mut plan: Value) -> anyhow::Result<()> {
        self.now = plan.get("now").and_then(Value::as_u64);
        let input = plan.get_mut("input").map(Value::take).unwrap_or_default();
        if input.is_null() {
            return Err(message(format!("{origin}: this plan holds no input to plan from")));
        }
        let input: InputView = serde_json::from_value(input).with_context(|| format!("{origin}: input"))?;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": input.objects});
        self.config = Some(input.config);
        self.take(read_objects(origin, list.to_string().as_bytes()))
    }

    /// Of objects that stand there several times the last one counts, at the place of the first.
    pub fn settle(&mut self) {
        keep_last(&mut self.nodes, &mut self.findings, "Node", |node| &node.metadata);
        keep_last(&mut self.peers, &mut self.findings, "Peer", |peer| &peer.metadata);
    }
}

fn keep_last<T: Clone>(
    objects: &mut Vec<T>,
    findings: &mut Vec<Finding>,
    kind: &str,
    metadata: impl Fn(&T) -> &Metadata,
) {
    let mut first: BTreeMap<String, usize> = BTreeMap::new();
    let mut kept: Vec<T> = Vec::with_capacity(objects.len());
    for object in objects.drain(..) {
        let name = &metadata(&object).name;
        if let Some(&at) = first.get(name) {
            findings.push(Finding::new(
                format!("{kind}/{name}"),
                "metadata.name",
                name.as_str(),
                "stands there more than once; the last one counts",
            ));
            kept[at] = object;
        } else {
            first.insert(name.clone(), kept.len());
            kept.push(object);
        }
    }
    *objects = kept;
}

/// The document, if it is a plan that `kgctl plan -o json|yaml` or an agent printed.
fn plan(bytes: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(bytes).ok()?;
    // Most inputs are dumps of objects, which need not be read twice.
    let hint = text.starts_with('{') || text.lines().any(|line| line == "kind: Plan");
    let document = if hint { tree(bytes).ok()? } else { return None };
    (document.get("kind").and_then(Value::as_str) == Some("Plan")).then_some(document)
}

/// One document of JSON or YAML. The error never quotes it: there may be keys in it.
fn tree(bytes: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text)
            .map_err(|error| format!("line {}, column {}: is not JSON", error.line(), error.column()));
    }
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        error
            .location()
            .map_or_else(|| "is not YAML".to_owned(), |at| format!("line {}: is not YAML", at.line()))
    })
}
