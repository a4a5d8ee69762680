//! A world: namespaces, the cables between them, and a place for files.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;

use super::{Ns, Skip};

/// Where files of the one world of a process are: on the `/run` that [`enter`](super::enter) has made.
pub(super) const DIR: &str = "/run/world";

/// How many bridges there are, which gives each an address of its own.
static BRIDGES: AtomicU16 = AtomicU16::new(0);

/// Everything here vanishes with the process.
#[derive(Debug)]
pub struct World {
    dir: PathBuf,
}

impl World {
    /// An empty world; [`enter`](super::enter) comes first.
    pub fn new() -> Result<Self> {
        let dir = PathBuf::from(DIR);
        std::fs::create_dir_all(&dir).context("creating the world's directory")?;
        Ok(Self { dir })
    }

    /// A place for files only: for a test that makes no namespaces. It is removed at the end.
    pub fn on_host() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("kilo-e2e-{}", std::process::id()));
        std::fs::create_dir_all(&dir).context("creating the test's directory")?;
        Ok(Self { dir })
    }

    /// A place for files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A skip unless a program is there.
    pub fn need(&self, program: &str) -> Result<()> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
            return Ok(());
        }
        Err(Skip::because(format!("{program} is not installed")))
    }

    /// A skip unless the kernel makes TUN links, which a userspace WireGuard device needs.
    pub fn need_tun(&self) -> Result<()> {
        if Path::new("/dev/net/tun").exists() {
            return Ok(());
        }
        Err(Skip::because("there is no /dev/net/tun"))
    }

    /// Makes a namespace with `lo` up.
    pub fn ns(&self, name: &str) -> Result<Ns> {
        let ns = Ns::new(name, &self.dir)?;
        self.ip(&format!("netns add {name}"))?;
        self.ip(&format!("-n {name} link set lo up"))?;
        Ok(ns)
    }

    /// Runs `ip` outside of the named namespaces.
    pub fn ip(&self, line: &str) -> Result<()> {
        let output = Command::new("ip").args(line.split_whitespace()).output().context("starting ip")?;
        if !output.status.success() {
            bail!("`ip {line}`: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Lays a cable between two namespaces; both ends are up.
    pub fn cable(&self, (a, a_link): (&Ns, &str), (b, b_link): (&Ns, &str)) -> Result<()> {
        let (a, b) = (a.name(), b.name());
        self.ip(&format!("link add {a_link} netns {a} type veth peer name {b_link} netns {b}"))?;
        self.ip(&format!("-n {a} link set {a_link} up"))?;
        self.ip(&format!("-n {b} link set {b_link} up"))
    }

    /// Makes a bridge, up. Without an address of its own it would take the lowest of its ports', and a port
    /// that comes later would change it: neighbours then send to the old one until they hear the new one.
    pub fn bridge(&self, ns: &Ns, link: &str) -> Result<()> {
        let name = ns.name();
        let number = BRIDGES.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let address = format!("02:00:00:00:{:02x}:{:02x}", number[0], number[1]);
        self.ip(&format!("-n {name} link add {link} address {address} type bridge forward_delay 0"))?;
        self.ip(&format!("-n {name} link set {link} up"))
    }

    /// Makes a link a port of a bridge.
    pub fn port(&self, ns: &Ns, bridge: &str, link: &str) -> Result<()> {
        self.ip(&format!("-n {} link set {link} master {bridge}", ns.name()))
    }

    /// Adds an address with the length of its network; IPv6 without waiting for duplicates.
    pub fn address(&self, ns: &Ns, link: &str, address: IpNet) -> Result<()> {
        let nodad = if address.addr().is_ipv6() { "nodad" } else { "" };
        self.ip(&format!("-n {} address add {address} dev {link} {nodad}", ns.name()))
    }

    /// Adds a route.
    pub fn route(&self, ns: &Ns, to: &str, via: IpAddr) -> Result<()> {
        self.ip(&format!("-n {} route add {to} via {via}", ns.name()))
    }

    /// Makes a namespace forward packets.
    pub fn forward(&self, ns: &Ns) -> Result<()> {
        ns.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
            .map(drop)
    }

    /// Makes a namespace a NAT box: it forwards, what leaves by `outside` gets its address there, and nothing
    /// new comes in. Without the drop on input a stranger's packet would leave an entry in conntrack that
    /// takes the port away from the inside.
    pub fn nat(&self, ns: &Ns, outside: &str) -> Result<()> {
        self.forward(ns)?;
        let table = format!(
            "table inet nat {{
                chain postrouting {{ type nat hook postrouting priority srcnat; oifname \"{outside}\" masquerade; }}
                chain forward {{ type filter hook forward priority filter; iifname \"{outside}\" ct state new drop; }}
                chain input {{ type filter hook input priority filter; iifname \"{outside}\" ct state new drop; }}
            }}"
        );
        let output = ns.output(&["nft", &table])?;
        if !output.status.success() {
            bail!("nft in {}: {}", ns.name(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// The last lines of every log file in the world, for a failed test.
    pub fn logs(&self, lines: usize) -> String {
        let mut found = Vec::new();
        collect_logs(&self.dir, &mut found);
        found.sort();
        let mut text = String::new();
        for path in found {
            let content = std::fs::read(&path).unwrap_or_default();
            let content = String::from_utf8_lossy(&content);
            let all: Vec<&str> = content.lines().collect();
            text.push_str(&format!("--- {}\n", path.display()));
            for line in &all[all.len().saturating_sub(lines)..] {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _gone_with_the_process = std::fs::remove_dir_all(&self.dir);
    }
}

fn collect_logs(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_logs(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            found.push(path);
        }
    }
}
