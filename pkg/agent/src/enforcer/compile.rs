//! The seam between the enforcer's loop and what turns objects into tables. It is pure: nothing here waits or fails.

use std::net::IpAddr;

use kilo_mesh::Finding;
use kilo_nftables::{Table, Transaction};
use kilo_policy::Kind;
use serde_json::Value;

use crate::AttachedPod;

/// How large what is programmed is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Programmed {
    /// Profiles: classes of pods with the same policies.
    pub profiles: usize,
    /// Sets in all tables.
    pub sets: usize,
    /// Elements of sets of single addresses.
    pub hash_elements: usize,
    /// Elements of sets of ranges.
    pub interval_elements: usize,
    /// Rules.
    pub rules: usize,
    /// Pods of this node that are held since they cannot be programmed.
    pub unprogrammed: usize,
}

/// Why a packet was logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// In words.
    pub why: String,
    /// The direction as the pod sees it; nothing where the source was refused.
    pub direction: Option<&'static str>,
    /// The policies that isolate the pod, `shop/web`.
    pub isolated_by: Vec<String>,
    /// It was dropped; otherwise it would have been, but for `audit`.
    pub dropped: bool,
}

/// Turns objects and the mesh into tables, change by change.
pub trait Compile: Send + 'static {
    /// What the mesh tells.
    type Mesh: Clone + Send + Sync + 'static;

    /// A list of a kind begins.
    fn restarted(&mut self, kind: Kind);

    /// An object is there or has changed; what is wrong with it.
    fn apply(&mut self, kind: Kind, object: &Value) -> Vec<Finding>;

    /// The list is complete: what of this kind was not applied since it began is gone. Before all kinds have been synced
    /// nothing that is in the tables shrinks.
    fn synced(&mut self, kind: Kind);

    /// An object is gone.
    fn remove(&mut self, kind: Kind, namespace: &str, name: &str);

    /// The mesh is this from now on.
    fn set_mesh(&mut self, mesh: Self::Mesh);

    /// The pods of this node as CNI set them up are these from now on.
    fn set_local(&mut self, pods: &[AttachedPod]);

    /// Whether what was taken last says by which policies a pod of this node with this address is judged. One of which it
    /// does not say it is held.
    fn knows(&self, address: IpAddr) -> bool;

    /// These are the policy tables that the kernel has: from here the next [`Compile::take`] goes.
    fn adopt(&mut self, tables: &[Table]);

    /// The least transactions from what the kernel has to what it should have; from then on they count as landed. The
    /// first after none was adopted makes the closed skeleton, whatever is known.
    fn take(&mut self) -> Vec<Transaction>;

    /// What was taken last did not land; tables are adopted again before the next.
    fn failed(&mut self);

    /// The bits that must be cleared from the marks of all connections before what was taken is committed.
    fn sweep(&mut self) -> Option<u32>;

    /// Whether these are the tables that all that was taken has made.
    fn is(&self, tables: &[Table]) -> bool;

    /// Why the rule with this log prefix logged a packet with these ends; `None` for a rule that is gone.
    fn explain(&self, prefix: &str, source: IpAddr, destination: IpAddr) -> Option<Explained>;

    /// Who has an address, `pod/shop/web`, `peer/laptop`, `node/a`; `external` for others.
    fn whose(&self, address: IpAddr) -> String;

    /// How large what is programmed is.
    fn programmed(&self) -> Programmed;
}
