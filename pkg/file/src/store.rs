//! What the files said when they were last whole, and what of it the agent has been told. Time is an argument.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kilo_agent::{Event, WatchKind, WatchState};
use kilo_mesh::{Finding, NodeObject, PeerObject};

use crate::documents::{Document, read_objects};
use crate::policies::{Policies, Told};
use crate::scan::{Found, Stamp};

/// How long a file must be missing before its objects go: an editor may be between two renames.
pub const GRACE: Duration = Duration::from_secs(1);

/// The same after all files had vanished: they may come back one after the other.
pub const GRACE_AFTER_RETURN: Duration = Duration::from_secs(30);

/// One file, as it was when it could last be read; each document that cannot be read keeps its last objects.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// Only these, or none of them: a store holds one half.
    pub(crate) policies: Policies,
    nodes: BTreeMap<String, Arc<NodeObject>>,
    peers: BTreeMap<String, Arc<PeerObject>>,
    findings: Vec<(WatchKind, Finding)>,
    stamp: Option<Stamp>,
    /// The file system of its directory.
    device: u64,
    pub(crate) missing: Option<Instant>,
    /// Why it stays although it is missing.
    kept: Option<String>,
    pub(crate) whole: bool,
}

/// All objects, one of each name.
#[derive(Debug, Default)]
struct View {
    nodes: BTreeMap<String, Arc<NodeObject>>,
    peers: BTreeMap<String, Arc<PeerObject>>,
    node_findings: Vec<Finding>,
    peer_findings: Vec<Finding>,
}

/// All files below a directory.
#[derive(Debug, Default)]
pub struct Store {
    pub(crate) sources: BTreeMap<OsString, Source>,
    /// What is wrong with the directory and those in it.
    findings: Vec<Finding>,
    /// Why there is nothing to read.
    vanished: Option<String>,
    returned: Option<Instant>,
    told: Option<View>,
    pub(crate) told_policies: Told,
    told_vanished: Option<String>,
}

impl Store {
    /// Takes the content of a file.
    pub fn read(&mut self, path: &OsStr, text: &[u8], stamp: Stamp, device: u64) {
        let shown = path.to_string_lossy();
        let mut last = self.sources.remove(path).unwrap_or_default();
        let source = self.begin(path, stamp, device);
        let mut keep_all = false;
        if text.iter().all(u8::is_ascii_whitespace) {
            let reason =
                "is empty and keeps its last objects; delete it, or leave a comment in it, to remove them";
            let finding = Finding::new(format!("File/{shown}"), "", "", reason);
            source.findings.push((WatchKind::Nodes, finding));
            source.whole = false;
            keep_all = true;
        }
        for document in read_objects(&shown, text) {
            match document {
                Document::Node(node) => {
                    let name = node.metadata.name.clone();
                    let old = last.nodes.remove(&name);
                    source.add(&shown, WatchKind::Nodes, &name, |s| put(&mut s.nodes, &name, *node, old));
                }
                Document::Peer(peer) => {
                    let name = peer.metadata.name.clone();
                    let old = last.peers.remove(&name);
                    source.add(&shown, WatchKind::Peers, &name, |s| put(&mut s.peers, &name, *peer, old));
                }
                Document::Other { .. } => {}
                Document::Malformed { object: Some((kind, name)), finding } => {
                    source.findings.push((kind, finding));
                    match kind {
                        WatchKind::Nodes => keep(&mut source.nodes, &name, last.nodes.remove(&name)),
                        WatchKind::Peers => keep(&mut source.peers, &name, last.peers.remove(&name)),
                    }
                }
                Document::Malformed { object: None, finding } => {
                    source.whole = false;
                    source.findings.push((WatchKind::Nodes, finding));
                    keep_all = true;
                }
            }
        }
        if keep_all {
            // Nobody can tell which objects stood in the document that cannot be read.
            last.nodes.into_iter().for_each(|(name, node)| keep(&mut source.nodes, &name, Some(node)));
            last.peers.into_iter().for_each(|(name, peer)| keep(&mut source.peers, &name, Some(peer)));
        }
    }

    /// A file is there and has been read.
    pub(crate) fn begin(&mut self, path: &OsStr, stamp: Stamp, device: u64) -> &mut Source {
        let source = self.sources.entry(path.to_owned()).or_default();
        let policies = std::mem::take(&mut source.policies);
        *source = Source { policies, stamp: Some(stamp), device, whole: true, ..Source::default() };
        source
    }

    /// Why there is nothing to read, if that has changed since it was asked last.
    pub(crate) fn new_state(&mut self) -> Option<Option<String>> {
        if self.told_vanished == self.vanished {
            return None;
        }
        self.told_vanished.clone_from(&self.vanished);
        Some(self.vanished.clone())
    }

    /// A file is there and cannot be read.
    pub fn unreadable(&mut self, path: &OsStr, reason: &str) {
        let source = self.sources.entry(path.to_owned()).or_default();
        source.whole = false;
        source.stamp = None;
        source.missing = None;
        source.kept = None;
        let finding = Finding::new(
            format!("File/{}", path.to_string_lossy()),
            "",
            "",
            format!("cannot be read and keeps its last objects: {reason}"),
        );
        source.findings = vec![(WatchKind::Nodes, finding)];
    }

    /// A file is not there.
    pub fn missing(&mut self, path: &OsStr, now: Instant) {
        if let Some(source) = self.sources.get_mut(path) {
            source.missing.get_or_insert(now);
        }
    }

    /// Whether the file has another stamp than when it was read.
    pub fn is_stale(&self, path: &OsStr, stamp: Stamp) -> bool {
        self.sources.get(path).is_none_or(|s| s.stamp != Some(stamp) || s.missing.is_some())
    }

    /// All files that are known.
    pub fn paths(&self) -> impl Iterator<Item = &OsString> {
        self.sources.keys()
    }

    /// Whether every file could be read to its end.
    pub fn is_whole(&self) -> bool {
        self.vanished.is_none() && self.sources.values().all(|s| s.whole)
    }

    /// Whether a file that was read is not there.
    pub fn has_missing(&self) -> bool {
        self.vanished.is_some() || self.sources.values().any(|s| s.missing.is_some())
    }

    /// Whether there is nothing to read where once was something.
    pub fn has_vanished(&self) -> bool {
        self.vanished.is_some()
    }

    /// The files that hold the Node of this name, the one that counts first, and whether each is there.
    pub fn holders(&self, name: &str) -> Vec<(OsString, bool)> {
        let mut holders: Vec<_> = self
            .sources
            .iter()
            .filter(|(_, s)| s.nodes.contains_key(name))
            .map(|(path, s)| (path.clone(), s.missing.is_none()))
            .collect();
        holders.sort_by_key(|(_, there)| !there);
        holders
    }

    /// Decides which of the missing files are deleted. A file counts as deleted when others remain and its
    /// directory, if still there, is on the same file system as before; otherwise something was unmounted, moved
    /// or wiped, and its objects stay. Tells when to look again.
    pub fn settle(
        &mut self,
        root: &Path,
        found: Result<&Found, &str>,
        extra: &[Finding],
        now: Instant,
    ) -> Option<Instant> {
        self.findings = extra.to_vec();
        let found = match found {
            Ok(found) => found,
            Err(reason) => {
                self.vanish(format!("{} cannot be read: {reason}", root.display()));
                return None;
            }
        };
        for (path, reason) in &found.unreadable {
            let object = format!("File/{}", path.to_string_lossy());
            self.findings.push(Finding::new(
                object,
                "",
                "",
                format!("is a directory that cannot be read, its last objects stay: {reason}"),
            ));
        }
        if !self.sources.is_empty() && self.sources.values().all(|s| s.missing.is_some()) {
            self.vanish(format!("{} holds no object file any more", root.display()));
            return None;
        }
        if self.vanished.take().is_some() {
            self.returned = Some(now);
        }
        let mut again: Option<Instant> = None;
        self.sources.retain(|path, source| {
            let Some(since) = source.missing else { return true };
            let due = self.returned.map_or(since + GRACE, |r| (since + GRACE).max(r + GRACE_AFTER_RETURN));
            if now < due {
                again = Some(again.map_or(due, |a| a.min(due)));
                return true;
            }
            source.kept = stays(path, source.device, found);
            source.kept.is_some()
        });
        again
    }

    fn vanish(&mut self, reason: String) {
        let object = "File/.".to_owned();
        self.findings.push(Finding::new(object, "", "", format!("{reason}; the last objects stay")));
        self.vanished = Some(reason);
    }

    /// What the agent has to be told now; at first everything.
    pub fn events(&mut self) -> Vec<Event> {
        let view = self.view();
        let mut events = Vec::new();
        let last = self.told.take();
        if let Some(last) = last.as_ref().filter(|l| l.node_findings == view.node_findings) {
            changes(
                &last.nodes,
                &view.nodes,
                |n| Event::NodeApplied(Box::new(n)),
                Event::NodeDeleted,
                &mut events,
            );
        } else {
            let nodes = view.nodes.values().map(|n| NodeObject::clone(n)).collect();
            events.push(Event::Nodes(nodes, view.node_findings.clone()));
        }
        if let Some(last) = last.as_ref().filter(|l| l.peer_findings == view.peer_findings) {
            changes(
                &last.peers,
                &view.peers,
                |p| Event::PeerApplied(Box::new(p)),
                Event::PeerDeleted,
                &mut events,
            );
        } else {
            let peers = view.peers.values().map(|p| PeerObject::clone(p)).collect();
            events.push(Event::Peers(peers, view.peer_findings.clone()));
        }
        self.told = Some(view);
        // Behind the lists, which say as well that a watch is up.
        if let Some(vanished) = self.new_state() {
            let state = vanished.map_or(WatchState::Up, WatchState::Down);
            events.extend([WatchKind::Nodes, WatchKind::Peers].map(|kind| Event::Watch(kind, state.clone())));
        }
        events
    }

    /// That nothing can be told yet, and why; once for each reason.
    pub fn waiting(&mut self) -> Vec<Event> {
        if self.vanished.is_none() {
            return Vec::new();
        }
        let Some(Some(reason)) = self.new_state() else { return Vec::new() };
        [WatchKind::Nodes, WatchKind::Peers]
            .map(|kind| Event::Watch(kind, WatchState::Down(reason.clone())))
            .to_vec()
    }

    fn view(&self) -> View {
        let mut view = View { node_findings: self.findings.clone(), ..View::default() };
        // A file that was renamed is there under its new name and missing under the old one.
        let there = self.sources.iter().filter(|(_, s)| s.missing.is_none());
        let missing = self.sources.iter().filter(|(_, s)| s.missing.is_some());
        let mut node_paths: BTreeMap<&str, &OsStr> = BTreeMap::new();
        let mut peer_paths: BTreeMap<&str, &OsStr> = BTreeMap::new();
        for (path, source) in there.chain(missing) {
            for (kind, finding) in &source.findings {
                match kind {
                    WatchKind::Nodes => view.node_findings.push(finding.clone()),
                    WatchKind::Peers => view.peer_findings.push(finding.clone()),
                }
            }
            if let Some(reason) = &source.kept {
                let object = format!("File/{}", path.to_string_lossy());
                view.node_findings.push(Finding::new(object, "", "", reason.as_str()));
            }
            let quiet = source.missing.is_some();
            merge(
                "Node",
                path,
                quiet,
                &source.nodes,
                &mut view.nodes,
                &mut node_paths,
                &mut view.node_findings,
            );
            merge(
                "Peer",
                path,
                quiet,
                &source.peers,
                &mut view.peers,
                &mut peer_paths,
                &mut view.peer_findings,
            );
        }
        view.node_findings.sort_unstable();
        view.peer_findings.sort_unstable();
        view
    }
}

impl Source {
    /// Adds an object unless the file has one of its name already.
    fn add(&mut self, path: &str, kind: WatchKind, name: &str, put: impl FnOnce(&mut Self)) {
        let (there, shown) = match kind {
            WatchKind::Nodes => (self.nodes.contains_key(name), "Node"),
            WatchKind::Peers => (self.peers.contains_key(name), "Peer"),
        };
        if there {
            let reason = format!("stands twice in {path}; the first one counts");
            self.findings
                .push((kind, Finding::new(format!("{shown}/{name}"), "metadata.name", name, reason)));
        } else {
            put(self);
        }
    }
}

fn put<T: PartialEq>(objects: &mut BTreeMap<String, Arc<T>>, name: &str, object: T, last: Option<Arc<T>>) {
    // The same allocation tells cheaply that nothing changed.
    let object = last.filter(|l| **l == object).unwrap_or_else(|| Arc::new(object));
    objects.insert(name.to_owned(), object);
}

fn keep<T>(objects: &mut BTreeMap<String, Arc<T>>, name: &str, last: Option<Arc<T>>) {
    if let Some(last) = last {
        objects.entry(name.to_owned()).or_insert(last);
    }
}

/// Why a missing file stays, if it does.
fn stays(path: &OsStr, device: u64, found: &Found) -> Option<String> {
    for parent in Path::new(path).ancestors().skip(1) {
        if found.unreadable.contains_key(parent.as_os_str()) {
            return Some("is in a directory that cannot be read; its last objects stay".to_owned());
        }
        if let Some(now) = found.directories.get(parent.as_os_str()) {
            // A directory that is gone was deleted with all that was in it.
            return (*now != device).then(|| {
                "is on a file system that is not mounted any more; its last objects stay".to_owned()
            });
        }
    }
    None
}

fn merge<'s, T>(
    kind: &str,
    path: &'s OsStr,
    quiet: bool,
    objects: &'s BTreeMap<String, Arc<T>>,
    merged: &mut BTreeMap<String, Arc<T>>,
    paths: &mut BTreeMap<&'s str, &'s OsStr>,
    findings: &mut Vec<Finding>,
) {
    for (name, object) in objects {
        if let Some(first) = paths.get(name.as_str()) {
            if !quiet {
                let reason = format!("stands in {} as well, which counts", first.to_string_lossy());
                let value = path.to_string_lossy();
                findings.push(Finding::new(format!("{kind}/{name}"), "metadata.name", value, reason));
            }
            continue;
        }
        paths.insert(name, path);
        merged.insert(name.clone(), object.clone());
    }
}

fn changes<T: Clone + PartialEq>(
    last: &BTreeMap<String, Arc<T>>,
    now: &BTreeMap<String, Arc<T>>,
    applied: impl Fn(T) -> Event,
    deleted: impl Fn(String) -> Event,
    events: &mut Vec<Event>,
) {
    for name in last.keys().filter(|name| !now.contains_key(*name)) {
        events.push(deleted(name.clone()));
    }
    for (name, object) in now {
        if last.get(name).is_none_or(|l| !Arc::ptr_eq(l, object) && l != object) {
            events.push(applied(T::clone(object)));
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
