//! A leader's power is cut, again and again: for how long pods of other nodes have no answer between the locations.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kilo_e2e::mesh::Mesh;
use kilo_e2e::netns::World;

use crate::figures::Figure;

const RUNS: u32 = 20;
const SOON: Duration = Duration::from_secs(40);
/// The cut comes at another moment between two questions each time.
const SHIFT: Duration = Duration::from_millis(97);

pub fn measure() -> Result<Vec<Figure>> {
    let world = World::new()?;
    let mut mesh = Mesh::start(&world, &[])?;
    let mut gaps = Vec::new();
    for run in 0..RUNS {
        if run > 0 {
            begin_anew(&mut mesh)?;
        }
        mesh.settle(SOON)?;
        mesh.reach_all(SOON)?;
        std::thread::sleep(SHIFT * run);
        gaps.push(mesh.fail_over()?.as_secs_f64());
    }
    let in_order: Vec<String> = gaps.iter().map(|gap| format!("{gap:.2}")).collect();
    println!("failover, seconds in {RUNS} runs: {}", in_order.join(" "));
    gaps.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let place = ((gaps.len() as f64 * part).ceil() as usize).saturating_sub(1);
        gaps.get(place).copied().context("no runs")
    };
    let figure = |name: &str, value| Figure::new(format!("failover/{name}-s"), value);
    Ok(vec![
        figure("min", at(0.0)?).upstream("up to 60 and a resync"),
        figure("median", at(0.5)?),
        figure("p95", at(0.95)?),
        figure("max", at(1.0)?),
    ])
}

/// Agents that know nothing, on Nodes that say nothing.
fn begin_anew(mesh: &mut Mesh<'_>) -> Result<()> {
    let running: Vec<String> = mesh.agents.keys().cloned().collect();
    running.iter().try_for_each(|name| mesh.stop(name, false))?;
    mesh.plug("a1")?;
    mesh.place.nodes.iter().try_for_each(|node| mesh.state.add_node(node))?;
    ["a1", "a2", "b1", "b2"].iter().try_for_each(|name| mesh.restart(name, &[]))
}
