//! WireGuard devices without an agent, in processes of their own: the one that is built into `kg`, since the
//! kernel may have none.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kilo_host::wireguard::{Mode, SOCKET_DIR, WireGuard, WireGuardConfig};
use kilo_state::{DeviceChange, DevicePeer, Op};
use kilo_testkit::netns::{Ns, Process, eventually, helper as program_helper};
use kilo_wireguard::{PrivateKey, PublicKey};

/// Seconds between the keepalives of a crowd.
const KEEPALIVE: u16 = 2;

/// `--helper wg-device LINK DIR` offers a device to `wg(8)`; `--helper wg-crowd COUNT DIR KEY ENDPOINT` makes
/// many that talk to one peer. Both run until they are killed.
pub fn helper(words: &[&str]) -> Option<Result<()>> {
    match words {
        ["wg-device", link, dir] => Some(run(async {
            let _device = device(link, Path::new(dir)).await?;
            std::future::pending().await
        })),
        ["wg-crowd", count, dir, key, endpoint] => Some(run(crowd(count, Path::new(dir), key, endpoint))),
        _ => None,
    }
}

fn run(work: impl Future<Output = Result<()>>) -> Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(1).enable_all().build().context("starting the runtime")?.block_on(work)
}

async fn device(link: &str, dir: &Path) -> Result<WireGuard> {
    let mut device = WireGuard::open(WireGuardConfig {
        mode: Mode::Userspace,
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
        let mut device = device(&format!("crowd{number}"), dir).await?;
        let change = DeviceChange { public_key: Some(own.public_key()), listen_port: Some(0) };
        device.configure(&change, &own).await?;
        let peer = DevicePeer {
            public_key,
            preshared_key: None,
            endpoint: Some(endpoint),
            persistent_keepalive: KEEPALIVE,
            allowed_ips: Vec::new(),
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

/// Many devices in one process that keep a session with one peer alive.
#[derive(Debug)]
pub struct Crowd {
    /// Their keys.
    pub keys: Vec<PublicKey>,
    _process: Process,
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
        Ok(Self { keys, _process: process })
    }
}

/// A key that nobody has the private half of.
pub fn stranger() -> Result<PublicKey> {
    Ok(PrivateKey::from_random(random()?).public_key())
}
