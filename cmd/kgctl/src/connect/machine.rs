//! This machine while it is connected: its link, device and routes, made what they should be, and undone.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use kilo_agent::{Host as _, HostError, HostEvent};
use kilo_host::LinuxHost;
use kilo_mesh::{Facts, Outsider, Topology};
use kilo_state::{Desired, Dev, LinkKind, Observed, Op};
use kilo_wireguard::PublicKey;
use tracing::info;

use crate::mesh::clock;

/// How many operations of one round are logged one by one; more are logged by their number.
const LOGGED: usize = 32;

/// This machine.
pub struct Machine {
    host: LinuxHost,
    /// What it is to the mesh.
    pub outsider: Outsider,
    /// The MTU of a link that is made.
    mtu: u32,
    /// The endpoints that the device was given, by key.
    programmed: BTreeMap<PublicKey, SocketAddr>,
}

impl Machine {
    /// A machine that nothing was done to yet.
    pub fn new(host: LinuxHost, outsider: Outsider, mtu: u32) -> Self {
        Self { host, outsider, mtu, programmed: BTreeMap::new() }
    }

    /// Makes the link if it is not there, so that a machine where that cannot be is told before anybody hears of it.
    pub async fn prepare(&mut self) -> Result<(), HostError> {
        let _facts = self.host.facts().await?;
        let observed = self.host.observe().await?;
        if observed.links.iter().any(|link| link.dev == Dev::WireGuard) {
            // Somebody made it, but is it a device?
            return match observed.device {
                Some(_) => Ok(()),
                None => self.create().await,
            };
        }
        self.create().await
    }

    async fn create(&mut self) -> Result<(), HostError> {
        let name = self.outsider.interface.as_str().into();
        let op = Op::CreateLink { dev: Dev::WireGuard, name, kind: LinkKind::WireGuard, mtu: Some(self.mtu) };
        self.host.apply(std::slice::from_ref(&op)).await.into_iter().collect()
    }

    /// Makes this machine what a Peer's machine is in this mesh. What could not be done comes back.
    pub async fn follow(&mut self, topology: &Topology) -> Vec<HostError> {
        let host = match self.host.facts().await {
            Ok(host) => host,
            Err(error) => return vec![error],
        };
        let observed = match self.host.observe().await {
            Ok(observed) => observed,
            Err(error) => return vec![error],
        };
        let there = observed.links.iter().any(|link| link.dev == Dev::WireGuard);
        self.outsider.mtu = (!there).then_some(self.mtu);
        let mut facts = Facts { now: clock(), host, ..Facts::default() };
        facts.host.programmed.clone_from(&self.programmed);
        let desired = topology.desired_of_outsider(&self.outsider, &facts);
        self.change(&desired, observed).await
    }

    /// Removes routes and link.
    pub async fn leave(&mut self) -> Vec<HostError> {
        let observed = match self.host.observe().await {
            Ok(observed) => observed,
            Err(error) => return vec![error],
        };
        let link = (Dev::WireGuard, self.outsider.interface.as_str().into());
        let desired = Desired { remove_links: vec![link], ..Desired::default() };
        self.change(&desired, observed).await
    }

    /// Carries out the difference, as far as it is about the link and where it leads.
    async fn change(&mut self, desired: &Desired, observed: Observed) -> Vec<HostError> {
        let wanted = |dst| desired.routes.binary_search_by_key(&dst, |r| (r.table, r.dst)).is_ok();
        let mut ours = Observed { links: observed.links, device: observed.device, ..Observed::default() };
        // An agent may run on this machine as well: what is over other links is its own.
        ours.routes = observed.routes;
        ours.routes.retain(|r| r.route.dev == Dev::WireGuard || wanted((r.route.table, r.route.dst)));
        let ops = kilo_state::diff(desired, &ours);
        let names = kilo_state::names(desired, &ours);
        let results = self.host.apply(&ops).await;
        let (mut errors, mut done) = (Vec::new(), 0);
        for (op, result) in ops.iter().zip(results) {
            match result {
                Err(error) => errors.push(error),
                Ok(()) => {
                    done += 1;
                    self.note(op);
                    if ops.len() <= LOGGED {
                        info!(change = %op.display(&names), "Changed this machine");
                    }
                }
            }
        }
        if ops.len() > LOGGED {
            info!(changes = done, failed = errors.len(), "Changed this machine");
        }
        errors
    }

    /// Keeps the endpoints that the device was given.
    fn note(&mut self, op: &Op) {
        if let Op::AddPeer(peer) = op
            && let Some(endpoint) = peer.endpoint
        {
            self.programmed.insert(peer.public_key, endpoint);
        } else if let Op::UpdatePeer(change) = op
            && let Some(endpoint) = change.endpoint
        {
            self.programmed.insert(change.public_key, endpoint);
        } else if let Op::RemovePeer(key) = op {
            self.programmed.remove(key);
        }
    }

    /// Waits until somebody else changed something; may be cancelled.
    pub async fn changed(&mut self) -> HostEvent {
        self.host.changed().await
    }

    /// Resolves a name.
    pub fn resolve(&self, name: String) -> impl Future<Output = Option<Vec<IpAddr>>> + Send + 'static {
        self.host.resolve(name)
    }

    /// Lets go of the device; a built-in one ends, and its link with it.
    pub async fn close(&mut self) {
        self.host.close().await;
    }
}
