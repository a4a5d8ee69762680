//! Agents of upstream Kilo and ours in one mesh, as during an update of a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::cluster::{Cluster, Upstream};
use kilo_e2e::{Pingers, World, eventually, figure, tests};
use serde_json::Value;

tests![upstream_and_ours_are_one_mesh(limit = 420)];

const SOON: Duration = Duration::from_secs(90);
const RESYNC: Duration = Duration::from_secs(32);
/// Long enough for two of the check-ins that all agents make every 30 s.
const QUIET: Duration = Duration::from_secs(65);
const UPSTREAM: [&str; 2] = ["a2", "b1"];
const OURS: [&str; 3] = ["a1", "b2", "b3"];

fn upstream_and_ours_are_one_mesh(world: &World) -> Result<()> {
    Upstream::program()?;
    let mut cluster = Cluster::found(world)?;
    let upstream = UPSTREAM
        .iter()
        .map(|name| Ok((*name, cluster.deploy_upstream(name)?)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    cluster.deploy_on(&OURS)?;
    cluster.mesh.everywhere(SOON, "all nodes are ready", |plan| {
        let ready = plan["readyNodes"].as_array().map_or(0, Vec::len);
        ensure!(ready == UPSTREAM.len() + OURS.len(), "it sees {}", plan["readyNodes"]);
        Ok(())
    })?;
    cluster.admit("laptop", 77, SOON)?;
    let reach = cluster.mesh.reach_all(SOON)?;
    ensure!(reach.reached() == 5 * 4 + 5 * 2, "{reach}");
    eventually(SOON, "both compute the same mesh", || same_mesh(&cluster))?;
    cluster.mesh.kernels_as_planned(SOON)?;

    // Where leaders behind NAT were seen is published with the resync of every 30 s.
    let settled = (0..3).find_map(|_| {
        let before = cluster.mesh.operations().ok()?;
        std::thread::sleep(RESYNC);
        (cluster.mesh.operations().ok()? == before).then_some(())
    });
    ensure!(settled.is_some(), "our agents find no rest");

    // Nothing is to happen now but check-ins and, at upstream's agents, the resync of every 30 s.
    let (a1, b2) = (cluster.mesh.place.node("a1")?, cluster.mesh.place.node("b2")?);
    let pingers = Pingers::start([a1.pod.to(&b2.pod), b2.pod.to(&a1.pod)])?;
    let count = || upstream.values().map(Upstream::reconciles).collect::<Result<Vec<f64>>>();
    let (before, writes_before) = (count()?, writes(&cluster)?);
    let ours_before = cluster.mesh.operations()?;
    std::thread::sleep(QUIET);
    let (after, writes_after) = (count()?, writes(&cluster)?);
    let report = pingers.stop()?;
    let reconciles: Vec<f64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
    ensure!(reconciles.iter().all(|&count| count <= 3.0), "our check-ins wake upstream's agents: {reconciles:?}");
    ensure!(report.lost == 0, "{report:?}");
    let ours = cluster.mesh.operations()? - ours_before;
    ensure!(ours == 0.0, "our agents did {ours} operations where nothing changed");
    same_mesh(&cluster)?;

    let minutes = QUIET.as_secs_f64() / 60.0;
    let rate = |of: &dyn Fn(&(usize, usize)) -> usize, agents: usize| {
        (of(&writes_after) - of(&writes_before)) as f64 / minutes / agents as f64
    };
    figure(&format!(
        "2 upstream agents and 3 of ours: {} pairs of pods and a laptop reach each other, same segments, leaders and WireGuard IPs; in \
         {} s: upstream's reconciles {reconciles:?}, 0 of {} pings lost, 0 operations of ours; writes a minute \
         and agent: {:.1} by upstream's, {:.1} by ours",
        reach.reached(),
        QUIET.as_secs(),
        report.sent,
        rate(&|writes| writes.0, UPSTREAM.len()),
        rate(&|writes| writes.1, OURS.len()),
    ));
    Ok(())
}

/// Writes of upstream's agents and of ours so far.
fn writes(cluster: &Cluster<'_>) -> Result<(usize, usize)> {
    let requests = cluster.api.requests()?;
    let (mut upstream, mut ours) = (0, 0);
    for request in requests.iter().filter(|request| request.writes() && request.resource == "nodes") {
        if request.user.starts_with("upstream-") {
            upstream += 1;
        } else if request.user.starts_with("system:serviceaccount:") {
            ours += 1;
        }
    }
    Ok((upstream, ours))
}

/// Whether each upstream agent's Node, device and routes are what our plan of that node says, and whether our
/// agents give segments the addresses that upstream's leaders took.
fn same_mesh(cluster: &Cluster<'_>) -> Result<()> {
    let (_, ours) = cluster.mesh.agents.iter().next().context("no agent of ours")?;
    let mut leaders = 0;
    for name in UPSTREAM {
        let node = cluster.mesh.place.node(name)?;
        // Facts are another node's: of this one the plan takes what its Node says.
        let plan = cluster.offline_plan(ours, name)?;
        ensure!(plan["outcome"] == "ok", "{name}: {plan}");
        let object = cluster.api.json(&["get", "node", name])?;
        let told = &object["metadata"]["annotations"]["kilo.squat.ai/wireguard-ip"];
        let leader = plan["leader"] == true;
        let planned = if leader { &plan["wireGuardCIDR"] } else { &Value::from("") };
        ensure!(told == planned, "{name} took {told}, our plan says {planned}");
        let (taken, planned) = (routes(&node.ns.json("ip -j route show proto static")?)?, planned_routes(&plan)?);
        ensure!(taken == planned, "{name} has the routes {taken:?}\nour plan says {planned:?}");
        if leader {
            leaders += 1;
            let device = node.ns.run("wg show kilo0 allowed-ips")?;
            ensure!(ranges_of_device(&device) == ranges_of_plan(&plan)?, "{name}: {device}\n{}", plan["conf"]);
        }
    }
    ensure!(leaders == 1, "{leaders} of upstream's agents lead");
    for (name, agent) in &cluster.mesh.agents {
        let plan = agent.plan()?;
        let other = cluster.offline_plan(agent, UPSTREAM[0])?;
        ensure!(plan["segments"] == other["segments"], "{name}: {}\n{}", plan["segments"], other["segments"]);
    }
    Ok(())
}

/// Destination, gateway and link.
type Routes = BTreeSet<(String, String, String)>;

fn routes(shown: &Value) -> Result<Routes> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let shown = shown.as_array().context("ip shows no list")?;
    Ok(shown.iter().map(|r| (text(&r["dst"]), text(&r["gateway"]), text(&r["dev"]))).collect())
}

fn planned_routes(plan: &Value) -> Result<Routes> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let routes = plan["routes"].as_array().context("the plan has no routes")?;
    let shown = |dst: &Value| text(dst).trim_end_matches("/32").to_owned();
    Ok(routes.iter().map(|r| (shown(&r["dst"]), text(&r["via"]), text(&r["dev"]))).collect())
}

/// Keys with their ranges.
type Ranges = BTreeMap<String, BTreeSet<String>>;

fn ranges_of_device(shown: &str) -> Ranges {
    let line = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        words.next().map(|key| (key, words.collect()))
    };
    shown.lines().filter_map(line).collect()
}

fn ranges_of_plan(plan: &Value) -> Result<Ranges> {
    let peers = plan["conf"]["peers"].as_array().context("the plan has no peers")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ranges = |peer: &Value| peer["allowedIPs"].as_array().into_iter().flatten().map(text).collect();
    Ok(peers.iter().map(|peer| (text(&peer["publicKey"]), ranges(peer))).collect())
}
