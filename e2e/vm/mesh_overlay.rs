//! Whole agents beside flannel and Cilium, as far as their links can be imitated: a VXLAN that connects the pods
//! of all nodes, and with Cilium the IPIP link that it takes over. Three nodes in one location, of which one is
//! behind a router, and one node elsewhere.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use kilo_e2e::mesh::{Mesh, Node, Place};
use kilo_e2e::{World, eventually, figure, tests};

use super::mesh_ipip::converge;

tests![agents_with_flannel(limit = 900), agents_with_cilium(hidden = true, limit = 900)];

const SOON: Duration = Duration::from_secs(60);
const NODES: [&str; 4] = ["a1", "a2", "a3", "b1"];
/// Flags of our manifests.
const NO_PODS: [&str; 2] = ["--cni=false", "--local=false"];

/// An overlay of another network plugin.
struct Overlay {
    /// Its VXLAN link.
    vxlan: &'static str,
    /// The link with the node's own address in it.
    host: &'static str,
}

/// The link's address and the Ethernet address of a node in the overlay.
fn ends(overlay: &Overlay, node: &Node) -> Result<(IpAddr, String)> {
    let IpNet::V4(pods) = node.pod_cidr else { anyhow::bail!("a pod range of IPv6") };
    let [a, b, c, _] = pods.network().octets();
    // flannel's is the first of the pod range, Cilium's one that it picks.
    let address = if overlay.vxlan == overlay.host { [a, b, c, 0] } else { [10, 0, c, 7] };
    Ok((address.into(), format!("02:42:00:00:00:{c:02x}")))
}

impl Overlay {
    /// Makes the overlay of one location's nodes. To pods of other locations it has routes, too, which nobody
    /// answers on: their nodes cannot be reached from here.
    fn lay(&self, place: &Place) -> Result<()> {
        for node in &place.nodes {
            let (own, mac) = ends(self, node)?;
            let mut script = format!(
                "ip link add {vxlan} address {mac} type vxlan id 1 dstport 8472 local {private} nolearning
                 if [ {vxlan} != {host} ]; then ip link add {host} type dummy; ip link set {host} up; fi
                 ip address add {own}/32 dev {host}
                 ip link set {vxlan} up\n",
                vxlan = self.vxlan,
                host = self.host,
                private = node.private,
            );
            for other in place.nodes.iter().filter(|other| other.name != node.name) {
                let (address, mac) = ends(self, other)?;
                let (vxlan, private, pods) = (self.vxlan, other.private, other.pod_cidr);
                script.push_str(&format!(
                    "ip neigh add {address} lladdr {mac} dev {vxlan}
                     bridge fdb append {mac} dev {vxlan} dst {private}
                     ip route add {pods} via {address} dev {vxlan} onlink src {own}\n"
                ));
                if self.vxlan != self.host {
                    script.push_str(&format!("ip route add {address} dev {vxlan} src {own}\n"));
                }
            }
            node.ns.sh(&script)?;
        }
        Ok(())
    }
}

fn agents_with_flannel(world: &World) -> Result<()> {
    let overlay = Overlay { vxlan: "flannel.1", host: "flannel.1" };
    let place = Place::lay_out_routed(world)?;
    overlay.lay(&place)?;
    let flags =
        [NO_PODS[0], NO_PODS[1], "--wireguard=auto", "--compatibility=flannel", "--encapsulate=always"];
    let mesh = Mesh::start_at(world, place, &NODES, &flags)?;
    converge(&mesh, ["flannel.1", "flannel.1", "flannel.1"])?;
    let private = private_addresses(&mesh)?;
    figure(&format!("flannel: 12 of 12 pairs of pods, {private} private addresses from outside"));
    Ok(())
}

fn agents_with_cilium(world: &World) -> Result<()> {
    let overlay = Overlay { vxlan: "cilium_vxlan", host: "cilium_host" };
    let place = Place::lay_out_routed(world)?;
    overlay.lay(&place)?;
    for node in &place.nodes {
        // It is there since the kernel's module is.
        node.ns.sh("ip link set tunl0 down; ip link set tunl0 name cilium_tunl; ip link set cilium_tunl up")?;
    }
    let flags =
        [NO_PODS[0], NO_PODS[1], "--wireguard=auto", "--compatibility=cilium", "--encapsulate=crosssubnet"];
    let mut mesh = Mesh::start_at(world, place, &NODES, &flags)?;
    converge(&mesh, ["cilium_vxlan", "cilium_vxlan", "cilium_tunl"])?;
    let private = private_addresses(&mesh)?;
    let announced = std::fs::read_to_string(mesh.state.path().join("nodes/a2.yaml")).context("reading a2")?;
    ensure!(announced.contains("cni-compatibility-ip: 10.0.2.7/32"), "{announced}");

    // Cilium's link is not ours to remove, nor to change.
    for name in NODES {
        mesh.stop(name, true)?;
        let node = mesh.place.node(name)?;
        let links = node.ns.run("ip -o link show")?;
        ensure!(links.contains("cilium_tunl") && !links.contains("tunl0:"), "{name}: {links}");
        ensure!(!node.ns.run("ip route show table all")?.contains("proto 75"), "{name} keeps routes of ours");
    }
    figure(&format!("Cilium: 12 of 12 pairs of pods, {private} private addresses from outside"));
    Ok(())
}

/// From the other location every node is reached by its private address: those that do not lead by way of the
/// leader's rule for packets from WireGuard.
fn private_addresses(mesh: &Mesh<'_>) -> Result<usize> {
    let b1 = mesh.place.node("b1")?;
    let west = || mesh.place.nodes.iter().filter(|node| node.location == "west");
    for node in west() {
        let name = &node.name;
        eventually(SOON, &format!("{name} is reached from b1"), || b1.ns.ping(node.private))?;
    }
    let rules = mesh.place.node("a1")?.ns.run("ip rule")?;
    ensure!(rules.matches("iif kilo0 lookup 1107").count() == 2, "{rules}");
    Ok(west().count())
}
