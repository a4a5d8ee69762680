//! Somebody on the road: a machine with plain WireGuard and what `kgctl showconf peer` prints, no agent.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use kilo_testkit::netns::{Process, World, eventually};

use super::{Host, Place, StateDir};
use crate::program;

/// The link of its WireGuard device.
const LINK: &str = "wg0";
const PORT: u16 = 51_820;

/// A machine with a VPN.
#[derive(Debug)]
pub struct Traveller {
    /// Its end of connections; the address is that in the mesh.
    pub host: Host,
    /// The key of its Peer.
    pub public_key: String,
    /// Where others find it.
    pub endpoint: (IpAddr, u16),
    _device: Process,
}

impl Traveller {
    /// Sets up a machine with the [addresses](Place::addresses) of this number. Nobody knows it yet.
    pub fn arrive(world: &World, place: &Place, name: &str, number: u8) -> Result<Self> {
        let ns = place.traveller(world, name, number)?;
        let exe = kilo_testkit::netns::helper::program()?;
        let device = ns.spawn(
            "wireguard",
            &[
                exe.as_os_str(),
                "--helper".as_ref(),
                "wg-device".as_ref(),
                "auto".as_ref(),
                LINK.as_ref(),
                ns.dir().as_os_str(),
            ],
        )?;
        eventually(Duration::from_secs(5), &format!("{name} has a WireGuard device"), || {
            ns.run(&format!("wg show {LINK}")).context(device.log())
        })?;
        let (outside, address) = place.addresses(number)?;
        world.address(&ns, LINK, address.into())?;
        ns.run(&format!("ip link set {LINK} up"))?;
        let key = ns.dir().join("key");
        let public_key = ns.sh(&format!(
            "umask 077; wg genkey > {key}; wg pubkey < {key}; wg set {LINK} listen-port {PORT} private-key {key}",
            key = key.display()
        ))?;
        Ok(Self {
            host: Host::listen(ns, address)?,
            public_key: public_key.trim().to_owned(),
            endpoint: (outside, PORT),
            _device: device,
        })
    }

    /// What `kgctl showconf peer` prints for it at this moment.
    pub fn showconf(&self, state: &StateDir) -> Result<String> {
        // Without a time, kgctl takes that of the newest check-in, for which a node that died is still alive.
        let now = std::time::UNIX_EPOCH.elapsed().context("reading the clock")?.as_secs();
        let facts = self.host.ns.dir().join("facts.json");
        std::fs::write(&facts, format!("{{\"now\": {now}}}")).context("writing the time for kgctl")?;
        let mut command = Command::new(program("kgctl")?);
        command.args(["showconf", "peer", self.host.name(), "--facts"]).arg(&facts);
        for file in state.files()? {
            command.arg("-f").arg(file);
        }
        let output = command.output().context("starting kgctl")?;
        if !output.status.success() {
            bail!("kgctl showconf peer: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Gives the device what `kgctl showconf peer` prints, as `wg-quick` would: its own section, the peers, and
    /// a route for each range. A leader behind NAT is shown with its private address until another leader has
    /// published where it was seen; that is waited for, since the private address is itself in the tunnel.
    ///
    /// Peers with a session keep the endpoint they have: a NAT may give a node another port towards us than
    /// towards the leader that published it, and packets to that port are lost until the node calls again.
    pub fn configure(&self, state: &StateDir, limit: Duration) -> Result<()> {
        let name = self.host.name();
        let ns = &self.host.ns;
        let handshakes = ns.run(&format!("wg show {LINK} latest-handshakes"))?;
        let connected: BTreeSet<&str> = handshakes
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .filter(|(_, time)| *time != "0")
            .map(|(key, _)| key)
            .collect();
        let (conf, ranges) = eventually(limit, &format!("{name} is told usable endpoints"), || {
            let conf = without_endpoints(&self.showconf(state)?, &connected);
            let ranges: Vec<IpNet> = values(&conf, "AllowedIPs")
                .flat_map(|ranges| ranges.split(", "))
                .map(str::parse)
                .collect::<Result<_, _>>()
                .context("reading the ranges of a configuration")?;
            ensure!(!ranges.is_empty(), "kgctl shows no ranges:\n{conf}");
            for endpoint in values(&conf, "Endpoint") {
                let address: SocketAddr = endpoint.parse().with_context(|| format!("reading {endpoint}"))?;
                let inside = ranges.iter().any(|range| range.contains(&address.ip()));
                ensure!(!inside, "the endpoint {endpoint} is inside the tunnel");
            }
            Ok((conf, ranges))
        })?;
        let key = std::fs::read_to_string(ns.dir().join("key")).context("reading the traveller's key")?;
        let text = format!("[Interface]\nListenPort = {PORT}\nPrivateKey = {}\n\n{conf}", key.trim());
        let path = ns.dir().join("wg0.conf");
        std::fs::write(&path, text).context("writing the traveller's configuration")?;
        ns.run(&format!("wg syncconf {LINK} {}", path.display()))?;
        for range in ranges {
            ns.run(&format!("ip route replace {range} dev {LINK}"))?;
        }
        Ok(())
    }
}

/// A configuration in which these peers have no endpoint.
fn without_endpoints(conf: &str, keys: &BTreeSet<&str>) -> String {
    let section = |text: &str| {
        let keeps = values(text, "PublicKey").any(|key| keys.contains(key));
        let lines = text.lines().filter(|line| !(keeps && line.starts_with("Endpoint = ")));
        lines.collect::<Vec<_>>().join("\n")
    };
    conf.split("\n\n").map(section).collect::<Vec<_>>().join("\n\n") + "\n"
}

fn values<'a>(conf: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    conf.lines().filter_map(move |line| line.strip_prefix(key)?.strip_prefix(" = "))
}
