//! `kgctl graph`.

use crate::args::{AgentArgs, Global, GraphArgs};
use crate::error::message;
use crate::mesh::Mesh;
use crate::out;

/// Prints the mesh as DOT.
///
/// # Errors
/// When the input is bad or no node is ready.
pub fn run(global: &Global, args: &GraphArgs) -> anyhow::Result<()> {
    let mesh = Mesh::read(global, &args.source, &AgentArgs::default())?;
    mesh.tell();
    let local = mesh.ready_nodes().last().ok_or_else(|| message("no node is ready"))?;
    let (topology, _) = mesh.topology(local)?;
    out::print(&topology.dot())?;
    Ok(())
}
