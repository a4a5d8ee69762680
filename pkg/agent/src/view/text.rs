//! A plan as a page for people.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use ipnet::IpNet;
use kilo_mesh::Finding;

use super::{MeshView, PlanView, RouteView, RuleView, TranslatedView};

/// How many ranges of a list are shown before the rest is counted.
const SHOWN: usize = 6;

impl fmt::Display for RouteView {
    /// As `ip route` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dst)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        write!(f, " dev {}", self.dev)?;
        if let Some(table) = self.table {
            write!(f, " table {table}")?;
        }
        if let Some(src) = self.src {
            write!(f, " src {src}")?;
        }
        if self.onlink {
            f.write_str(" onlink")?;
        }
        if self.left_out { f.write_str(" (left out)") } else { Ok(()) }
    }
}

impl fmt::Display for RuleView {
    /// As `ip rule` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.src {
            Some(src) => write!(f, "from {src}")?,
            None => f.write_str("from all")?,
        }
        write!(f, " to {}", self.dst)?;
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        write!(f, " lookup {}", self.table)?;
        if self.left_out { f.write_str(" (left out)") } else { Ok(()) }
    }
}

impl fmt::Display for PlanView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut page = Page::default();
        page.line(0, &format!("Node {}: {}", self.node, self.outcome));
        if let Some(error) = &self.error {
            page.line(1, error);
        }
        if let Some(mesh) = &self.mesh {
            page.part(mesh);
            page.segments(mesh);
            page.list("Deposed", &mesh.deposed);
            page.list("Looked after", &mesh.watches);
            page.device(mesh);
            page.list("Routes", &mesh.routes);
            page.list("Rules", &mesh.rules);
            page.firewall(mesh);
        }
        let annotations = || self.annotations.iter().filter(|(_, value)| !value.is_empty());
        if annotations().next().is_some() {
            page.heading("Annotations", annotations().count());
            page.pairs(annotations().map(|(name, value)| (name.as_str(), value.clone())));
        }
        page.left_out(self);
        page.list("Findings", &self.findings);
        f.write_str(&page.0)
    }
}

impl fmt::Display for TranslatedView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut page = Page::default();
        page.line(0, &format!("Nodes ({})", self.nodes.len()));
        let nodes = self.nodes.iter().map(|node| {
            vec![
                node.name.clone(),
                yes(node.ready).to_owned(),
                node.location.clone(),
                text(node.endpoint.as_ref()),
                text(node.internal_ip),
                text(node.subnet),
                text(node.wireguard_ip),
            ]
        });
        let columns = ["NAME", "READY", "LOCATION", "ENDPOINT", "INTERNAL IP", "PODS", "WIREGUARD IP"];
        page.table(&columns, nodes.collect());
        page.heading("Peers", self.peers.len());
        let peers = self.peers.iter().map(|peer| {
            vec![
                peer.name.clone(),
                yes(peer.valid && peer.ready).to_owned(),
                text(peer.endpoint.as_ref()),
                keepalive(peer.persistent_keepalive),
                ranges(&peer.allowed_ips),
            ]
        });
        page.table(&["NAME", "READY", "ENDPOINT", "KEEPALIVE", "ALLOWED IPS"], peers.collect());
        f.write_str(&page.0)
    }
}

/// The findings as they stand at the end of a page.
pub fn findings_text(findings: &[Finding]) -> String {
    let mut page = Page::default();
    page.list("Findings", findings);
    page.0
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, depth: usize, text: &str) {
        // Writing to a String does not fail. What objects say must not move the cursor.
        let text: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        let _ = writeln!(self.0, "{:width$}{}", "", text.trim_end(), width = 2 * depth);
    }

    fn heading(&mut self, title: &str, count: usize) {
        self.0.push('\n');
        self.line(0, &format!("{title} ({count})"));
    }

    fn list(&mut self, title: &str, items: &[impl fmt::Display]) {
        if !items.is_empty() {
            self.heading(title, items.len());
            items.iter().for_each(|item| self.line(1, &item.to_string()));
        }
    }

    fn pairs<'a>(&mut self, pairs: impl Iterator<Item = (&'a str, String)>) {
        let pairs: Vec<_> = pairs.filter(|(_, value)| !value.is_empty()).collect();
        let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value) in pairs {
            self.line(1, &format!("{name:width$}  {value}"));
        }
    }

    /// Columns as wide as their widest cell, as kubectl prints them.
    fn table(&mut self, columns: &[&str], rows: Vec<Vec<String>>) {
        if rows.is_empty() {
            return;
        }
        let mut widths: Vec<usize> = columns.iter().map(|name| name.chars().count()).collect();
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let padded: Vec<String> =
                cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}", width = *width)).collect();
            self.line(1, &padded.join("   "));
        };
        line(&mut columns.iter().copied());
        for row in &rows {
            line(&mut row.iter().map(String::as_str));
        }
    }

    fn part(&mut self, mesh: &MeshView) {
        let role = if mesh.leader { "leads it" } else { "does not lead it" };
        let names = &mesh.interfaces;
        self.pairs(
            [
                ("location", format!("{}, this node {role}", mesh.location)),
                ("pods", mesh.subnet.to_string()),
                ("private address", text(mesh.private_ip)),
                ("WireGuard", format!("{}, UDP port {}", mesh.wireguard_cidr, mesh.listen_port)),
                ("MTU", format!("{}: {}", mesh.mtu.value, mesh.mtu.reason)),
                ("tunnel address", text(mesh.tunnel_address)),
                (
                    "links",
                    format!(
                        "{} (WireGuard), {} (private address), {} (tunnel)",
                        names.wireguard, names.private, names.tunnel
                    ),
                ),
            ]
            .into_iter(),
        );
    }

    fn segments(&mut self, mesh: &MeshView) {
        self.heading("Segments", mesh.segments.len());
        let rows = mesh.segments.iter().map(|segment| {
            vec![
                segment.location.clone(),
                segment.wireguard_ip.to_string(),
                segment.hostnames.get(segment.leader).cloned().unwrap_or_default(),
                endpoint(segment.endpoint.as_ref(), segment.endpoint_addr),
                short(&segment.hostnames),
                ranges(&segment.allowed_location_ips),
            ]
        });
        let columns = ["NAME", "WIREGUARD IP", "LEADER", "ENDPOINT", "NODES", "ALLOWED LOCATION IPS"];
        self.table(&columns, rows.collect());
    }

    fn device(&mut self, mesh: &MeshView) {
        let applied = if mesh.leader { "" } else { ", kept back because this node does not lead" };
        self.0.push('\n');
        self.line(0, &format!("WireGuard peers ({}){applied}", mesh.conf.peers.len()));
        let names = mesh.names();
        let rows = mesh.conf.peers.iter().map(|peer| {
            vec![
                names.get(&peer.public_key).cloned().unwrap_or_default(),
                peer.public_key.to_string(),
                endpoint(peer.endpoint.as_ref(), peer.endpoint_addr),
                keepalive(peer.persistent_keepalive),
                ranges(&peer.allowed_ips),
            ]
        });
        self.table(&["NAME", "KEY", "ENDPOINT", "KEEPALIVE", "ALLOWED IPS"], rows.collect());
    }

    fn firewall(&mut self, mesh: &MeshView) {
        let firewall = &mesh.firewall;
        let masquerade = &firewall.masquerade;
        let lists = [
            ("masquerade from", &masquerade.sources),
            ("masquerade to", &masquerade.destinations),
            ("but not to", &masquerade.except_destinations),
            ("forward", &firewall.forward.accept),
            ("IPIP from", &firewall.ipip.allow_sources),
        ];
        if lists.iter().any(|(_, list)| !list.is_empty()) {
            self.0.push('\n');
            self.line(0, "Firewall");
            self.pairs(lists.iter().map(|(name, list)| (*name, ranges(list))));
        }
    }

    fn left_out(&mut self, plan: &PlanView) {
        let nodes = plan.translated.nodes.iter().filter(|node| !node.ready).map(|node| &node.name);
        let peers =
            plan.translated.peers.iter().filter(|peer| !(peer.ready && peer.valid)).map(|peer| &peer.name);
        let lists: BTreeMap<&str, Vec<String>> =
            BTreeMap::from([("nodes", nodes.cloned().collect()), ("peers", peers.cloned().collect())]);
        if lists.values().any(|list| !list.is_empty()) {
            self.0.push('\n');
            self.line(0, "Not ready");
            self.pairs(lists.iter().map(|(name, list)| (*name, short(list))));
        }
    }
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn endpoint(endpoint: Option<&kilo_wireguard::Endpoint>, addr: Option<std::net::SocketAddr>) -> String {
    match (endpoint, addr) {
        (Some(endpoint), Some(addr)) if endpoint.dns().is_some() => format!("{endpoint} ({})", addr.ip()),
        (Some(endpoint), _) => endpoint.to_string(),
        (None, _) => String::new(),
    }
}

fn keepalive(seconds: u16) -> String {
    if seconds == 0 { String::new() } else { format!("{seconds}s") }
}

fn ranges(list: &[IpNet]) -> String {
    short(&list.iter().map(IpNet::to_string).collect::<Vec<_>>())
}

fn short(list: &[String]) -> String {
    let mut text = list.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if list.len() > SHOWN {
        // Writing to a String does not fail.
        let _ = write!(text, " and {} more", list.len() - SHOWN);
    }
    text
}
