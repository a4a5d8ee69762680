//! One `kg` process and its HTTP server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kilo_testkit::netns::{Ns, Process};
use rustix::process::Signal;
use serde_json::Value;

use super::Node;
use crate::program;

/// Every agent is alone in its namespace, so all listen on the same port.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1107);
/// The CNI file as Kilo's manifests install it, below the directory of the node; the agent writes the pod range
/// into it.
const CNI_FILE: &str = "cni/10-kilo.conflist";

/// Makes a file the agent's `/etc/hosts`.
const HOSTS: &str = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    ns: Ns,
    process: Process,
    frozen: bool,
}

impl Agent {
    /// Starts the agent of a node on a state directory, with `more` flags, which stand in place of those that
    /// it would get otherwise.
    pub fn start(node: &Node, state_dir: &Path, more: &[&str]) -> Result<Self> {
        Self::start_under(node, &[], state_dir, more)
    }

    /// Starts it so by `before`, a command that runs the command after it.
    pub fn start_under(node: &Node, before: &[String], state_dir: &Path, more: &[&str]) -> Result<Self> {
        let mut flags = Self::flags(node);
        flags.extend(["--backend=file".into(), format!("--state-dir={}", state_dir.display())]);
        // How often endpoints of those behind NAT are looked at and published.
        flags.push("--resync-period=2s".into());
        let name = |flag: &str| flag.split_once('=').map_or(flag, |(name, _)| name).to_owned();
        flags.retain(|flag| !more.iter().any(|other| name(other) == name(flag)));
        flags.extend(more.iter().map(|&flag| flag.to_owned()));
        Self::start_with(node, before, &flags)
    }

    /// What keeps agents apart that share a machine, and what this machine's kernel can do.
    pub fn flags(node: &Node) -> Vec<String> {
        let dir = node.ns.dir();
        vec![
            format!("--hostname={}", node.name),
            format!("--data-dir={}", dir.join("lib").display()),
            format!("--cni-path={}", Self::cni_file(node).display()),
            format!("--listen={LISTEN}"),
            "--wireguard=userspace".into(),
            "--encapsulate=never".into(),
            "--log-format=text".into(),
        ]
    }

    /// Starts the agent of a node with these flags and no others; `before` is a command that runs the command
    /// after it.
    pub fn start_with(node: &Node, before: &[String], flags: &[String]) -> Result<Self> {
        Self::launch(node, before, &program("kg")?, flags)
    }

    /// Starts any program that takes Kilo's flags as the agent of a node. The CNI file is there as an init
    /// container leaves it.
    pub fn launch(node: &Node, before: &[String], program: &Path, flags: &[String]) -> Result<Self> {
        let cni = Self::cni_file(node);
        if !cni.exists() {
            let dir = cni.parent().context("the directory of the CNI file")?;
            std::fs::create_dir_all(dir).context("creating the directory of the CNI file")?;
            let conf = serde_json::json!({
                "cniVersion": "0.4.0", "name": "kilo",
                "plugins": [{"type": "bridge", "bridge": "kube-bridge", "ipam": {"type": "host-local"}}],
            });
            std::fs::write(&cni, conf.to_string()).context("writing the CNI file")?;
        }
        let program = program.to_str().context("the path of an agent is no UTF-8")?.to_owned();
        // A host knows its own name; nobody here answers for others.
        let hosts = node.ns.dir().join("hosts");
        std::fs::write(&hosts, format!("127.0.0.1 localhost\n{} {}\n", node.private, node.name))
            .context("writing the file of hosts")?;
        let mount = ["sh", "-c", HOSTS, "sh", &hosts.to_string_lossy()].map(str::to_owned);
        let argv: Vec<String> = mount.iter().chain(before).chain([&program]).chain(flags).cloned().collect();
        let process = node.ns.spawn("kg", &argv)?;
        Ok(Self { ns: node.ns.clone(), process, frozen: false })
    }

    /// The CNI file of a node's agent.
    pub fn cni_file(node: &Node) -> PathBuf {
        node.ns.dir().join(CNI_FILE)
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// What a page answers with status 200.
    pub fn get(&self, path: &str) -> Result<String> {
        self.ns.http_get(LISTEN, path)
    }

    /// The plan as the agent tells it.
    pub fn plan(&self) -> Result<Value> {
        serde_json::from_str(&self.get("/plan")?).context("reading the JSON of /plan")
    }

    /// How many operations of these kinds the agent has carried out; of all kinds when none is named.
    pub fn operations(&self, kinds: &[&str]) -> Result<f64> {
        self.count("kilo_operations_total{", kinds)
    }

    /// How many of them put right what somebody else had changed.
    pub fn repairs(&self, kinds: &[&str]) -> Result<f64> {
        self.count("kilo_repairs_total{", kinds)
    }

    /// The sum of the metrics that begin so and are of these kinds.
    fn count(&self, metric: &str, kinds: &[&str]) -> Result<f64> {
        let text = self.get("/metrics")?;
        let wanted = |line: &&str| {
            line.starts_with(metric)
                && (kinds.is_empty() || kinds.iter().any(|kind| line.contains(&format!("kind=\"{kind}\""))))
        };
        text.lines()
            .filter(wanted)
            .map(|line| {
                let value = line.rsplit(' ').next().unwrap_or_default();
                value.parse::<f64>().with_context(|| format!("the metric {line:?}"))
            })
            .sum()
    }

    /// Stops it gracefully and waits for its clean-up.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop(Duration::from_secs(10)).map(drop)
    }

    /// Kills it with SIGKILL: no clean-up.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Stops it where it is, so that it repairs nothing.
    pub fn freeze(&mut self) -> Result<()> {
        self.frozen = true;
        self.process.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn thaw(&mut self) -> Result<()> {
        self.frozen = false;
        self.process.signal(Signal::CONT)
    }

    /// Whether it is frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }
}
