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
    /// The namespace of its location's switch.
    pub(super) switch: &'static str,
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
    land: &'static Land,
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

/// The networks of a ground, apart from the locations' own.
#[derive(Debug)]
struct Land {
    /// The internet's gateway of west, with the length of its network.
    west: &'static str,
    /// That of east, where those on the road are, too.
    east: &'static str,
    /// What addresses of those on the road begin with, before their number.
    road: &'static str,
    /// The same of their addresses inside the mesh.
    travellers: &'static str,
    /// What pod ranges begin with, before the node's number.
    pods: &'static str,
    /// What comes after it in a pod range, in the node's address there, and in its pod's.
    ends: [&'static str; 3],
}

static IPV4: Land = Land {
    west: "203.0.113.1/24",
    east: "198.51.100.1/24",
    road: "198.51.100.",
    travellers: "10.100.0.",
    pods: "10.42.",
    ends: [".0/24", ".1/24", ".2/24"],
};

static IPV6: Land = Land {
    west: "2001:db8:1::1/64",
    east: "2001:db8:2::1/64",
    road: "2001:db8:2::",
    travellers: "fd00:100::",
    pods: "fd00:42:",
    ends: ["::/64", "::1/64", "::2/64"],
};

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

/// Four nodes with IPv6 and nothing else, and no NAT.
const PLOTS6: [Plot; 4] = [
    Plot { private: "fd00:1::11/64", public: Some("2001:db8:1::11/64"), ..PLOTS[0] },
    Plot { private: "fd00:1::12/64", public: Some("2001:db8:1::12/64"), ..PLOTS[1] },
    Plot { private: "fd00:2::11/64", public: Some("2001:db8:2::11/64"), ..PLOTS[2] },
    Plot { private: "fd00:2::12/64", public: Some("2001:db8:2::12/64"), ..PLOTS[3] },
];

impl Place {
    /// Lays everything out. Nodes reach their own location and the internet; pods reach their node.
    pub fn lay_out(world: &World) -> Result<Self> {
        Self::lay_out_for(world, 4)
    }

    /// As [`lay_out`](Self::lay_out) with this many nodes, five at most: `b3` is the fifth.
    pub fn lay_out_for(world: &World, nodes: usize) -> Result<Self> {
        let plots = PLOTS.get(..nodes).with_context(|| format!("there is no ground for {nodes} nodes"))?;
        Self::lay(world, &IPV4, plots)
    }

    /// Lays out `a1` and `a2` in one network of west, `a3` in another behind a router, and `b1` in east.
    pub fn lay_out_routed(world: &World) -> Result<Self> {
        Self::lay(world, &IPV4, &ROUTED)
    }

    /// Lays out four nodes as [`lay_out`](Self::lay_out) does, all of it IPv6.
    pub fn lay_out_ipv6(world: &World) -> Result<Self> {
        Self::lay(world, &IPV6, &PLOTS6)
    }

    fn lay(world: &World, land: &'static Land, plots: &[Plot]) -> Result<Self> {
        let internet = world.ns("internet")?;
        for (bridge, gateway) in [("west", land.west), ("east", land.east)] {
            world.bridge(&internet, bridge)?;
            world.address(&internet, bridge, gateway.parse()?)?;
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
        if plots.iter().any(|plot| plot.public.is_none()) {
            world.address(&east, LAN, "192.168.2.1/24".parse()?)?;
            uplink(world, (&internet, "east", land.east), &east, "wan", "198.51.100.2/24".parse()?)?;
            world.nat(&east, "wan")?;
        }

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
                Some(public) => {
                    let gateway = if plot.location == "west" { land.west } else { land.east };
                    uplink(world, (&internet, plot.location, gateway), &ns, "eth1", public)?;
                }
                None => world.route(&ns, "default", "192.168.2.1".parse()?)?,
            }
            let (pod, pod_cidr) = lay_pod(world, &ns, land, plot)?;
            nodes.push(Node {
                name: plot.name.to_owned(),
                location: plot.location,
                switch: plot.location,
                behind_nat: public.is_none(),
                pod_cidr,
                private: private.addr(),
                public: public.map(|public| public.addr()),
                ns,
                pod,
            });
        }
        Ok(Self { nodes, land, internet })
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .ok_or_else(|| anyhow::anyhow!("there is no node {name}"))
    }

    /// The address of a machine on the internet, `198.51.100.NUMBER`, and of a traveller in the mesh,
    /// `10.100.0.NUMBER`.
    pub fn addresses(&self, number: u8) -> Result<(IpAddr, IpAddr)> {
        let address = |begin: &str| format!("{begin}{number}").parse::<IpAddr>();
        Ok((address(self.land.road)?, address(self.land.travellers)?))
    }

    /// A machine with nothing but an address on the internet.
    pub fn traveller(&self, world: &World, name: &str, number: u8) -> Result<Ns> {
        let ns = world.ns(name)?;
        let gateway: IpNet = self.land.east.parse()?;
        let address = IpNet::new(self.addresses(number)?.0, gateway.prefix_len())?;
        uplink(world, (&self.internet, "east", self.land.east), &ns, "eth0", address)?;
        Ok(ns)
    }
}

/// Connects a namespace to a bridge of the internet with its gateway.
fn uplink(
    world: &World,
    (internet, bridge, gateway): (&Ns, &str, &str),
    ns: &Ns,
    link: &str,
    address: IpNet,
) -> Result<()> {
    let port = format!("to-{}", ns.name());
    world.cable((ns, link), (internet, &port))?;
    world.port(internet, bridge, &port)?;
    world.address(ns, link, address)?;
    world.route(ns, "default", gateway.parse::<IpNet>()?.addr())
}

/// A bridge on the node and a pod at it, as the CNI plugins of Kilo's manifests leave them.
fn lay_pod(world: &World, node: &Ns, land: &Land, plot: &Plot) -> Result<(Host, IpNet)> {
    let [range, bridge, address] =
        land.ends.map(|end| format!("{}{}{end}", land.pods, plot.number).parse::<IpNet>());
    let (range, bridge, address) = (range?, bridge?, address?);
    world.bridge(node, "kube-bridge")?;
    world.address(node, "kube-bridge", bridge)?;
    let name = format!("pod-{}", plot.name);
    let ns = world.ns(&name)?;
    world.cable((&ns, "eth0"), (node, "veth0"))?;
    world.port(node, "kube-bridge", "veth0")?;
    world.address(&ns, "eth0", address)?;
    world.route(&ns, "default", bridge.addr())?;
    Ok((Host::listen(ns, address.addr())?, range))
}
