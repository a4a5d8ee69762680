//! `kgctl diff`: both sides are planned for every node, and what differs is put into words.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use kilo_mesh::{Config, Node, Peer, plan};

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
    let (old, new) = (Planner::new(old), Planner::new(new));
    let names: BTreeSet<&str> = old.names.keys().chain(new.names.keys()).copied().collect();
    let names: Vec<&str> = names.into_iter().collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let lines = changes(&old.side(name), &new.side(name));
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

/// One side: a mesh that any of its nodes can be planned in.
struct Planner<'a> {
    mesh: &'a Mesh,
    nodes: Vec<&'a Node>,
    peers: Vec<&'a Peer>,
    names: BTreeMap<&'a str, &'a Node>,
}

impl<'a> Planner<'a> {
    fn new(mesh: &'a Mesh) -> Self {
        Self {
            mesh,
            nodes: mesh.nodes.iter().collect(),
            peers: mesh.peers.iter().collect(),
            names: mesh.nodes.iter().map(|node| (&*node.name, node)).collect(),
        }
    }

    fn side(&self, name: &str) -> Side {
        let Some(node) = self.names.get(name) else { return Side::Missing };
        let config = Config { hostname: name.to_owned(), ..self.mesh.config.clone() };
        let plan = plan(&config, &self.nodes, &self.peers, &self.mesh.facts_of(node));
        match plan.mesh {
            // An agent takes itself to be there; whether others do is what its Node says.
            Some(_) if self.mesh.ready_node(name).is_err() => Side::Idle("the node is not ready".to_owned()),
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
