//! Whole agents with the kernel's WireGuard and its IPIP tunnels, in the virtual machine: three nodes in one
//! location, of which one is behind a router, and one node elsewhere.

use std::time::Duration;

use anyhow::{Result, ensure};
use kilo_e2e::mesh::{Mesh, Node, Place};
use kilo_e2e::{Ns, PingReport, Pingers, World, eventually, figure, tests};

tests![agents_with_ipip(hidden = true, limit = 900)];

const SOON: Duration = Duration::from_secs(60);
const KERNEL: &str = "--wireguard=kernel";
const KEEP: &str = "--clean-up=false";
const NODES: [&str; 4] = ["a1", "a2", "a3", "b1"];
/// Other than 1500, so that the tunnel's own cannot be right by chance.
const PRIVATE_MTU: u64 = 1420;
const IPIP_HEADER: u64 = 20;

fn agents_with_ipip(world: &World) -> Result<()> {
    let place = Place::lay_out_routed(world)?;
    for node in place.nodes.iter().filter(|node| node.location == "west") {
        node.ns.run(&format!("ip link set eth0 mtu {PRIVATE_MTU}"))?;
    }
    let before = [network(&place.node("a1")?.ns)?, network(&place.node("a2")?.ns)?];

    let mut mesh = Mesh::start_at(world, place, &NODES, &[KERNEL, KEEP, "--encapsulate=always"])?;
    converge(&mesh, ["tunl0", "tunl0", "tunl0"])?;
    for node in mesh.place.nodes.iter().filter(|node| node.location == "west") {
        let links = node.ns.json("ip -j link show dev tunl0")?;
        ensure!(links[0]["mtu"] == PRIVATE_MTU - IPIP_HEADER, "{}: {links}", node.name);
    }
    strangers_are_kept_out(world, &mut mesh)?;
    let restart = restart_changes_nothing(&mut mesh)?;

    again(&mut mesh, &[KERNEL, KEEP, "--encapsulate=crosssubnet"])?;
    converge(&mesh, ["eth0", "tunl0", "eth0"])?;

    // Without tunnels all nodes of a location must be neighbours. The Node begins anew, since a private address
    // that was published once stays.
    mesh.stop("a3", true)?;
    let a3 = mesh.place.node("a3")?;
    mesh.state.add_node(a3)?;
    a3.ns.run("ip address del 10.1.1.13/24 dev eth0")?;
    world.address(&a3.ns, "eth0", "10.1.0.13/24".parse()?)?;
    world.port(&Ns::existing("west")?, "lan", "a3")?;
    again(&mut mesh, &[KERNEL, KEEP, "--encapsulate=never"])?;
    converge(&mesh, ["eth0", "eth0", "eth0"])?;
    no_tunnel_stays_open(&mesh)?;

    for name in ["a1", "a2"] {
        mesh.stop(name, true)?;
        mesh.restart(name, &[KERNEL, "--clean-up-interface=true", "--encapsulate=always"])?;
    }
    mesh.settle(SOON)?;
    mesh.kernels_as_planned(SOON)?;
    for (name, before) in ["a1", "a2"].into_iter().zip(before) {
        mesh.stop(name, true)?;
        let after = network(&mesh.place.node(name)?.ns)?;
        ensure!(after == before, "{name} after a graceful stop:\n{after}\nbut at first:\n{before}");
    }
    figure(&format!(
        "always, crosssubnet, never: 12 of 12 pairs of pods each, kernels as planned; {restart}; a stranger's \
         IPIP is dropped; a graceful stop leaves nothing"
    ));
    Ok(())
}

/// Everybody reaches everybody, every kernel is as planned, and packets take these links: from a1 to a pod of
/// a2, from a1 to one of a3, and from a2 to one of b1, whose leader in between is a1.
pub(super) fn converge(mesh: &Mesh<'_>, links: [&str; 3]) -> Result<()> {
    mesh.settle(SOON)?;
    mesh.kernels_as_planned(SOON)?;
    let reach = mesh.reach_all(SOON)?;
    ensure!(reach.reached() == 12, "{reach}");
    for ((from, to), link) in [("a1", "a2"), ("a1", "a3"), ("a2", "b1")].into_iter().zip(links) {
        let (from, to) = (mesh.place.node(from)?, mesh.place.node(to)?);
        let route = from.ns.json(&format!("ip -j route get {}", to.pod.address))?;
        ensure!(route[0]["dev"] == link, "from {} to {}: {route}, not {link}", from.name, to.name);
    }
    let leaders = mesh.plans()?.values().filter(|plan| plan["leader"] == true).count();
    ensure!(leaders == 2, "{leaders} nodes lead");
    Ok(())
}

/// Restarts all agents with other flags, and starts those that were stopped.
fn again(mesh: &mut Mesh<'_>, flags: &[&str]) -> Result<()> {
    for name in NODES {
        if mesh.agents.contains_key(name) {
            mesh.stop(name, true)?;
        }
        mesh.restart(name, flags)?;
    }
    Ok(())
}

/// Somebody in the same network who is no node speaks IPIP: nothing comes through, until the firewall is gone.
fn strangers_are_kept_out(world: &World, mesh: &mut Mesh<'_>) -> Result<()> {
    let west = Ns::existing("west")?;
    let stranger = world.ns("stranger")?;
    world.cable((&stranger, "eth0"), (&west, "stranger"))?;
    world.port(&west, "lan", "stranger")?;
    world.address(&stranger, "eth0", "10.1.0.66/24".parse()?)?;
    stranger.sh(
        "ip link add to-a1 type ipip local 10.1.0.66 remote 10.1.0.11; ip link set to-a1 up
         ip route add 10.42.1.0/24 dev to-a1 src 10.1.0.66",
    )?;
    let pod = mesh.place.node("a1")?.pod.address;
    stranger.ping(mesh.place.node("a1")?.private)?;
    for _ in 0..3 {
        ensure!(stranger.ping(pod).is_err(), "a stranger's IPIP comes through");
    }
    mesh.agent("a1")?.freeze()?;
    let a1 = mesh.place.node("a1")?;
    let dropped = a1.ns.run("nft list chain inet kilo input")?;
    ensure!(dropped.contains("counter packets 3 "), "{dropped}");
    a1.ns.run("nft flush chain inet kilo input")?;
    eventually(SOON, "without the firewall a stranger comes through", || stranger.ping(pod))?;
    mesh.agent("a1")?.thaw()?;
    mesh.kernels_as_planned(SOON)?;
    ensure!(stranger.ping(pod).is_err(), "a stranger's IPIP comes through again");
    Ok(())
}

/// What the tunnels of before left is closed, and then the filter is gone, too.
fn no_tunnel_stays_open(mesh: &Mesh<'_>) -> Result<()> {
    for name in ["a1", "a2", "a3"] {
        let ns = &mesh.place.node(name)?.ns;
        eventually(SOON, "the tunnel is down", || {
            let links = ns.json("ip -j address show dev tunl0")?;
            ensure!(!links[0]["flags"].to_string().contains("\"UP\""), "{name}: {links}");
            ensure!(links[0]["addr_info"] == serde_json::json!([]), "{name}: {links}");
            ensure!(!ns.run("nft list table inet kilo")?.contains("chain input"), "{name} still filters IPIP");
            Ok(())
        })?;
    }
    let pod = mesh.place.node("a1")?.pod.address;
    ensure!(Ns::existing("stranger")?.ping(pod).is_err(), "a stranger's IPIP comes through");
    Ok(())
}

/// The leader's agent restarts, after a graceful stop and after SIGKILL, then all agents one after the other:
/// packets flow, and nobody sees a change of the network or of a peer.
fn restart_changes_nothing(mesh: &mut Mesh<'_>) -> Result<String> {
    let node = |name: &str| mesh.place.node(name);
    let (a1, a2, a3, b1) = (node("a1")?, node("a2")?, node("a3")?, node("b1")?);
    let ns = a1.ns.clone();
    let pairs = [(a1, a2), (a2, b1), (b1, a3), (a3, a1)];
    let pingers = Pingers::start(pairs.map(|(from, to)| from.pod.to(&to.pod)))?;
    let monitor = ns.spawn("monitor", &["ip", "monitor", "link", "address", "route", "rule"])?;
    let peers = settings(a1)?;
    let mut restart = |name: &str, gracefully| -> Result<()> {
        mesh.stop(name, gracefully)?;
        std::thread::sleep(Duration::from_secs(1));
        mesh.restart(name, &[KERNEL, KEEP, "--encapsulate=always"])?;
        mesh.settle(SOON)?;
        mesh.kernels_as_planned(SOON)?;
        ensure!(settings(mesh.place.node("a1")?)? == peers, "the settings of the device changed");
        let operations = mesh.agent(name)?.operations(&[])?;
        ensure!(operations == 0.0, "{name}: {operations} operations after a restart, gracefully: {gracefully}");
        Ok(())
    };
    restart("a1", true)?;
    restart("a1", false)?;
    NODES.into_iter().try_for_each(|name| restart(name, true))?;
    let PingReport { sent, lost, .. } = pingers.stop()?;
    ensure!(lost == 0 && sent > 100, "{lost} of {sent} pings lost");
    let changes = monitor.log();
    ensure!(changes.is_empty(), "a restart changed the network:\n{changes}");
    Ok(format!("two restarts of the leader, once killed, then one of each of {}: 0 operations, {lost} of {sent} pings lost", NODES.len()))
}

/// What `wg` shows of a device apart from what moves by itself: handshakes, counters and the endpoints learned.
fn settings(node: &Node) -> Result<Vec<String>> {
    let dump = node.ns.run("wg show kilo0 dump")?;
    Ok(dump
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            match fields.as_slice() {
                [key, psk, endpoint, ranges, _handshake, _received, _sent, keepalive] => {
                    [*key, psk, endpoint, ranges, keepalive].join(" ")
                }
                _ => line.to_owned(),
            }
        })
        .collect())
}

/// All of a node's network that agents touch, in lines, but for the tunnel that comes with the kernel's module
/// and then stays, down and without addresses.
fn network(ns: &Ns) -> Result<String> {
    let links = ns.json("ip -j address show")?;
    let mut text = String::new();
    for link in links.as_array().into_iter().flatten() {
        let mut line = String::new();
        let up = link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
        line.push_str(&format!("{} {}", link["ifname"], if up { "up" } else { "down" }));
        for address in link["addr_info"].as_array().into_iter().flatten() {
            if address["scope"] == "global" {
                line.push_str(&format!(" {}/{}", address["local"], address["prefixlen"]));
            }
        }
        if line != "\"tunl0\" down" {
            text.push_str(&line);
            text.push('\n');
        }
    }
    text.push_str(&ns.sh("ip -4 route show table all; ip -4 rule; ip -6 rule; nft list ruleset")?);
    Ok(text)
}
