//! `kgctl plan`.

use kilo_agent::view::{PlanSource, PlanView, TranslatedView, findings_text};
use kilo_mesh::{Finding, plan};
use serde::Serialize;

use crate::args::{Global, PlanArgs, PlanOutput};
use crate::mesh::Mesh;
use crate::{form, out};

/// Objects as they are understood, and what is wrong with them.
#[derive(Serialize)]
struct Understood<'a> {
    findings: &'a [Finding],
    translated: TranslatedView,
}

/// Prints the plan of a node; of none, the objects as they are understood.
///
/// # Errors
/// When the input is bad or there is no such node.
pub fn run(global: &Global, args: &PlanArgs) -> anyhow::Result<()> {
    let mut mesh = Mesh::read(global, &args.source, &args.agent)?;
    // A plan that is replayed says whose it is.
    let name = args.node.clone().unwrap_or_else(|| mesh.config.hostname.clone());
    if name.is_empty() {
        let translated = TranslatedView::new(&mesh.nodes, &mesh.peers, mesh.now, mesh.config.node_expiry);
        let view = Understood { findings: &mesh.findings, translated };
        return print(args.output, &view, || format!("{}{}", view.translated, findings_text(view.findings)));
    }
    mesh.tell_notes();
    mesh.config.hostname = name;
    let node = mesh.node(&mesh.config.hostname)?;
    let facts = mesh.facts_of(node);
    let nodes: Vec<_> = mesh.nodes.iter().collect();
    let peers: Vec<_> = mesh.peers.iter().collect();
    let source = PlanSource {
        config: &mesh.config,
        node_objects: &mesh.input.nodes.iter().collect::<Vec<_>>(),
        peer_objects: &mesh.input.peers.iter().collect::<Vec<_>>(),
        nodes: &nodes,
        peers: &peers,
        facts: &facts,
        findings: &mesh.findings,
    };
    let view = PlanView::new(&plan(&mesh.config, &nodes, &peers, &facts), &source);
    print(args.output, &view, || view.to_string())
}

fn print(format: PlanOutput, view: &impl Serialize, text: impl Fn() -> String) -> anyhow::Result<()> {
    let text = match format {
        PlanOutput::Json => form::json(view)?,
        PlanOutput::Yaml => form::yaml(view)?,
        PlanOutput::Text if out::colours() => out::headings(&text()),
        PlanOutput::Text => text(),
    };
    out::print(&text)?;
    Ok(())
}
