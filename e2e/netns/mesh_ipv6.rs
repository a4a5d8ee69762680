//! A mesh that has IPv6 and nothing else: outside, between nodes, inside WireGuard and for pods.

use std::time::Duration;

use anyhow::{Result, ensure};
use kilo_e2e::mesh::{Mesh, Place};
use kilo_e2e::{Pingers, World, eventually, figure, tests};

tests![a_mesh_of_ipv6_alone(limit = 120)];

const SOON: Duration = Duration::from_secs(40);
const SUBNET: &str = "--subnet=fd00:4::/64";

fn a_mesh_of_ipv6_alone(world: &World) -> Result<()> {
    let place = Place::lay_out_ipv6(world)?;
    let mut mesh = Mesh::start_at(world, place, &["a1", "a2", "b1", "b2"], &[SUBNET])?;
    mesh.settle(SOON)?;
    mesh.admit("laptop", 77, SOON)?;
    let reach = mesh.reach_all(SOON)?;
    ensure!(reach.reached() == 4 * 3 + 2 * 4, "{reach}");
    mesh.kernels_as_planned(SOON)?;
    // Nothing of it goes by IPv4.
    for node in &mesh.place.nodes {
        let routes = node.ns.run("ip -4 route show table all proto 75")?;
        ensure!(routes.is_empty(), "{}: {routes}", node.name);
        ensure!(node.ns.run("ip -6 route show proto 75")?.contains("fd00:42:"), "{} has no routes", node.name);
    }

    // Packets of others go on while a Peer comes and goes, and while a leader goes.
    let laptop = &mesh.traveller("laptop")?.host;
    let pod = |name: &str| mesh.place.node(name).map(|node| &node.pod);
    let (a2, b1, b2) = (pod("a2")?, pod("b1")?, pod("b2")?);
    let pingers = Pingers::start([a2.to(b2), b2.to(a2), laptop.to(b1)])?;
    let key = kilo_e2e::mesh::stranger()?.to_string();
    mesh.state.put_peer("stranger", &key, "fd00:100::99".parse()?, None)?;
    let listed = |wanted: bool| {
        let ranges = mesh.place.node("a1")?.ns.run("wg show kilo0 allowed-ips")?;
        ensure!(ranges.contains("fd00:100::99/128") == wanted, "{ranges}");
        Ok(())
    };
    eventually(SOON, "the Peer is programmed", || listed(true))?;
    mesh.state.remove_peer("stranger")?;
    eventually(SOON, "the Peer is gone", || listed(false))?;
    let report = pingers.stop()?;
    ensure!(report.sent > 30 && report.lost == 0, "{report:?}");

    mesh.stop("a1", true)?;
    mesh.settle(SOON)?;
    mesh.configure_travellers(SOON)?;
    let without = mesh.reach_all(SOON)?;
    mesh.kernels_as_planned(SOON)?;
    figure(&format!(
        "IPv6 alone: {} pairs reach each other, {} without a1; {} of {} pings lost while a Peer came and went",
        reach.reached(),
        without.reached(),
        report.lost,
        report.sent
    ));
    Ok(())
}
