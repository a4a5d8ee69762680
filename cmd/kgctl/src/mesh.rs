//! From what was read and the flags that were given to what a plan is made from.

#[cfg(feature = "cluster")]
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use kilo_agent::view::FactsView;
use kilo_mesh::{Config, Facts, Finding, Granularity, HostFacts, Node, Peer, Topology};

use crate::args::{AgentArgs, Global, MeshGranularity, Source};
use crate::error::message;
use crate::input::{self, Input};
use crate::out;

/// A mesh at a moment: objects, understood, and the settings that all its agents share.
#[derive(Debug)]
pub struct Mesh {
    /// The objects as they were read.
    pub input: Input,
    /// Nodes, in the order of the input.
    pub nodes: Vec<Node>,
    /// Peers, in the order of the input.
    pub peers: Vec<Peer>,
    /// What is wrong with objects.
    pub findings: Vec<Finding>,
    /// What was taken for granted.
    notes: Vec<&'static str>,
    /// Settings; the local node's name is that of a plan that was read, or empty.
    pub config: Config,
    /// Time, names and machines; the time is always there.
    pub facts: FactsView,
    /// Seconds since 1970 (UTC).
    pub now: u64,
}

impl Mesh {
    /// Understands the objects. Flags win over the settings of a plan that was read, those over defaults.
    pub fn new(input: Input, facts: Option<FactsView>, global: &Global, agent: &AgentArgs) -> Self {
        let mut config = input.config.clone().unwrap_or_default();
        if let Some(label) = &global.topology_label {
            config.topology_label.clone_from(label);
        }
        config.port = global.port.unwrap_or(config.port);
        let mut findings = input.findings.clone();
        let mut nodes: Vec<Node> = input
            .nodes
            .iter()
            .map(|object| {
                let (node, found) = Node::from_object(object, &config.topology_label);
                findings.extend(found);
                node
            })
            .collect();
        let peers: Vec<Peer> = input
            .peers
            .iter()
            .map(|object| {
                let (peer, found) = Peer::from_object(object);
                findings.extend(found);
                peer
            })
            .collect();
        let facts = facts.unwrap_or_default();
        facts.hold(&mut nodes);
        let now = facts.now.or(input.now);
        let now = now.unwrap_or_else(|| if input.live { clock() } else { newest(&nodes) });
        let replayed = input.config.is_some();
        if !replayed && let Some(subnet) = announced_subnet(&nodes) {
            config.subnet = subnet;
        }
        agent.apply(&mut config);
        let mut mesh = Self { input, nodes, peers, findings, notes: Vec::new(), config, facts, now };
        mesh.config.granularity = match global.mesh_granularity {
            MeshGranularity::Location => Granularity::Location,
            MeshGranularity::Full => Granularity::Full,
            MeshGranularity::Auto if replayed => mesh.config.granularity,
            MeshGranularity::Auto => mesh.announced_granularity(),
        };
        mesh
    }

    /// Reads and understands what the flags name.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn read(global: &Global, source: &Source, agent: &AgentArgs) -> anyhow::Result<Self> {
        let stdin = |path: &PathBuf| path.as_os_str() == "-";
        if source.facts.as_ref().is_some_and(stdin) && source.filename.iter().any(stdin) {
            return Err(message("the standard input (-) can be read only once"));
        }
        let facts = source.facts.as_deref().map(input::read_facts).transpose()?;
        #[cfg(feature = "cluster")]
        let resolve = facts.is_none() && source.filename.is_empty();
        let input = if source.filename.is_empty() { live(global)? } else { input::read(&source.filename)? };
        let mesh = Self::new(input, facts, global, agent);
        #[cfg(feature = "cluster")]
        if resolve {
            return mesh.resolved();
        }
        Ok(mesh)
    }

    /// Resolves the names of all endpoints.
    #[cfg(feature = "cluster")]
    fn resolved(mut self) -> anyhow::Result<Self> {
        self.facts.dns = crate::cluster::resolve(self.names())?;
        Ok(self)
    }

    /// The names of all endpoints.
    #[cfg(feature = "cluster")]
    pub fn names(&self) -> BTreeSet<String> {
        let nodes = self.nodes.iter().map(|node| &node.endpoint);
        let endpoints = nodes.chain(self.peers.iter().map(|peer| &peer.endpoint)).flatten();
        endpoints.filter_map(|endpoint| endpoint.dns()).map(str::to_owned).collect()
    }

    /// Has further ranges reached by the first ready node by name.
    #[cfg(all(feature = "connect", target_os = "linux"))]
    pub fn reach_further(&mut self, ranges: &[IpNet]) {
        let (now, expiry) = (self.now, self.config.node_expiry);
        let ready = self.nodes.iter_mut().filter(|node| node.ready(now, expiry));
        if let Some(first) = ready.min_by(|a, b| a.name.cmp(&b.name)) {
            let all = first.allowed_location_ips.iter().chain(ranges);
            first.allowed_location_ips = all.copied().collect();
        }
    }

    /// Tells on the standard error what was taken for granted.
    pub fn tell_notes(&self) {
        self.notes.iter().for_each(|note| out::note(&format!("note: {note}")));
    }

    /// Tells on the standard error what was taken for granted and what is wrong with objects.
    pub fn tell(&self) {
        self.tell_notes();
        self.findings.iter().for_each(|finding| out::note(&format!("warning: {finding}")));
    }

    /// The mesh as this node computes it, with what is found wrong on the way. Endpoints that a device has seen
    /// are those that the nodes publish.
    ///
    /// # Errors
    /// When the WireGuard subnet is too small.
    pub fn topology(&self, node: &Node) -> anyhow::Result<(Topology, Vec<Finding>)> {
        let config = Config { hostname: node.name.to_string(), ..self.config.clone() };
        let nodes: Vec<&Node> = self.nodes.iter().collect();
        let peers: Vec<&Peer> = self.peers.iter().collect();
        Ok(Topology::new(&config, &nodes, &peers, &self.facts_of(node))?)
    }

    /// The peer of this name, if it takes part.
    ///
    /// # Errors
    /// Says why it does not.
    pub fn ready_peer(&self, name: &str) -> anyhow::Result<&Peer> {
        let peer = self
            .peers
            .iter()
            .find(|peer| *peer.name == *name)
            .ok_or_else(|| message(format!("peer {name:?} not found")))?;
        if peer.ready() {
            return Ok(peer);
        }
        let object = format!("Peer/{name}");
        let why = self.findings.iter().find(|finding| finding.object == object);
        Err(message(why.map_or_else(|| format!("peer {name:?} is not ready"), ToString::to_string)))
    }

    /// Resolves the names of all endpoints, as another mesh has it where that knows a name.
    ///
    /// # Errors
    /// When this machine cannot even begin.
    #[cfg(feature = "cluster")]
    pub fn resolved_like(self, other: &Self) -> anyhow::Result<Self> {
        let mut mesh = self.resolved()?;
        mesh.facts.dns.extend(other.facts.dns.clone());
        Ok(mesh)
    }

    /// What most ready nodes say, in a tie the one said first; the agent's default where none says anything.
    fn announced_granularity(&mut self) -> Granularity {
        let said: Vec<Granularity> = self.ready_nodes().filter_map(|node| node.granularity).collect();
        let Some(first) = said.first().copied() else {
            if self.ready_nodes().next().is_some() {
                self.notes.push("no ready node announces its granularity; it is taken to be location");
            }
            return Granularity::default();
        };
        let firsts = said.iter().filter(|granularity| **granularity == first).count();
        let other = match first {
            Granularity::Location => Granularity::Full,
            Granularity::Full => Granularity::Location,
        };
        if firsts < said.len() {
            self.notes.push("the nodes announce different granularities; that of most is taken");
        }
        if 2 * firsts >= said.len() { first } else { other }
    }

    /// The nodes that take part.
    pub fn ready_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.ready(self.now, self.config.node_expiry))
    }

    /// The node of this name, if it takes part.
    ///
    /// # Errors
    /// Says why it does not.
    pub fn ready_node(&self, name: &str) -> anyhow::Result<&Node> {
        let node = self.node(name)?;
        let reason = if node.ready(self.now, self.config.node_expiry) {
            return Ok(node);
        } else if node.endpoint.is_none() {
            "has no endpoint".to_owned()
        } else if node.key.is_none() {
            "has no WireGuard key".to_owned()
        } else if node.subnet.is_none() {
            "has no pod range".to_owned()
        } else {
            let ago = i128::from(self.now) - i128::from(node.last_seen);
            format!("was last seen {ago} s ago, more than {} s", self.config.node_expiry)
        };
        Err(message(format!("node {name:?} is not ready: it {reason}")))
    }

    /// The node of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> anyhow::Result<&Node> {
        self.nodes
            .iter()
            .find(|node| *node.name == *name)
            .ok_or_else(|| message(format!("node {name:?} not found")))
    }

    /// What a plan of this node takes from outside. Of a machine that the facts do not name, it is what its
    /// Node says.
    pub fn facts_of(&self, node: &Node) -> Facts {
        let host = self.facts.hosts.get(&*node.name).cloned().unwrap_or_else(|| HostFacts {
            public_key: node.key,
            internal_ip: node.internal_ip,
            external_ip: node
                .endpoint
                .as_ref()
                .and_then(|endpoint| endpoint.addr())
                .map(|addr| addr.ip().into()),
            cni_compatibility_ip: node.cni_compatibility_ip,
            ..HostFacts::default()
        });
        Facts { now: self.now, dns: self.facts.dns.clone(), host }
    }
}

#[cfg(feature = "cluster")]
fn live(global: &Global) -> anyhow::Result<Input> {
    let mut input = crate::cluster::read(global)?;
    input.settle();
    Ok(input)
}

#[cfg(not(feature = "cluster"))]
fn live(_global: &Global) -> anyhow::Result<Input> {
    Err(message("this kgctl was built without access to clusters: give it files with -f"))
}

/// The newest check-in of all nodes, so that a dump stays what it was when it was taken.
fn newest(nodes: &[Node]) -> u64 {
    nodes.iter().filter_map(|node| u64::try_from(node.last_seen).ok()).max().unwrap_or(0)
}

/// This machine's clock, in seconds since 1970.
pub fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The range that the last node with a WireGuard IP took it from, as upstream has it.
fn announced_subnet(nodes: &[Node]) -> Option<IpNet> {
    nodes.iter().rev().find_map(|node| node.wireguard_ip).map(|ip| ip.trunc())
}
