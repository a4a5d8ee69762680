//! WireGuard devices without an agent, in processes of their own: the one that is built into `kg`, since the
//! kernel may have none.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net};
use kilo_host::wireguard::{Mode, SOCKET_DIR, WireGuard, WireGuardConfig};
use kilo_state::{DeviceChange, DevicePeer, Op};
use kilo_testkit::netns::{Ns, Process, eventually, helper as program_helper};
use kilo_wireguard::{PrivateKey, PublicKey};

/// Seconds between the keepalives of a crowd.
const KEEPALIVE: u16 = 2;
/// Where the addresses of a crowd begin.
const CROWD: Ipv4Addr = Ipv4Addr::new(10, 100, 1, 0);

/// `--helper wg-device MODE LINK DIR` offers a device to `wg(8)`; `--helper wg-crowd COUNT DIR KEY ENDPOINT` makes
/// many that talk to one peer, by the kernel where it can; `--helper wg-messages` counts what is asked of the
/// kernel's. All run until they are killed.
pub fn helper(words: &[&str]) -> Option<Result<()>> {
    match words {
        ["wg-device", mode, link, dir] => Some(run(async {
            let mode = mode.parse().map_err(|why: String| anyhow::anyhow!(why))?;
            let _device = device(mode, link, Path::new(dir)).await?;
            std::future::pending().await
        })),
        ["wg-crowd", count, dir, key, endpoint] => Some(run(crowd(count, Path::new(dir), key, endpoint))),
        ["wg-messages"] => Some(super::messages::tell()),
        _ => None,
    }
}

fn run(work: impl Future<Output = Result<()>>) -> Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(1).enable_all().build().context("starting the runtime")?.block_on(work)
}

async fn device(mode: Mode, link: &str, dir: &Path) -> Result<WireGuard> {
    let mut device = WireGuard::open(WireGuardConfig {
        mode,
        interface: link.to_owned(),
        data_dir: dir.to_owned(),
        create: true,
        socket_dir: SOCKET_DIR.into(),
    })?;
    device.create(link, None).await?;
    Ok(device)
}

async fn crowd(count: &str, dir: &Path, key: &str, endpoint: &str) -> Result<()> {
    let count: usize = count.parse().context("the number of devices")?;
    let public_key: PublicKey = key.parse().context("the key")?;
    let endpoint: SocketAddr = endpoint.parse().context("the endpoint")?;
    let mut devices = Vec::new();
    for number in 0..count {
        let own = PrivateKey::from_random(random()?);
        let mut device = device(Mode::Auto, &format!("crowd{number}"), dir).await?;
        let change = DeviceChange { public_key: Some(own.public_key()), listen_port: Some(0) };
        device.configure(&change, &own).await?;
        let peer = DevicePeer {
            public_key,
            preshared_key: None,
            endpoint: Some(endpoint),
            persistent_keepalive: KEEPALIVE,
            allowed_ips: vec![IpNet::V4(Ipv4Net::default())],
        };
        for result in device.apply_peers(&[Op::AddPeer(peer)]).await {
            result?;
        }
        devices.push(device);
        let line = format!("key {}\n", own.public_key());
        std::io::Write::write_all(&mut std::io::stdout(), line.as_bytes()).context("telling a key")?;
    }
    std::future::pending().await
}

/// Bytes for a key.
fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let mut file = std::fs::File::open("/dev/urandom").context("opening /dev/urandom")?;
    std::io::Read::read_exact(&mut file, &mut bytes).context("reading /dev/urandom")?;
    Ok(bytes)
}

/// Many devices of one process that keep a session with one peer alive.
#[derive(Debug)]
pub struct Crowd {
    /// Their keys.
    pub keys: Vec<PublicKey>,
    _process: Process,
}

/// The address of a member of a crowd, the first of which has number 0.
pub fn crowd_address(number: usize) -> Result<IpAddr> {
    Ok(Ipv4Addr::from(u32::from(CROWD) + u32::try_from(number).context("a number")?).into())
}

impl Crowd {
    /// Makes them. They call `endpoint` from now on.
    pub fn gather(ns: &Ns, count: usize, key: &str, endpoint: SocketAddr) -> Result<Self> {
        let exe = program_helper::program()?;
        let (count_text, endpoint) = (count.to_string(), endpoint.to_string());
        let words = ["--helper", "wg-crowd", &count_text];
        let mut argv = vec![exe.as_os_str()];
        argv.extend(words.iter().map(std::ffi::OsStr::new));
        argv.extend([ns.dir().as_os_str(), key.as_ref(), endpoint.as_ref()]);
        let mut process = ns.spawn("crowd", &argv)?;
        let keys = eventually(Duration::from_secs(30), "all devices of the crowd are there", || {
            let log = process.log();
            if let Some(status) = process.ended() {
                bail!("the crowd ended with {status}: {log}");
            }
            let keys: Vec<PublicKey> =
                log.lines().filter_map(|line| line.strip_prefix("key ")?.parse().ok()).collect();
            if keys.len() < count {
                bail!("{} of {count} so far", keys.len());
            }
            Ok(keys)
        })?;
        // All have the same peer, so a packet goes by the device whose address it comes from.
        let mut batch = String::new();
        for number in 0..count {
            let (address, table) = (crowd_address(number)?, number + 1);
            let _ = writeln!(
                batch,
                "address add {address}/32 dev crowd{number}\nlink set crowd{number} up\n\
                 route add default dev crowd{number} table {table}\nrule add from {address} lookup {table}"
            );
        }
        let file = ns.dir().join("crowd.batch");
        std::fs::write(&file, batch).context("writing a batch for ip")?;
        ns.run(&format!("ip -batch {}", file.display()))?;
        Ok(Self { keys, _process: process })
    }

    /// Pings every member once, all at the same time, from a namespace on the other side.
    pub fn ping_all(&self, from: &Ns) -> Result<()> {
        let mut script = String::new();
        for number in 0..self.keys.len() {
            let address = crowd_address(number)?;
            let _ = writeln!(script, "(ping -n -q -c 1 -W 3 {address} >/dev/null || echo {address}) &");
        }
        let unanswered = from.sh(&format!("{script}wait"))?;
        ensure!(unanswered.is_empty(), "no answer from {}", unanswered.replace('\n', " "));
        Ok(())
    }
}

/// A key that nobody has the private half of.
pub fn stranger() -> Result<PublicKey> {
    Ok(PrivateKey::from_random(random()?).public_key())
}
