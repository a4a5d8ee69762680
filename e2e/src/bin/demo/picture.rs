//! The mesh as text, from the plan of an agent.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use kilo_e2e::mesh::{Mesh, Node};
use serde_json::Value;

/// The width of a box, inside.
const WIDTH: usize = 78;

/// Locations as boxes, travellers below.
pub fn draw(mesh: &Mesh<'_>) -> Result<String> {
    let agent = mesh.agents.values().next().context("no agent runs")?;
    let plan = agent.plan()?;
    let segments = plan["segments"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut boxes = Vec::new();
    for location in ["west", "east"] {
        let segment = segments.iter().find(|segment| segment["location"] == format!("location:{location}"));
        let nodes: Vec<&Node> = mesh.place.nodes.iter().filter(|node| node.location == location).collect();
        // Where a leader behind NAT is found is known only to those whom it has called.
        let seen = segment.and_then(|segment| plan["discoveredEndpoints"][segment["key"].as_str()?].as_str());
        boxes.push(location_box(mesh, location, &nodes, segment, seen));
    }
    let mut text = boxes.join(&format!("  {:^WIDTH$}\n", "║ WireGuard"));
    for traveller in &mesh.travellers {
        let ((ip, port), name) = (traveller.endpoint, traveller.host.name());
        let address = traveller.host.address;
        let _ = writeln!(text, "  {name:<8}{address:<14}at {ip}:{port}, a tunnel to each leader");
    }
    Ok(text)
}

fn location_box(
    mesh: &Mesh<'_>,
    location: &str,
    nodes: &[&Node],
    segment: Option<&Value>,
    seen: Option<&str>,
) -> String {
    let nat = if nodes.iter().any(|node| node.behind_nat) { ", behind NAT 198.51.100.2" } else { "" };
    let title = format!(" {location}{nat} ");
    let mut text = format!("  ┌{title:─<WIDTH$}┐\n");
    for node in nodes {
        let part = part(mesh, node, segment, seen);
        let line = format!(
            " {}  {:<14}pods {:<14}{part}",
            node.name,
            node.private.to_string(),
            node.pod_cidr.to_string()
        );
        let _ = writeln!(text, "  │{line:<WIDTH$}│");
    }
    let _ = writeln!(text, "  └{}┘", "─".repeat(WIDTH));
    text
}

fn part(mesh: &Mesh<'_>, node: &Node, segment: Option<&Value>, seen: Option<&str>) -> String {
    if !mesh.agents.contains_key(&node.name) {
        return "stopped".into();
    }
    let leader = segment.and_then(|segment| {
        let index = usize::try_from(segment["leader"].as_u64()?).ok()?;
        segment["hostnames"][index].as_str()
    });
    match (leader, segment) {
        (Some(leader), Some(segment)) if leader == node.name => {
            let text = |key: &str| segment[key].as_str().unwrap_or("?").to_owned();
            format!("leads: {}, {}", text("wireGuardIP"), seen.map_or(text("endpoint"), str::to_owned))
        }
        (Some(leader), _) => format!("by {leader}"),
        (None, _) => "not in the mesh".into(),
    }
}
