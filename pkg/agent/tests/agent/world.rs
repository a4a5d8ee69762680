//! An agent of node `a` between a fake cluster and a fake machine, and the objects of such a cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kilo_agent::{Agent, DiscoverConfig, Handle, Settings};
use kilo_mesh::{Config, Encapsulate, HostFacts, Metadata, NodeObject, NodeSpec, PeerObject, PeerSpec};
use kilo_state::DevicePeer;
use kilo_testkit::{FakeBackend, FakeHost};
use kilo_wireguard::{PrivateKey, PublicKey};
use tokio::sync::oneshot;

pub fn key(n: u8) -> PublicKey {
    PrivateKey::from_random([n; 32]).public_key()
}

pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A node of its own location; `n` numbers its addresses.
pub fn node(name: &str, n: u8, annotated: bool) -> NodeObject {
    let mut annotations = BTreeMap::new();
    if annotated {
        for (k, v) in [
            ("endpoint", format!("198.51.100.{n}:51820")),
            ("internal-ip", format!("10.0.{n}.1/24")),
            ("key", key(n).to_string()),
            ("last-seen", now().to_string()),
        ] {
            annotations.insert(format!("kilo.squat.ai/{k}"), v);
        }
    }
    annotations.insert("kilo.squat.ai/location".into(), format!("l{n}"));
    NodeObject {
        metadata: Metadata { name: name.into(), annotations, ..Metadata::default() },
        spec: NodeSpec { pod_cidr: format!("10.2.{n}.0/24"), pod_cidrs: Vec::new() },
    }
}

pub fn peer(name: &str, n: u8) -> PeerObject {
    PeerObject {
        metadata: Metadata { name: name.into(), ..Metadata::default() },
        spec: PeerSpec {
            allowed_ips: vec![format!("10.5.0.{n}/32")],
            public_key: key(n).to_string(),
            ..PeerSpec::default()
        },
    }
}

/// The machine of node `a`.
pub fn machine() -> FakeHost {
    FakeHost::new(HostFacts {
        public_key: Some(key(1)),
        internal_ip: "10.0.1.1/24".parse().ok(),
        external_ip: "198.51.100.1/24".parse().ok(),
        uplink_mtu: Some(1500),
        ..HostFacts::default()
    })
}

pub fn config() -> Config {
    Config { hostname: "a".into(), encapsulate: Encapsulate::Never, ..Config::default() }
}

pub fn settings(resync: Duration) -> Settings {
    let discover = DiscoverConfig::default();
    Settings { config: config(), discover, resync, clean_up: false, clean_up_interface: false }
}

pub struct World {
    pub backend: FakeBackend,
    pub host: FakeHost,
    pub handle: Handle,
    stop: oneshot::Sender<()>,
    running: tokio::task::JoinHandle<Result<(), kilo_agent::AgentError>>,
}

impl World {
    /// Node `a` runs the agent; `b` is another location.
    pub fn start(clean_up: bool) -> Self {
        let backend = FakeBackend::default();
        backend.apply_node(node("a", 1, false));
        backend.apply_node(node("b", 2, true));
        let settings = Settings { clean_up, clean_up_interface: true, ..settings(Duration::from_secs(30)) };
        Self::run_with(backend, machine(), settings)
    }

    pub fn run(backend: FakeBackend, host: FakeHost) -> Self {
        Self::run_with(backend, host, settings(Duration::from_secs(30)))
    }

    pub fn run_with(backend: FakeBackend, host: FakeHost, settings: Settings) -> Self {
        let (agent, handle) = Agent::new(Arc::new(backend.clone()), host.clone(), settings);
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(agent.run(async move { drop(stopped.await) }));
        Self { backend, host, handle, stop, running }
    }

    /// Waits until this holds, for ten seconds.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.within(10, what, holds).await;
    }

    /// Waits until this holds, for so many seconds.
    pub async fn within(&self, seconds: u32, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..seconds * 100 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let status = self.handle.status.borrow();
        panic!("not within {seconds} s: {what}; {:?}, status {status:?}", self.device());
    }

    pub fn settled(&self) -> bool {
        let status = self.handle.status.borrow();
        let written = self.backend.node("a").is_some_and(|n| {
            n.metadata.annotations.get("kilo.squat.ai/wireguard-ip").is_some_and(|ip| ip == "10.4.0.1/16")
        });
        status.last_success.is_some()
            && status.device
            && written
            && self.host.machine().observed.routes.len() > 1
    }

    /// The peers of the device; none without one.
    pub fn device(&self) -> Vec<DevicePeer> {
        self.host.machine().observed.device.as_ref().map(|d| d.peers.clone()).unwrap_or_default()
    }

    /// How many rounds there were.
    pub fn rounds(&self) -> u64 {
        self.handle.stats.reconciles.load(Ordering::Relaxed)
    }

    pub async fn end(self) -> FakeHost {
        drop(self.stop);
        self.running.await.expect("no panic").expect("a graceful end");
        self.host
    }
}
