//! The topology as a Graphviz graph, to the letter what upstream prints.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use kilo_wireguard::Endpoint;

use crate::topology::{Member, MeshPeer, Segment, Topology};

/// A text as Graphviz reads it between quotes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\\\""))
}

fn text(endpoint: Option<&Endpoint>) -> String {
    endpoint.map(ToString::to_string).unwrap_or_default()
}

impl Topology {
    /// The graph in Graphviz's DOT language. It ends with `}` and a line break.
    pub fn dot(&self) -> String {
        let mut out = String::from("digraph kilo {\n");
        let o = &mut out;
        // Writing to a String does not fail; so for all of this file.
        let _ = writeln!(o, "\tlabel={};", quoted(&self.subnet.to_string()));
        o.push_str("\tlabelloc=t;\n\toutputorder=nodesfirst;\n\toverlap=false;\n");
        self.edges(o);
        let mut clusters: Vec<(String, String)> = self
            .segments
            .iter()
            .map(|s| (format!("cluster_location_{}", s.name), self.segment_cluster(s)))
            .collect();
        clusters.push(("cluster_peers".to_owned(), self.peer_cluster()));
        clusters.sort();
        for (id, body) in &clusters {
            let _ = write!(o, "\tsubgraph {} {{\n{body}\n}}\n;\n", quoted(id));
        }
        o.push_str("\n}\n");
        out
    }

    /// How many lines between leaders and to Peers the graph has: about the square of what is in the mesh.
    pub fn dot_edges(&self) -> usize {
        let leaders = self.segments.len();
        leaders * leaders.saturating_sub(1) / 2 + leaders * self.peers.len()
    }

    fn edges(&self, o: &mut String) {
        for segment in &self.segments {
            let Some(leader) = self.leader_of(segment) else { continue };
            for (i, node) in self.members(segment).iter().enumerate() {
                if i != segment.leader {
                    let _ = writeln!(o, "\t{}->{}[ dir=both ];", quoted(&leader.name), quoted(&node.name));
                }
            }
        }
        let leaders: Vec<String> =
            self.segments.iter().filter_map(|s| self.leader_of(s)).map(|m| quoted(&m.name)).collect();
        for (i, a) in leaders.iter().enumerate() {
            for b in &leaders[i + 1..] {
                let _ = writeln!(o, "\t{a}->{b}[ dir=both ];");
            }
        }
        let vertices = self.vertices();
        for leader in &leaders {
            for peer in &vertices {
                let _ = writeln!(o, "\t{leader}->{peer}[ dir=both, style=dashed ];");
            }
        }
    }

    /// The vertices of the Peers, in quotes: their names, with `peer/` in front where a node has the same
    /// name.
    fn vertices(&self) -> Vec<String> {
        let nodes: BTreeSet<&str> = self.members.iter().map(|m| &*m.name).collect();
        let vertex = |p: &MeshPeer| {
            if nodes.contains(&*p.name) { quoted(&format!("peer/{}", p.name)) } else { quoted(&p.name) }
        };
        self.peers.iter().map(vertex).collect()
    }

    fn segment_cluster(&self, segment: &Segment) -> String {
        let mut o = String::new();
        let name = segment.name.to_string();
        let _ = write!(o, "\tlabel={};\n\tstyle=\"dashed,rounded\";\n", quoted(&name));
        for (i, node) in self.members(segment).iter().enumerate() {
            let leads = i == segment.leader;
            let label = node_label(&name, segment, node, leads);
            let rank = if leads { ", rank=1" } else { "" };
            let _ =
                writeln!(o, "\t{} [ label={}{rank}, shape=ellipse ];", quoted(&node.name), quoted(&label));
        }
        o
    }

    fn peer_cluster(&self) -> String {
        let mut o = String::from("\tlabel=\"peers\";\n\tstyle=\"dashed,rounded\";\n");
        for (peer, id) in self.peers.iter().zip(self.vertices()) {
            let label = format!("{}\\n{}\n", peer.name, text(peer.endpoint.as_ref()));
            let _ = writeln!(o, "\t{id} [ label={}, shape=ellipse ];", quoted(&label));
        }
        o
    }
}

fn node_label(name: &str, segment: &Segment, node: &Member, leads: bool) -> String {
    let mut parts = vec![name.to_owned(), node.name.to_string(), node.subnet.to_string()];
    parts.extend(node.private_ip.map(|ip| ip.to_string()));
    if leads {
        parts.push(segment.wireguard_ip.to_string());
        parts.push(text(segment.endpoint.as_ref()));
    }
    parts.join("\\n")
}
