//! The ground: locations, nodes, pods and cables, before any agent runs.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use kilo_testkit::netns::{Ns, World};

use super::Host;

/// A machine that runs an agent, and its pod.
#[derive(Debug)]
pub struct Node {
    /// The name of the Node object and of the namespace.
    pub name: String,
    /// `topology.kubernetes.io/region`.
    pub location: &'static str,
    /// Behind NAT: others cannot call it, so it keeps its sessions alive.
    pub behind_nat: bool,
    /// The range of its pods.
    pub pod_cidr: IpNet,
    /// Its address in its location.
    pub private: IpAddr,
    /// Its address on the internet, if it has one.
    pub public: Option<IpAddr>,
    /// Where its agent runs.
    pub ns: Ns,
    /// Its pod.
    pub pod: Host,
}

/// All of the ground.
#[derive(Debug)]
pub struct Place {
    /// The nodes, by name.
    pub nodes: Vec<Node>,
    internet: Ns,
}

/// What is told about a node.
#[derive(Clone, Copy)]
struct Plot {
    name: &'static str,
    location: &'static str,
    number: u8,
    /// Which network of its location it is in.
    lan: &'static str,
    private: &'static str,
    public: Option<&'static str>,
}

const LAN: &str = "lan";
/// The second network of west, behind a router.
const FAR: &str = "far";

/// Those after the fourth are used only where somebody asks for more.
const PLOTS: [Plot; 5] = [
    Plot {
        name: "a1",
        location: "west",
        number: 1,
        lan: LAN,
        private: "10.1.0.11/24",
        public: Some("203.0.113.11/24"),
    },
    Plot {
        name: "a2",
        location: "west",
        number: 2,
        lan: LAN,
        private: "10.1.0.12/24",
        public: Some("203.0.113.12/24"),
    },
    Plot { name: "b1", location: "east", number: 3, lan: LAN, private: "192.168.2.11/24", public: None },
    Plot { name: "b2", location: "east", number: 4, lan: LAN, private: "192.168.2.12/24", public: None },
    Plot { name: "b3", location: "east", number: 5, lan: LAN, private: "192.168.2.13/24", public: None },
];

/// Three in west, one of them in a network of its own, and one in east.
const ROUTED: [Plot; 4] = [
    PLOTS[0],
    PLOTS[1],
    Plot {
        name: "a3",
        location: "west",
        number: 6,
        lan: FAR,
        private: "10.1.1.13/24",
        public: Some("203.0.113.13/24"),
    },
    PLOTS[2],
];

const WEST_GATEWAY: &str = "203.0.113.1";
const EAST_GATEWAY: &str = "198.51.100.1";

impl Place {
    /// Lays everything out. Nodes reach their own location and the internet; pods reach their node.
    pub fn lay_out(world: &World) -> Result<Self> {
        Self::lay_out_for(world, 4)
    }

    /// As [`lay_out`](Self::lay_out) with this many nodes, five at most: `b3` is the fifth.
    pub fn lay_out_for(world: &World, nodes: usize) -> Result<Self> {
        let plots = PLOTS.get(..nodes).with_context(|| format!("there is no ground for {nodes} nodes"))?;
        Self::lay(world, plots)
    }

    /// Lays out `a1` and `a2` in one network of west, `a3` in another behind a router, and `b1` in east.
    pub fn lay_out_routed(world: &World) -> Result<Self> {
        Self::lay(world, &ROUTED)
    }

    fn lay(world: &World, plots: &[Plot]) -> Result<Self> {
        let internet = world.ns("internet")?;
        for (bridge, gateway) in [("west", WEST_GATEWAY), ("east", EAST_GATEWAY)] {
            world.bridge(&internet, bridge)?;
            world.address(&internet, bridge, format!("{gateway}/24").parse()?)?;
        }
        world.forward(&internet)?;

        let west = world.ns("west")?;
        world.bridge(&west, LAN)?;
        let routed = plots.iter().any(|plot| plot.lan == FAR);
        if routed {
            world.bridge(&west, FAR)?;
            world.address(&west, LAN, "10.1.0.1/24".parse()?)?;
            world.address(&west, FAR, "10.1.1.1/24".parse()?)?;
            world.forward(&west)?;
        }
        let east = world.ns("east")?;
        world.bridge(&east, LAN)?;
        world.address(&east, LAN, "192.168.2.1/24".parse()?)?;
        uplink(world, &internet, "east", &east, "wan", "198.51.100.2/24".parse()?, EAST_GATEWAY)?;
        world.nat(&east, "wan")?;

        let mut nodes = Vec::new();
        for plot in plots {
            let ns = world.ns(plot.name)?;
            let lan = if plot.location == "west" { &west } else { &east };
            world.cable((&ns, "eth0"), (lan, plot.name))?;
            world.port(lan, plot.lan, plot.name)?;
            let private: IpNet = plot.private.parse()?;
            world.address(&ns, "eth0", private)?;
            if routed && plot.location == "west" {
                let router = if plot.lan == FAR { "10.1.1.1" } else { "10.1.0.1" };
                world.route(&ns, "10.1.0.0/16", router.parse()?)?;
            }
            let public: Option<IpNet> = plot.public.map(str::parse).transpose()?;
            match public {
                Some(public) => uplink(world, &internet, "west", &ns, "eth1", public, WEST_GATEWAY)?,
                None => world.route(&ns, "default", "192.168.2.1".parse()?)?,
            }
            let (pod, pod_cidr) = lay_pod(world, &ns, plot)?;
            nodes.push(Node {
                name: plot.name.to_owned(),
                location: plot.location,
                behind_nat: public.is_none(),
                pod_cidr,
                private: private.addr(),
                public: public.map(|public| public.addr()),
                ns,
                pod,
            });
        }
        Ok(Self { nodes, internet })
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .ok_or_else(|| anyhow::anyhow!("there is no node {name}"))
    }

    /// A machine with nothing but an address on the internet, `198.51.100.NUMBER`.
    pub fn traveller(&self, world: &World, name: &str, number: u8) -> Result<Ns> {
        let ns = world.ns(name)?;
        let address = format!("198.51.100.{number}/24").parse()?;
        uplink(world, &self.internet, "east", &ns, "eth0", address, EAST_GATEWAY)?;
        Ok(ns)
    }
}

/// Connects a namespace to the internet.
fn uplink(
    world: &World,
    internet: &Ns,
    bridge: &str,
    ns: &Ns,
    link: &str,
    address: IpNet,
    gateway: &str,
) -> Result<()> {
    let port = format!("to-{}", ns.name());
    world.cable((ns, link), (internet, &port))?;
    world.port(internet, bridge, &port)?;
    world.address(ns, link, address)?;
    world.route(ns, "default", gateway.parse()?)
}

/// A bridge on the node and a pod at it, as the CNI plugins of Kilo's manifests leave them.
fn lay_pod(world: &World, node: &Ns, plot: &Plot) -> Result<(Host, IpNet)> {
    let range = format!("10.42.{}", plot.number);
    world.bridge(node, "kube-bridge")?;
    world.address(node, "kube-bridge", format!("{range}.1/24").parse()?)?;
    let name = format!("pod-{}", plot.name);
    let ns = world.ns(&name)?;
    world.cable((&ns, "eth0"), (node, "veth0"))?;
    world.port(node, "kube-bridge", "veth0")?;
    let address: IpNet = format!("{range}.2/24").parse()?;
    world.address(&ns, "eth0", address)?;
    world.route(&ns, "default", format!("{range}.1").parse()?)?;
    Ok((Host::listen(ns, address.addr())?, address.trunc()))
}
