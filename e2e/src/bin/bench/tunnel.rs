//! How much goes through a tunnel: our built-in WireGuard, wireguard-go, and no tunnel at all, in turn.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kilo_e2e::netns::{Ns, Process, World, eventually, helper};

use crate::figures::Figure;

const ROUNDS: usize = 3;
const SECONDS: u32 = 3;
const LINK: &str = "wg0";

/// A way from one namespace to the other.
struct Way {
    name: &'static str,
    from: Ns,
    /// Where iperf3 listens.
    to: String,
    _server: Process,
    _devices: Vec<Process>,
}

pub fn measure() -> Result<Vec<Figure>> {
    let world = World::new()?;
    if let Err(skip) = world.need("iperf3").and_then(|()| world.need_tun()) {
        println!("skipped: tunnel: {skip:#}");
        return Ok(Vec::new());
    }
    let mut ways = vec![way(&world, "none", 0)?, way(&world, "built-in", 1)?];
    match world.need("wireguard-go") {
        Ok(()) => ways.push(way(&world, "wireguard-go", 2)?),
        Err(skip) => println!("skipped: tunnel/wireguard-go: {skip:#}"),
    }
    let mut figures: BTreeMap<(usize, u32), Vec<f64>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (i, way) in ways.iter().enumerate() {
            for streams in [1, 4] {
                figures.entry((i, streams)).or_default().push(mbit(way, streams)?);
            }
        }
    }
    Ok(figures
        .into_iter()
        .map(|((i, streams), mut values)| {
            values.sort_by(f64::total_cmp);
            let name = format!("tunnel/{}/{streams}-streams-mbit", ways[i].name);
            Figure::new(name, values[values.len() / 2])
        })
        .collect())
}

/// Two namespaces of their own, a cable between them, and a tunnel over it unless there is to be none.
fn way(world: &World, name: &'static str, number: u8) -> Result<Way> {
    let (a, b) = (world.ns(&format!("from{number}"))?, world.ns(&format!("to{number}"))?);
    world.cable((&a, "eth0"), (&b, "eth0"))?;
    world.address(&a, "eth0", "10.9.0.1/24".parse()?)?;
    world.address(&b, "eth0", "10.9.0.2/24".parse()?)?;
    let mut devices = Vec::new();
    let mut to = "10.9.0.2".to_owned();
    if name != "none" {
        to = "10.99.0.2".to_owned();
        devices = vec![device(&a, name)?, device(&b, name)?];
        let (key_a, key_b) = (key(&a)?, key(&b)?);
        configure(world, &a, "10.99.0.1/24", &key_b, "10.99.0.2/32", "10.9.0.2:51820")?;
        configure(world, &b, "10.99.0.2/24", &key_a, "10.99.0.1/32", "10.9.0.1:51820")?;
    }
    let server = b.spawn("iperf3", &["iperf3", "--server"])?;
    eventually(Duration::from_secs(10), "packets pass", || a.ping(to.parse()?))?;
    Ok(Way { name, from: a, to, _server: server, _devices: devices })
}

fn device(ns: &Ns, kind: &str) -> Result<Process> {
    let device = if kind == "wireguard-go" {
        ns.spawn("wireguard", &["wireguard-go", "--foreground", LINK])?
    } else {
        let program = helper::program()?;
        let words = [
            program.as_os_str(),
            "--helper".as_ref(),
            "wg-device".as_ref(),
            "userspace".as_ref(),
            LINK.as_ref(),
            ns.dir().as_os_str(),
        ];
        ns.spawn("wireguard", &words)?
    };
    eventually(Duration::from_secs(5), "the device is there", || {
        ns.run(&format!("wg show {LINK}")).with_context(|| device.log())
    })?;
    Ok(device)
}

fn key(ns: &Ns) -> Result<String> {
    let file = ns.dir().join("wg-key");
    let file = Path::display(&file);
    let text = ns.sh(&format!(
        "umask 077; wg genkey > {file}; wg set {LINK} listen-port 51820 private-key {file}; wg pubkey < {file}"
    ))?;
    Ok(text.trim().to_owned())
}

fn configure(world: &World, ns: &Ns, address: &str, peer: &str, range: &str, endpoint: &str) -> Result<()> {
    ns.run(&format!("wg set {LINK} peer {peer} allowed-ips {range} endpoint {endpoint}"))?;
    world.address(ns, LINK, address.parse()?)?;
    ns.run(&format!("ip link set {LINK} mtu 1420 up")).map(drop)
}

fn mbit(way: &Way, streams: u32) -> Result<f64> {
    let line = format!("iperf3 --client {} --time {SECONDS} --parallel {streams} --json", way.to);
    let answer = way.from.json(&line)?;
    let bits = answer["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.with_context(|| format!("no sum of iperf3 in {answer}"))? / 1e6)
}
