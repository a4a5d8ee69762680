//! An agent at rest: its memory, its wake-ups and its CPU time. Once with its built-in WireGuard in a mesh of
//! four with keepalives, and once with wireguard-go as somebody else's device, which leaves the agent alone.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kilo_e2e::mesh::Mesh;
use kilo_e2e::netns::{Ns, World, eventually};
use kilo_e2e::program;

use crate::figures::Figure;
use crate::process::{cpu_of, memory_of, wakeups_of};

/// How long it may settle before.
const SETTLES: Duration = Duration::from_secs(10);

/// A Node of another location that is never expired.
const STATE: &str = "\
apiVersion: v1
kind: Node
metadata:
  name: b
  annotations:
    kilo.squat.ai/location: there
    kilo.squat.ai/endpoint: 10.9.0.2:51820
    kilo.squat.ai/internal-ip: 10.9.0.2/24
    kilo.squat.ai/key: a2V5MgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
spec:
  podCIDR: 10.42.2.0/24
";
const OWN: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec: {podCIDR: 10.42.1.0/24}\n";

pub fn built_in(rest: Duration) -> Result<Vec<Figure>> {
    let world = World::new()?;
    let mut mesh = Mesh::start(&world, &[])?;
    std::thread::sleep(SETTLES);
    let (ns, file) = (mesh.place.node("a1")?.ns.clone(), mesh.state.path().join("nodes/a1.yaml"));
    watch("built-in-wireguard", mesh.agent("a1")?.process().id(), &ns, &file, rest)
}

pub fn alone(rest: Duration) -> Result<Vec<Figure>> {
    let world = World::new()?;
    if let Err(skip) = world.need("wireguard-go").and_then(|()| world.need_tun()) {
        println!("skipped: idle/alone: {skip:#}");
        return Ok(Vec::new());
    }
    let (ns, other) = (world.ns("a")?, world.ns("b")?);
    world.cable((&ns, "eth0"), (&other, "eth0"))?;
    world.address(&ns, "eth0", "10.9.0.1/24".parse()?)?;
    world.route(&ns, "default", "10.9.0.2".parse()?)?;
    let _device = ns.spawn("wireguard", &["wireguard-go", "--foreground", "kilo0"])?;
    eventually(Duration::from_secs(5), "the device is there", || ns.run("wg show kilo0"))?;
    let state = world.dir().join("state");
    std::fs::create_dir_all(state.join("nodes")).context("the state directory")?;
    std::fs::write(state.join("nodes/a.yaml"), OWN).context("our Node")?;
    std::fs::write(state.join("b.yaml"), STATE).context("the other Node")?;
    let kg = program("kg")?;
    let flags = [
        "--hostname=a".to_owned(),
        "--backend=file".to_owned(),
        format!("--state-dir={}", state.display()),
        format!("--data-dir={}", ns.dir().join("lib").display()),
        "--create-interface=false".to_owned(),
        "--encapsulate=never".to_owned(),
        "--cni=false".to_owned(),
        "--node-expiry=0".to_owned(),
        "--listen=127.0.0.1:1107".to_owned(),
    ];
    let argv: Vec<_> = std::iter::once(kg.as_os_str()).chain(flags.iter().map(AsRef::as_ref)).collect();
    let agent = ns.spawn("kg", &argv)?;
    eventually(Duration::from_secs(20), "the mesh is there", || ns.run("ip route get 10.42.2.1"))?;
    std::thread::sleep(SETTLES);
    watch("alone", agent.id(), &ns, &state.join("nodes/a.yaml"), rest)
}

/// How many operations on the host an agent has carried out; each is a message to the kernel at least.
fn operations(ns: &Ns) -> Result<f64> {
    let text = ns.http_get("127.0.0.1:1107".parse()?, "/metrics")?;
    let lines = text.lines().filter(|line| line.starts_with("kilo_operations_total{"));
    lines
        .map(|line| {
            line.rsplit(' ').next().unwrap_or_default().parse::<f64>().context("kilo_operations_total")
        })
        .sum()
}

/// Watches an agent that has this Node as its file.
fn watch(what: &str, pid: u32, ns: &Ns, file: &Path, rest: Duration) -> Result<Vec<Figure>> {
    let (cpu, wakeups, done) = (cpu_of(pid)?, wakeups_of(pid)?, operations(ns)?);
    // A write is a new file under the old name; there is one in many seconds.
    let version =
        || std::fs::metadata(file).map(|file| (file.ino(), file.mtime_nsec())).context("the Node's file");
    let (start, mut seen, mut writes) = (Instant::now(), version()?, 0.0);
    while start.elapsed() < rest {
        std::thread::sleep(Duration::from_millis(200));
        let now = version()?;
        writes += if now == seen { 0.0 } else { 1.0 };
        seen = now;
    }
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    let cpu = (cpu_of(pid)? - cpu).as_secs_f64();
    let wakeups = (wakeups_of(pid)? - wakeups) as f64 / minutes;
    let resident = memory_of(&pid.to_string(), "VmRSS")? as f64 / 1024.0;
    let private = memory_of(&pid.to_string(), "RssAnon")? as f64 / 1024.0;
    let figure = |name: &str, value| Figure::new(format!("idle/{what}/{name}"), value);
    Ok(vec![
        figure("resident-mib", resident).upstream("41, and wireguard-go 6–40"),
        figure("private-mib", private).upstream("9, and wireguard-go"),
        figure("wakeups-a-minute", wakeups).upstream("260–480"),
        figure("cpu-ms-a-minute", cpu * 1e3 / minutes).upstream("30"),
        figure("watched-s", minutes * 60.0),
        figure("cpu-s", cpu),
        figure("netlink-writes", operations(ns)? - done),
        figure("node-writes", writes),
    ])
}
