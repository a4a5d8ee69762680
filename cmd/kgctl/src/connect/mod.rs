//! `kgctl connect`: this machine is a Peer of the mesh for as long as this runs. A key, a Peer in the API, a link, and
//! a loop that follows the cluster and puts right what others change; at the end all of it goes again.

mod heard;
mod machine;
mod names;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kilo_agent::view::FactsView;
use kilo_agent::{Backend as _, BackendError, Event};
use kilo_host::wireguard::Mode;
use kilo_host::{HostConfig, KeyFileError, LinuxHost};
use kilo_k8s::{Client, KubernetesBackend, MadePeer};
use kilo_mesh::{Config, Outsider, Peer};
use kilo_wireguard::{DEFAULT_PORT, PrivateKey, PublicKey};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{info, warn};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::args::{AgentArgs, ConnectArgs, Global, LogFormat, LogLevel, WireGuard};
use crate::cluster;
use crate::error::message;
use crate::mesh::{Mesh, clock};
use heard::Heard;
use machine::Machine;
use names::Names;

/// How long several changes of the cluster are gathered.
const GATHER: Duration = Duration::from_millis(100);
/// The pause before this machine is looked at again that others change; it doubles while they go on.
const GLANCE: Duration = Duration::from_millis(20);
/// The pause after something has failed; it doubles, too.
const RETRY: Duration = Duration::from_millis(500);
/// No such pause is longer.
const LONGEST: Duration = Duration::from_secs(30);

/// Connects this machine until a signal ends it.
///
/// # Errors
/// When it cannot be connected, or not all of it could be undone.
pub fn run(global: &Global, args: &ConnectArgs) -> anyhow::Result<()> {
    start_logs(args);
    // Two threads: one for the loop, one for packets of the built-in device.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(connect(global, args));
    runtime.shutdown_background();
    done
}

async fn connect(global: &Global, args: &ConnectArgs) -> anyhow::Result<()> {
    let mut signals = Signals::open()?;
    let name = args.name.clone().map_or_else(host_name, Ok)?;
    let key = private_key(args.private_key.as_deref())?;
    let public_key = key.public_key();
    let client = kilo_k8s::connect(&cluster::config(global)).await?;
    let there = is_there(&client, &name, &public_key, args).await?;

    // Learned endpoints, which nobody needs after this.
    let scratch = tempfile::tempdir().context("making a directory")?;
    let host = LinuxHost::with_key(host_config(args, scratch.path()), key)?;
    let outsider = Outsider {
        name: name.clone(),
        interface: args.interface.clone(),
        public_key,
        listen_port: global.port.unwrap_or(DEFAULT_PORT),
        address: args.allowed_ip,
        mtu: None,
        further: args.allowed_ips.clone(),
    };
    let mut connection = Connection {
        machine: Machine::new(host, outsider, args.mtu),
        heard: Heard::default(),
        names: Names::default(),
        told: BTreeSet::new(),
        global: global.clone(),
    };
    let mut made = None;
    let result = async {
        connection.machine.prepare().await?;
        if !there {
            let ranges = [args.allowed_ip.trunc().to_string()];
            let create =
                kilo_k8s::create_peer(&client, &name, &public_key, &ranges, args.persistent_keepalive);
            made = Some(create.await.with_context(|| format!("creating peer {name}"))?);
            info!(peer = %name, %public_key, "Created the Peer");
        }
        connection.stay(client.clone(), args.resync_period, &mut signals).await
    }
    .await;
    let undone = if args.clean_up { connection.undo(&client, made.as_ref()).await } else { Ok(()) };
    connection.machine.close().await;
    result.and(undone)
}

/// Whether there is a Peer of this name, which is then used as it is.
async fn is_there(client: &Client, name: &str, key: &PublicKey, args: &ConnectArgs) -> anyhow::Result<bool> {
    let found =
        kilo_k8s::find_peer(client, name).await.with_context(|| format!("looking for peer {name}"))?;
    let Some(found) = found else { return Ok(false) };
    let (peer, findings) = Peer::from_object(&found.map_err(|finding| message(finding.to_string()))?);
    if !peer.ready() {
        let why = findings.first().map_or_else(String::new, |finding| format!(": {finding}"));
        return Err(message(format!("peer {name:?} takes no part in the mesh{why}")));
    }
    if peer.public_key != Some(*key) {
        let theirs = peer.public_key.map_or_else(String::new, |key| key.to_string());
        let hint = if args.private_key.is_none() { "; give its key with --private-key" } else { "" };
        return Err(message(format!(
            "peer {name:?} has the public key {theirs}, not {key}: it belongs to another machine{hint}"
        )));
    }
    let address = args.allowed_ip.addr();
    if !peer.allowed_ips.iter().any(|net| net.contains(&address)) {
        warn!(peer = name, %address, "The Peer's ranges do not hold the address of --allowed-ip: nobody will answer");
    }
    Ok(true)
}

/// A machine that is being connected.
struct Connection {
    machine: Machine,
    heard: Heard,
    names: Names,
    /// What was said in the last round about things that go wrong.
    told: BTreeSet<String>,
    global: Global,
}

impl Connection {
    /// Follows the cluster until a signal comes.
    async fn stay(&mut self, client: Client, resync: Duration, signals: &mut Signals) -> anyhow::Result<()> {
        let label = self.global.topology_label.clone().unwrap_or_else(|| Config::default().topology_label);
        let backend = KubernetesBackend::new(client, label);
        let (sender, mut events) = mpsc::channel::<Event>(1024);
        let mut watching: JoinHandle<Result<(), BackendError>> =
            tokio::spawn(async move { backend.run(sender).await });
        let mut tick = tokio::time::interval(resync);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tick.reset();
        let (mut due, mut glance, mut retry) = (None::<Instant>, GLANCE, RETRY);
        let mut looked = Instant::now();
        let result = loop {
            let now = Instant::now();
            if due.is_some_and(|at| at <= now) && self.heard.is_complete() {
                due = None;
                if self.round().await {
                    retry = RETRY;
                } else {
                    due = Some(Instant::now() + retry);
                    retry = (retry * 2).min(LONGEST);
                }
            }
            let at = due.filter(|_| self.heard.is_complete()).unwrap_or(now + LONGEST);
            let soon = |due: Option<Instant>, pause| {
                let at = Instant::now() + pause;
                Some(due.map_or(at, |due| due.min(at)))
            };
            tokio::select! {
                () = signals.any() => break Ok(()),
                ended = &mut watching => break match ended {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => Err(error.into()),
                    Err(error) => Err(error.into()),
                },
                Some(event) = events.recv() => {
                    if self.heard.take(event) {
                        due = soon(due, GATHER);
                    }
                }
                _ = self.machine.changed() => {
                    glance = if looked.elapsed() > LONGEST { GLANCE } else { (glance * 2).min(LONGEST / 6) };
                    looked = Instant::now();
                    due = soon(due, glance);
                }
                () = self.names.found() => due = soon(due, Duration::ZERO),
                _ = tick.tick() => {
                    self.names.again(|name| self.machine.resolve(name));
                    due = soon(due, Duration::ZERO);
                }
                () = tokio::time::sleep_until(at.into()) => {}
            }
        };
        watching.abort();
        info!("Stopping");
        result
    }

    /// One round: the mesh as it is known, and this machine made to fit. Whether all of it worked.
    async fn round(&mut self) -> bool {
        let facts =
            FactsView { now: Some(self.heard.now(clock())), dns: self.names.known(), ..FactsView::default() };
        let mut mesh = Mesh::new(self.heard.input(), Some(facts), &self.global, &AgentArgs::default());
        let names = mesh.names();
        self.names.want(names, |name| self.machine.resolve(name));
        let mut said = BTreeSet::new();
        let outsider = &self.machine.outsider;
        if !self.heard.has_peer(&outsider.name) {
            said.insert(format!("peer {:?} is gone: no node knows this machine any more", outsider.name));
        }
        mesh.reach_further(&outsider.further);
        let object = format!("Peer/{}", outsider.name);
        let topology = match mesh.ready_nodes().last().map(|node| mesh.topology(node)) {
            None => {
                said.insert("no node is ready; everything stays as it is".to_owned());
                self.tell(said);
                return true;
            }
            Some(Err(error)) => {
                said.insert(format!("{error:#}"));
                self.tell(said);
                return true;
            }
            Some(Ok((topology, findings))) => {
                let about = mesh.findings.iter().chain(&findings).filter(|finding| finding.object == object);
                said.extend(about.map(ToString::to_string));
                topology
            }
        };
        let errors = self.machine.follow(&topology).await;
        let fine = errors.is_empty();
        said.extend(errors.into_iter().map(|error| format!("{:#}", anyhow::Error::from(error))));
        self.tell(said);
        fine
    }

    /// Says what is wrong, each thing once for as long as it lasts.
    fn tell(&mut self, said: BTreeSet<String>) {
        for what in said.difference(&self.told).take(8) {
            warn!(what, "Something is wrong");
        }
        self.told = said;
    }

    /// Takes away link, routes, and the Peer that was made.
    async fn undo(&mut self, client: &Client, made: Option<&MadePeer>) -> anyhow::Result<()> {
        let failed = self.machine.leave().await.into_iter().next();
        if let Some(made) = made {
            let name = &self.machine.outsider.name;
            kilo_k8s::delete_peer(client, made).await.with_context(|| format!("deleting peer {name}"))?;
            info!(peer = %name, "Deleted the Peer");
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// The signals that end this.
struct Signals([Signal; 3]);

impl Signals {
    fn open() -> anyhow::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn any(&mut self) {
        let [int, term, hup] = &mut self.0;
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
        }
    }
}

fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading this machine's name")?;
    Ok(name.trim().to_owned())
}

/// The key of the file, or a new one.
fn private_key(path: Option<&Path>) -> anyhow::Result<PrivateKey> {
    let Some(path) = path else { return kilo_host::generate().context("making a key") };
    match kilo_host::load(path) {
        Ok(Some(key)) => Ok(key),
        Ok(None) => Err(message(format!("the key file {} does not exist", path.display()))),
        Err(KeyFileError::Corrupt(path)) => {
            Err(message(format!("{} does not hold a WireGuard private key in base64", path.display())))
        }
        Err(error) => Err(error.into()),
    }
}

fn host_config(args: &ConnectArgs, scratch: &Path) -> HostConfig {
    HostConfig {
        interface: args.interface.clone(),
        wireguard: match args.wireguard {
            WireGuard::Auto => Mode::Auto,
            WireGuard::Kernel => Mode::Kernel,
            WireGuard::Userspace => Mode::Userspace,
        },
        data_dir: scratch.to_owned(),
        ..HostConfig::default()
    }
}

/// Logs on standard output. Other people's crates are heard from WARN on: at DEBUG they print messages whole, and
/// some messages hold keys.
fn start_logs(args: &ConnectArgs) {
    let level = match args.log_level {
        LogLevel::All => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::None => LevelFilter::OFF,
    };
    let filter = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("gotatun", LevelFilter::OFF)
        .with_targets(["kilo_kgctl", "kilo_host", "kilo_k8s"].map(|target| (target, level)));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stdout);
    match args.log_format {
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).init(),
        LogFormat::Text => registry.with(layer.with_ansi(crate::out::colours())).init(),
    }
}
