//! The topology as a picture: a self-contained SVG, drawn without Graphviz. The work is linear in nodes and
//! Peers: where lines would be many, they are bundled.

use std::str::FromStr;

use crate::Topology;
use crate::shape::{Canvas, Card, Group, Style};

/// How the segments are arranged, by the names that Graphviz gives its layouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// `dot`: Peers on top, segments side by side below.
    Rows,
    /// `circo`, `neato`, `twopi` and `fdp`: segments and Peers on a circle, their lines across it. More than
    /// 32 segments are drawn as rows.
    #[default]
    Circle,
}

/// There is no layout of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unsupported layout {0:?}; there are circo, dot, neato, twopi and fdp")]
pub struct UnknownLayout(String);

impl FromStr for Layout {
    type Err = UnknownLayout;

    /// The layout of a name; the empty name is `circo`, as upstream has it.
    fn from_str(name: &str) -> Result<Self, UnknownLayout> {
        match name {
            "dot" => Ok(Self::Rows),
            "" | "circo" | "neato" | "twopi" | "fdp" => Ok(Self::Circle),
            _ => Err(UnknownLayout(name.to_owned())),
        }
    }
}

/// Up to this many lines are drawn one by one; more are bundled.
const MAX_LINES: usize = 120;
/// Up to this many groups stand on a circle.
const MAX_AROUND: usize = 32;
/// Space between groups.
const GAP: f64 = 40.0;
/// Space for the title.
const TITLE: f64 = 50.0;

/// Draws the topology: a box for each segment with its nodes, the leader marked, and the Peers. Solid lines
/// join nodes to their leader and leaders to each other, dashed ones leaders and Peers.
pub fn svg(topology: &Topology, layout: Layout) -> String {
    let mut groups: Vec<Group> = topology.segments.iter().map(|s| segment_group(topology, s)).collect();
    let mut peers = Group::new("peers".to_owned(), peer_cards(topology), None);
    let mut canvas = Canvas::default();
    match layout {
        Layout::Rows => rows(&mut canvas, &mut groups, &mut peers),
        // A circle of more is so wide that nothing can be read.
        Layout::Circle if groups.len() > MAX_AROUND => rows(&mut canvas, &mut groups, &mut peers),
        Layout::Circle => circle(&mut canvas, &mut groups, &mut peers),
    }
    let title = format!(
        "{}: {} nodes in {} segments, {} peers",
        topology.subnet,
        groups.iter().map(|g| g.cards.len()).sum::<usize>(),
        groups.len(),
        peers.cards.len()
    );
    for group in &groups {
        group.draw(&mut canvas);
    }
    if !peers.cards.is_empty() {
        peers.draw(&mut canvas);
    }
    canvas.finish(&title)
}

fn segment_group(topology: &Topology, segment: &crate::Segment) -> Group {
    let card = |(i, node): (usize, &crate::Member)| {
        let mut lines = vec![node.name.to_string()];
        lines.extend(node.subnets().map(|net| net.to_string()));
        lines.extend(node.private_ip.map(|ip| ip.to_string()));
        if i == segment.leader {
            lines[0].insert_str(0, "★ ");
            lines.push(format!("WireGuard {}", segment.wireguard_ip));
            lines.extend(segment.endpoint.as_ref().map(ToString::to_string));
        }
        Card::new(lines)
    };
    let mut cards: Vec<Card> = topology.members(segment).iter().enumerate().map(card).collect();
    if segment.leader < cards.len() {
        cards[..=segment.leader].rotate_right(1);
    }
    Group::new(segment.name.to_string(), cards, Some(Style::Solid))
}

fn peer_cards(topology: &Topology) -> Vec<Card> {
    let card = |peer: &crate::MeshPeer| {
        let mut lines = vec![peer.name.to_string()];
        lines.extend(topology.allowed_ips(peer).iter().take(3).map(|net| net.to_string()));
        let more = topology.allowed_ips(peer).len().saturating_sub(3);
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        lines.extend(peer.endpoint.as_ref().map(ToString::to_string));
        Card::new(lines)
    };
    topology.peers.iter().map(card).collect()
}

/// Peers on top, groups below in rows of about the shape of a screen.
fn rows(canvas: &mut Canvas, groups: &mut [Group], peers: &mut Group) {
    let area: f64 = groups.iter().map(|g| (g.width + GAP) * (g.height + GAP)).sum();
    let widest = groups.iter().map(|g| g.width).fold(peers.width, f64::max);
    // A few groups stand in one row, so that all lines between leaders can be drawn above them.
    let arcs = groups.len() <= 8;
    let limit = if arcs { f64::INFINITY } else { (area * 1.8).sqrt().max(widest).max(1500.0) };

    let top = if peers.cards.is_empty() { TITLE } else { TITLE + peers.height + GAP };
    // Room for the arcs between leaders, or for the line that stands for them.
    let lane = if arcs { 30.0 + 22.0 * (groups.len() as f64).min(14.0) } else { GAP };
    let (mut x, mut y, mut height) = (GAP * 2.0, top + lane, 0.0f64);
    let mut lanes = vec![y - lane / 2.0];
    for group in groups.iter_mut() {
        if x > GAP * 2.0 && x + group.width > limit + GAP * 2.0 {
            (x, y, height) = (GAP * 2.0, y + height + GAP * 2.0, 0.0);
            lanes.push(y - GAP / 2.0);
        }
        group.place(x, y);
        x += group.width + GAP;
        height = height.max(group.height);
    }
    let right = groups.iter().map(|g| g.x + g.width).fold(0.0, f64::max);
    peers.place((right / 2.0 + GAP - peers.width / 2.0).max(GAP * 2.0), TITLE);

    let heads: Vec<(f64, f64)> = groups.iter().map(Group::head).collect();
    if arcs {
        for (i, a) in heads.iter().enumerate() {
            for (n, b) in heads[i + 1..].iter().enumerate() {
                let rise = (lane - 8.0) * 1.3 * (n as f64 + 1.0) / groups.len().max(2) as f64;
                canvas.arc(*a, *b, rise + 24.0, Style::Solid);
            }
        }
    } else if let (Some(first), Some(last)) = (lanes.first(), lanes.last()) {
        canvas.note(GAP * 2.0, first - 6.0, &format!("every leader with every other ({})", groups.len()));
        canvas.line((GAP, *first), (GAP, *last), Style::Solid);
        for lane in &lanes {
            let end = heads.iter().zip(&*groups).filter(|(_, g)| g.y > *lane && g.y < lane + GAP * 1.5);
            let end = end.map(|(head, _)| head.0).fold(GAP, f64::max);
            canvas.line((GAP, *lane), (end, *lane), Style::Solid);
        }
        for (head, group) in heads.iter().zip(&*groups) {
            let lane = lanes.iter().rev().find(|lane| **lane < group.y).unwrap_or(first);
            canvas.line((head.0, *lane), *head, Style::Solid);
        }
    }
    if heads.len() * peers.cards.len() <= MAX_LINES / 2 && arcs {
        for peer in peers.feet() {
            heads.iter().for_each(|head| canvas.line(peer, *head, Style::Dashed));
        }
    } else if let (false, Some(lane)) = (peers.cards.is_empty(), lanes.first()) {
        let (x, y) = (peers.x + peers.width / 2.0, peers.y + peers.height);
        if arcs {
            heads.iter().for_each(|head| canvas.line((x, y), *head, Style::Dashed));
        } else {
            canvas.line((x, y), (x, *lane), Style::Dashed);
        }
        canvas.note(x + 8.0, y + 16.0, &format!("every peer with every leader ({})", peers.cards.len()));
    }
}

/// Groups and Peers on a circle wide enough that no two meet.
fn circle(canvas: &mut Canvas, groups: &mut [Group], peers: &mut Group) {
    let leaders = groups.len();
    let mut around: Vec<&mut Group> = groups.iter_mut().collect();
    if !peers.cards.is_empty() {
        around.push(&mut *peers);
    }
    let size = |g: &Group| g.width.hypot(g.height) + GAP;
    let length: f64 = around.iter().map(|g| size(g)).sum();
    // Few groups stand on chords much shorter than their arcs.
    let stretch = match around.len() {
        0 | 1 => 0.0,
        2 | 3 => 1.6,
        _ => 1.15,
    };
    let radius = length * stretch / std::f64::consts::TAU;
    let mut done = 0.0;
    for group in &mut around {
        let share = size(group);
        let angle = (done + share / 2.0) / length * std::f64::consts::TAU - std::f64::consts::FRAC_PI_2;
        done += share;
        let (x, y) = (radius * angle.cos(), radius * angle.sin());
        group.place(x - group.width / 2.0, y - group.height / 2.0);
    }
    let left = around.iter().map(|g| g.x).fold(0.0, f64::min) - GAP;
    let top = around.iter().map(|g| g.y).fold(0.0, f64::min) - TITLE;
    for group in &mut around {
        let (x, y) = (group.x - left, group.y - top);
        group.place(x, y);
    }
    let middle = (-left, -top);

    let heads: Vec<(f64, f64)> = groups.iter().map(Group::lead).collect();
    if leaders * leaders.saturating_sub(1) / 2 <= MAX_LINES {
        for (i, a) in heads.iter().enumerate() {
            heads[i + 1..].iter().for_each(|b| canvas.line(*a, *b, Style::Solid));
        }
    } else {
        heads.iter().for_each(|head| canvas.line(middle, *head, Style::Solid));
        canvas.hub(middle, &format!("every leader with every other ({leaders})"));
    }
    if leaders * peers.cards.len() <= MAX_LINES / 2 {
        for peer in peers.middles() {
            heads.iter().for_each(|head| canvas.line(peer, *head, Style::Dashed));
        }
    } else if leaders <= MAX_LINES {
        let (x, y) = (peers.x + peers.width / 2.0, peers.y + peers.height / 2.0);
        heads.iter().for_each(|head| canvas.line((x, y), *head, Style::Dashed));
    } else {
        canvas.line((peers.x + peers.width / 2.0, peers.y + peers.height / 2.0), middle, Style::Dashed);
    }
}
