//! An agent that is killed right after its Nth operation: the real loop and the real machine, objects of a small
//! cluster in memory, and a host between the two that lets one operation after the other through.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kilo_agent::view::{PlanSource, PlanView};
use kilo_agent::{Agent, DiscoverConfig, Event, Handle, Host, HostError, HostEvent, Query, Settings};
use kilo_host::wireguard::SOCKET_DIR;
use kilo_host::{HostConfig, LinuxHost};
use kilo_mesh::{
    Config, Encapsulate, HostFacts, Metadata, Node, NodeObject, NodeSpec, Outcome, PREFIX, Peer, PeerObject,
    PeerSpec,
};
use kilo_state::{Observed, Op};
use kilo_testkit::FakeBackend;
use kilo_wireguard::{PrivateKey, PublicKey};
use rustix::process::{Signal, getpid, kill_process};

/// How long an agent must do nothing to count as settled.
const QUIET: Duration = Duration::from_millis(200);
/// How often that is looked at.
const LOOKS: u32 = 20;
/// How long that may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What an agent does while it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It starts on a machine without anything.
    Start,
    /// One Peer changes, one goes, one comes.
    Peers,
    /// Its node leads its location no longer.
    Leader,
    /// It is stopped and cleans up.
    Stop,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Start, Self::Peers, Self::Leader, Self::Stop];

    /// As a word of the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Peers => "peers",
            Self::Leader => "leader",
            Self::Stop => "stop",
        }
    }

    /// The Peers at the end.
    fn peers(self) -> Vec<PeerObject> {
        match self {
            Self::Start | Self::Leader | Self::Stop => {
                vec![peer("laptop", 1, &["10.5.0.1/32"]), peer("phone", 2, &["10.5.0.2/32", "fd05::2/128"])]
            }
            Self::Peers => vec![
                peer("laptop", 1, &["10.5.0.1/32", "10.6.0.0/24"]),
                peer("tablet", 3, &["10.5.0.3/32", "fd05::3/128"]),
            ],
        }
    }

    /// The other node of the location at the end.
    fn neighbour(self) -> NodeObject {
        node("a2", "west", 2, self == Self::Leader)
    }

    /// Makes the cluster of the beginning that of the end, each in one event.
    fn change(self, cluster: &FakeBackend) {
        match self {
            Self::Start | Self::Stop => {}
            Self::Peers => cluster.tell(Event::Peers(self.peers(), Vec::new())),
            Self::Leader => cluster.apply_node(self.neighbour()),
        }
    }
}

/// `--helper crash-agent PHASE again|AT DIR` runs an agent through a phase and kills it after the operation AT of it, 0
/// for never; or starts it on the cluster of the phase's end. It prints each operation, and `settled`.
pub fn helper(words: &[&str]) -> Option<Result<()>> {
    match words {
        ["crash-agent", phase, at, dir] => Some(run(phase, at, Path::new(dir))),
        _ => None,
    }
}

fn run(phase: &str, at: &str, dir: &Path) -> Result<()> {
    let phase = Phase::ALL.into_iter().find(|known| known.name() == phase).context("which phase?")?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(1).enable_all().build().context("starting the runtime")?.block_on(async {
        if at == "again" {
            begin(phase, dir, 0, phase, true).await
        } else {
            let at = at.parse().context("which operation?")?;
            begin(phase, dir, at, Phase::Start, phase == Phase::Start).await
        }
    })
}

/// Begins with the cluster of `first`'s end. Operations are counted from here on if `count`, else from when the
/// phase begins.
async fn begin(phase: Phase, dir: &Path, at: usize, first: Phase, count: bool) -> Result<()> {
    let cluster = cluster(first);
    let counter = Arc::new(Counter { at, ..Counter::default() });
    counter.counts.store(usize::from(count), Ordering::SeqCst);
    let host = Counted { host: LinuxHost::open(host_config(dir)?)?, counter: counter.clone() };
    let (agent, handle) = Agent::new(Arc::new(cluster.clone()), host, settings(dir)?);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(agent.run(async move { drop(stopped.await) }));
    settled(&handle, &counter).await?;
    if !count {
        counter.counts.store(1, Ordering::SeqCst);
        if phase == Phase::Stop {
            drop(stop);
            running.await.context("the agent died")??;
            return say("settled");
        }
        let before = counter.done.load(Ordering::SeqCst);
        phase.change(&cluster);
        let start = Instant::now();
        while counter.done.load(Ordering::SeqCst) == before {
            ensure!(start.elapsed() < LIMIT, "the phase {} takes no operation", phase.name());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        settled(&handle, &counter).await?;
    }
    leave_plan(&handle, dir).await?;
    say("settled")?;
    std::future::pending().await
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("telling")
}

/// Waits until all is as planned and nothing more is done.
async fn settled(handle: &Handle, counter: &Counter) -> Result<()> {
    let start = Instant::now();
    let (mut quiet, mut looks, mut before) = (Instant::now(), 0, (0, 0));
    // On a busy machine the agent may be as slow as we are: time alone says little.
    while looks < LOOKS || quiet.elapsed() < QUIET {
        tokio::time::sleep(QUIET / LOOKS).await;
        let status = handle.status.borrow().clone();
        let fine = status.apply_error.is_none()
            && status.device
            && status.plan.as_ref().is_some_and(|plan| plan.outcome == Outcome::Ok);
        let now = (counter.done.load(Ordering::SeqCst), handle.stats.reconciles.load(Ordering::SeqCst));
        if fine && now == before {
            looks += 1;
        } else {
            (quiet, looks, before) = (Instant::now(), 0, now);
        }
        if start.elapsed() > LIMIT {
            bail!("not settled: {:?}, {:?}", status.apply_error, status.plan);
        }
    }
    Ok(())
}

/// Leaves the plan of the moment as `plan.json` in a directory.
async fn leave_plan(handle: &Handle, dir: &Path) -> Result<()> {
    let config = settings(dir)?.config;
    let (answer, answered) = tokio::sync::oneshot::channel();
    handle.queries.send(Query::Input(answer)).await.context("asking the agent")?;
    let input = answered.await.context("waiting for the agent's answer")?;
    let nodes: Vec<Node> =
        input.nodes.iter().map(|object| Node::from_object(object, &config.topology_label).0).collect();
    let peers: Vec<Peer> = input.peers.iter().map(|object| Peer::from_object(object).0).collect();
    let (nodes, peers): (Vec<&Node>, Vec<&Peer>) = (nodes.iter().collect(), peers.iter().collect());
    let source = PlanSource {
        config: &config,
        node_objects: &input.nodes.iter().collect::<Vec<_>>(),
        peer_objects: &input.peers.iter().collect::<Vec<_>>(),
        nodes: &nodes,
        peers: &peers,
        facts: &input.facts,
        findings: &[],
    };
    let view = PlanView::new(&kilo_mesh::plan(&config, &nodes, &peers, &input.facts), &source);
    let text = serde_json::to_vec(&view).context("writing the plan as JSON")?;
    std::fs::write(dir.join("plan.json"), text).context("writing the plan")
}

#[derive(Debug, Default)]
struct Counter {
    /// The operation after which all ends; 0 for none.
    at: usize,
    /// Operations carried out.
    done: AtomicUsize,
    /// Those that were counted, from when this is 1: then it is one more than their number.
    counts: AtomicUsize,
}

/// A host that carries out operations one by one.
struct Counted {
    host: LinuxHost,
    counter: Arc<Counter>,
}

impl Host for Counted {
    async fn discover(&mut self, config: &DiscoverConfig) -> Result<HostFacts, HostError> {
        self.host.discover(config).await
    }

    async fn facts(&mut self) -> Result<HostFacts, HostError> {
        self.host.facts().await
    }

    async fn observe(&mut self) -> Result<Observed, HostError> {
        self.host.observe().await
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), HostError>> {
        let mut answers = Vec::with_capacity(ops.len());
        for op in ops {
            answers.extend(self.host.apply(std::slice::from_ref(op)).await);
            self.counter.done.fetch_add(1, Ordering::SeqCst);
            if self.counter.counts.load(Ordering::SeqCst) == 0 {
                continue;
            }
            // The test reads the lines; without a reader it has ended.
            let _nobody_reads = say(&format!("op {}", op.kind()));
            if self.counter.counts.fetch_add(1, Ordering::SeqCst) == self.counter.at {
                let _no_way_back = kill_process(getpid(), Signal::KILL);
                std::future::pending::<()>().await;
            }
        }
        answers
    }

    async fn changed(&mut self) -> HostEvent {
        self.host.changed().await
    }

    async fn close(&mut self) {
        self.host.close().await;
    }

    fn resolve(&self, name: String) -> impl Future<Output = Option<Vec<IpAddr>>> + Send + 'static {
        self.host.resolve(name)
    }

    fn probe(&self, target: IpAddr) -> impl Future<Output = bool> + Send + 'static {
        self.host.probe(target)
    }
}

/// The CNI file of an agent with this directory.
pub fn cni_file(dir: &Path) -> PathBuf {
    dir.join("10-kilo.conflist")
}

fn host_config(dir: &Path) -> Result<HostConfig> {
    let cni = cni_file(dir).to_str().context("the path of the CNI file is no UTF-8")?.to_owned();
    Ok(HostConfig {
        data_dir: dir.join("lib"),
        cni_path: Some(cni),
        forward_rules: true,
        ..HostConfig::default()
    })
}

fn settings(dir: &Path) -> Result<Settings> {
    let cni_path = cni_file(dir).to_str().context("the path of the CNI file is no UTF-8")?.to_owned();
    let config = Config {
        hostname: "a1".into(),
        encapsulate: Encapsulate::Never,
        iptables_forward_rules: true,
        cni_path,
        ..Config::default()
    };
    Ok(Settings {
        config,
        discover: DiscoverConfig { hostname: "a1".into(), ..DiscoverConfig::default() },
        resync: Duration::from_secs(60),
        clean_up: true,
        // A device that is not the agent's own stays.
        clean_up_interface: !Path::new(SOCKET_DIR).join("kilo0.sock").exists(),
    })
}

/// Three nodes in two locations, of which `a1` leads west, and two Peers.
fn cluster(phase: Phase) -> FakeBackend {
    let cluster = FakeBackend::default();
    let mut own = node("a1", "west", 1, false);
    // The agent says the rest itself.
    own.metadata.annotations.retain(|name, _| name.ends_with("/location") || name.ends_with("/endpoint"));
    cluster.apply_node(own);
    cluster.apply_node(phase.neighbour());
    cluster.apply_node(node("b1", "east", 3, false));
    phase.peers().into_iter().for_each(|peer| cluster.apply_peer(peer));
    cluster
}

fn key(number: u8) -> PublicKey {
    PrivateKey::from_random([number; 32]).public_key()
}

fn node(name: &str, location: &str, number: u8, leader: bool) -> NodeObject {
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs());
    let mut annotations = vec![
        ("location", location.to_owned()),
        ("endpoint", format!("192.0.2.{number}:51820")),
        ("internal-ip", format!("10.1.0.{number}/24")),
        ("key", key(100 + number).to_string()),
        // Nobody checks in while the test runs.
        ("last-seen", (now + 3600).to_string()),
        ("granularity", "location".to_owned()),
    ];
    if location == "east" {
        annotations[2].1 = format!("10.2.0.{number}/24");
    }
    if leader {
        annotations.push(("leader", String::new()));
    }
    NodeObject {
        metadata: Metadata {
            name: name.to_owned(),
            annotations: annotations.into_iter().map(|(k, v)| (format!("{PREFIX}{k}"), v)).collect(),
            ..Metadata::default()
        },
        spec: NodeSpec {
            pod_cidr: format!("10.42.{number}.0/24"),
            pod_cidrs: vec![format!("10.42.{number}.0/24"), format!("fd42:{number}::/64")],
        },
    }
}

fn peer(name: &str, number: u8, ranges: &[&str]) -> PeerObject {
    PeerObject {
        metadata: Metadata { name: name.to_owned(), ..Metadata::default() },
        spec: PeerSpec {
            allowed_ips: ranges.iter().map(|&range| range.to_owned()).collect(),
            public_key: key(number).to_string(),
            ..PeerSpec::default()
        },
    }
}
