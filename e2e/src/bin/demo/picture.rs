//! The mesh as text, from the plan of an agent.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use kilo_e2e::mesh::{Mesh, Node};
use serde_json::Value;

/// Locations as boxes, travellers below.
pub fn draw(mesh: &Mesh<'_>) -> Result<String> {
    let agent = mesh.agents.values().next().context("no agent runs")?;
    let plan = agent.plan()?;
    let segments = plan["segments"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut boxes = Vec::new();
    for location in ["west", "east"] {
        let segment = segments.iter().find(|segment| segment["location"] == format!("location:{location}"));
        let nodes: Vec<&Node> = mesh.place.nodes.iter().filter(|node| node.location == location).collect();
        boxes.push(location_box(mesh, location, &nodes, segment));
    }
    let mut text = side_by_side(&boxes);
    for traveller in &mesh.travellers {
        let (ip, port) = traveller.endpoint;
        let name = traveller.host.name();
        let _ = writeln!(
            text,
            "  {name}, {} in the mesh, at {ip}:{port} outside: a tunnel to each leader",
            traveller.host.address
        );
    }
    Ok(text)
}

fn location_box(mesh: &Mesh<'_>, location: &str, nodes: &[&Node], segment: Option<&Value>) -> Vec<String> {
    let nat = if nodes.iter().any(|node| node.behind_nat) { ", behind NAT 198.51.100.2" } else { "" };
    let mut lines = vec![format!("{location}{nat}")];
    for node in nodes {
        let part = part(mesh, node, segment);
        lines.push(format!("{}  {:<12}  pods {}  {part}", node.name, node.private, node.pod_cidr));
    }
    lines
}

fn part(mesh: &Mesh<'_>, node: &Node, segment: Option<&Value>) -> String {
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
            format!("leads, {} at {}", text("wireGuardIP"), text("endpoint"))
        }
        (Some(leader), _) => format!("by {leader}"),
        (None, _) => "not in the mesh".into(),
    }
}

/// Boxes with a tunnel between them.
fn side_by_side(boxes: &[Vec<String>]) -> String {
    let height = boxes.iter().map(Vec::len).max().unwrap_or_default();
    let width = |lines: &Vec<String>| lines.iter().map(|line| line.chars().count()).max().unwrap_or_default();
    let mut rows = vec![String::new(); height + 2];
    for (number, lines) in boxes.iter().enumerate() {
        let width = width(lines);
        let blank = if number == 0 { "  " } else { "             " };
        for (row, text) in rows.iter_mut().enumerate() {
            let tunnel = if number > 0 && row == 2 { "══WireGuard══" } else { blank };
            text.push_str(tunnel);
            let line = match row {
                0 => format!("┌{}┐", "─".repeat(width + 2)),
                last if last == height + 1 => format!("└{}┘", "─".repeat(width + 2)),
                inner => format!("│ {:width$} │", lines.get(inner - 1).map_or("", String::as_str)),
            };
            text.push_str(&line);
        }
    }
    rows.join("\n") + "\n"
}
