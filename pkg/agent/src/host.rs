//! The seam to this machine: what it is, what its network is, and operations to carry out.

use std::future::Future;
use std::net::IpAddr;

use ipnet::IpNet;
use kilo_mesh::HostFacts;
use kilo_state::{Observed, Op};

/// What the discovery of addresses depends on.
#[derive(Clone, Debug, Default)]
pub struct DiscoverConfig {
    /// The name of this node.
    pub hostname: String,
    /// `--internal-cidr`: only private addresses in one of these; empty for any.
    pub internal_cidrs: Vec<IpNet>,
    /// `--prioritise-private-addresses`.
    pub prioritise_private_addresses: bool,
}

/// Whether trying again helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It may.
    Retry,
    /// Not before a person has done something.
    Fatal,
}

/// Why this machine could not do what was asked, `adding route 10.2.3.0/24 via kilo0`.
#[derive(Debug, thiserror::Error)]
#[error("{action}")]
pub struct HostError {
    /// What was tried.
    pub action: String,
    /// Whether trying again helps.
    pub severity: Severity,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Something about the network changed and it was not us. The weightier ones come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostEvent {
    /// A link, address, route, rule or kernel parameter.
    Routing,
    /// An nftables table.
    Firewall,
    /// The CNI file.
    Files,
    /// The WireGuard device went or came, or somebody else configured it.
    Device,
    /// Notifications were lost.
    Lost,
}

/// This machine.
pub trait Host: Send + 'static {
    /// Finds addresses, names of links and abilities of the kernel.
    fn discover(
        &mut self,
        config: &DiscoverConfig,
    ) -> impl Future<Output = Result<HostFacts, HostError>> + Send;

    /// Reads again what [`Host::discover`] found, without its waiting for names: addresses, MTUs, and the
    /// peers of the device with their endpoints and handshakes. `programmed` is left empty.
    fn facts(&mut self) -> impl Future<Output = Result<HostFacts, HostError>> + Send;

    /// Reads everything.
    fn observe(&mut self) -> impl Future<Output = Result<Observed, HostError>> + Send;

    /// Carries out operations in this order, each on its own: one that fails does not stop the others. The
    /// answers are in the order of the operations.
    fn apply(&mut self, ops: &[Op]) -> impl Future<Output = Vec<Result<(), HostError>>> + Send;

    /// Waits until somebody else changed something; may be cancelled at any time without losing an event.
    fn changed(&mut self) -> impl Future<Output = HostEvent> + Send;

    /// Who else last changed what this operation puts right, in words, as far as the kernel tells.
    fn culprit(&self, op: &Op) -> Option<String> {
        let _ = op;
        None
    }

    /// Lets go of everything at the agent's end: a built-in device stops, learned endpoints are stored.
    fn close(&mut self) -> impl Future<Output = ()> + Send;

    /// Resolves a name, IPv4 first; `None` when it does not exist or nobody answers.
    fn resolve(&self, name: String) -> impl Future<Output = Option<Vec<IpAddr>>> + Send + 'static;

    /// Asks an address whether it is there, by one ICMP echo; whether it answers within two seconds.
    fn probe(&self, target: IpAddr) -> impl Future<Output = bool> + Send + 'static;
}
