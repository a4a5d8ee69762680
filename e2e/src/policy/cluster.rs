//! Two nodes on one LAN with agents in file mode, and the nine pods of the recorded connectivity cases on routed links.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use kilo_testkit::netns::{Ns, Process, World};

use super::{Ask, Prober};
use crate::mesh::StateDir;
use crate::program;

/// The pods of the recorded cases: the name in a table, the number of its node, the last part of its address.
pub const POD_NAMES: [(&str, u8, u8); 9] = [
    ("pod/x/a", 0, 10),
    ("pod/x/b", 1, 10),
    ("pod/x/c", 0, 11),
    ("pod/y/a", 1, 11),
    ("pod/y/b", 0, 12),
    ("pod/y/c", 1, 12),
    ("pod/z/a", 0, 13),
    ("pod/z/b", 1, 13),
    ("pod/z/c", 0, 14),
];

/// The running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// The objects.
    pub state: StateDir,
    /// The namespaces of the nodes.
    pub nodes: Vec<Ns>,
    /// The probers, in the order of [`POD_NAMES`].
    probers: Vec<Prober>,
    _agents: Vec<Process>,
}

impl Cluster {
    /// Lays it out and starts the agents with these flags of the policy engine.
    pub fn start(world: &World, flags: &[&str]) -> Result<Self> {
        ["ip", "nft"].iter().try_for_each(|program| world.need(program))?;
        world.need_tun()?;
        let state = StateDir::new(world.dir().join("state"))?;
        let lan = world.ns("lan")?;
        world.bridge(&lan, "lan")?;
        let mut nodes = Vec::new();
        for n in 0..2_u8 {
            let name = format!("node-{}", n + 1);
            let ns = world.ns(&name)?;
            world.cable((&ns, "eth0"), (&lan, &name))?;
            world.port(&lan, "lan", &name)?;
            world.address(&ns, "eth0", format!("192.168.10.{}/24", n + 1).parse()?)?;
            world.address(&ns, "eth0", format!("fd00:10::{}/64", n + 1).parse()?)?;
            world.bridge(&ns, "kube-bridge")?;
            world.address(&ns, "kube-bridge", format!("10.244.{n}.1/24").parse()?)?;
            world.forward(&ns)?;
            let other = 1 - n;
            world.route(
                &ns,
                &format!("fd00:244:{other}::/64"),
                format!("fd00:10::{}", other + 1).parse()?,
            )?;
            state.put(
                &format!("nodes/{name}.yaml"),
                &format!(
                    "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    topology.kubernetes.io/region: west\n  \
                     annotations:\n    kilo.squat.ai/force-internal-ip: 192.168.10.{0}/24\n    \
                     kilo.squat.ai/force-endpoint: 192.168.10.{0}:51820\nspec:\n  podCIDR: 10.244.{n}.0/24\n  \
                     podCIDRs: [10.244.{n}.0/24, \"fd00:244:{n}::/64\"]\n",
                    n + 1
                ),
            )?;
            nodes.push(ns);
        }
        let probers = POD_NAMES
            .iter()
            .map(|&(name, node, last)| {
                let node = nodes.get(usize::from(node)).context("a node")?;
                lay_pod(world, node, name, last)
            })
            .collect::<Result<_>>()?;
        let agents = nodes.iter().map(|ns| agent(ns, &state, flags)).collect::<Result<_>>()?;
        Ok(Self { state, nodes, probers, _agents: agents })
    }

    /// The address of a pod by its place in [`POD_NAMES`].
    pub fn address(pod: usize, ipv6: bool) -> Result<IpAddr> {
        let (_, node, last) = POD_NAMES.get(pod).context("a pod")?;
        let text = if ipv6 { format!("fd00:244:{node}::{last}") } else { format!("10.244.{node}.{last}") };
        text.parse().with_context(|| text)
    }

    /// Tries all pairs of pods on these ports (`80`, `tcp`): for each, from, to, which port, and whether it answered.
    pub fn probe(&mut self, ports: &[(u16, String)], ipv6: bool) -> Result<Vec<(usize, usize, usize, bool)>> {
        let mut cells = Vec::new();
        for from in 0..POD_NAMES.len() {
            let mut asks = Vec::new();
            for to in (0..POD_NAMES.len()).filter(|&to| to != from) {
                for (port, protocol) in ports {
                    let to = SocketAddr::new(Self::address(to, ipv6)?, *port);
                    asks.push(Ask { protocol: protocol.clone(), to });
                }
            }
            self.probers.get_mut(from).context("a prober")?.ask(&asks)?;
        }
        for (from, prober) in self.probers.iter_mut().enumerate() {
            let others = (0..POD_NAMES.len()).filter(|&to| to != from);
            let asked = others.flat_map(|to| (0..ports.len()).map(move |port| (to, port)));
            cells.extend(asked.zip(prober.answers()?).map(|((to, port), answer)| (from, to, port, answer)));
        }
        Ok(cells)
    }
}

/// A pod on a link of its own that the node routes to.
fn lay_pod(world: &World, node: &Ns, name: &str, last: u8) -> Result<Prober> {
    let name = name.trim_start_matches("pod/").replace('/', "-");
    let ns = world.ns(&name)?;
    let link = format!("veth-{name}");
    world.cable((&ns, "eth0"), (node, &link))?;
    let number = if node.name() == "node-1" { 0 } else { 1 };
    ns.sh(&format!(
        "ip address add 10.244.{number}.{last}/32 dev eth0; ip route add 10.244.{number}.1 dev eth0; \
         ip route add default via 10.244.{number}.1; ip address add fd00:244:{number}::{last}/128 dev eth0 nodad; \
         ip -6 route add default via fe80::1 dev eth0"
    ))?;
    node.sh(&format!(
        "ip address add fe80::1/64 dev {link} nodad; ip route add 10.244.{number}.{last}/32 dev {link}; \
         ip -6 route add fd00:244:{number}::{last}/128 dev {link}"
    ))?;
    Prober::start(&ns, &[80, 81])
}

fn agent(ns: &Ns, state: &StateDir, flags: &[&str]) -> Result<Process> {
    let kg = program("kg")?;
    let mut argv = vec![
        kg.to_string_lossy().into_owned(),
        format!("--hostname={}", ns.name()),
        format!("--data-dir={}", ns.dir().join("lib").display()),
        format!("--state-dir={}", state.path().display()),
    ];
    let fixed = [
        "--backend=file",
        "--cni=false",
        "--listen=127.0.0.1:1107",
        "--wireguard=userspace",
        "--encapsulate=never",
        "--log-format=text",
    ];
    argv.extend(fixed.iter().chain(flags).map(|&flag| flag.to_owned()));
    ns.spawn("kg", &argv)
}
