//! `kgctl diff`: both sides are planned for every node, and what differs is put into words. Where single Peers are
//! all that differs, the plan of the one side is carried on to the other, as an agent does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use kilo_mesh::{Config, Node, Outcome, Peer, PeerChange, Planner};

use crate::args::{DiffArgs, Global, Source};
use crate::mesh::Mesh;
use crate::{ERROR, OK, out, words};

/// Prints what changes on every node. The answer is the exit code: whether anything does.
///
/// # Errors
/// When the input is bad.
pub fn run(global: &Global, args: &DiffArgs) -> anyhow::Result<u8> {
    let source = |filename: &[_]| Source { filename: filename.to_vec(), facts: args.facts.clone() };
    if args.filename.iter().chain(&args.to).filter(|path| path.as_os_str() == "-").count() > 1 {
        anyhow::bail!("the standard input (-) can be read only once");
    }
    let old = Mesh::read(global, &source(&args.filename), &args.agent)?;
    let new = Mesh::read(global, &source(&args.to), &args.agent)?;
    #[cfg(feature = "cluster")]
    let new = if old.input.live && args.facts.is_none() { new.resolved_like(&old)? } else { new };
    new.tell_notes();
    let known: BTreeSet<_> = old.findings.iter().collect();
    for finding in new.findings.iter().filter(|finding| !known.contains(finding)) {
        out::note(&format!("warning: {finding}"));
    }
    let text = compare(&old, &new);
    let code = if text.is_empty() { OK } else { ERROR };
    out::print(&if out::colours() { out::changes(&text) } else { text })?;
    Ok(code)
}

/// The nodes of either side that change, by name, each with its changes.
fn compare(old: &Mesh, new: &Mesh) -> String {
    let peers = changed_peers(old, new);
    if peers.as_ref().is_some_and(Vec::is_empty) && old.now == new.now {
        return String::new();
    }
    let (old, new) = (Objects::new(old), Objects::new(new));
    let names: BTreeSet<&str> = old.names.keys().chain(new.names.keys()).copied().collect();
    let names: Vec<&str> = names.into_iter().collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let before = old.plan(name);
            let followed =
                peers.as_ref().zip(before.as_ref()).and_then(|(peers, plan)| new.follow(plan, name, peers));
            let after = followed.or_else(|| new.plan(name));
            let lines = changes(&old.side(name, before), &new.side(name, after));
            if !lines.is_empty() {
                let lines: String = lines.iter().map(|line| format!("  {line}\n")).collect();
                found.push((*name, format!("node {name}\n{lines}")));
            }
        }
        found
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(names.len().max(1));
    let mut found = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut found = work();
        for other in others {
            // A thread that panicked is our fault, as a panic of this one would be.
            found.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        found
    });
    found.sort();
    found.into_iter().map(|(_, text)| text).collect()
}

/// What a node's host should have on one side of the comparison.
#[derive(Debug)]
enum Side {
    /// There is no such node.
    Missing,
    /// Nothing is applied, for this reason.
    Idle(String),
    /// This.
    Active(Box<kilo_mesh::Mesh>),
}

/// The Peers that differ, if nothing else does but the time, and the same nodes take part.
fn changed_peers<'a>(old: &'a Mesh, new: &'a Mesh) -> Option<Vec<PeerChange<'a>>> {
    let same = old.config == new.config
        && old.facts.dns == new.facts.dns
        && old.facts.hosts == new.facts.hosts
        && old.nodes == new.nodes
        && old.ready_nodes().eq(new.ready_nodes());
    let by_name = |mesh: &'a Mesh| mesh.peers.iter().map(|peer| (&*peer.name, peer)).collect();
    let (before, after): (BTreeMap<&str, &Peer>, BTreeMap<&str, &Peer>) = (by_name(old), by_name(new));
    let names: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
    let change = |name| PeerChange { old: before.get(name).copied(), new: after.get(name).copied() };
    same.then(|| names.into_iter().map(change).filter(|change| change.old != change.new).collect())
}

/// One side: a mesh that any of its nodes can be planned in.
struct Objects<'a> {
    mesh: &'a Mesh,
    nodes: Vec<&'a Node>,
    peers: Vec<&'a Peer>,
    names: BTreeMap<&'a str, &'a Node>,
}

impl<'a> Objects<'a> {
    fn new(mesh: &'a Mesh) -> Self {
        Self {
            mesh,
            nodes: mesh.nodes.iter().collect(),
            peers: mesh.peers.iter().collect(),
            names: mesh.nodes.iter().map(|node| (&*node.name, node)).collect(),
        }
    }

    fn config(&self, name: &str) -> Config {
        Config { hostname: name.to_owned(), ..self.mesh.config.clone() }
    }

    /// The plan of this node, if there is such a node.
    fn plan(&self, name: &str) -> Option<Planner> {
        let facts = self.mesh.facts_of(self.names.get(name)?);
        Some(Planner::new(&self.config(name), &self.nodes, &self.peers, &facts))
    }

    /// The plan of this node that comes of another one by these changes, unless a whole plan must be made.
    fn follow(&self, plan: &Planner, name: &str, changes: &[PeerChange<'_>]) -> Option<Planner> {
        let facts = self.mesh.facts_of(self.names.get(name)?);
        let (planner, _) = plan.clone().change(&self.config(name), &facts, changes).ok()?;
        Some(planner)
    }

    /// What the plan means for the node's host.
    fn side(&self, name: &str, planner: Option<Planner>) -> Side {
        let Some(planner) = planner else { return Side::Missing };
        // An agent takes itself to be there; whether others do is what its Node says.
        if planner.plan().outcome == Outcome::Ok && self.mesh.ready_node(name).is_err() {
            return Side::Idle("the node is not ready".to_owned());
        }
        let plan = planner.into_plan();
        match plan.mesh {
            Some(mesh) => Side::Active(Box::new(mesh)),
            None => Side::Idle(plan.error.unwrap_or_else(|| plan.outcome.to_string())),
        }
    }
}

/// The words for one node. An agent that has nothing to apply leaves its host as it is.
fn changes(old: &Side, new: &Side) -> Vec<String> {
    match (old, new) {
        (Side::Active(old), Side::Active(new)) => words::diff(Some(old), new),
        (Side::Missing, Side::Active(new)) => joined("the node joins the mesh", new),
        (Side::Idle(_), Side::Active(new)) => joined("the node becomes ready", new),
        (Side::Active(_) | Side::Idle(_), Side::Missing) => {
            vec!["- the node is gone: others leave it out".to_owned()]
        }
        (Side::Active(_), Side::Idle(reason)) => vec![format!("~ the host stays as it is: {reason}")],
        (Side::Missing, Side::Idle(reason)) => vec![format!("+ the node takes no part: {reason}")],
        (Side::Idle(old), Side::Idle(new)) if old != new => vec![format!("~ {new} (was {old})")],
        (Side::Idle(_), Side::Idle(_)) | (Side::Missing, Side::Missing) => Vec::new(),
    }
}

fn joined(what: &str, mesh: &kilo_mesh::Mesh) -> Vec<String> {
    let mut lines = vec![format!("+ {what}")];
    lines.extend(words::diff(None, mesh));
    lines
}
