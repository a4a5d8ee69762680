//! Changes while packets flow: Peers come, change and go, agents restart, and nobody else notices.

use std::time::Duration;

use anyhow::{Result, ensure};
use kilo_e2e::mesh::{Mesh, stranger};
use kilo_e2e::{Pingers, World, eventually, tests};

tests![
    two_locations_converge(limit = 120),
    peers_come_and_go_without_loss(limit = 120),
    restart_keeps_everything(limit = 120),
];

const SOON: Duration = Duration::from_secs(30);

fn two_locations_converge(world: &World) -> Result<()> {
    let mut mesh = Mesh::start(world, &[])?;
    mesh.settle(SOON)?;
    mesh.admit("laptop", 77, SOON)?;
    let reach = mesh.reach_all(SOON)?;
    ensure!(reach.reached() == 4 * 3 + 4 * 2, "{reach}");
    mesh.kernels_as_planned(SOON)?;

    // What others do to a node is seen by the comparison and mended by its agent.
    let plans = mesh.plans()?;
    mesh.agent("b2")?.freeze()?;
    let b2 = mesh.place.node("b2")?;
    b2.ns.run("ip route del 10.42.1.0/24")?;
    b2.ns.run("nft flush chain inet kilo postrouting")?;
    let found = mesh.differences(&plans)?;
    let expected = ["b2: route 10.42.1.0/24", "b2: masquerade rule 1"];
    ensure!(expected.iter().all(|what| found.iter().any(|line| line.starts_with(what))), "{found:?}");
    ensure!(found.iter().all(|line| line.starts_with("b2: ")), "{found:?}");
    mesh.agent("b2")?.thaw()?;
    mesh.kernels_as_planned(SOON)?;
    mesh.reach_all(SOON)?;
    Ok(())
}

fn peers_come_and_go_without_loss(world: &World) -> Result<()> {
    let mut mesh = Mesh::start(world, &[])?;
    mesh.settle(SOON)?;
    mesh.admit("laptop", 77, SOON)?;
    mesh.reach_all(SOON)?;
    let laptop = &mesh.traveller("laptop")?.host;
    let (a1, b2) = (mesh.place.node("a1")?, mesh.place.node("b2")?);
    let pingers = Pingers::start([laptop.to(&b2.pod), a1.pod.to(&b2.pod)])?;

    let key = stranger()?.to_string();
    let listed = |expected: bool, range: &str| {
        for name in ["a1", "b1"] {
            let node = mesh.place.node(name)?;
            eventually(SOON, &format!("the peer is right on {name}"), || {
                let found = node.ns.run("wg show kilo0 allowed-ips")?;
                let line = found.lines().find(|line| line.starts_with(&key));
                ensure!(line.is_some() == expected, "{found}");
                ensure!(line.is_none_or(|line| line.ends_with(range)), "{found}");
                Ok(())
            })?;
        }
        anyhow::Ok(())
    };
    for range in ["10.100.0.200/32", "10.100.0.201/32"] {
        let address = range.trim_end_matches("/32").parse()?;
        mesh.state.put_peer("stranger", &key, address, None)?;
        listed(true, range)?;
    }
    mesh.state.remove_peer("stranger")?;
    listed(false, "")?;
    std::thread::sleep(Duration::from_millis(500));
    let report = pingers.stop()?;
    ensure!(report.sent >= 40 && report.lost == 0, "{report:?}");
    mesh.kernels_as_planned(SOON)
}

/// Without clean-up a restart moves no address and no key, and packets flow again within moments, to
/// a leader behind NAT, too.
fn restart_keeps_everything(world: &World) -> Result<()> {
    const KEEP: &str = "--clean-up=false";
    let mut mesh = Mesh::start(world, &[KEEP])?;
    mesh.settle(SOON)?;
    mesh.admit("laptop", 77, SOON)?;
    mesh.reach_all(SOON)?;
    let identity = |mesh: &Mesh<'_>| -> Result<String> {
        let b1 = mesh.place.node("b1")?;
        let address = mesh.agents["b1"].plan()?["wireGuardCIDR"].to_string();
        Ok(b1.ns.run("wg show kilo0 public-key")? + &address)
    };
    let before = identity(&mesh)?;
    for gracefully in [true, false] {
        // Endpoints are stored a moment after they were learned.
        std::thread::sleep(Duration::from_secs(3));
        let pod = |name: &str| mesh.place.node(name).map(|node| &node.pod);
        let laptop = &mesh.traveller("laptop")?.host;
        let pingers = Pingers::start([pod("a2")?.to(pod("b2")?), laptop.to(pod("b1")?)])?;
        mesh.stop("b1", gracefully)?;
        mesh.restart("b1", &[KEEP])?;
        mesh.settle(SOON)?;
        mesh.reach_all(SOON)?;
        let report = pingers.stop()?;
        ensure!(report.longest_gap <= Duration::from_secs(2), "gracefully: {gracefully}, {report:?}");
        ensure!(identity(&mesh)? == before, "key or address moved");
    }
    mesh.kernels_as_planned(SOON)
}
