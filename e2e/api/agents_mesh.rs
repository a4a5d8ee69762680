//! Five agents that came by the manifests of this repository, with the rights that those give, are one mesh.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::cluster::{Cluster, peer_object};
use kilo_e2e::mesh::{Agent, stranger};
use kilo_e2e::{Pingers, World, eventually, figure, tests};
use serde_json::{Value, json};

tests![
    agents_are_one_mesh(limit = 420),
    agents_need_their_rights(limit = 420),
    rolling_restart_moves_nothing(limit = 420)
];

const SOON: Duration = Duration::from_secs(60);
/// How often a Peer is created and deleted.
const ROUNDS: u8 = 5;

fn agents_are_one_mesh(world: &World) -> Result<()> {
    let mut cluster = Cluster::found(world)?;
    let start = Instant::now();
    cluster.deploy()?;
    let deployed = start.elapsed();
    let reach = cluster.converge(SOON)?;
    let converged = start.elapsed();
    ensure!(reach.reached() == 5 * 4, "{reach}");

    let (created, deleted) = peers_come_and_go(&cluster)?;
    a_laptop_comes(&mut cluster)?;
    a_bad_peer_harms_nobody(&cluster)?;
    a_secret_stays_in_the_device(&mut cluster)?;
    plans_are_those_of_kgctl(&cluster)?;
    let (patches, reads) = agents_write_their_own_node(&cluster)?;
    plans_are_those_of_file_mode(&mut cluster)?;

    // The count of writes sees a foreign one.
    cluster.write_as("a1", "b1")?;
    let error = agents_write_their_own_node(&cluster).err().context("nobody sees that a1 wrote to b1")?;
    ensure!(error.to_string().starts_with("a1 asked for"), "{error:#}");

    figure(&format!(
        "5 agents: {:.1} s to start their pods, {:.1} s until all is checked; Peer created to programmed on all \
         5 nodes: {}; deleted to gone: {}",
        deployed.as_secs_f64(),
        converged.as_secs_f64(),
        spread(created),
        spread(deleted),
    ));
    figure(&format!(
        "plans of 5 nodes: equal to kgctl's and to file mode's; {patches} patches, each of the own Node, {reads} other \
         requests, none refused; pairs that reach each other: {}",
        reach.reached()
    ));
    Ok(())
}

/// From the request to the last node, for creations and deletions.
fn peers_come_and_go(cluster: &Cluster<'_>) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut created, mut deleted) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (name, key) = (format!("stranger-{round}"), stranger()?);
        let address = Ipv4Addr::new(10, 100, 1, round + 1);
        let seen = cluster.create_peer(&name, &key, address, SOON)?;
        created.push(seen.last_after(cluster.request_time("create", &name)?));
        let listed = |wanted: bool| {
            for node in ["a1", "b1"] {
                let peers = cluster.mesh.place.node(node)?.ns.run("wg show kilo0 peers")?;
                ensure!(peers.contains(&key.to_string()) == wanted, "{name} on {node}: not {wanted}: {peers}");
            }
            anyhow::Ok(())
        };
        listed(true)?;
        cluster.mesh.kernels_as_planned(SOON)?;
        let seen = cluster.delete_peer(&name, &key, address, SOON)?;
        deleted.push(seen.last_after(cluster.request_time("delete", &name)?));
        listed(false)?;
    }
    Ok((created, deleted))
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let millis = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    format!("{:.0} ms, at most {:.0}", millis(times.get(times.len() / 2)), millis(times.last()))
}

/// A machine with plain WireGuard and what `kgctl showconf peer` prints reaches every pod.
fn a_laptop_comes(cluster: &mut Cluster<'_>) -> Result<()> {
    cluster.admit("laptop", 77, SOON)?;
    let reach = cluster.converge(SOON)?;
    ensure!(reach.reached() == 5 * 4 + 2 * 5, "{reach}");
    Ok(())
}

/// What is wrong with it is told by every agent, and everybody else goes on.
fn a_bad_peer_harms_nobody(cluster: &Cluster<'_>) -> Result<()> {
    let bad = peer_object("bad", "no key at all", IpAddr::from([10, 100, 2, 1]), None);
    cluster.api.put("create", &bad)?;
    cluster.mesh.everywhere(SOON, "the bad Peer is a finding", |plan| {
        let findings = plan["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
        ensure!(findings.iter().any(|f| f["object"] == "Peer/bad" && f["field"] == "spec.publicKey"), "{findings:?}");
        Ok(())
    })?;
    cluster.converge(SOON).map(drop)
}

/// A preshared key reaches the devices of leaders, and nothing that an agent tells.
fn a_secret_stays_in_the_device(cluster: &mut Cluster<'_>) -> Result<()> {
    let secret = stranger()?.to_string();
    let mut peer = peer_object("secretive", &stranger()?.to_string(), IpAddr::from([10, 100, 2, 2]), None);
    peer["spec"]["presharedKey"] = json!(secret);
    cluster.api.put("create", &peer)?;
    for name in ["a1", "b1"] {
        let node = cluster.mesh.place.node(name)?;
        eventually(SOON, &format!("{name} has the preshared key"), || {
            let found = node.ns.run("wg show kilo0 preshared-keys")?;
            ensure!(found.contains(&secret), "{found}");
            Ok(())
        })?;
    }
    for (name, agent) in &mut cluster.mesh.agents {
        let own = agent.process().log();
        let private = std::fs::read_to_string(cluster.mesh.place.node(name)?.ns.dir().join("lib/key"))
            .context("reading the private key")?;
        let mut told = vec![("log", own)];
        for page in ["/plan", "/facts", "/metrics", "/graph?format=dot", "/readyz?verbose", "/"] {
            told.push((page, agent.get(page)?));
        }
        for (place, text) in told {
            ensure!(!text.is_empty(), "{name} tells nothing at {place}");
            ensure!(!text.contains(&secret), "{name} tells the preshared key at {place}");
            ensure!(!text.contains(private.trim()), "{name} tells its private key at {place}");
        }
    }
    Ok(())
}

/// The same objects and facts give the same plan offline, to the last field.
fn plans_are_those_of_kgctl(cluster: &Cluster<'_>) -> Result<()> {
    let mut plans = BTreeSet::new();
    for (name, agent) in &cluster.mesh.agents {
        let plan = eventually(SOON, &format!("kgctl has the plan of {name}"), || {
            // Facts are those of the plan only while nothing changes.
            let before = agent.plan()?;
            let offline = cluster.offline_plan(agent, name)?;
            same(&before, &offline, &keys_of(&before)?)?;
            Ok(offline)
        })?;
        plans.insert(plan["routes"].to_string());
    }
    ensure!(plans.len() == cluster.mesh.agents.len(), "the comparison would not tell nodes apart");
    Ok(())
}

/// All but what is not the plan: the objects it was made from carry fields that only one side keeps.
fn keys_of(plan: &Value) -> Result<Vec<&str>> {
    let keys = plan.as_object().context("the plan is no map")?.keys().map(String::as_str);
    Ok(keys.filter(|&key| key != "input" && key != "now").collect())
}

fn same(one: &Value, other: &Value, keys: &[&str]) -> Result<()> {
    for key in ["routes", "segments", "peers", "conf", "firewall", "readyNodes"] {
        ensure!(keys.contains(&key) && !one[key].is_null(), "the plan has no {key}");
    }
    for key in keys {
        ensure!(one[key] == other[key], "{key} differs:\n{}\n{}", one[key], other[key]);
    }
    Ok(())
}

/// By the tokens of their pods, agents wrote nothing but their own Node, and nothing was refused.
fn agents_write_their_own_node(cluster: &Cluster<'_>) -> Result<(usize, usize)> {
    let (mut patches, mut reads) = (0, 0);
    let by_node = cluster.requests()?;
    ensure!(by_node.keys().eq(cluster.mesh.agents.keys()), "not all agents asked: {:?}", by_node.keys());
    for (node, requests) in by_node {
        let (writes, others): (Vec<_>, Vec<_>) = requests.into_iter().partition(|request| request.writes());
        ensure!(!writes.is_empty(), "{node} wrote nothing");
        for request in &writes {
            let own = request.verb == "patch" && request.resource == "nodes" && request.name == node;
            ensure!(own, "{node} asked for {request:?}");
        }
        for request in writes.iter().chain(&others) {
            // 429: the server is still making room for a kind that is new to it.
            ensure!(request.code < 400 || request.code == 429, "{node} was refused {request:?}");
        }
        patches += writes.len();
        reads += others.len();
    }
    Ok((patches, reads))
}

/// Agents on a directory of the same objects plan the same.
fn plans_are_those_of_file_mode(cluster: &mut Cluster<'_>) -> Result<()> {
    const PARTS: [&str; 20] = [
        "node", "outcome", "findings", "readyNodes", "location", "leader", "wireGuardCIDR", "privateIP", "subnet",
        "listenPort", "persistentKeepalive", "segments", "peers", "conf", "asPeer", "routes", "rules", "firewall",
        "mtu", "interfaces",
    ];
    let plans = cluster.mesh.plans()?;
    ensure!(same(&plans["a1"], &plans["b1"], &PARTS).is_err(), "the comparison does not tell nodes apart");
    cluster.dump()?;
    for agent in cluster.mesh.agents.values_mut() {
        agent.stop()?;
    }
    // The manifests keep a stopped node in the mesh.
    let nodes = cluster.api.json(&["get", "nodes"])?;
    for node in nodes["items"].as_array().into_iter().flatten() {
        ensure!(node["metadata"]["annotations"]["kilo.squat.ai/key"].is_string(), "a stop removed the key");
    }
    let names: Vec<String> = cluster.mesh.agents.keys().cloned().collect();
    for name in &names {
        let node = cluster.mesh.place.node(name)?;
        let agent = Agent::start(node, cluster.mesh.state.path(), &["--clean-up=false"])?;
        cluster.mesh.agents.insert(name.clone(), agent);
    }
    cluster.mesh.settle(SOON)?;
    cluster.mesh.reach_all(SOON)?;
    for (name, plan) in &plans {
        let agent = &cluster.mesh.agents[name];
        eventually(SOON, &format!("file mode has the plan of {name}"), || same(plan, &agent.plan()?, &PARTS))?;
    }
    Ok(())
}

/// Without `patch` on Nodes there is no mesh; with the manifests as they are there is.
fn agents_need_their_rights(world: &World) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(15);
    let mut cluster = Cluster::found(world)?;
    let mut role = cluster.api.json(&["get", "clusterrole", "kilo"])?;
    let mut taken = 0;
    for rule in role["rules"].as_array_mut().context("the ClusterRole has no rules")? {
        let nodes = rule["resources"].as_array().is_some_and(|all| all.contains(&json!("nodes")));
        let verbs = rule["verbs"].as_array_mut().context("a rule without verbs")?;
        let before = verbs.len();
        verbs.retain(|verb| !nodes || verb != "patch");
        taken += before - verbs.len();
    }
    ensure!(taken == 1, "the ClusterRole has no right to patch nodes: {role}");
    cluster.api.put("replace", &role)?;
    cluster.may("patch", "nodes", false)?;

    cluster.deploy()?;
    let error = cluster.converge(PATIENCE).err().context("there is a mesh without the right to patch nodes")?;
    let requests = cluster.requests()?;
    for name in cluster.mesh.agents.keys() {
        let refused = requests.get(name).into_iter().flatten().filter(|r| r.verb == "patch" && r.code == 403);
        ensure!(refused.count() > 0, "{name} was not refused: {error:#}");
    }
    for (name, agent) in &mut cluster.mesh.agents {
        let reason = format!("patching node {name} is not allowed");
        ensure!(agent.process().log().contains(&reason), "{name} does not say why");
        ensure!(agent.get("/livez").is_ok(), "{name} would be restarted");
    }

    let start = Instant::now();
    cluster.apply_manifests()?;
    let reach = cluster.converge(SOON)?;
    figure(&format!(
        "without `patch nodes`: no mesh in {} s, {} requests refused; with it again: {} pairs after {:.1} s",
        PATIENCE.as_secs(),
        requests.values().flatten().filter(|request| request.code == 403).count(),
        reach.reached(),
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// One agent after another is stopped and started as an update of the DaemonSet does it, and
/// one while the server is gone.
fn rolling_restart_moves_nothing(world: &World) -> Result<()> {
    let mut cluster = Cluster::found(world)?;
    cluster.deploy()?;
    cluster.converge(SOON)?;
    let names: Vec<String> = cluster.mesh.agents.keys().cloned().collect();
    let before = cluster.identities()?;
    // Endpoints are stored a moment after they were learned.
    std::thread::sleep(Duration::from_secs(3));

    let (a2, b2) = (cluster.mesh.place.node("a2")?, cluster.mesh.place.node("b2")?);
    let pingers = Pingers::start([a2.pod.to(&b2.pod), b2.pod.to(&a2.pod)])?;
    for name in &names {
        cluster.restart(name)?;
        cluster.mesh.settle(SOON)?;
    }
    cluster.converge(SOON)?;
    ensure!(cluster.identities()? == before, "{:?}\n{before:?}", cluster.identities()?);
    let report = pingers.stop()?;
    ensure!(report.longest_gap <= Duration::from_secs(1), "{report:?}");

    cluster.api.control(&["kill", "DIR", "kube-apiserver"])?;
    let pinger = cluster.mesh.place.node("a2")?.pod.ns.pinger(cluster.mesh.place.node("b2")?.pod.address)?;
    std::thread::sleep(Duration::from_secs(5));
    let outage = pinger.stop()?;
    ensure!(outage.sent > 50 && outage.lost == 0, "{outage:?}");
    let last = names.last().context("no agent")?;
    cluster.restart(last)?;
    cluster.api.control(&["launch", "DIR", "kube-apiserver"])?;
    cluster.api.control(&["ready", "DIR"])?;
    cluster.converge(SOON)?;
    ensure!(cluster.identities()? == before, "{:?}\n{before:?}", cluster.identities()?);
    let (name, key, address) = ("late", stranger()?, Ipv4Addr::new(10, 100, 3, 1));
    cluster.create_peer(name, &key, address, SOON)?;
    figure(&format!(
        "5 agents restarted one by one: no address or key moved, {} of {} pings lost, {:.0} ms without an answer at \
         most; 5 s without the API server: {} of {} lost; an agent started then joins when it is back",
        report.lost,
        report.sent,
        report.longest_gap.as_secs_f64() * 1e3,
        outage.lost,
        outage.sent
    ));
    Ok(())
}
