//! What connections and packets cost beside policies. A pod has two addresses: one that all policies select and one
//! that none does. Both are asked in turn, so that what else happens on the machine happens to both.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::netns::{Ns, Process, World, eventually, helper};
use kilo_policy::{Kind, MeshFacts};
use serde_json::{Value, json};

use super::{Engine, NODE, quantile, wait};
use crate::figures::Figure;
use crate::process::cpu;

const SELECTED: &str = "10.64.0.10";
const FREE: &str = "10.64.0.11";
const CLIENT: &str = "10.65.0.10";
const PORT: u16 = 8080;
const UDP_PORT: u16 = 8081;
/// Pairs of turns.
const PAIRS: usize = 20;
/// Connections in a turn.
const CONNECTIONS: usize = 1500;
/// Datagrams in a turn.
const DATAGRAMS: usize = 40_000;

/// What this program does inside the namespaces of pods.
pub fn helper(words: &[&str]) -> Option<Result<()>> {
    match words {
        ["flow-serve"] => Some(serve()),
        ["flow-connect", to, count] => Some(connect(to, count)),
        ["flow-send", to, count] => Some(send(to, count)),
        _ => None,
    }
}

fn serve() -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).context("listening")?;
    let datagrams = UdpSocket::bind(("0.0.0.0", UDP_PORT)).context("listening")?;
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while datagrams.recv(&mut buffer).is_ok() {}
    });
    for mut stream in listener.incoming().flatten() {
        // Its end is the client's, so that no port waits here.
        let _ = stream.read(&mut [0; 1]);
    }
    Ok(())
}

/// Opens connections one after the other; tells microseconds of this process's CPU time for each, and how many in a second.
fn connect(to: &str, count: &str) -> Result<()> {
    let (to, count): (SocketAddr, usize) = (to.parse()?, count.parse()?);
    let (wall, before) = (Instant::now(), cpu());
    for _ in 0..count {
        drop(TcpStream::connect_timeout(&to, Duration::from_secs(2)).context("connecting")?);
    }
    tell(count, wall.elapsed(), cpu() - before)
}

/// Sends datagrams of 64 bytes with their headers.
fn send(to: &str, count: &str) -> Result<()> {
    let count: usize = count.parse()?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    let (wall, before) = (Instant::now(), cpu());
    for _ in 0..count {
        socket.send(&[0; 22]).context("sending")?;
    }
    tell(count, wall.elapsed(), cpu() - before)
}

fn tell(count: usize, wall: Duration, cpu: Duration) -> Result<()> {
    let each = json!({"cpu-us": cpu.as_secs_f64() * 1e6 / count as f64, "each-second": count as f64 / wall.as_secs_f64()});
    writeln!(std::io::stdout(), "{each}").context("telling")
}

struct Lab {
    _world: World,
    client: Ns,
    _servers: Vec<Process>,
}

impl Lab {
    /// This namespace is the node; the pod hangs on a link of its own, and the client comes from outside.
    fn new() -> Result<Self> {
        let world = World::new()?;
        let (pod, client) = (world.ns("pod")?, world.ns("client")?);
        for (ns, link, gateway) in [(&pod, "veth-pod", "169.254.1.1"), (&client, "eth0", "169.254.1.1")] {
            world.ip(&format!("link add {link} type veth peer name eth0 netns {}", ns.name()))?;
            world.ip(&format!("address add {gateway}/32 dev {link}"))?;
            world.ip(&format!("link set {link} up"))?;
            ns.run("ip link set lo up")?;
            ns.run("ip link set eth0 up")?;
            ns.run(&format!("ip route add {gateway} dev eth0"))?;
        }
        for address in [SELECTED, FREE] {
            pod.run(&format!("ip address add {address}/32 dev eth0"))?;
            world.ip(&format!("route add {address} dev veth-pod"))?;
        }
        client.run(&format!("ip address add {CLIENT}/32 dev eth0"))?;
        world.ip(&format!("route add {CLIENT} dev eth0"))?;
        pod.run(&format!("ip route add default via 169.254.1.1 src {SELECTED}"))?;
        client.run(&format!("ip route add default via 169.254.1.1 src {CLIENT}"))?;
        // Each connection leaves a port waiting for a minute.
        client.sh("echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range")?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forwarding")?;
        let program = helper::program()?;
        let words = [program.as_os_str(), "--helper".as_ref(), "flow-serve".as_ref()];
        let mut servers = vec![pod.spawn("server", &words)?];
        if world.need("iperf3").is_ok() {
            servers.push(pod.spawn("iperf3", &["iperf3", "--server"])?);
        }
        eventually(Duration::from_secs(5), "the server answers", || {
            turn(&client, "flow-connect", FREE, PORT, 1).map(drop)
        })?;
        Ok(Self { _world: world, client, _servers: servers })
    }
}

/// One turn of a client; what it told.
fn turn(client: &Ns, what: &str, to: &str, port: u16, count: usize) -> Result<Value> {
    let program = helper::program()?;
    let to = format!("{to}:{port}");
    let count = count.to_string();
    let words = [program.as_os_str(), "--helper".as_ref(), what.as_ref(), to.as_ref(), count.as_ref()];
    let output = client.output(&words)?;
    ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("what the client told")
}

/// Pods and policies: the selected address has all of them, of which the last allows what is asked.
fn objects(policies: usize) -> Vec<(Kind, Value)> {
    let pod = |name: &str, ip: &str, app: &str| {
        let object = json!({
            "metadata": {"namespace": "shop", "name": name, "uid": name, "labels": {"app": app}},
            "spec": {"nodeName": NODE}, "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
        });
        (Kind::Pod, object)
    };
    let policy = |n: usize| {
        let cidr = if n + 1 == policies {
            "10.65.0.0/16".to_owned()
        } else {
            format!("172.{}.{}.{}/32", 16 + (n >> 16), n >> 8 & 255, n & 255)
        };
        let object = json!({
            "metadata": {"namespace": "shop", "name": format!("policy-{n}")},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]},
        });
        (Kind::NetworkPolicy, object)
    };
    let namespace = (Kind::Namespace, json!({"metadata": {"name": "shop"}}));
    let pods = [pod("web", SELECTED, "web"), pod("free", FREE, "free")];
    std::iter::once(namespace).chain(pods).chain((0..policies).map(policy)).collect()
}

pub fn measure(policies: usize) -> Result<Vec<Figure>> {
    let lab = Lab::new()?;
    let facts = MeshFacts {
        own_pods: ["10.64.0.0/24".parse()?].into(),
        all_pods: ["10.64.0.0/24".parse()?].into(),
        ..MeshFacts::default()
    };
    // Packets of flows pass by the connection's state even before our tables ask for it.
    let engine = wait(async {
        let mut engine = Engine::new(facts).await?;
        engine.start(objects(policies)).await?;
        Ok(engine)
    })?;
    let name = format!("policy-flow/{policies}-policies");
    let mut figures = Vec::new();
    for (what, helper, port, count) in [
        ("connection", "flow-connect", PORT, CONNECTIONS),
        ("datagram-64-bytes", "flow-send", UDP_PORT, DATAGRAMS),
    ] {
        figures.extend(pairs(&lab.client, &format!("{name}/{what}"), helper, port, count)?);
    }
    figures.extend(stream(&lab.client, &name)?);
    drop(engine);
    Ok(figures)
}

fn pairs(client: &Ns, name: &str, helper: &str, port: u16, count: usize) -> Result<Vec<Figure>> {
    let (mut selected, mut free, mut ratios, mut rates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let ask = |to: &str| -> Result<(f64, f64)> {
            let told = turn(client, helper, to, port, count)?;
            let number = |key: &str| told[key].as_f64().with_context(|| key.to_owned());
            Ok((number("cpu-us")?, number("each-second")?))
        };
        let ((of_selected, rate), (of_free, _)) = if pair % 2 == 0 {
            (ask(SELECTED)?, ask(FREE)?)
        } else {
            let free = ask(FREE)?;
            (ask(SELECTED)?, free)
        };
        selected.push(of_selected);
        free.push(of_free);
        ratios.push(100.0 * (of_selected / of_free - 1.0));
        rates.push(rate);
    }
    Ok([
        ("selected-cpu-us", quantile(&mut selected, 0.5)),
        ("free-cpu-us", quantile(&mut free, 0.5)),
        ("more-cpu-percent", quantile(&mut ratios, 0.5)),
        ("more-cpu-p10-percent", quantile(&mut ratios, 0.1)),
        ("more-cpu-p90-percent", quantile(&mut ratios, 0.9)),
        ("selected-each-second", quantile(&mut rates, 0.5)),
    ]
    .map(|(what, value)| Figure::new(format!("{name}/{what}"), value))
    .into())
}

fn stream(client: &Ns, name: &str) -> Result<Vec<Figure>> {
    let mut mbit: [Vec<f64>; 2] = Default::default();
    for _ in 0..5 {
        for (to, all) in [SELECTED, FREE].into_iter().zip(&mut mbit) {
            let Ok(told) = client.json(&format!("iperf3 --client {to} --time 1 --json")) else {
                println!("skipped: {name}/tcp: iperf3 does not run here");
                return Ok(Vec::new());
            };
            let bits = told["end"]["sum_received"]["bits_per_second"].as_f64().context("a sum of iperf3")?;
            all.push(bits / 1e6);
        }
    }
    let [selected, free] = mbit.map(|mut all| quantile(&mut all, 0.5));
    Ok(vec![
        Figure::new(format!("{name}/tcp/selected-mbit"), selected),
        Figure::new(format!("{name}/tcp/selected-of-free-percent"), 100.0 * selected / free),
    ])
}
