//! A server that hangs for longer than nodes may be silent changes nothing, neither while it hangs nor when it is back.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::cluster::{Cluster, Request, node_object};
use kilo_e2e::mesh::{Agent, stranger};
use kilo_e2e::{PingReport, Pingers, World, eventually, figure, tests};
use serde_json::json;

tests![
    a_server_that_hangs_changes_nothing(limit = 600, waits = true),
    faults_of_the_server_touch_nothing_else(limit = 600, waits = true),
];

const SOON: Duration = Duration::from_secs(60);
/// How long the server hangs; nodes expire after 60 s. Three minutes with `KILO_TEST_LONG`.
const OUTAGE: Duration = Duration::from_secs(75);
const LONG_OUTAGE: Duration = Duration::from_secs(180);
/// How long it is watched afterwards: upstream's agents drop each other then, until all have checked in again.
const AFTER: Duration = Duration::from_secs(45);

/// The devices are as they were.
fn unmoved(cluster: &Cluster<'_>, before: &BTreeMap<String, String>, when: &str) -> Result<()> {
    let now = cluster.mesh.devices()?;
    ensure!(now == *before, "{when}: {now:?}\n{before:?}");
    Ok(())
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
    cluster.admit("laptop", 77, SOON)?;
    let reach = cluster.converge(SOON)?;
    // Endpoints of those behind NAT are published with the next check-in.
    std::thread::sleep(Duration::from_secs(32));
    cluster.converge(SOON)?;

    let (before, done) = (cluster.mesh.devices()?, cluster.mesh.operations()?);
    let pod = |name: &str| cluster.mesh.place.node(name).map(|node| &node.pod);
    let (a2, b2, laptop) = (pod("a2")?, pod("b2")?, &cluster.mesh.traveller("laptop")?.host);
    let pingers = Pingers::start([a2.to(b2), b2.to(a2), a2.to(pod("a1")?), laptop.to(a2), laptop.to(b2)])?;

    cluster.api.control(&["kill", "DIR", "kube-apiserver", "STOP"])?;
    let frozen = Instant::now();
    while frozen.elapsed() < outage {
        std::thread::sleep(Duration::from_secs(5));
        unmoved(&cluster, &before, &format!("after {:?}", frozen.elapsed()))?;
    }
    ensure!(cluster.mesh.operations()? == done, "agents changed something while the server was away");
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
    let done = cluster.mesh.operations()?;
    while back.elapsed() < AFTER {
        std::thread::sleep(Duration::from_secs(2));
        unmoved(&cluster, &before, &format!("back for {:?}", back.elapsed()))?;
    }
    let watched = back.elapsed();
    let PingReport { sent, lost, .. } = pingers.stop()?;
    ensure!(cluster.mesh.operations()? == done, "agents changed something when the server was back");
    let writes = writes_per_minute(&cluster.requests()?, &so_far, watched);
    ensure!(writes <= 6.0, "{writes:.1} writes a minute");
    ensure!(sent > 1000 && lost == 0, "{lost} of {sent} pings lost");
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

/// Faults of the server one after the other, with a mesh that goes on: revisions that are gone, answers that take ten
/// seconds, a token that has expired, somebody who undoes what an agent writes, and a Node that is deleted and comes
/// back with another pod range.
fn faults_of_the_server_touch_nothing_else(world: &World) -> Result<()> {
    let mut cluster = Cluster::found(world)?;
    cluster.deploy()?;
    cluster.converge(SOON)?;
    cluster.expire_token("b2")?;
    let expired = Instant::now();
    let pod = |name: &str| cluster.mesh.place.node(name).map(|node| &node.pod);
    // Between nodes that nothing is done to: b2 may not check in for a minute, and others then drop it, as they must.
    let (a1, a2, b1) = (pod("a1")?, pod("a2")?, pod("b1")?);
    let pingers = Pingers::start([a2.to(b1), b1.to(a2), b1.to(a1)])?;
    let mut told = Vec::new();

    // 410: the server comes back and knows no revision of before.
    let (before, done) = (cluster.mesh.devices()?, cluster.mesh.operations()?);
    cluster.api.control(&["expire", "DIR"])?;
    let back = Instant::now();
    eventually(SOON, "a1 watches again", || {
        let ready = cluster.mesh.agents["a1"].get("/readyz?verbose")?;
        ensure!(ready.contains("[+]watch-nodes") && ready.contains("[+]watch-peers"), "{ready}");
        Ok(())
    })?;
    unmoved(&cluster, &before, "the server was restarted")?;
    ensure!(cluster.mesh.operations()? == done, "a restart of the server changed something");
    told.push(format!("410: watched again after {:.1} s", back.elapsed().as_secs_f64()));

    // It answers for a second, and then for ten not.
    let (name, key, address) = ("late", stranger()?, Ipv4Addr::new(10, 100, 3, 1));
    let seen = std::thread::scope(|scope| -> Result<Duration> {
        let slow = scope.spawn(|| -> Result<()> {
            for _ in 0..3 {
                cluster.api.control(&["kill", "DIR", "kube-apiserver", "STOP"])?;
                std::thread::sleep(Duration::from_secs(10));
                cluster.api.control(&["kill", "DIR", "kube-apiserver", "CONT"])?;
                std::thread::sleep(Duration::from_secs(1));
            }
            Ok(())
        });
        let asked = Instant::now();
        let created = cluster.create_peer(name, &key, address, SOON);
        slow.join().map_err(|_| anyhow::anyhow!("the thread that slows the server panicked"))??;
        created.map(|_| asked.elapsed())
    })?;
    cluster.delete_peer(name, &key, address, SOON)?;
    unmoved(&cluster, &before, "the server was slow")?;
    told.push(format!("answers after 10 s: a Peer is everywhere after {:.0} s", seen.as_secs_f64()));

    // Somebody else wants another granularity of a1, again and again.
    let writes = |cluster: &Cluster<'_>| -> Result<usize> {
        let requests = cluster.api.requests()?;
        Ok(requests.iter().filter(|r| r.verb == "patch" && r.name == "a1" && r.user.contains("serviceaccount")).count())
    };
    let (start, so_far, done) = (Instant::now(), writes(&cluster)?, cluster.mesh.operations()?);
    let mut undone = 0;
    while start.elapsed() < Duration::from_secs(15) {
        cluster.api.kubectl(&["annotate", "node", "a1", "--overwrite", "kilo.squat.ai/granularity=full"])?;
        undone += 1;
    }
    let fought = writes(&cluster)? - so_far;
    ensure!((2..=8).contains(&fought), "{fought} writes in 15 s against {undone}");
    ensure!(cluster.mesh.operations()? == done, "who writes annotations moves something");
    told.push(format!("another writer: {fought} writes of ours against {undone} of theirs in 15 s"));

    // b3 goes and comes back with another range; its own agent and all others follow.
    let node = cluster.mesh.place.node("b3")?;
    let range = "10.42.200.0/24";
    cluster.api.kubectl(&["delete", "node", "b3"])?;
    let gone = |present: bool| {
        let nodes = ["a1", "a2", "b1", "b2"];
        eventually(SOON, &format!("b3 is there: {present}"), || {
            for name in nodes {
                let plan = cluster.mesh.agents[name].plan()?;
                let ready = plan["readyNodes"].to_string();
                ensure!(ready.contains("b3") == present, "{name}: {ready}");
                ensure!(!present || plan.to_string().contains(range), "{name} knows nothing of {range}");
            }
            Ok(())
        })
    };
    gone(false)?;
    let mut object = node_object(node);
    object["spec"] = json!({"podCIDR": range, "podCIDRs": [range]});
    let created = Instant::now();
    cluster.api.put("create", &object)?;
    gone(true)?;
    cluster.mesh.kernels_as_planned(SOON)?;
    eventually(SOON, "the CNI file of b3 has its new range", || {
        let cni = std::fs::read_to_string(Agent::cni_file(node)).context("reading the CNI file")?;
        ensure!(cni.contains(range), "{cni}");
        Ok(())
    })?;
    told.push(format!("Node recreated with another range: all follow after {:.1} s", created.elapsed().as_secs_f64()));

    // The token was read again within a minute, and refused since; a new one is taken up.
    let own = |cluster: &Cluster<'_>| -> Result<String> {
        let node = cluster.api.json(&["get", "node", "b2"])?;
        Ok(node["metadata"]["annotations"]["kilo.squat.ai/last-seen"].to_string())
    };
    let refused = eventually(Duration::from_secs(100), "b2 is refused", || {
        let (log, errors) = (std::fs::read_to_string(node_log(&cluster, "b2")?)?, cluster.mesh.agents["b2"].get("/metrics")?);
        ensure!(log.contains("401") && errors.contains("event=\"checkin\""), "it is not");
        Ok(expired.elapsed())
    })?;
    let (seen, renewed) = (own(&cluster)?, Instant::now());
    cluster.renew_token("b2")?;
    eventually(Duration::from_secs(80), "b2 checks in again", || {
        ensure!(own(&cluster)? != seen, "last seen at {seen}");
        Ok(())
    })?;
    told.push(format!(
        "expired token: refused after {:.0} s, renewed one taken up after {:.0} s",
        refused.as_secs_f64(),
        renewed.elapsed().as_secs_f64()
    ));

    let PingReport { sent, lost, .. } = pingers.stop()?;
    ensure!(sent > 1000 && lost == 0, "{lost} of {sent} pings lost");
    cluster.mesh.kernels_as_planned(SOON)?;
    figure(&format!("{lost} of {sent} pings lost between others; {}", told.join("; ")));
    Ok(())
}

/// Where the agent of a node writes its log.
fn node_log(cluster: &Cluster<'_>, name: &str) -> Result<std::path::PathBuf> {
    Ok(cluster.mesh.place.node(name)?.ns.dir().join("kg.log"))
}
