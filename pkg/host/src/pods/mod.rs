//! The pods of this node as CNI sets them up: our plugin tells of them before their containers start, and libcni's
//! records tell of those that were there before, or of all where our plugin is not in the chain.

mod attachment;
mod bridge;
mod cache;
mod plugin;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kilo_agent::{AttachedPod, BridgeSight, HostError, PodCalls, Pods, PodsChanged};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rustix::io::Errno;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::error::{io, refused};
use crate::firewall::POLICY_TABLE;
use crate::netlink::nftables;
use crate::netlink::socket::{Refused, Socket};
use crate::watch::FileWatch;
pub use attachment::Call;
use attachment::{IFNAME, pod, split_args};
pub use plugin::tell;

/// How often everything is looked at again, whether or not anything was heard.
const AGAIN: Duration = Duration::from_secs(30);

/// Where the pods of this node are heard of.
#[derive(Clone, Debug)]
pub struct PodsConfig {
    /// The socket on which our plugin calls.
    pub socket: PathBuf,
    /// libcni's records.
    pub records: PathBuf,
    /// The bridge of our own network, whose pods are to be routed; `None` where the network is another's.
    pub bridge: Option<String>,
    /// Links of the mesh, on which redirects and source routes are not to be taken.
    pub links: Vec<String>,
}

impl Default for PodsConfig {
    fn default() -> Self {
        Self {
            socket: "/run/kilo/cni.sock".into(),
            records: "/var/lib/cni/results".into(),
            bridge: None,
            links: Vec::new(),
        }
    }
}

/// A pod, and what is known of its record.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    pod: AttachedPod,
    /// There was a record of it: when that has gone, so has the pod.
    recorded: bool,
    /// The later ones have the higher numbers.
    number: u64,
}

/// The pods of the network namespace of the thread that opened it.
pub struct LinuxPods {
    config: PodsConfig,
    route: Socket,
    calls: mpsc::Receiver<(Call, oneshot::Sender<()>)>,
    watch: Option<FileWatch>,
    pods: BTreeMap<String, Known>,
    /// Sandboxes that have ended, whose records are still there.
    ended: BTreeSet<String>,
    number: u64,
    waiting: PodCalls,
    /// What was told last.
    told: Option<(Vec<AttachedPod>, BridgeSight)>,
    answered: bridge::Answered,
}

impl LinuxPods {
    /// Opens the sockets. Must be called within a Tokio runtime.
    pub fn open(config: PodsConfig) -> Result<Self, HostError> {
        let path = config.socket.display();
        let listener =
            server::bind(&config.socket).map_err(io(format!("listening to CNI calls on {path}")))?;
        let (to, calls) = mpsc::channel(1);
        tokio::spawn(server::serve(listener, to));
        let route = Socket::open(NETLINK_ROUTE).map_err(io("opening a netlink socket"))?;
        let watch = FileWatch::directory(&config.records);
        // There is a limit to them on each machine; without it the records are read every now and then.
        let watch = watch.inspect_err(|error| tracing::warn!(%error, "CNI records cannot be watched")).ok();
        Ok(Self {
            config,
            route,
            calls,
            watch,
            pods: BTreeMap::new(),
            ended: BTreeSet::new(),
            number: 0,
            waiting: PodCalls::default(),
            told: None,
            answered: bridge::Answered::default(),
        })
    }

    /// Works in the records.
    fn read(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.renew();
        }
        let links = bridge::links(&mut self.route);
        let (records, links) = match (cache::read(&self.config.records), links) {
            (Ok(records), Ok(links)) => (records, links),
            (Err(error), _) => return tracing::warn!(%error, "CNI records cannot be read"),
            (_, Err(error)) => return tracing::warn!(%error, "Links cannot be listed"),
        };
        self.ended.retain(|container| records.contains_key(container));
        // A record outlives a crash of the runtime or of the machine; the link does not.
        let lives = |pod: &AttachedPod| pod.link.is_empty() || links.contains(&pod.link);
        self.pods.retain(|container, known| {
            lives(&known.pod) && (records.contains_key(container) || !known.recorded)
        });
        for (container, pod) in records {
            if self.ended.contains(&container) || !lives(&pod) {
                continue;
            }
            match self.pods.get_mut(&container) {
                Some(known) => known.recorded = true,
                None => {
                    // What a call told counts more than what was written down before.
                    self.pods.insert(container, Known { pod, recorded: true, number: 0 });
                }
            }
        }
    }

    fn take(&mut self, call: Call, done: oneshot::Sender<()>) {
        match call {
            Call::Add { container, ifname, args, result } if ifname == IFNAME => {
                let Some(pod) = pod(&container, split_args(&args), &result) else {
                    return self.waiting.wait(Vec::new(), done);
                };
                self.waiting.wait(pod.addresses.clone(), done);
                self.number += 1;
                self.ended.remove(&container);
                self.pods.insert(container, Known { pod, recorded: false, number: self.number });
                return;
            }
            Call::Del { container, ifname } if ifname == IFNAME => {
                self.pods.remove(&container);
                self.ended.insert(container);
            }
            Call::Add { .. } | Call::Del { .. } => {}
            Call::Gc { containers } => {
                let left = |container: &String| containers.contains(container);
                let gone: Vec<String> = self.pods.keys().filter(|c| !left(c)).cloned().collect();
                for container in gone {
                    self.pods.remove(&container);
                    self.ended.insert(container);
                }
            }
        }
        self.waiting.wait(Vec::new(), done);
    }

    /// All pods. An address belongs to the one that came last.
    fn list(&self) -> Vec<AttachedPod> {
        let mut known: Vec<&Known> = self.pods.values().collect();
        known.sort_by_key(|known| std::cmp::Reverse(known.number));
        let mut taken = BTreeSet::new();
        let mut pods: Vec<AttachedPod> = known
            .into_iter()
            .filter_map(|known| {
                let mut pod = known.pod.clone();
                pod.addresses.retain(|address| taken.insert(*address));
                (!pod.addresses.is_empty()).then_some(pod)
            })
            .collect();
        pods.sort_by(|a, b| a.container.cmp(&b.container));
        pods
    }

    /// Makes what pods send each other pass by our rules, where that is our business.
    fn see(&mut self, pods: &[AttachedPod]) -> BridgeSight {
        let links = self.config.links.iter().chain(&self.config.bridge).map(String::as_str);
        if let Err(error) = bridge::harden(links.chain(pods.iter().map(|pod| pod.link.as_str()))) {
            tracing::warn!(%error, "Redirects cannot be switched off");
        }
        let reached = match &self.config.bridge {
            Some(bridge) => self.answered.reach(&mut self.route, bridge, pods),
            None => Ok(()),
        };
        let seen = reached.and_then(|()| bridge::sight(&mut self.route, pods));
        seen.unwrap_or_else(|error| BridgeSight::Unseen {
            links: pods.iter().map(|pod| pod.link.clone()).collect(),
            reason: error.to_string(),
        })
    }
}

impl Pods for LinuxPods {
    async fn changed(&mut self) -> PodsChanged {
        if self.told.is_none() {
            self.read();
        }
        loop {
            while let Ok((call, done)) = self.calls.try_recv() {
                self.take(call, done);
            }
            let pods = self.list();
            let sight = self.see(&pods);
            let now = (pods, sight);
            if self.told.as_ref() != Some(&now) || !self.waiting.is_empty() {
                self.told = Some(now.clone());
                let (pods, sight) = now;
                return PodsChanged { pods, sight, programmed: std::mem::take(&mut self.waiting) };
            }
            let Self { calls, watch, .. } = self;
            let recorded = async {
                match watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((call, done)) = calls.recv() => self.take(call, done),
                () = recorded => self.read(),
                () = tokio::time::sleep(AGAIN) => self.read(),
            }
        }
    }
}

fn on_bridge(
    what: &str,
    bridge: &str,
    work: impl FnOnce(&mut Socket) -> Result<(), Refused>,
) -> Result<(), HostError> {
    let mut route = Socket::open(NETLINK_ROUTE).map_err(io("opening a netlink socket"))?;
    work(&mut route).map_err(refused(format!("{what} bridge {bridge}")))
}

/// Routes the traffic between a new pod and others of its node, for our plugin: the agent may be down. Nothing is done
/// as long as there is no policy table.
pub fn route_through(bridge: &str, result: &Value) -> Result<(), HostError> {
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(io("opening a netfilter socket"))?;
    let on = nftables::table_exists(&mut socket, nftables::NFPROTO_INET, POLICY_TABLE)
        .map_err(refused(format!("looking for nftables table inet {POLICY_TABLE}")))?;
    if !on {
        return Ok(());
    }
    let (link, addresses): (String, Vec<IpAddr>) = (attachment::link(result), attachment::addresses(result));
    on_bridge("routing between the pods of", bridge, |route| {
        bridge::route_through(route, bridge, &link, &addresses)
    })
}

/// The end of what [`route_through`] did for a pod: its address must be free for another one.
pub fn release(bridge: Option<&str>, result: &Value) -> Result<(), HostError> {
    let Some(bridge) = bridge else { return Ok(()) };
    let addresses = attachment::addresses(result);
    on_bridge("no longer answering for a pod on", bridge, |route| bridge::release(route, bridge, &addresses))
}

/// Takes the addresses of a pod out of the maps that tell whose policy is whose, where no agent does it: whoever had
/// or gets them is held, as one that is not known.
pub fn hold(result: &Value) -> Result<(), HostError> {
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(io("opening a netfilter socket"))?;
    for address in attachment::addresses(result) {
        let maps = if address.is_ipv4() { ["egress4", "ingress4"] } else { ["egress6", "ingress6"] };
        for map in maps {
            match nftables::delete_element(&mut socket, POLICY_TABLE, map, address) {
                // It is not there, or the agent lives and will do it.
                Err(why) if !matches!(why.errno, Errno::NOENT | Errno::PERM) => {
                    return Err(refused(format!("holding {address}"))(why));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Lets the pods of a bridge exchange frames again, as without network policy.
pub fn undo_routing(bridge: &str) -> Result<(), HostError> {
    on_bridge("no longer routing between the pods of", bridge, |route| bridge::undo(route, bridge))
}

/// Removes the socket of an agent that has ended.
pub fn remove_socket(path: &Path) -> Result<(), HostError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io(format!("removing {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}
