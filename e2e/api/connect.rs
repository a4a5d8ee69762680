//! `kgctl connect`: a machine outside joins a mesh of agents by a real API server, reaches its pods, and leaves nothing
//! behind.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kilo_e2e::cluster::{Cluster, peer_object};
use kilo_e2e::mesh::stranger;
use kilo_e2e::{Ns, Process, World, eventually, figure, program, tests};
use rustix::process::Signal;
use serde_json::{Value, json};

tests![
    a_machine_connects_and_leaves_nothing(limit = 420),
    an_endpoint_in_the_own_network_stays_out_of_the_tunnel(limit = 420)
];

const SOON: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(15);
const NAME: &str = "laptop";
/// Its number on the internet and in the mesh.
const NUMBER: u8 = 77;

/// The machine and its key.
struct Laptop<'a> {
    world: &'a World,
    ns: Ns,
    address: IpAddr,
    public_key: String,
    runs: usize,
}

impl<'a> Laptop<'a> {
    fn arrive(world: &'a World, cluster: &Cluster<'_>) -> Result<Self> {
        let ns = cluster.mesh.place.traveller(world, NAME, NUMBER)?;
        let (_, address) = cluster.mesh.place.addresses(NUMBER)?;
        let key = ns.dir().join("key");
        let key = key.display();
        let public_key = ns.sh(&format!("umask 077; wg genkey > {key}; wg pubkey < {key}"))?.trim().to_owned();
        Ok(Self { world, ns, address, public_key, runs: 0 })
    }

    fn command(&self, more: &[&str]) -> Result<Vec<String>> {
        let kubeconfig = self.world.dir().join("api/kubeconfig");
        let mut argv = vec![program("kgctl")?.to_string_lossy().into_owned(), "connect".into(), NAME.into()];
        argv.push(format!("--kubeconfig={}", kubeconfig.display()));
        argv.push(format!("--allowed-ip={}/32", self.address));
        argv.extend(["--log-level=all".to_owned(), "--persistent-keepalive=5".to_owned()]);
        argv.extend(more.iter().map(|&word| word.to_owned()));
        Ok(argv)
    }

    fn key_flag(&self) -> String {
        format!("--private-key={}", self.ns.dir().join("key").display())
    }

    /// Connects.
    fn start(&mut self, more: &[&str]) -> Result<Process> {
        self.runs += 1;
        let argv = self.command(&[&[self.key_flag().as_str()], more].concat())?;
        self.ns.spawn(&format!("connect-{}", self.runs), &argv)
    }

    /// What it says that refuses to connect.
    fn refused(&self, more: &[&str]) -> Result<String> {
        let output = self.ns.output(&self.command(more)?)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
        Ok(said)
    }

    /// Waits until these pods answer.
    fn reaches(&self, cluster: &Cluster<'_>, nodes: &[&str], process: &Process) -> Result<()> {
        for node in nodes {
            let pod = cluster.mesh.place.node(node)?.pod.address;
            eventually(SOON, &format!("{NAME} reaches the pod of {node}"), || {
                self.ns.ping(pod).with_context(|| process.log())
            })?;
        }
        Ok(())
    }

    /// The link that packets to an address leave by.
    fn way_to(&self, address: &str) -> Result<String> {
        let found = self.ns.json(&format!("ip -j route get {address}"))?;
        Ok(found[0]["dev"].as_str().context("no way")?.to_owned())
    }

    /// No endpoint of the device is reached through the device.
    fn endpoints_are_outside(&self) -> Result<usize> {
        let text = self.ns.run("wg show kilo0 endpoints")?;
        let endpoints = text.lines().filter_map(|line| line.split_once('\t')?.1.rsplit_once(':'));
        let mut count = 0;
        for (address, _) in endpoints {
            let dev = self.way_to(address)?;
            ensure!(dev != "kilo0", "{address} is reached through the tunnel to it");
            count += 1;
        }
        ensure!(count > 0, "the device has no endpoints: {text}");
        Ok(count)
    }

    /// All that there is of networks on the machine.
    fn network(&self) -> Result<String> {
        self.ns.sh("ip -o link | cut -d: -f2; ip -o address | sed 's/valid_lft.*//'; ip route show table all; ip rule; nft list ruleset")
    }
}

fn peers(cluster: &Cluster<'_>) -> Result<Vec<Value>> {
    let all = cluster.api.json(&["get", "peers.kilo.squat.ai"])?;
    Ok(all["items"].as_array().cloned().unwrap_or_default())
}

fn a_machine_connects_and_leaves_nothing(world: &World) -> Result<()> {
    let mut cluster = Cluster::found(world)?;
    // A node whose agent has never run: without endpoint, key and all else.
    cluster.api.put("create", &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "ghost"}, "spec": {"podCIDR": "10.42.99.0/24"}}))?;
    cluster.deploy()?;
    eventually(SOON, "the agents are ready", || {
        cluster.mesh.agents.values().try_for_each(|agent| agent.get("/readyz").map(drop))
    })?;
    let mut laptop = Laptop::arrive(world, &cluster)?;
    let before = eventually(SOON, "the machine's own addresses are settled", || {
        let network = laptop.network()?;
        ensure!(!network.contains("tentative"), "{network}");
        Ok(network)
    })?;

    // The range holds a1's endpoint, and other addresses, which are reached through the tunnel.
    let start = std::time::Instant::now();
    let mut process = laptop.start(&["--allowed-ips=203.0.113.8/29"])?;
    laptop.reaches(&cluster, &["a1", "a2"], &process)?;
    let took = start.elapsed();
    laptop.endpoints_are_outside()?;
    ensure!(laptop.way_to("203.0.113.11")? == "eth0" && laptop.way_to("203.0.113.12")? == "kilo0");
    let made = peers(&cluster)?;
    let [peer] = made.as_slice() else { bail!("not one Peer: {made:?}") };
    let wanted = json!({"allowedIPs": [format!("{}/32", laptop.address)], "persistentKeepalive": 5, "publicKey": laptop.public_key});
    ensure!(peer["metadata"]["name"] == NAME && peer["spec"] == wanted, "{peer}");

    // What others break comes back without waiting for the resync.
    laptop.ns.run("ip route del 10.42.1.0/24")?;
    eventually(Duration::from_secs(5), "the route is back", || {
        ensure!(laptop.way_to("10.42.1.2")? == "kilo0");
        Ok(())
    })?;
    let key = std::fs::read_to_string(laptop.ns.dir().join("key")).context("reading the key")?;
    ensure!(!process.log().contains(key.trim()), "the private key is in the log");
    ensure!(process.log().contains("Changed this machine"), "nothing is logged: {}", process.log());

    let status = process.stop(STOP)?;
    ensure!(status.code() == Some(0), "SIGTERM: {status}: {}", process.log());
    ensure!(laptop.network()? == before, "left behind: {}\nbefore: {before}", laptop.network()?);
    ensure!(peers(&cluster)?.is_empty(), "the Peer is still there");

    // A Peer of another machine is left alone, and so is a key that others may read.
    let theirs = stranger()?.to_string();
    let mut object = peer_object(NAME, &theirs, laptop.address, Some((IpAddr::from([198, 51, 100, NUMBER]), 51_820)));
    cluster.api.put("create", &object)?;
    let said = laptop.refused(&[&laptop.key_flag()])?;
    ensure!(said.contains(&theirs) && said.contains(&laptop.public_key), "{said}");
    ensure!(laptop.refused(&[])?.contains("--private-key"), "a new key is none of the Peer's");
    let loose = laptop.ns.dir().join("loose");
    laptop.ns.sh(&format!("umask 022; wg genkey > {}", loose.display()))?;
    let said = laptop.refused(&[&format!("--private-key={}", loose.display())])?;
    ensure!(said.contains("chmod 600") && !said.contains(std::fs::read_to_string(&loose)?.trim()), "{said}");
    ensure!(laptop.network()? == before && peers(&cluster)?.len() == 1);

    // A Peer of this machine is used as it is, here with an endpoint, so that nodes behind NAT can call; and it stays.
    object["spec"]["publicKey"] = json!(laptop.public_key);
    cluster.api.put("replace", &object)?;
    let mut process = laptop.start(&[])?;
    laptop.reaches(&cluster, &["a1", "a2", "b1", "b2", "b3"], &process)?;
    laptop.endpoints_are_outside()?;
    process.signal(Signal::INT)?;
    let status = process.stop(STOP)?;
    ensure!(status.code() == Some(0), "SIGINT: {status}: {}", process.log());
    ensure!(laptop.network()? == before, "left behind: {}\nbefore: {before}", laptop.network()?);
    ensure!(peers(&cluster)?.len() == 1, "a Peer that was not made is gone");
    figure(&format!(
        "a machine connects, two pods answer after {:.1} s; SIGTERM and SIGINT end with 0 and nothing is left",
        took.as_secs_f64()
    ));
    Ok(())
}

fn an_endpoint_in_the_own_network_stays_out_of_the_tunnel(world: &World) -> Result<()> {
    const PRIVATE: &str = "10.1.0.11";
    let mut cluster = Cluster::found(world)?;
    let endpoint = format!("kilo.squat.ai/force-endpoint={PRIVATE}:51820");
    cluster.api.kubectl(&["annotate", "node", "a1", &endpoint, "kilo.squat.ai/leader="])?;
    cluster.deploy_on(&["a1", "a2"])?;
    let mut laptop = Laptop::arrive(world, &cluster)?;
    let west = Ns::existing("west")?;
    world.cable((&laptop.ns, "eth1"), (&west, NAME))?;
    world.port(&west, "lan", NAME)?;
    world.address(&laptop.ns, "eth1", "10.1.0.77/24".parse()?)?;
    eventually(SOON, "a1 has told its endpoint", || {
        let node = cluster.api.json(&["get", "node", "a1"])?;
        ensure!(node["metadata"]["annotations"]["kilo.squat.ai/endpoint"] == format!("{PRIVATE}:51820"), "{node}");
        Ok(())
    })?;
    let mut process = laptop.start(&[])?;
    laptop.reaches(&cluster, &["a1", "a2"], &process)?;
    ensure!(laptop.way_to(PRIVATE)? == "eth1", "the endpoint is reached by {}", laptop.way_to(PRIVATE)?);
    ensure!(laptop.way_to("10.1.0.12")? == "kilo0", "a2's private address is reached by {}", laptop.way_to("10.1.0.12")?);
    laptop.endpoints_are_outside()?;
    // Also when all is read and compared again, and after the session was renewed.
    std::thread::sleep(Duration::from_secs(3));
    laptop.reaches(&cluster, &["a1", "a2"], &process)?;
    let status = process.stop(STOP)?;
    ensure!(status.code() == Some(0), "SIGTERM: {status}: {}", process.log());
    figure("the endpoint of a node in the own network is reached directly, its pods through the tunnel");
    Ok(())
}
