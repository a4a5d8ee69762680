//! A host under test in the namespace of the test itself, with neighbours in namespaces of their own; and what
//! it discovers there.

use std::future::Future;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use kilo_agent::{DiscoverConfig, Host, HostEvent};
use kilo_e2e::{World, tests};
use kilo_host::{HostConfig, LinuxHost};
use kilo_mesh::Compatibility;
use kilo_state::{Desired, Dev, Link, LinkKind, Op, diff};

tests![discovery_finds_the_way_out, discovery_without_a_default_route, switched_off_ipv6_is_a_fact, flannel_is_found, key_is_kept];

/// A future's result, on one thread: all of the host's work is done in the test's namespace.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(future)
}

/// Runs a shell script in the test's namespace and returns its output.
pub(crate) fn sh(script: &str) -> Result<String> {
    let output = Command::new("sh").args(["-ec", script]).output().context("starting sh")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        bail!("`{script}`: {} {}", text(&output.stderr), text(&output.stdout));
    }
    Ok(text(&output.stdout))
}

/// The JSON that a command prints.
pub(crate) fn json(command: &str) -> Result<serde_json::Value> {
    let text = sh(command)?;
    serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).context(command.to_owned())
}

/// A network from its text.
pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("a test's network")
}

/// A host whose WireGuard link is a TUN made here, so that it outlives the host.
pub(crate) const KILO0: &str = "ip tuntap add kilo0 mode tun; ip link set kilo0 up; ip addr add 10.4.0.1/16 dev kilo0; \
                                ip -6 addr add fd04::1/64 dev kilo0 nodad";

/// The settings of a host with its own data directory.
pub(crate) fn config(world: &World) -> HostConfig {
    HostConfig { data_dir: world.dir().join("data"), create_interface: false, ..HostConfig::default() }
}

/// A cable from `eth0` here to `eth0` there, with the addresses `.10` and `.11` of 192.168.5.0/24 and
/// fd00:5::/64.
pub(crate) fn neighbour(world: &World) -> Result<kilo_testkit::netns::Ns> {
    let other = world.ns("other")?;
    world.ip("link add eth0 type veth peer name eth0 netns other")?;
    sh("ip link set eth0 up; ip addr add 192.168.5.10/24 dev eth0; ip addr add fd00:5::10/64 dev eth0 nodad; \
        echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")?;
    other.sh("ip link set eth0 up; ip addr add 192.168.5.11/24 dev eth0; ip addr add fd00:5::11/64 dev eth0 nodad")?;
    world.forward(&other)?;
    Ok(other)
}

/// Opens a host and finds its addresses.
pub(crate) async fn open(config: HostConfig) -> Result<LinuxHost> {
    let mut host = LinuxHost::open(config)?;
    host.discover(&DiscoverConfig { hostname: "no.such.name.invalid".into(), ..DiscoverConfig::default() }).await?;
    Ok(host)
}

/// Carries out what leads to this state, and says how many operations that took. Everything must succeed, and
/// nothing be left to do.
pub(crate) async fn reach(host: &mut LinuxHost, desired: &Desired) -> Result<usize> {
    let ops = diff(desired, &host.observe().await?);
    apply(host, &ops).await?;
    let left = diff(desired, &host.observe().await?);
    ensure!(left.is_empty(), "still to do after {ops:?}: {left:?}");
    Ok(ops.len())
}

/// Carries out operations that must all succeed.
pub(crate) async fn apply(host: &mut LinuxHost, ops: &[Op]) -> Result<()> {
    for (op, answer) in ops.iter().zip(host.apply(ops).await) {
        answer.with_context(|| format!("{op:?}"))?;
    }
    Ok(())
}

/// The link of the tests as it should be, when it is there already.
pub(crate) fn kilo0() -> Link {
    Link {
        dev: Dev::WireGuard,
        name: "kilo0".into(),
        kind: LinkKind::WireGuard,
        create: false,
        mtu: Some(1420),
        up: true,
        addresses: Some(vec![net("10.4.0.1/16"), net("fd04::1/64")]),
    }
}

/// The next event, or `None` when nothing happens for this long.
pub(crate) async fn event(host: &mut LinuxHost, millis: u64) -> Option<HostEvent> {
    tokio::time::timeout(Duration::from_millis(millis), host.changed()).await.ok()
}

fn discovery_finds_the_way_out(world: &World) -> Result<()> {
    neighbour(world)?;
    sh("ip link set eth0 mtu 1400; ip route add default via 192.168.5.11; \
        ip link add eth1 type veth peer name p1; ip addr add 203.0.113.7/24 dev eth1; ip link set eth1 up; \
        ip link add kube-bridge type bridge; ip addr add 10.0.0.1/24 dev kube-bridge")?;
    sh(KILO0)?;
    wait(async {
        let mut host = LinuxHost::open(config(world))?;
        let facts = host.discover(&DiscoverConfig { hostname: "203.0.113.7".into(), ..Default::default() }).await?;
        ensure!(facts.internal_ip == Some(net("192.168.5.10/24")), "{:?}", facts.internal_ip);
        ensure!(facts.external_ip == Some(net("203.0.113.7/24")), "{:?}", facts.external_ip);
        ensure!(facts.interfaces.private == "eth0" && facts.interfaces.wireguard == "kilo0");
        ensure!(facts.uplink_mtu == Some(1400) && facts.private_mtu == Some(1400));
        ensure!(facts.ipv6 == Some(true) && facts.ipip.is_none() && facts.tunnel.is_none());
        // A changed MTU and another way out are found again, and wake the agent.
        sh("ip link set eth1 mtu 1300; ip route replace default via 203.0.113.1 dev eth1")?;
        ensure!(event(&mut host, 1000).await == Some(HostEvent::Routing));
        let facts = host.facts().await?;
        ensure!(facts.uplink_mtu == Some(1300), "{:?}", facts.uplink_mtu);
        Ok(())
    })
}

fn discovery_without_a_default_route(world: &World) -> Result<()> {
    wait(async {
        let mut host = LinuxHost::open(config(world))?;
        let nothing = host.discover(&DiscoverConfig::default()).await;
        ensure!(nothing.is_err_and(|error| error.action.contains("address of this machine")));
        Ok(())
    })?;
    neighbour(world)?;
    wait(async {
        let mut host = LinuxHost::open(HostConfig { tunnels: true, ..config(world) })?;
        let facts = host.discover(&DiscoverConfig::default()).await?;
        ensure!(facts.external_ip == Some(net("192.168.5.10/24")) && facts.uplink_mtu.is_none());
        ensure!(facts.ipip.is_some(), "the kernel was tried");
        ensure!(sh("ip link")?.lines().all(|line| !line.contains("probe")), "and no probe stays");
        if facts.ipip == Some(false) {
            let op = Op::CreateLink { dev: Dev::Tunnel, name: "tunl0".into(), kind: LinkKind::Ipip, mtu: None };
            let error = host.apply(&[op]).await.remove(0).err().context("no kernel without IPIP makes a tunnel")?;
            ensure!(format!("{:#}", anyhow::Error::from(error)).contains("--encapsulate=never"));
        }
        Ok(())
    })
}

fn switched_off_ipv6_is_a_fact(world: &World) -> Result<()> {
    neighbour(world)?;
    sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")?;
    wait(async {
        let mut host = open(config(world)).await?;
        let facts = host.facts().await?;
        ensure!(facts.ipv6 == Some(false) && facts.external_ip == Some(net("192.168.5.10/24")));
        host.observe().await?;
        Ok(())
    })
}

fn flannel_is_found(world: &World) -> Result<()> {
    neighbour(world)?;
    wait(async {
        let mut host = open(HostConfig { compatibility: Compatibility::Flannel, ..config(world) }).await?;
        ensure!(host.facts().await?.tunnel == Some(false));
        sh("ip link add flannel.1 type vxlan id 1 dstport 8472; ip addr add 10.2.1.0/32 dev flannel.1")?;
        ensure!(event(&mut host, 1000).await == Some(HostEvent::Routing));
        let facts = host.facts().await?;
        ensure!(facts.tunnel == Some(true) && facts.interfaces.tunnel == "flannel.1");
        let links = host.observe().await?.links;
        ensure!(links.iter().any(|link| link.dev == Dev::Tunnel && link.addresses == [net("10.2.1.0/32")]), "{links:?}");
        Ok(())
    })
}

fn key_is_kept(world: &World) -> Result<()> {
    wait(async {
        let first = kilo_host::load_or_create(&config(world).data_dir)?;
        neighbour(world)?;
        let mut host = open(config(world)).await?;
        ensure!(host.facts().await?.public_key == Some(first.public_key()));
        std::fs::write(config(world).data_dir.join("key"), "garbage")?;
        let error = LinuxHost::open(config(world)).err().context("a corrupt key is taken")?;
        let text = format!("{:#}", anyhow::Error::from(error));
        ensure!(text.contains("data/key") && !text.contains("garbage"), "{text}");
        Ok(())
    })
}
