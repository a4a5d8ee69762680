//! A server that hangs for longer than nodes may be silent changes nothing, neither while it hangs nor when it is back.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kilo_e2e::cluster::{Cluster, Request, peer_object};
use kilo_e2e::mesh::{Traveller, stranger};
use kilo_e2e::{World, eventually, figure, tests};

tests![a_server_that_hangs_changes_nothing(limit = 600)];

const SOON: Duration = Duration::from_secs(60);
/// How long the server hangs; nodes expire after 60 s. Three minutes with `KILO_TEST_LONG`.
const OUTAGE: Duration = Duration::from_secs(75);
const LONG_OUTAGE: Duration = Duration::from_secs(180);
/// How long it is watched afterwards: upstream's agents drop each other then, until all have checked in again.
const AFTER: Duration = Duration::from_secs(45);

/// A leader's WireGuard device: all but endpoints, which move, and counters.
fn devices(cluster: &Cluster<'_>) -> Result<BTreeMap<String, String>> {
    let mut devices = BTreeMap::new();
    for node in &cluster.mesh.place.nodes {
        let mut text = String::new();
        for what in ["public-key", "listen-port", "allowed-ips", "persistent-keepalive"] {
            text.push_str(&node.ns.run(&format!("wg show kilo0 {what}"))?);
        }
        devices.insert(node.name.clone(), text);
    }
    Ok(devices)
}

/// How many operations all agents have carried out.
fn operations(cluster: &Cluster<'_>) -> Result<f64> {
    cluster.mesh.agents.values().map(|agent| agent.operations(&[])).sum()
}

/// Writes in a minute by the agent that writes most.
fn writes_per_minute(requests: &BTreeMap<String, Vec<Request>>, from: &BTreeMap<String, usize>, took: Duration) -> f64 {
    let writes = |(node, requests): (&String, &Vec<Request>)| {
        requests.iter().skip(from.get(node).copied().unwrap_or_default()).filter(|r| r.writes()).count()
    };
    let most = requests.iter().map(writes).max().unwrap_or_default();
    most as f64 * 60.0 / took.as_secs_f64()
}

fn a_server_that_hangs_changes_nothing(world: &World) -> Result<()> {
    let outage = if std::env::var_os("KILO_TEST_LONG").is_some() { LONG_OUTAGE } else { OUTAGE };
    let mut cluster = Cluster::found(world)?;
    cluster.deploy()?;
    cluster.converge(SOON)?;
    let laptop = Traveller::arrive(world, &cluster.mesh.place, "laptop", 77)?;
    let peer = peer_object("laptop", &laptop.public_key, laptop.host.address, Some(laptop.endpoint));
    cluster.api.put("create", &peer)?;
    eventually(SOON, "the laptop is configured", || {
        cluster.dump()?;
        laptop.configure(&cluster.mesh.state, Duration::ZERO)
    })?;
    cluster.mesh.travellers.push(laptop);
    let reach = cluster.converge(SOON)?;
    // Endpoints of those behind NAT are published with the next check-in.
    std::thread::sleep(Duration::from_secs(32));
    cluster.converge(SOON)?;

    let (before, done) = (devices(&cluster)?, operations(&cluster)?);
    let pods: BTreeMap<&str, _> =
        cluster.mesh.place.nodes.iter().map(|node| (node.name.as_str(), &node.pod)).collect();
    let (a2, b2) = (pods["a2"], pods["b2"]);
    let laptop = &cluster.mesh.traveller("laptop")?.host;
    let pairs = [(a2, b2), (b2, a2), (a2, pods["a1"]), (laptop, a2), (laptop, b2)];
    let pingers =
        pairs.into_iter().map(|(from, to)| from.ns.pinger(to.address)).collect::<Result<Vec<_>>>()?;

    cluster.api.control(&["kill", "DIR", "kube-apiserver", "STOP"])?;
    let frozen = Instant::now();
    while frozen.elapsed() < outage {
        std::thread::sleep(Duration::from_secs(5));
        ensure!(devices(&cluster)? == before, "after {:?}: {:?}\n{before:?}", frozen.elapsed(), devices(&cluster)?);
    }
    ensure!(operations(&cluster)? == done, "agents changed something while the server was away");
    // What is held is told, and with it the plan can be made again elsewhere.
    let held = cluster.mesh.agents["a1"].get("/facts")?;
    ensure!(held.contains("\"held\""), "a1 holds nobody: {held}");

    cluster.api.control(&["kill", "DIR", "kube-apiserver", "CONT"])?;
    let back = Instant::now();
    cluster.api.control(&["ready", "DIR"])?;
    let so_far = cluster.requests()?.into_iter().map(|(node, all)| (node, all.len())).collect();
    let (name, key) = ("late", stranger()?);
    cluster.create_peer(name, &key, Ipv4Addr::new(10, 100, 3, 1), SOON)?;
    let heard = back.elapsed();
    cluster.delete_peer(name, &key, Ipv4Addr::new(10, 100, 3, 1), SOON)?;
    let done = operations(&cluster)?;
    while back.elapsed() < AFTER {
        std::thread::sleep(Duration::from_secs(2));
        ensure!(devices(&cluster)? == before, "back for {:?}: {:?}\n{before:?}", back.elapsed(), devices(&cluster)?);
    }
    let watched = back.elapsed();
    let reports = pingers.into_iter().map(|pinger| pinger.stop()).collect::<Result<Vec<_>>>()?;
    let (sent, lost) = reports.iter().fold((0, 0), |(sent, lost), r| (sent + r.sent, lost + r.lost));
    ensure!(operations(&cluster)? == done, "agents changed something when the server was back");
    let writes = writes_per_minute(&cluster.requests()?, &so_far, watched);
    ensure!(writes <= 6.0, "{writes:.1} writes a minute");
    ensure!(sent > 1000 && lost == 0, "{reports:?}");
    cluster.mesh.kernels_as_planned(SOON)?;
    eventually(Duration::from_secs(40), "everybody has checked in again", || {
        for (name, agent) in &cluster.mesh.agents {
            let facts = agent.get("/facts")?;
            ensure!(!facts.contains("\"held\""), "{name} still holds: {facts}");
        }
        Ok(())
    })?;
    for agent in cluster.mesh.agents.values() {
        ensure!(agent.get("/readyz").is_ok(), "not ready");
    }
    figure(&format!(
        "API server hung for {} s, watched for {:.0} s more: {lost} of {sent} pings lost on 5 ways, no operation on 5 \
         nodes, kernels as planned; at most {writes:.1} writes a minute and agent when back; a Peer is \
         everywhere {:.1} s after; {} pairs reach each other",
        outage.as_secs(),
        watched.as_secs_f64(),
        heard.as_secs_f64(),
        reach.reached(),
    ));
    Ok(())
}
