//! Agents of upstream Kilo beside ours. Their program is not part of this repository.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kilo_testkit::netns::{Process, Skip, eventually, helper};

use super::ControlPlane;
use crate::mesh::{Agent, Node};

/// The group by which the audit log knows their requests.
pub(super) const GROUP: &str = "upstream-agents";
/// Its data directory is fixed; everything that the machine has there stays hidden from it.
const MOUNT: &str = "mount -t tmpfs tmpfs /var/lib && mkdir -p \"$1\" /var/lib/kilo && \
                     mount --bind \"$1\" /var/lib/kilo && shift && exec \"$@\"";

/// An upstream agent with the userspace device that it expects.
#[derive(Debug)]
pub struct Upstream {
    /// The agent; it knows no `/plan`.
    pub agent: Agent,
    _device: Process,
}

impl Upstream {
    /// Its program as `.ci/install-upstream` has built it; a skip where there is none.
    pub fn program() -> Result<PathBuf> {
        let cache = std::env::var_os("KILO_TEST_CACHE")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/kilo-e2e")));
        let program = cache.map(|cache| cache.join("upstream/kg")).filter(|program| program.is_file());
        program.ok_or_else(|| {
            Skip::because("no upstream kg: KILO_UPSTREAM_SOURCE names no checkout of Kilo to build it from")
        })
    }

    /// Starts a device and an agent on a node, with rights of its own.
    pub(super) fn start(api: &ControlPlane, node: &Node) -> Result<Self> {
        // Whoever brings the pods' network sees to that on a machine.
        node.ns.sh("echo 1 > /proc/sys/net/ipv4/ip_forward")?;
        // Upstream's agent panics at a Node without any annotation (B26).
        api.kubectl(&["annotate", "node", &node.name, "example.com/any=one"])?;
        let user = format!("upstream-{}", node.name);
        let kubeconfig = api.control(&["user", "DIR", &user, "system:masters", GROUP])?;
        let exe = helper::program()?;
        let words = ["--helper", "wg-device", "auto", "kilo0"];
        let mut argv = vec![exe.as_os_str()];
        argv.extend(words.iter().map(std::ffi::OsStr::new));
        argv.push(node.ns.dir().as_os_str());
        let device = node.ns.spawn("wireguard", &argv)?;
        eventually(Duration::from_secs(5), "there is a device for the upstream agent", || {
            node.ns.run("wg show kilo0").context(device.log())
        })?;
        let mut flags = Agent::flags(node);
        let ours = ["--data-dir", "--wireguard", "--log-format"];
        flags.retain(|flag| !ours.iter().any(|name| flag.split('=').next() == Some(*name)));
        flags.extend([
            "--create-interface=false".into(),
            "--interface=kilo0".into(),
            "--mesh-granularity=location".into(),
            format!("--kubeconfig={}", kubeconfig.trim()),
        ]);
        let lib = node.ns.dir().join("lib");
        let before = ["sh", "-c", MOUNT, "sh", &lib.to_string_lossy()].map(str::to_owned);
        let agent = Agent::launch(node, &before, &Self::program()?, &flags)?;
        Ok(Self { agent, _device: device })
    }

    /// How often it went over everything.
    pub fn reconciles(&self) -> Result<f64> {
        let text = self.agent.get("/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix("kilo_reconciles_total "));
        line.context("no kilo_reconciles_total")?.trim().parse().context("kilo_reconciles_total")
    }
}
