//! A leader that dies, loses its way out or comes and goes, while pods of other nodes ping each other between the
//! locations.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::mesh::{Cable, Mesh, Place};
use kilo_e2e::{Pingers, World, eventually, figure, tests};

tests![
    a_leader_without_power_is_replaced(limit = 150, waits = true),
    a_leader_of_ipv6_without_power_is_replaced(limit = 120, waits = true),
    a_leader_that_comes_and_goes_is_passed_over_once(limit = 150, waits = true),
    a_leader_without_its_uplink_is_replaced(limit = 120, waits = true),
    with_an_upstream_agent_only_age_counts(limit = 180, waits = true),
];

const SOON: Duration = Duration::from_secs(40);
const GOAL: Duration = Duration::from_secs(10);
/// A node must answer for a minute before its report is taken back.
const HOLD: Duration = Duration::from_secs(60);

fn start(world: &World) -> Result<Mesh<'_>> {
    let mesh = Mesh::start(world, &[])?;
    mesh.settle(SOON)?;
    mesh.reach_all(SOON)?;
    Ok(mesh)
}

/// Checks again and again that everybody follows `a2`, for so long.
fn a2_leads_on(mesh: &Mesh<'_>, time: Duration) -> Result<()> {
    let since = Instant::now();
    while since.elapsed() < time {
        for name in ["a2", "b1", "b2"] {
            let leader = mesh.leader("west", name)?;
            ensure!(leader == "a2", "{name} follows {leader} after {:?}", since.elapsed());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

fn a_leader_without_power_is_replaced(world: &World) -> Result<()> {
    let mut mesh = start(world)?;
    let gap = mesh.fail_over()?;
    ensure!(gap <= GOAL, "no answer for {gap:?}");
    let plan = mesh.agent("b2")?.plan()?;
    let told = serde_json::json!([{"node": "a1", "segment": "location:west", "reportedBy": ["a2", "b1"]}]);
    ensure!(plan["deposed"] == told, "{}", plan["deposed"]);

    // It is there again, and has to wait.
    mesh.plug("a1")?;
    mesh.restart("a1", &[])?;
    let back = Instant::now();
    mesh.settle(SOON)?;
    a2_leads_on(&mesh, (HOLD - Duration::from_secs(5)).saturating_sub(back.elapsed()))?;
    let pod = |name: &str| mesh.place.node(name).map(|node| &node.pod);
    let (a2, b2) = (pod("a2")?, pod("b2")?);
    let pingers = Pingers::start([a2.to(b2), b2.to(a2)])?;
    eventually(Duration::from_secs(20), "it leads again", || {
        let leader = mesh.leader("west", "b2")?;
        ensure!(leader == "a1", "{leader} does");
        Ok(())
    })?;
    let waited = back.elapsed();
    std::thread::sleep(Duration::from_secs(2));
    let report = pingers.stop()?;
    mesh.reach_all(SOON)?;
    mesh.kernels_as_planned(SOON)?;
    figure(&format!(
        "leader without power: {:.1} s until pods of other nodes reached each other between the locations again; it led \
         again {:.0} s after its agent was back, {} ms without an answer then",
        gap.as_secs_f64(),
        waited.as_secs_f64(),
        report.longest_gap.as_millis()
    ));
    Ok(())
}

fn a_leader_of_ipv6_without_power_is_replaced(world: &World) -> Result<()> {
    let place = Place::lay_out_ipv6(world)?;
    let mut mesh = Mesh::start_at(world, place, &["a1", "a2", "b1", "b2"], &["--subnet=fd00:4::/64"])?;
    mesh.settle(SOON)?;
    mesh.reach_all(SOON)?;
    let gap = mesh.fail_over()?;
    ensure!(gap <= GOAL, "no answer for {gap:?}");
    figure(&format!("leader without power, IPv6 alone: {:.1} s", gap.as_secs_f64()));
    Ok(())
}

/// Its cables are pulled for five seconds, and plugged in for five.
fn a_leader_that_comes_and_goes_is_passed_over_once(world: &World) -> Result<()> {
    let mut mesh = start(world)?;
    std::thread::sleep(Duration::from_secs(6));
    for _ in 0..5 {
        mesh.pull("a1")?;
        std::thread::sleep(Duration::from_secs(5));
        mesh.plug("a1")?;
        std::thread::sleep(Duration::from_secs(5));
    }
    a2_leads_on(&mesh, Duration::from_secs(10))?;
    let log = mesh.agent("b2")?.log();
    let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    let (deposed, restored) = (count("Leader is deposed"), count("Leader is restored"));
    ensure!((1..=2).contains(&(deposed + restored)), "deposed {deposed} times, restored {restored} times\n{log}");
    figure(&format!("leader that goes for 5 s and comes for 5 s, 5 times: deposed {deposed} times, restored {restored} times"));
    Ok(())
}

/// Three locations: with two outside witnesses those inside, who reach it, are the fewer.
fn a_leader_without_its_uplink_is_replaced(world: &World) -> Result<()> {
    let mut place = Place::lay_out(world)?;
    place.nodes.iter_mut().filter(|node| node.name == "b2").for_each(|node| node.location = "north");
    let mut mesh = Mesh::start_at(world, place, &["a1", "a2", "b1", "b2"], &[])?;
    mesh.settle(SOON)?;
    let pod = |mesh: &Mesh<'_>, name: &str| mesh.place.node(name).map(|node| node.pod.ns.clone());
    let (a2, b1, b2) = (pod(&mesh, "a2")?, pod(&mesh, "b1")?, pod(&mesh, "b2")?);
    let address = mesh.place.node("a2")?.pod.address;
    let pingers = Pingers::start([(&b1, address), (&b2, address), (&a2, mesh.place.node("b1")?.pod.address)])?;
    std::thread::sleep(Duration::from_secs(6));
    mesh.place.plug("a1", Cable::Uplink, false)?;
    std::thread::sleep(Duration::from_secs(2));
    for ns in [&b1, &b2] {
        eventually(SOON, "the locations reach each other", || ns.ping(address))?;
    }
    std::thread::sleep(Duration::from_secs(1));
    let gap = pingers.stop()?.longest_gap;
    ensure!(gap <= GOAL, "no answer for {gap:?}");
    let plan = mesh.agent("a2")?.plan()?;
    let told = serde_json::json!([{"node": "a1", "segment": "location:west", "reportedBy": ["b1", "b2"]}]);
    ensure!(plan["deposed"] == told, "{}", plan["deposed"]);
    figure(&format!("leader without its uplink, two outside witnesses: {:.1} s", gap.as_secs_f64()));
    Ok(())
}

/// A node that checks in without our marker is somebody whom reports do not reach.
fn with_an_upstream_agent_only_age_counts(world: &World) -> Result<()> {
    const EXPIRY: u64 = 40;
    let expiry = format!("--node-expiry={EXPIRY}s");
    let mut mesh = Mesh::start(world, &[&expiry])?;
    let key = kilo_e2e::mesh::stranger()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock")?.as_secs();
    // It has checked in for an hour in advance.
    mesh.state.put(
        "nodes/c1.yaml",
        &format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: c1\n  annotations:\n    kilo.squat.ai/endpoint: \
             198.51.100.99:51820\n    kilo.squat.ai/internal-ip: 172.16.0.1/24\n    kilo.squat.ai/key: {key}\n    \
             kilo.squat.ai/last-seen: \"{}\"\n    kilo.squat.ai/location: north\nspec:\n  podCIDR: 10.42.9.0/24\n",
            now + 3600
        ),
    )?;
    mesh.everywhere(SOON, "the upstream node takes part", |plan| {
        let ready = plan["readyNodes"].as_array().map_or(0, Vec::len);
        ensure!(ready == 5, "{}", plan["readyNodes"]);
        ensure!(plan["watches"].is_null(), "somebody is looked after: {}", plan["watches"]);
        Ok(())
    })?;
    mesh.reach_all(SOON)?;
    let gap = mesh.fail_over()?;
    // It was not passed over; it is gone. Its last check-in was half a minute old at the most.
    let (log, plan) = (mesh.agent("b2")?.log(), mesh.agent("b2")?.plan()?);
    ensure!(!log.contains("Leader is deposed") && plan["deposed"].is_null(), "{log}");
    ensure!(!plan["readyNodes"].to_string().contains("a1"), "{}", plan["readyNodes"]);
    ensure!(gap.as_secs() + 2 >= EXPIRY - 30, "no answer for only {gap:?}");
    figure(&format!("leader without power beside an upstream agent, nodes expire after {EXPIRY} s: {:.1} s", gap.as_secs_f64()));
    Ok(())
}
