//! When a Peer is in the devices and routes of all nodes, to the millisecond: asked of the devices' sockets and
//! of `/proc`, since starting `wg` and `ip` takes longer than what is measured.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use kilo_wireguard::PublicKey;

const PAUSE: Duration = Duration::from_millis(2);
const DAY: u64 = 24 * 3600;

/// One node, and how its kernel is asked.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) name: String,
    /// The socket of the WireGuard device, where the node has peers.
    pub(super) socket: Option<PathBuf>,
    /// `/proc/PID/net/route` of its agent.
    pub(super) routes: PathBuf,
}

/// When each node had what was waited for, since midnight (UTC).
#[derive(Clone, Debug)]
pub struct Seen(BTreeMap<String, Duration>);

impl Seen {
    /// How long after `event` the last node had it.
    pub fn last_after(&self, event: Duration) -> Duration {
        let after = |&seen: &Duration| (seen + Duration::from_secs(DAY)).saturating_sub(event);
        let last = self.0.values().map(after).max().unwrap_or_default();
        // Midnight may have passed in between.
        last.checked_sub(Duration::from_secs(DAY)).unwrap_or(last)
    }
}

/// Does `change` and waits until every node has, or has no more, the key on its device and the route.
pub(super) fn watch(
    nodes: &[Watched],
    key: &PublicKey,
    address: Ipv4Addr,
    present: bool,
    limit: Duration,
    change: impl FnOnce() -> Result<()>,
) -> Result<Seen> {
    let key: String = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let key_line = format!("public_key={key}\n");
    let route = format!("\t{:08X}\t", u32::from_ne_bytes(address.octets()));
    let follow = |node: &Watched| -> Result<Duration> {
        let start = Instant::now();
        loop {
            let routed = std::fs::read_to_string(&node.routes).context("reading routes")?.contains(&route);
            let held = match &node.socket {
                Some(socket) => Some(device(socket)?.contains(&key_line)),
                None => None,
            };
            if routed == present && held.is_none_or(|held| held == present) {
                return time_of_day();
            }
            if start.elapsed() > limit {
                bail!("{}: route {routed}, peer {held:?}, not {present}, after {limit:?}", node.name);
            }
            std::thread::sleep(PAUSE);
        }
    };
    let follow = &follow;
    std::thread::scope(|scope| {
        let threads: Vec<_> = nodes.iter().map(|node| (node, scope.spawn(move || follow(node)))).collect();
        change()?;
        let join = |(node, thread): (&Watched, std::thread::ScopedJoinHandle<'_, Result<Duration>>)| {
            let seen = thread.join().map_err(|_| anyhow::anyhow!("watching {} panicked", node.name))??;
            Ok((node.name.clone(), seen))
        };
        threads.into_iter().map(join).collect::<Result<_>>().map(Seen)
    })
}

/// What the device tells a `get` of the standard protocol.
fn device(socket: &Path) -> Result<String> {
    let mut stream = UnixStream::connect(socket).context("connecting to the device's socket")?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).context("setting the time limit")?;
    stream.write_all(b"get=1\n\n").context("asking the device")?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while !answer.ends_with(b"\n\n") {
        match stream.read(&mut part).context("reading from the device")? {
            0 => break,
            length => answer.extend_from_slice(&part[..length]),
        }
    }
    String::from_utf8(answer).context("the device's answer is no text")
}

fn time_of_day() -> Result<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the time before 1970")?;
    Ok(Duration::new(now.as_secs() % DAY, now.subsec_nanos()))
}
