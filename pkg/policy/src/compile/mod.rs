//! From objects and facts to the nftables tables that make a kernel keep them, and the least transaction for what
//! changes.

mod binding;
mod chain;
mod choose;
mod cluster;
mod draft;
mod epoch;
mod explain;
mod facts;
mod judge;
mod members;
mod name;
mod programs;
mod reason;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kilo_nftables::{Data, Element, Family, Key, Place, Set, Table, TableFamily, Transaction, diff};
use kilo_object::Field;
use serde_json::Value;

use self::cluster::{Cluster, Name};
use self::draft::Draft;
use self::epoch::Epoch;
pub use self::explain::{Explained, Stats};
pub use self::facts::{Antispoof, CompilerConfig, Links, LocalPod, LocalPods, MeshFacts, Mode, Owner};
use self::judge::{HELD, OPEN, Part, dispatch_sets, epoch_chains};
pub use self::reason::Reason;
use self::rules::{FAMILIES, View, goto};
use crate::policy::Direction;
use crate::snapshot::{Applied, Kind};

/// The name of the table that judges, of family `inet`.
const POLICY: &str = "kilo_policy";
/// The name of the table of our own bridge, of family `bridge`.
const BRIDGE: &str = "kilo_bind";

/// The kinds without which nothing is known about a pod.
const NEEDED: [Kind; 3] = [Kind::Pod, Kind::Namespace, Kind::NetworkPolicy];

/// Objects, facts, and the tables that follow from them.
///
/// Until it has heard of all objects it makes a table only where the kernel has none, one that is closed to all pods of
/// the node, and changes none that is there.
#[derive(Debug)]
pub struct Compiler {
    config: CompilerConfig,
    facts: MeshFacts,
    cluster: Cluster,
    draft: Draft,
    /// The table of our own bridge, as it should be.
    bridge: Option<Table>,
    /// What the kernel has of both tables, where that is not what the last transaction made of it.
    kernel: Option<Vec<Table>>,
    /// The table of our own bridge, as the kernel has it.
    bridge_there: Option<Table>,
    /// What an unfinished list has not named yet.
    unnamed: BTreeMap<Kind, BTreeSet<Name>>,
    synced: BTreeSet<Kind>,
    /// Facts have changed since the last transaction.
    stale: bool,
    epoch: Epoch,
    narrowed: bool,
    /// Set when what the kernel has cannot be known.
    lost: bool,
}

impl Compiler {
    /// A compiler that knows nothing yet, for a kernel that has none of our tables until [`Self::adopt`] says otherwise.
    pub fn new(config: CompilerConfig) -> Self {
        let table = Table {
            family: TableFamily::Inet,
            name: POLICY.into(),
            flags: config.table_flags,
            ..Table::default()
        };
        let mut draft = Draft::new(table);
        if config.mode != Mode::Off {
            dispatch_sets().into_iter().for_each(|(name, set)| _ = draft.put_set(&name, set));
            for direction in [Direction::Ingress, Direction::Egress] {
                for view in View::BOTH {
                    let map = judge::profiles(direction, view);
                    let held = goto(Reason::Held(direction).name());
                    for (id, verdict) in [(OPEN, kilo_nftables::Verdict::Return), (HELD, held)] {
                        draft.insert(&map, Element::with(Key::Integer(id), Data::Verdict(verdict)));
                    }
                }
                draft.put_counter(&format!("deny_{}", rules::word(direction)));
            }
            draft.put_counter("allow");
        }
        for reason in Reason::ALL {
            let wanted =
                if reason.is_spoof() { config.antispoof != Antispoof::Off } else { config.mode != Mode::Off };
            if wanted {
                draft.put_counter(&reason.counter());
            }
        }
        Self {
            epoch: Epoch::new(config.epoch_mask),
            config,
            facts: MeshFacts::default(),
            cluster: Cluster::default(),
            draft,
            bridge: None,
            kernel: Some(Vec::new()),
            bridge_there: None,
            unnamed: BTreeMap::new(),
            synced: BTreeSet::new(),
            stale: true,
            narrowed: false,
            lost: false,
        }
    }

    /// A list of all objects of a kind begins.
    pub fn restarted(&mut self, kind: Kind) {
        self.unnamed.insert(kind, self.cluster.snapshot.names(kind));
    }

    /// An object was made or changed, or a list names it. What is wrong with it is told with the object's name.
    pub fn apply(&mut self, kind: Kind, object: &Value) -> Applied {
        let root = Field::root(object);
        let Ok((namespace, name)) = crate::snapshot::key(kind, &root) else {
            return self.cluster.snapshot.apply(kind, object);
        };
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        if let Some(unnamed) = self.unnamed.get_mut(&kind) {
            unnamed.remove(&(namespace.as_str().into(), name.as_str().into()));
        }
        let snapshot = &mut self.cluster.snapshot;
        match kind {
            Kind::Pod => {
                let old = snapshot.pod(&namespace, &name).map(|(.., pod)| pod.clone());
                let applied = snapshot.apply(kind, object);
                // Most events are about what no policy asks for.
                if old.as_ref() != snapshot.pod(&namespace, &name).map(|(.., pod)| pod) {
                    self.cluster.touch_pod(&namespace, &name);
                }
                applied
            }
            Kind::NetworkPolicy => {
                let old = snapshot.policy(&namespace, &name).map(|named| named.policy.clone());
                let applied = snapshot.apply(kind, object);
                let new = snapshot.policy(&namespace, &name).map(|named| named.policy.clone());
                if old != new {
                    let subjects = [&old, &new].map(|policy| policy.as_ref().map(|policy| &policy.subjects));
                    self.cluster.touch_policy(&namespace, &name, subjects[0], subjects[1]);
                }
                applied
            }
            Kind::Namespace => {
                let old = snapshot.namespace(&name).cloned();
                let applied = snapshot.apply(kind, object);
                if old.as_ref() != snapshot.namespace(&name) {
                    self.cluster.touch_namespace(&name);
                }
                applied
            }
            // Policies are asked about what is behind a Service, and never about the Service.
            Kind::Service | Kind::EndpointSlice => snapshot.apply(kind, object),
        }
    }

    /// A list is complete: what it has not named is gone.
    pub fn synced(&mut self, kind: Kind) {
        for (namespace, name) in self.unnamed.remove(&kind).unwrap_or_default() {
            self.remove(kind, &namespace, &name);
        }
        self.synced.insert(kind);
    }

    /// An object is gone. A Namespace has no namespace.
    pub fn remove(&mut self, kind: Kind, namespace: &str, name: &str) {
        if let Some(unnamed) = self.unnamed.get_mut(&kind) {
            unnamed.remove(&(namespace.into(), name.into()));
        }
        let snapshot = &mut self.cluster.snapshot;
        let old = match kind {
            Kind::NetworkPolicy => {
                snapshot.policy(namespace, name).map(|named| named.policy.subjects.clone())
            }
            Kind::Pod | Kind::Namespace | Kind::Service | Kind::EndpointSlice => None,
        };
        if !snapshot.remove(kind, namespace, name) {
            return;
        }
        match kind {
            Kind::Pod => self.cluster.touch_pod(namespace, name),
            Kind::Namespace => self.cluster.touch_namespace(name),
            Kind::NetworkPolicy => self.cluster.touch_policy(namespace, name, old.as_ref(), None),
            Kind::Service | Kind::EndpointSlice => {}
        }
    }

    /// What the mesh says, in place of what it said before.
    pub fn set_mesh(&mut self, facts: MeshFacts) {
        if facts != self.facts {
            self.cluster.set_facts(facts.leader, facts.own_pods.iter().copied().collect());
            self.facts = facts;
            self.stale = true;
        }
    }

    /// The pods of this node as CNI says, in place of what it said before.
    pub fn set_local(&mut self, local: LocalPods) {
        if local == *self.cluster.local() {
            return;
        }
        for (name, set) in binding::local(&self.config, &local).sets {
            self.draft.put_set(&name, set);
        }
        self.bridge = binding::bridge(&self.config, &local)
            .map(|part| table(TableFamily::Bridge, BRIDGE, self.config.table_flags, part));
        self.cluster.set_local(local);
    }

    /// What the kernel has, as it was read: our tables among these.
    pub fn adopt(&mut self, tables: &[Table]) {
        let ours = |table: &&Table| ours(table);
        let tables: Vec<Table> = tables.iter().filter(ours).cloned().collect();
        if let Some(policy) = tables.iter().find(|table| table.family == TableFamily::Inet) {
            self.epoch.adopt(policy);
        }
        self.bridge_there = tables.iter().find(|table| table.family == TableFamily::Bridge).cloned();
        self.kernel = Some(tables);
        self.lost = false;
    }

    /// The last transactions did not land. Unless [`Self::adopt`] says what the kernel has, the next ones write
    /// everything anew, in one step.
    pub fn failed(&mut self) {
        self.lost = true;
        self.kernel = Some(Vec::new());
        self.bridge_there = None;
    }

    /// The changes since the last time, for one batch in this order; see also [`Self::sweep`].
    pub fn take(&mut self) -> Vec<Transaction> {
        let knows_all = self.is_synced();
        let there = self.kernel.as_ref().is_some_and(|kernel| !kernel.is_empty());
        if !knows_all && (there || self.lost) {
            return Vec::new();
        }
        if self.stale {
            self.narrowed |= self.write_facts();
        }
        if knows_all && self.config.mode != Mode::Off {
            self.narrowed |= self.cluster.settle(&self.config, &mut self.draft);
        }
        let mut transactions = Vec::new();
        let wanted = self.config.mode != Mode::Off || self.config.antispoof != Antispoof::Off;
        match self.kernel.take() {
            Some(kernel) => {
                let policy = kernel.iter().find(|table| table.family == TableFamily::Inet);
                let _ = self.draft.take();
                self.write_epoch();
                if wanted && policy.is_none_or(|policy| policy != self.draft.table()) {
                    self.epoch.next();
                    self.write_epoch();
                }
                let _ = self.draft.take();
                let transaction = diff(policy, wanted.then_some(self.draft.table()));
                transactions.extend(transaction.map(|transaction| self.forced(transaction)));
            }
            None => {
                if self.narrowed && !self.draft.is_unchanged() {
                    self.epoch.next();
                    self.write_epoch();
                }
                if self.draft.is_unchanged() {
                    let _ = self.draft.take();
                } else {
                    transactions.push(self.draft.take());
                }
            }
        }
        self.narrowed = false;
        if self.bridge != self.bridge_there || self.lost {
            let transaction = diff(self.bridge_there.as_ref(), self.bridge.as_ref());
            transactions.extend(transaction.map(|transaction| self.forced(transaction)));
            self.bridge_there = self.bridge.clone();
        }
        self.lost = false;
        transactions
    }

    /// The bits that must be cleared from the marks of all connections before what was taken is committed: their
    /// numbers would be taken for new ones. Nothing on almost every day; asked once for each take.
    pub fn sweep(&mut self) -> Option<u32> {
        self.epoch.sweep()
    }

    /// The tables in full as they should be.
    pub fn tables(&self) -> Vec<&Table> {
        std::iter::once(self.draft.table()).chain(&self.bridge).collect()
    }

    /// Whether the tables say by which policies the pod with this address, of this node, is judged. One of which they do
    /// not say it is held.
    pub fn judges(&self, address: IpAddr) -> bool {
        let map = judge::dispatch(Direction::Ingress, Family::of(address));
        self.draft.at(&map, Place::Key(Key::Address(address))).is_some()
    }

    /// Whether everything is known that decides about pods.
    pub fn is_synced(&self) -> bool {
        self.config.mode == Mode::Off || NEEDED.iter().all(|kind| self.synced.contains(kind))
    }

    /// Where it is not known what the kernel has, whatever that is goes first.
    fn forced(&self, mut transaction: Transaction) -> Transaction {
        use kilo_nftables::Change;
        if self.lost {
            let first = [Change::AddTable { flags: 0 }, Change::DeleteTable];
            transaction.changes.splice(0..0, first);
        }
        transaction
    }

    /// Writes the chains and sets of facts; whether something may be allowed less.
    fn write_facts(&mut self) -> bool {
        self.stale = false;
        let judging = judge::judging(&self.config, &self.facts);
        let mut narrowed = false;
        for (name, set) in judging.sets {
            narrowed |= self.draft.put_set(&name, set);
        }
        for (name, chain) in judging.chains {
            narrowed |= self.draft.put_chain(&name, chain);
        }
        let Part { chains, sets } = binding::binding(&self.config, &self.facts);
        let local = binding::local(&self.config, self.cluster.local());
        for (name, set) in sets.into_iter().chain(local.sets) {
            self.draft.put_set(&name, set);
        }
        for (name, chain) in chains {
            self.draft.put_chain(&name, chain);
        }
        if !self.facts.leader {
            for (family, view) in FAMILIES.into_iter().flat_map(|f: Family| View::BOTH.map(|view| (f, view)))
            {
                self.draft.remove_chain(&judge::relay(family, view));
            }
        }
        if !self.facts.ipvs {
            self.draft.remove_chain("postrouting");
        }
        if self.bridge.is_none() {
            self.bridge = binding::bridge(&self.config, self.cluster.local())
                .map(|part| table(TableFamily::Bridge, BRIDGE, self.config.table_flags, part));
        }
        narrowed
    }

    fn write_epoch(&mut self) {
        if self.config.mode != Mode::Off {
            for (name, rules) in epoch_chains(&self.config, self.epoch.current()) {
                self.draft.put_rules(name, rules);
            }
        }
    }
}

fn ours(table: &Table) -> bool {
    match table.family {
        TableFamily::Inet => *table.name == *POLICY,
        TableFamily::Bridge => *table.name == *BRIDGE,
    }
}

fn table(family: TableFamily, name: &str, flags: u32, part: Part) -> Table {
    let mut table = Table { family, name: name.into(), flags, ..Table::default() };
    let sets: BTreeMap<Box<str>, Set> = part.sets;
    table.counters.insert(Reason::PodSrcMismatch.counter().into(), kilo_nftables::Counter::default());
    (table.sets, table.chains) = (sets, part.chains);
    table
}
