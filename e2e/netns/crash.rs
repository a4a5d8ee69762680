//! SIGKILL after every operation of a start, a change of Peers, a change of the leader and a stop: the agent that
//! starts then makes the kernel what it would have been, and touches nothing that was right.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kilo_e2e::crash::{Phase, cni_file};
use kilo_e2e::mesh::differences;
use kilo_e2e::netns::helper as program_helper;
use kilo_e2e::{Ns, Process, World, eventually, figure, tests};
use kilo_wireguard::PrivateKey;
use serde_json::Value;

tests![
    a_kill_after_any_operation_is_mended(limit = 300),
    a_kill_with_the_built_in_device_is_mended(limit = 300),
];

/// Also on a virtual machine that is ten times slower.
const SOON: Duration = Duration::from_secs(90);
/// The CNI file as an init container leaves it.
const CNI: &str = r#"{"cniVersion":"0.4.0","name":"kilo","plugins":[{"type":"bridge","bridge":"kube-bridge","ipam":{"type":"host-local"}}]}"#;
/// How many machines are tried at the same time: most of the time is waiting.
const AT_ONCE: usize = 3;

/// Who has the WireGuard device of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The agent itself: the device goes with it.
    BuiltIn,
    /// Another process.
    Foreign,
    /// The kernel.
    Kernel,
}

impl Device {
    /// Whether it is still there when the agent is not.
    fn outlives(self) -> bool {
        self != Self::BuiltIn
    }
}

/// One machine of one kill.
struct Machine<'w> {
    world: &'w World,
    ns: Ns,
    _device: Option<Process>,
    /// With a device of the kernel's, the node `b1`, which keeps a session with it alive.
    b1: Option<Ns>,
}

impl<'w> Machine<'w> {
    /// A machine that no agent has run on.
    fn new(world: &'w World, device: Device) -> Result<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let ns = world.ns(&format!("m{number}"))?;
        ns.sh(
            "ip link add eth0 address 02:00:00:00:00:01 type veth peer name eth1
             ip link set eth0 up; ip link set eth1 up
             ip addr add 10.1.0.1/24 dev eth0; ip route add default via 10.1.0.254 dev eth0
             echo 0 > /proc/sys/net/ipv4/ip_forward",
        )?;
        let b1 = match device {
            Device::BuiltIn | Device::Foreign => None,
            Device::Kernel => Some(other_end(world, &ns, &format!("b{number}"))?),
        };
        std::fs::write(cni_file(ns.dir()), CNI).context("writing the CNI file")?;
        let hosts = ns.dir().join("hosts");
        std::fs::write(hosts, "127.0.0.1 localhost\n10.1.0.1 a1\n").context("writing the file of hosts")?;
        let device = match device {
            Device::BuiltIn | Device::Kernel => None,
            Device::Foreign => {
                let dir = ns.dir().join("device");
                std::fs::create_dir_all(&dir).context("creating the device's directory")?;
                let exe = program_helper::program()?;
                let words = ["--helper", "wg-device", "userspace", "kilo0"];
                let mut argv = vec![exe.as_os_str()];
                argv.extend(words.iter().map(std::ffi::OsStr::new));
                argv.push(dir.as_os_str());
                let device = ns.spawn("device", &argv)?;
                // Not by asking it: `wg` removes a socket that does not answer yet.
                eventually(SOON, "the link is there", || ns.run("ip link show kilo0"))?;
                eventually(SOON, "the device is there", || {
                    ensure!(ns.dir().join("wireguard/kilo0.sock").exists(), "it has no socket");
                    Ok(())
                })?;
                Some(device)
            }
        };
        Ok(Self { world, ns, _device: device, b1 })
    }

    /// Runs an agent through a phase until it settles or is killed.
    fn agent(&self, phase: Phase, at: &str) -> Result<Run> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let exe = program_helper::program()?;
        let hosts = self.ns.dir().join("hosts");
        let argv = [
            "sh".as_ref(),
            "-c".as_ref(),
            "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"".as_ref(),
            "sh".as_ref(),
            hosts.as_os_str(),
            exe.as_os_str(),
            "--helper".as_ref(),
            "crash-agent".as_ref(),
            phase.name().as_ref(),
            at.as_ref(),
            self.ns.dir().as_os_str(),
        ];
        let name = format!("agent-{}", NUMBER.fetch_add(1, Ordering::SeqCst));
        let mut process = self.ns.spawn(&name, &argv)?;
        let start = Instant::now();
        loop {
            let ended = process.ended();
            let log = process.log();
            let settled = log.lines().any(|line| line == "settled");
            if settled || ended.is_some() {
                let kinds = log.lines().filter_map(|line| line.strip_prefix("op ")).map(str::to_owned);
                let kinds = kinds.collect();
                let killed = ended.is_some_and(|status| status.signal() == Some(9));
                if !settled && !killed {
                    bail!("the agent of {} at {at} ended with {ended:?}: {log}", phase.name());
                }
                return Ok(Run { process, kinds, settled });
            }
            ensure!(start.elapsed() < SOON, "the agent of {} at {at} is not done: {log}", phase.name());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The kernel is as the plan of the agent that has settled last says.
    fn as_planned(&self) -> Result<()> {
        let plan = std::fs::read(self.ns.dir().join("plan.json")).context("reading the plan")?;
        let plan: Value = serde_json::from_slice(&plan).context("reading the JSON of the plan")?;
        let found = differences(&self.ns, &plan, true)?;
        ensure!(found.is_empty(), "{}", found.join("\n"));
        Ok(())
    }

    /// Nothing of an agent is left in the kernel but a device that is not its own.
    fn is_clean(&self) -> Result<()> {
        let routes = self.ns.run("ip route show table all proto 75")? + &self.ns.run("ip -6 route show table all proto 75")?;
        let rules = self.ns.run("ip rule show table 1107")? + &self.ns.run("ip -6 rule show table 1107")?;
        let ruleset = self.ns.run("nft list ruleset")?;
        let left = routes + &rules;
        ensure!(left.is_empty() && !ruleset.contains("kilo") && !ruleset.contains("10.42."), "{left}{ruleset}");
        ensure!(self.b1.is_none() || self.link()?.is_none(), "there still is a WireGuard link");
        Ok(())
    }

    /// The index of the WireGuard link, where there is one.
    fn link(&self) -> Result<Option<u64>> {
        let links = self.ns.json("ip -j link show")?;
        let mut links = links.as_array().context("ip shows no list")?.iter();
        Ok(links.find(|link| link["ifname"] == "kilo0").and_then(|link| link["ifindex"].as_u64()))
    }

    /// The session with `b1`, where there is one.
    fn session(&self) -> Result<Option<Session>> {
        let Some(link) = self.link()?.filter(|_| self.b1.is_some()) else { return Ok(None) };
        let dump = self.ns.run("wg show kilo0 dump")?;
        let key = secret(NEIGHBOUR).public_key().to_string();
        let Some(line) = dump.lines().find(|line| line.starts_with(&key)) else { return Ok(None) };
        let fields: Vec<&str> = line.split('\t').collect();
        let [_, _, _, _, handshake, received, ..] = fields.as_slice() else { bail!("a line of wg: {line:?}") };
        let session = Session { link, handshake: handshake.parse()?, received: received.parse()? };
        Ok((session.handshake > 0).then_some(session))
    }

    /// A session of before the kill goes on without a handshake.
    fn goes_on(&self, before: &Session) -> Result<()> {
        eventually(SOON, "the session goes on", || {
            let now = self.session()?.context("the session is gone")?;
            ensure!(
                now.link == before.link && now.handshake == before.handshake && now.received > before.received,
                "{before:?} and then {now:?}"
            );
            Ok(())
        })
    }

    /// All that the kernel and the disk have of an agent, as others see it.
    fn dump(&self) -> Result<BTreeMap<&'static str, String>> {
        let mut dump = BTreeMap::new();
        for command in [
            "ip -j address show",
            "ip -j route show table all",
            "ip -j -6 route show table all",
            "ip -j rule show",
            "ip -j -6 rule show",
            "nft -j list ruleset",
        ] {
            let mut value = self.ns.json(command)?;
            plain(&mut value);
            dump.insert(command, format!("{value:#}"));
        }
        for command in [
            "wg show all allowed-ips",
            "wg show all endpoints",
            "wg show all listen-port",
            "wg show all persistent-keepalive",
            "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding",
        ] {
            let text = self.ns.run(command)?;
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            dump.insert(command, lines.join("\n"));
        }
        let cni = std::fs::read_to_string(cni_file(self.ns.dir())).context("reading the CNI file")?;
        dump.insert("CNI file", cni);
        dump.insert("files", files(self.ns.dir())?);
        Ok(dump)
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // What is left goes with the test's world.
        for ns in std::iter::once(&self.ns).chain(&self.b1) {
            let _ended = self.world.ip(&format!("netns del {}", ns.name()));
        }
    }
}

/// A session of the WireGuard device's.
#[derive(Clone, Copy, Debug)]
struct Session {
    /// Index of the link.
    link: u64,
    /// Seconds since 1970.
    handshake: u64,
    /// Bytes so far.
    received: u64,
}

/// What the private keys of a machine and of `b1` are made of; the cluster gives `b1` this one.
const OWN: u8 = 200;
const NEIGHBOUR: u8 = 103;

fn secret(number: u8) -> PrivateKey {
    PrivateKey::from_random([number; 32])
}

/// Makes the other end of a machine's cable the node `b1` with a device of the kernel's that calls every second, and
/// gives the machine the key that `b1` knows.
fn other_end(world: &World, ns: &Ns, name: &str) -> Result<Ns> {
    let b1 = world.ns(name)?;
    let write = |path: std::path::PathBuf, key: PrivateKey| {
        std::fs::write(&path, key.secret_base64().as_bytes()).context("writing a key")?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).context("hiding a key")
    };
    std::fs::create_dir_all(ns.dir().join("lib")).context("creating the data directory")?;
    write(ns.dir().join("lib/key"), secret(OWN))?;
    write(b1.dir().join("key"), secret(NEIGHBOUR))?;
    ns.run(&format!("ip link set eth1 netns {name}"))?;
    b1.sh(&format!(
        "ip link set eth1 up; ip addr add 192.0.2.3/32 dev lo; ip addr add 10.1.0.254/24 dev eth1
         ip route replace 10.1.0.0/24 dev eth1 src 192.0.2.3
         ip link add wg0 type wireguard
         wg set wg0 private-key {} listen-port 51820 peer {} endpoint 10.1.0.1:51820 allowed-ips 0.0.0.0/0,::/0 \
           persistent-keepalive 1
         ip link set wg0 up",
        b1.dir().join("key").display(),
        secret(OWN).public_key(),
    ))?;
    Ok(b1)
}

/// An agent that was killed or has settled.
struct Run {
    process: Process,
    /// The kinds of the operations that were counted.
    kinds: Vec<String>,
    settled: bool,
}

/// The names of files that agents may write.
fn files(dir: &Path) -> Result<String> {
    let mut names = Vec::new();
    for dir in [dir.to_owned(), dir.join("lib")] {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries {
            let name = entry.context("reading a directory")?.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".log") && name != "plan.json" {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names.join("\n"))
}

/// Takes away what differs between two machines that are alike.
fn plain(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for key in ["handle", "packets", "bytes", "ifindex", "link_index", "qdisc", "address", "metainfo"] {
                map.remove(key);
            }
            if map.get("local").is_some_and(|local| local.as_str().is_some_and(|a| a.starts_with("fe80:"))) {
                map.clear();
            }
            map.values_mut().for_each(plain);
        }
        Value::Array(list) => {
            list.iter_mut().for_each(plain);
            // Link-local addresses are random, and come when they like.
            list.retain(|item| {
                let text = item.to_string();
                text != "{}" && !text.contains("fe80:") && !text.contains("ff00::/8")
            });
            if list.iter().all(Value::is_object) {
                list.sort_by_key(Value::to_string);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn same(found: &BTreeMap<&'static str, String>, wanted: &BTreeMap<&'static str, String>) -> Result<()> {
    for (what, wanted) in wanted {
        let found = &found[what];
        ensure!(found == wanted, "{what}: {}", difference(found, wanted));
    }
    Ok(())
}

/// Lines of the one and not of the other.
fn difference(found: &str, wanted: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (found.lines().collect(), wanted.lines().collect());
    let mut text = String::new();
    for line in a.iter().filter(|line| !b.contains(line)) {
        text.push_str(&format!("\n+ {line}"));
    }
    for line in b.iter().filter(|line| !a.contains(line)) {
        text.push_str(&format!("\n- {line}"));
    }
    if text.is_empty() { format!("other order or number of lines:\n{found}\n--\n{wanted}") } else { text }
}

/// Brings a machine to where the phase begins, through an agent that is killed there with nothing under way.
fn prepare(machine: &Machine<'_>, phase: Phase) -> Result<()> {
    if phase != Phase::Start {
        machine.agent(Phase::Start, "0")?.process.kill();
        if machine.b1.is_some() {
            eventually(SOON, "b1 has a session", || machine.session()?.context("it has none"))?;
        }
    }
    Ok(())
}

/// What a kill was found to do.
struct Mended {
    /// Until the agent that was started again has settled.
    took: Duration,
    /// Whether a session was there, and went on.
    session: bool,
}

/// Kills after the operation `at`, starts again, and compares with what is `wanted`.
fn kill_and_mend(
    world: &World,
    device: Device,
    phase: Phase,
    at: usize,
    kinds: &[String],
    wanted: &BTreeMap<&'static str, String>,
) -> Result<Mended> {
    let machine = Machine::new(world, device)?;
    prepare(&machine, phase)?;
    let killed = machine.agent(phase, &at.to_string())?;
    ensure!(!killed.settled && killed.kinds == kinds[..at], "not killed after {at}: {:?}", killed.kinds);
    // In the other phases the device goes, or empties, as it should.
    let session = if matches!(phase, Phase::Start | Phase::Peers) { machine.session()? } else { None };
    let link = machine.link()?;
    let start = Instant::now();
    let mut again = machine.agent(phase, "again")?;
    let took = start.elapsed();
    ensure!(again.settled, "killed at the second start");
    eventually(Duration::from_secs(2), "the kernel is as if nobody had been killed", || same(&machine.dump()?, wanted))?;
    machine.as_planned()?;
    if let Some(before) = &session {
        machine.goes_on(before)?;
    }
    // What was done is not done again.
    if device.outlives() && link.is_some() {
        ensure!(machine.link()? == link, "the WireGuard link is another");
    }
    if device.outlives() && phase != Phase::Stop {
        let left = kinds.len() - at;
        ensure!(again.kinds.len() == left, "{} operations were left, not {:?}", left, again.kinds);
    }
    if !device.outlives() && phase != Phase::Stop {
        for kind in ["nftables", "cni", "forward"] {
            let count = |kinds: &[String]| kinds.iter().filter(|k| *k == kind).count();
            let left = count(&kinds[at..]);
            ensure!(count(&again.kinds) == left, "{left} operations on {kind} were left, not {:?}", again.kinds);
        }
    }
    again.process.kill();
    Ok(Mended { took, session: session.is_some() })
}

/// Kills after every operation of every phase.
pub fn every_kill(world: &World, device: Device) -> Result<()> {
    for program in ["ip", "nft", "wg"] {
        world.need(program)?;
    }
    if device != Device::Kernel {
        world.need_tun()?;
    }
    let mut told = Vec::new();
    for phase in Phase::ALL {
        // What happens when nobody is killed.
        let machine = Machine::new(world, device)?;
        prepare(&machine, phase)?;
        let mut whole = machine.agent(phase, "0")?;
        ensure!(whole.settled, "killed without being told");
        let kinds = whole.kinds.clone();
        if phase == Phase::Stop {
            machine.is_clean()?;
        } else {
            machine.as_planned()?;
        }
        let mut wanted = machine.dump()?;
        if phase == Phase::Stop {
            // After a stop that was cut off, the agent is back as after any start.
            let mut again = machine.agent(phase, "again")?;
            machine.as_planned()?;
            wanted = machine.dump()?;
            again.process.kill();
        }
        whole.process.kill();
        drop(machine);

        let next = AtomicUsize::new(1);
        let work = || -> Result<Vec<Mended>> {
            let mut took = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::SeqCst);
                if at > kinds.len() {
                    return Ok(took);
                }
                let kill = kill_and_mend(world, device, phase, at, &kinds, &wanted);
                took.push(kill.with_context(|| format!("{} killed after {at} of {kinds:?}", phase.name()))?);
            }
        };
        let mended: Vec<Mended> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Vec<Mended>>>| {
                thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
            };
            threads.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?
        .into_iter()
        .flatten()
        .collect();
        let kills = mended.len();
        ensure!(kills == kinds.len() && kills > 0, "{kills} kills for {} operations", kinds.len());
        let longest = mended.iter().map(|mended| mended.took).max().unwrap_or_default();
        let sessions = mended.iter().filter(|mended| mended.session).count();
        ensure!(device != Device::Kernel || phase != Phase::Peers || sessions == kills, "{sessions} sessions of {kills}");
        let went_on = if sessions > 0 { format!(", {sessions} sessions went on") } else { String::new() };
        let longest = longest.as_secs_f64();
        told.push(format!("{} {kills} of {}, settled {longest:.1} s later at most{went_on}", phase.name(), kinds.len()));
    }
    figure(&format!(
        "kills = operations, each mended to the same kernel{}: {}",
        if device.outlives() { " with nothing done twice" } else { "" },
        told.join("; ")
    ));
    Ok(())
}

fn a_kill_after_any_operation_is_mended(world: &World) -> Result<()> {
    every_kill(world, Device::Foreign)
}

/// Here the device goes with the process, and all that stands on it.
fn a_kill_with_the_built_in_device_is_mended(world: &World) -> Result<()> {
    every_kill(world, Device::BuiltIn)
}
