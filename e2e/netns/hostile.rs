//! Objects of strangers that are huge, wrong, or claim what others have: each costs itself only, and is told about.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::mesh::{Mesh, stranger};
use kilo_e2e::{Pingers, World, eventually, figure, tests};

tests![hostile_objects_cost_only_themselves(limit = 240)];

const SOON: Duration = Duration::from_secs(60);
/// What a good Peer may wait for, on two cores that a dozen processes share.
const GOOD: Duration = Duration::from_secs(5);
const SERVICES: &str = "10.43.0.0/16";
const RANGES: usize = 10_000;
const MEBIBYTE: usize = 1 << 20;
/// MiB of an agent, unoptimized, that also shows all of it as a page.
const MEMORY: usize = 256;

/// A Peer with ranges as they would be written in YAML.
fn peer(name: &str, key: &str, ranges: &str, more: &str) -> String {
    format!(
        "apiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {{name: {name}{more}}}\nspec: {{publicKey: \
         {key:?}, allowedIPs: [{ranges}]}}\n"
    )
}

/// A Node of its own with these annotations.
fn node(name: &str, annotations: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec: {{podCIDR: \
         10.42.250.0/24}}\n"
    )
}

/// Files of hostile objects, each with the findings that it must cause: object, field, part of the reason.
struct Hostile {
    files: Vec<(&'static str, String)>,
    findings: Vec<(&'static str, &'static str, &'static str)>,
}

fn hostile(laptop: (&str, IpAddr), node_key: &str, keys: &mut dyn FnMut() -> Result<String>) -> Result<Hostile> {
    let mut many = String::new();
    let mut wrong = String::new();
    for i in 0..RANGES {
        let _ = write!(many, "\"10.128.{}.{}/32\",", i / 256, i % 256);
        let _ = write!(wrong, "\"{i}\",");
    }
    let big = "x".repeat(MEBIBYTE);
    let annotation = format!("kilo.squat.ai/allowed-location-ips: {big}, kilo.squat.ai/key: {big}, other: {big}");
    let claims = format!(
        "\"{}/32\", 10.42.1.0/24, \"{SERVICES}\", 10.43.7.0/24, 10.4.0.1/32, 10.120.0.1/32",
        laptop.1
    );
    let files = vec![
        ("many", peer("many", &keys()?, &many, "")),
        ("wrong", peer("wrong", &keys()?, &wrong, "")),
        ("big", peer("big", &keys()?, "10.121.0.1/32", &format!(", annotations: {{other: {big}}}"))),
        ("long-key", peer("long-key", &big, "10.121.0.2/32", "")),
        ("claims", peer("z-claims", &keys()?, &claims, "")),
        ("same-key", peer("z-same-key", laptop.0, "10.121.0.3/32", "")),
        ("key-of-node", peer("z-key-of-node", node_key, "10.121.0.4/32", "")),
        ("mixed", peer("mixed", &keys()?, "10.121.0.5/32, \"fd21::5/128\", \"fd21::/129\"", "")),
        ("host-bits", peer("host-bits", &keys()?, "10.122.0.9/24, 10.122.0.7/24", "")),
        ("broken", "apiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {name: [".to_owned()),
    ];
    let findings = vec![
        ("Peer/wrong", "spec.allowedIPs[9999]", "left out"),
        ("Peer/long-key", "spec.publicKey", "left out"),
        ("Peer/z-claims", "spec.allowedIPs", "Peer/laptop has it already"),
        ("Peer/z-claims", "spec.allowedIPs", "it belongs to a node"),
        ("Peer/z-claims", "spec.allowedIPs", "it belongs to services"),
        ("Peer/z-same-key", "spec.publicKey", "Peer/laptop has this key already"),
        ("Peer/z-key-of-node", "spec.publicKey", "a node has this key"),
        ("Peer/mixed", "spec.allowedIPs[2]", "left out"),
        ("Node/stranger", "kilo.squat.ai/allowed-location-ips", "left out"),
        ("Node/stranger", "kilo.squat.ai/key", "absent"),
        ("File/peers/broken.yaml", "", ""),
    ];
    let mut files: Vec<_> = files.into_iter().map(|(name, text)| (name, format!("{text}---\n"))).collect();
    files.push(("node", node("stranger", &annotation)));
    Ok(Hostile { files, findings })
}

fn hostile_objects_cost_only_themselves(world: &World) -> Result<()> {
    let mut mesh = Mesh::start(world, &[&format!("--service-cidr={SERVICES}")])?;
    mesh.settle(SOON)?;
    mesh.admit("laptop", 77, SOON)?;
    mesh.reach_all(SOON)?;
    mesh.kernels_as_planned(SOON)?;
    let memory = |mesh: &Mesh<'_>, which: &str| -> Result<usize> {
        let of = |pid: u32| -> Result<usize> {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the status of an agent")?;
            let line = status.lines().find_map(|line| line.strip_prefix(which)).context("its memory")?;
            line.trim_matches(|c: char| !c.is_ascii_digit()).parse().context("its memory")
        };
        let all = mesh.agents.values().map(|agent| of(agent.id())).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().max().unwrap_or_default() / 1024)
    };
    let before = (mesh.devices()?, memory(&mesh, "VmRSS:")?);

    let laptop = mesh.traveller("laptop")?;
    let (key, address) = (laptop.public_key.clone(), laptop.host.address);
    let of_node = mesh.place.node("b1")?.ns.run("wg show kilo0 public-key")?;
    let bad = hostile((&key, address), of_node.trim(), &mut || Ok(stranger()?.to_string()))?;
    let pod = |name: &str| mesh.place.node(name).map(|node| &node.pod);
    let pingers = Pingers::start([
        pod("a2")?.to(pod("b2")?),
        pod("b1")?.to(pod("a1")?),
        laptop.host.to(pod("a2")?),
    ])?;

    for (name, text) in &bad.files {
        let dir = if *name == "node" { "nodes" } else { "peers" };
        mesh.state.put(&format!("{dir}/{name}.yaml"), text)?;
    }
    let (good, added) = (stranger()?.to_string(), Instant::now());
    mesh.state.put_peer("good", &good, [10, 100, 0, 200].into(), None)?;
    for name in ["a1", "b1"] {
        let ns = &mesh.place.node(name)?.ns;
        eventually(SOON, &format!("the good Peer is on {name}"), || {
            let peers = ns.run("wg show kilo0 allowed-ips")?;
            ensure!(peers.contains(&format!("{good}\t10.100.0.200/32")), "it is not");
            Ok(())
        })?;
    }
    let waited = added.elapsed();

    mesh.everywhere(SOON, "all findings are there", |plan| {
        let found = plan["findings"].as_array().context("no findings")?;
        for (object, field, reason) in &bad.findings {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let is = |finding: &&serde_json::Value| {
                text(&finding["object"]) == *object
                    && text(&finding["field"]).contains(field)
                    && text(&finding["reason"]).contains(reason)
            };
            let finding = found.iter().find(is).with_context(|| format!("no finding {object}: {field}: {reason}"))?;
            ensure!(text(&finding["value"]).len() < 300, "{object}: a value of {} bytes", text(&finding["value"]).len());
        }
        Ok(())
    })?;
    mesh.kernels_as_planned(SOON)?;
    let routes = mesh.place.node("a1")?.ns.run("ip route show proto 75 dev kilo0")?;
    let of_many = routes.lines().filter(|route| route.starts_with("10.128.")).count();
    ensure!(of_many == RANGES || of_many == 0, "{of_many} routes to the ranges of one Peer: all or none");

    let report = pingers.stop()?;
    let mut longest = BTreeMap::new();
    for (name, agent) in &mesh.agents {
        agent.get("/readyz").with_context(|| format!("{name} is not ready"))?;
        let metrics = agent.get("/metrics")?;
        let count = metrics.lines().find_map(|line| line.strip_prefix("kilo_findings ")).context("kilo_findings")?;
        ensure!(count.parse::<usize>()? >= RANGES + bad.findings.len() - 1, "{name}: {count} findings");
        let log = agent.log();
        for (object, ..) in &bad.findings {
            ensure!(log.lines().any(|line| line.contains("WARN") && line.contains(object)), "{name} logs no {object}");
        }
        longest.insert(log.len() / 1024, name.clone());
    }
    // What others had they have, letter by letter.
    let after = mesh.devices()?;
    for (name, device) in &before.0 {
        for line in device.lines() {
            ensure!(after[name].lines().any(|other| other == line), "{name}: {line:?} is gone:\n{}", after[name]);
        }
    }
    mesh.reach_all(SOON)?;
    let (rested, peak) = (memory(&mesh, "VmRSS:")?, memory(&mesh, "VmHWM:")?);
    let log = longest.keys().next_back().copied().unwrap_or_default();
    let text = format!(
        "{} hostile objects: {} of {} pings lost on 3 ways; a good Peer added right after is on both leaders after \
         {:.2} s; {} of {RANGES} ranges of one Peer are routed; {} kinds of findings, each in /plan, the log and \
         kilo_findings; the longest log has {log} KiB; memory of an agent {} MiB before, {rested} MiB after, at most {peak} MiB",
        bad.files.len(),
        report.lost,
        report.sent,
        waited.as_secs_f64(),
        of_many,
        bad.findings.len(),
        before.1,
    );
    ensure!(report.lost == 0 && report.sent > 100 && waited < GOOD && peak < MEMORY && log < 256, "{text}");
    figure(&text);
    Ok(())
}
