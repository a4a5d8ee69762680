//! One Peer created while others are present: from the event to the kernel's last answer, with the real host
//! and its built-in WireGuard in a namespace, and a cluster in memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kilo_agent::{Agent, DiscoverConfig, Handle, Settings, Status};
use kilo_host::wireguard::Mode;
use kilo_host::{HostConfig, LinuxHost};
use kilo_mesh::{Config, Encapsulate, Metadata, NodeObject, NodeSpec};
use kilo_testkit::{FakeBackend, peer};

use crate::figures::Figure;
use crate::process::cpu;

/// How many Peers are created, one after the other.
const ROUNDS: usize = 200;
/// How long the start may take.
const START: Duration = Duration::from_secs(120);

pub fn measure(present: usize) -> Result<Vec<Figure>> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().context("starting the runtime")?.block_on(run(present))
}

async fn run(present: usize) -> Result<Vec<Figure>> {
    let dir = tempfile::tempdir().context("a directory for the key")?;
    for line in [
        "link add eth0 type veth peer name eth1",
        "address add 10.0.0.1/24 dev eth0",
        "link set eth1 up",
        "link set eth0 up",
        "route add default via 10.0.0.2",
    ] {
        let status =
            std::process::Command::new("ip").args(line.split(' ')).status().context("starting ip")?;
        ensure!(status.success(), "ip {line}");
    }
    let backend = FakeBackend::default();
    backend.apply_node(NodeObject {
        metadata: Metadata { name: "a".into(), ..Metadata::default() },
        spec: NodeSpec { pod_cidr: "10.2.0.0/24".into(), pod_cidrs: Vec::new() },
    });
    (0..present).for_each(|i| backend.apply_peer(peer(i)));
    let host = LinuxHost::open(HostConfig {
        wireguard: Mode::Userspace,
        data_dir: dir.path().to_owned(),
        ..HostConfig::default()
    })?;
    let settings = Settings {
        config: Config {
            hostname: "a".into(),
            encapsulate: Encapsulate::Never,
            cni: false,
            ..Config::default()
        },
        discover: DiscoverConfig { hostname: "a".into(), ..DiscoverConfig::default() },
        resync: Duration::from_secs(300),
        clean_up: false,
        clean_up_interface: false,
    };
    let (agent, mut handle) = Agent::new(Arc::new(backend.clone()), host, settings);
    let running = tokio::spawn(agent.run(std::future::pending()));
    let begin = Instant::now();
    let peers = |status: &Status| status.plan.as_ref().map_or(0, |plan| plan.peers);
    until(&mut handle, START, |s| s.last_success.is_some() && s.apply_error.is_none() && peers(s) == present)
        .await?;
    let start = begin.elapsed();
    tokio::time::sleep(Duration::from_secs(2)).await;

    let ops = |handle: &Handle| handle.stats.ops().values().sum::<u64>();
    let (mut walls, mut cpus) = (Vec::new(), Vec::new());
    let before = ops(&handle);
    for i in 0..ROUNDS {
        let (wall, before) = (Instant::now(), cpu());
        backend.apply_peer(peer(50_000 + i));
        until(&mut handle, Duration::from_secs(10), |s| {
            peers(s) == present + i + 1 && s.apply_error.is_none()
        })
        .await?;
        walls.push(wall.elapsed().as_secs_f64() * 1e3);
        cpus.push((cpu() - before).as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let operations = (ops(&handle) - before) as f64 / ROUNDS as f64;
    let followed = handle.stats.followed.load(Ordering::Relaxed);
    ensure!(followed >= ROUNDS as u64, "only {followed} of {ROUNDS} changes were followed");
    running.abort();
    walls.sort_by(f64::total_cmp);
    cpus.sort_by(f64::total_cmp);
    let name = format!("one-peer/{present}-present");
    let wall = Figure::new(format!("{name}/event-to-ack-p50-ms"), walls[ROUNDS / 2]);
    let cpu = Figure::new(format!("{name}/cpu-ms"), cpus[ROUNDS / 2]);
    let (wall, cpu) = match present {
        0 => (wall.upstream("31"), cpu),
        300 => (wall.upstream("1300"), cpu.upstream("900")),
        _ => (wall, cpu),
    };
    Ok(vec![
        wall,
        Figure::new(format!("{name}/event-to-ack-p99-ms"), walls[ROUNDS * 99 / 100]),
        Figure::new(format!("{name}/event-to-ack-worst-ms"), walls[ROUNDS - 1]),
        cpu,
        Figure::new(format!("{name}/operations"), operations)
            .upstream("whole device, 2–3 route dumps, 3–4 processes"),
        Figure::new(format!("{name}/start-ms"), start.as_secs_f64() * 1e3),
    ])
}

async fn until(handle: &mut Handle, limit: Duration, holds: impl Fn(&Status) -> bool) -> Result<()> {
    let wait = handle.status.wait_for(|status| holds(status));
    tokio::time::timeout(limit, wait).await.context("the agent took too long")?.context("the agent ended")?;
    Ok(())
}
