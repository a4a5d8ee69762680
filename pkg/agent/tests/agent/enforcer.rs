//! The enforcer's loop between a fake cluster and a fake kernel. The compiler here is as small as one can be: one set with
//! the addresses of all pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kilo_agent::{
    AttachedPod, BridgeSight, Compile, Enforcer, EnforcerSettings, EnforcerStats, Explained, Finding,
    FirewallEvent, Kind, MeshNews, PodCalls, Pods, PodsChanged, PolicyEvent, Programmed, WatchState,
};
use kilo_nftables::{Family, Set, Table, TableFamily, Transaction, diff};
use kilo_testkit::{FakeBackend, FakeFirewall};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

const POLICIES: [Kind; 4] = [Kind::Namespace, Kind::NetworkPolicy, Kind::Service, Kind::EndpointSlice];

#[derive(Default)]
struct Addresses {
    pods: BTreeMap<String, IpNet>,
    listed: Option<BTreeSet<String>>,
    synced: BTreeSet<Kind>,
    observed: Vec<Table>,
    mesh: Vec<IpNet>,
    local: Vec<IpNet>,
    epoch_ends: bool,
}

/// What CNI tells, as the test says.
struct Told(mpsc::UnboundedReceiver<PodsChanged>);

impl Pods for Told {
    async fn changed(&mut self) -> PodsChanged {
        match self.0.recv().await {
            Some(changed) => changed,
            None => std::future::pending().await,
        }
    }
}

/// A pod that CNI has set up, and what its call waits for.
fn attached(name: &str, ip: &str, sight: BridgeSight) -> (PodsChanged, oneshot::Receiver<()>) {
    let addresses: Vec<IpAddr> = vec![ip.parse().expect("an address")];
    let (done, waits) = oneshot::channel();
    let mut programmed = PodCalls::default();
    programmed.wait(addresses.clone(), done);
    let pod = AttachedPod {
        container: name.to_owned(),
        namespace: "n".into(),
        name: name.to_owned(),
        uid: String::new(),
        link: format!("veth-{name}"),
        addresses,
    };
    (PodsChanged { pods: vec![pod], sight, programmed }, waits)
}

impl Addresses {
    fn desired(&self) -> Table {
        let mut nets: Vec<IpNet> = self.pods.values().chain(&self.mesh).chain(&self.local).copied().collect();
        let key = "pods";
        if self.synced.len() < 5 {
            // What the kernel has stays until everything is known.
            let sets = self.observed.iter().filter_map(|table| table.sets.get(key));
            nets.extend(sets.flat_map(nets_of));
        }
        let set = Set::of_nets(Family::V4, &nets);
        Table {
            family: TableFamily::Inet,
            name: "kilo_policy".into(),
            sets: BTreeMap::from([(key.into(), set)]),
            ..Table::default()
        }
    }
}

fn nets_of(set: &Set) -> Vec<IpNet> {
    addresses(set).into_iter().map(IpNet::from).collect()
}

/// The addresses of a set of single ones.
fn addresses(set: &Set) -> Vec<IpAddr> {
    let ranges = format!("{set:?}");
    ranges
        .split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .filter_map(|word| word.parse().ok())
        .collect::<BTreeSet<IpAddr>>()
        .into_iter()
        .collect()
}

impl Compile for Addresses {
    type Mesh = Vec<IpNet>;

    fn restarted(&mut self, kind: Kind) {
        if kind == Kind::Pod {
            self.listed = Some(BTreeSet::new());
        }
    }

    fn apply(&mut self, kind: Kind, object: &Value) -> Vec<Finding> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if kind == Kind::NetworkPolicy && object["spec"].is_null() {
            return vec![Finding::new(format!("NetworkPolicy/n/{name}"), "spec", "", "must be there")];
        }
        if kind == Kind::Pod
            && let Some(ip) = object["status"]["podIP"].as_str()
        {
            if let Some(listed) = &mut self.listed {
                listed.insert(name.clone());
            }
            self.pods.insert(name, ip.parse::<IpAddr>().expect("an address").into());
        }
        Vec::new()
    }

    fn synced(&mut self, kind: Kind) {
        if kind == Kind::Pod
            && let Some(listed) = self.listed.take()
        {
            self.pods.retain(|name, _| listed.contains(name));
        }
        self.synced.insert(kind);
    }

    fn remove(&mut self, kind: Kind, _: &str, name: &str) {
        if kind == Kind::Pod {
            self.pods.remove(name);
        }
    }

    fn set_mesh(&mut self, mesh: Vec<IpNet>) {
        self.mesh = mesh;
    }

    fn set_local(&mut self, pods: &[AttachedPod]) {
        self.local = pods.iter().flat_map(|pod| &pod.addresses).map(|ip| IpNet::from(*ip)).collect();
    }

    fn knows(&self, address: IpAddr) -> bool {
        self.pods.values().any(|pod| pod.addr() == address)
    }

    fn adopt(&mut self, tables: &[Table]) {
        self.observed = tables.to_vec();
    }

    fn take(&mut self) -> Vec<Transaction> {
        let desired = self.desired();
        let transaction = diff(self.observed.first(), Some(&desired));
        self.observed = vec![desired];
        transaction.into_iter().collect()
    }

    fn failed(&mut self) {}

    fn sweep(&mut self) -> Option<u32> {
        std::mem::take(&mut self.epoch_ends).then_some(3)
    }

    fn is(&self, tables: &[Table]) -> bool {
        self.observed == tables
    }

    fn explain(&self, _: &str, _: IpAddr, _: IpAddr) -> Option<Explained> {
        None
    }

    fn whose(&self, _: IpAddr) -> String {
        String::new()
    }

    fn programmed(&self) -> Programmed {
        Programmed { sets: 1, ..Programmed::default() }
    }
}

struct World {
    backend: FakeBackend,
    firewall: FakeFirewall,
    mesh: watch::Sender<Option<MeshNews<Vec<IpNet>>>>,
    stats: Arc<EnforcerStats>,
    running: tokio::task::JoinHandle<()>,
}

impl World {
    fn start(backend: FakeBackend, firewall: FakeFirewall, bound: Duration) -> Self {
        Self::start_with(backend, firewall, bound, Addresses::default(), None)
    }

    fn start_with(
        backend: FakeBackend,
        firewall: FakeFirewall,
        bound: Duration,
        compiler: Addresses,
        pods: Option<Told>,
    ) -> Self {
        let (mesh, receiver) = watch::channel(None);
        let settings = EnforcerSettings { sync_bound: bound, ..EnforcerSettings::new("a") };
        let (enforcer, stats) =
            Enforcer::new(Arc::new(backend.clone()), firewall.clone(), compiler, pods, receiver, settings);
        let running = tokio::spawn(async move {
            enforcer.run(std::future::pending()).await.expect("no end by itself");
        });
        Self { backend, firewall, mesh, stats, running }
    }

    /// The addresses in the kernel; nothing where there is no table.
    fn addresses(&self) -> Option<Vec<String>> {
        let ruleset = self.firewall.ruleset();
        let set = &ruleset.tables.first()?.sets["pods"];
        Some(addresses(set).iter().map(IpAddr::to_string).collect())
    }

    async fn until(&self, what: &str, wanted: impl Fn(&Self) -> bool) {
        for _ in 0..1000 {
            if wanted(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no {what}: {:?}, {:?}", self.addresses(), self.stats.status());
    }

    async fn has(&self, addresses: &[&str]) {
        self.until(&format!("{addresses:?}"), |w| w.addresses().is_some_and(|a| a == addresses)).await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn pod(name: &str, ip: &str) -> Value {
    json!({"metadata": {"namespace": "n", "name": name}, "status": {"podIP": ip}})
}

/// A cluster with these pods, and one of which these lists do not end.
fn cluster(pods: &[(&str, &str)], endless: &[Kind]) -> FakeBackend {
    let backend = FakeBackend::default();
    for (name, ip) in pods {
        backend.apply_policy(Kind::Pod, pod(name, ip));
    }
    backend.cluster().endless.extend(endless);
    backend
}

/// A kernel with the tables of an earlier agent.
fn kernel(pods: &[&str]) -> FakeFirewall {
    let before = Addresses {
        pods: pods
            .iter()
            .map(|ip| ((*ip).to_owned(), ip.parse::<IpAddr>().expect("an address").into()))
            .collect(),
        ..Addresses::default()
    };
    let firewall = FakeFirewall::default();
    firewall.ruleset().tables.push(before.desired());
    firewall
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);

#[tokio::test]
async fn a_bare_start_is_closed_at_once_and_opens_when_all_is_known() {
    let backend = cluster(&[("p", "10.0.0.1")], &[Kind::NetworkPolicy]);
    let world = World::start(backend, FakeFirewall::default(), LONG);
    world.has(&[]).await;
    tokio::time::sleep(SHORT).await;
    assert_eq!(world.addresses(), Some(vec![]), "nothing opens before the policies are known");
    world.backend.tell_policy(PolicyEvent::Synced(Kind::NetworkPolicy));
    world.has(&["10.0.0.1"]).await;
    assert_eq!(world.firewall.ruleset().commits.len(), 2);

    world.backend.apply_policy(Kind::Pod, pod("q", "10.0.0.9"));
    world.has(&["10.0.0.1", "10.0.0.9"]).await;
    world.backend.delete_policy(Kind::Pod, "n", "p");
    world.has(&["10.0.0.9"]).await;
    let status = world.stats.status();
    assert!(
        status.in_force && status.synced.len() == 5 && status.programming.contains_key("pod"),
        "{status:?}"
    );

    // The mesh is an input like the others.
    let mesh = vec!["10.5.0.1/32".parse().expect("a network")];
    world.mesh.send_replace(Some(MeshNews { mesh, nodes: vec!["a".into()] }));
    world.has(&["10.0.0.9", "10.5.0.1"]).await;
}

#[tokio::test]
async fn a_restart_shrinks_nothing_before_all_is_known() {
    let backend = cluster(&[("p", "10.0.0.1")], &[Kind::Service]);
    let world = World::start(backend, kernel(&["10.0.0.1", "10.0.0.7"]), LONG);
    tokio::time::sleep(SHORT).await;
    assert!(world.firewall.ruleset().commits.is_empty(), "nothing is touched");
    world.backend.tell_policy(PolicyEvent::Synced(Kind::Service));
    world.has(&["10.0.0.1"]).await;
    // Right from the start costs nothing.
    let again = World::start(cluster(&[("p", "10.0.0.1")], &[]), kernel(&["10.0.0.1"]), LONG);
    again.until("sync", |w| w.stats.status().synced.len() == 5).await;
    tokio::time::sleep(SHORT).await;
    assert!(again.firewall.ruleset().commits.is_empty());
}

#[tokio::test]
async fn a_list_that_never_comes_is_waited_for_so_long_and_nothing_shrinks_then() {
    let backend = cluster(&[("p", "10.0.0.1")], &[Kind::Namespace]);
    let world = World::start(backend, kernel(&["10.0.0.7"]), Duration::from_millis(300));
    world.has(&["10.0.0.1", "10.0.0.7"]).await;
    world.backend.tell_policy(PolicyEvent::Synced(Kind::Namespace));
    world.has(&["10.0.0.1"]).await;
}

#[tokio::test]
async fn what_fails_is_tried_again_from_what_the_kernel_has() {
    let world = World::start(cluster(&[("p", "10.0.0.1")], &[]), kernel(&[]), LONG);
    world.has(&["10.0.0.1"]).await;
    {
        let mut ruleset = world.firewall.ruleset();
        (ruleset.refuse, ruleset.unreadable) = (2, 1);
    }
    let reads = world.firewall.ruleset().reads;
    world.backend.apply_policy(Kind::Pod, pod("q", "10.0.0.9"));
    world.until("a failure", |w| !w.stats.status().in_force).await;
    world.has(&["10.0.0.1", "10.0.0.9"]).await;
    let status = world.stats.status();
    assert_eq!(status.commit_errors, BTreeMap::from([(16, 2)]));
    assert_eq!(world.firewall.ruleset().reads, reads + 3, "read again after each failure");
    assert!(status.in_force && status.repairs.is_empty(), "{status:?}");
}

#[tokio::test]
async fn what_others_do_to_the_tables_is_put_right() {
    let world = World::start(cluster(&[("p", "10.0.0.1")], &[]), FakeFirewall::default(), LONG);
    world.has(&["10.0.0.1"]).await;
    world.firewall.flush("nft");
    world.has(&["10.0.0.1"]).await;
    world.firewall.ruleset().tables[0].sets.clear();
    world.firewall.tell(FirewallEvent::Changed { by: None });
    world.until("the set", |w| w.firewall.ruleset().tables[0].sets.len() == 1).await;
    world.has(&["10.0.0.1"]).await;
    assert_eq!(world.stats.status().repairs, BTreeMap::from([("foreign_flush", 1), ("mismatch", 1)]));
    // An alarm about nothing is no repair.
    world.firewall.tell(FirewallEvent::Changed { by: None });
    tokio::time::sleep(SHORT).await;
    assert_eq!(world.stats.status().repairs.len(), 2);

    // Who never tires is given in to, for a while.
    for _ in 0..200 {
        world.firewall.flush("foe");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let repairs: u64 = world.stats.status().repairs.values().sum();
    assert!((10..40).contains(&repairs), "{repairs}");
    world.has(&["10.0.0.1"]).await;
}

#[tokio::test]
async fn events_that_come_while_a_commit_is_under_way_are_one() {
    let world = World::start(cluster(&[], &[]), FakeFirewall::default(), LONG);
    world.until("sync", |w| w.stats.status().synced.len() == 5).await;
    world.has(&[]).await;
    let before = world.firewall.ruleset().commits.len();
    world.firewall.ruleset().slow = Duration::from_millis(200);
    for n in 1..=100 {
        world.backend.apply_policy(Kind::Pod, pod(&format!("p{n}"), &format!("10.0.0.{}", 2 * n)));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.until("all", |w| w.addresses().is_some_and(|a| a.len() == 100)).await;
    let commits = world.firewall.ruleset().commits.len() - before;
    assert!((2..=4).contains(&commits), "{commits}");
}

#[tokio::test]
async fn a_policy_that_is_not_understood_is_shown_by_one_node() {
    let backend = cluster(&[], &[]);
    backend.apply_policy(Kind::NetworkPolicy, json!({"metadata": {"namespace": "n", "name": "bad"}}));
    let world = World::start(backend, FakeFirewall::default(), LONG);
    world.until("the finding", |w| w.stats.status().findings.get(&Kind::NetworkPolicy) == Some(&1)).await;
    assert!(world.backend.cluster().shown.is_empty(), "nobody knows yet who else is there");
    world.mesh.send_replace(Some(MeshNews { mesh: Vec::new(), nodes: vec!["a".into()] }));
    world.until("an Event", |w| w.backend.cluster().shown.len() == 1).await;
    world.backend.list_policy(Kind::NetworkPolicy);
    world.backend.apply_policy(
        Kind::NetworkPolicy,
        json!({"metadata": {"namespace": "n", "name": "bad"}, "spec": {}}),
    );
    world.until("none left", |w| w.stats.status().findings.get(&Kind::NetworkPolicy) == Some(&0)).await;
    assert_eq!(world.backend.cluster().shown.len(), 1);
}

#[tokio::test]
async fn a_watch_that_breaks_changes_nothing_and_a_new_list_forgets_what_went() {
    let world =
        World::start(cluster(&[("p", "10.0.0.1"), ("q", "10.0.0.9")], &[]), FakeFirewall::default(), LONG);
    world.has(&["10.0.0.1", "10.0.0.9"]).await;
    world.backend.tell_policy(PolicyEvent::Watch(Kind::Pod, WatchState::Down("gone".into())));
    for kind in POLICIES {
        world.backend.tell_policy(PolicyEvent::Watch(kind, WatchState::Down("gone".into())));
    }
    world.until("down", |w| w.stats.status().watches.len() == 5).await;
    world.backend.lose_policy(Kind::Pod, "n", "q");
    tokio::time::sleep(SHORT).await;
    world.has(&["10.0.0.1", "10.0.0.9"]).await;
    world.backend.list_policy(Kind::Pod);
    world.has(&["10.0.0.1"]).await;
    assert_eq!(world.stats.status().watches[&Kind::Pod], WatchState::Up);
}

#[tokio::test]
async fn a_pod_of_cni_waits_until_it_is_in_force() {
    let (tell, told) = mpsc::unbounded_channel();
    let (kernel, backend) = (kernel(&["10.0.0.7"]), cluster(&[("q", "10.0.0.9")], &[]));
    let world = World::start_with(backend, kernel, LONG, Addresses::default(), Some(Told(told)));
    world.until("sync", |w| w.stats.status().synced.len() == 5).await;
    tokio::time::sleep(SHORT).await;
    assert!(world.firewall.ruleset().commits.is_empty(), "pods that CNI knows of would be cut");

    // In force is what the kernel has of a pod that the cluster knows, not less.
    let (changed, waits) = attached("p", "10.0.0.1", BridgeSight::Seen);
    tell.send(changed).expect("it lives");
    world.has(&["10.0.0.1", "10.0.0.9"]).await;
    let mut waits = Box::pin(waits);
    assert!(tokio::time::timeout(SHORT, &mut waits).await.is_err(), "nobody knows its policies");
    world.backend.apply_policy(Kind::Pod, pod("p", "10.0.0.1"));
    // The address is there already: nothing is left to be committed.
    tokio::time::timeout(LONG, waits).await.expect("it goes on").expect("in force");

    // A commit that fails holds it until one lands.
    world.backend.apply_policy(Kind::Pod, pod("r", "10.0.0.5"));
    world.has(&["10.0.0.1", "10.0.0.5", "10.0.0.9"]).await;
    world.firewall.ruleset().refuse = 100;
    let (changed, waits) = attached("r", "10.0.0.5", BridgeSight::Seen);
    world.backend.apply_policy(Kind::Pod, pod("s", "10.0.0.6"));
    world.until("a failure", |w| !w.stats.status().in_force).await;
    tell.send(changed).expect("it lives");
    let mut waits = Box::pin(waits);
    assert!(tokio::time::timeout(SHORT, &mut waits).await.is_err(), "nothing has landed");
    world.firewall.ruleset().refuse = 0;
    tokio::time::timeout(LONG, waits).await.expect("it goes on").expect("in force");
}

#[tokio::test]
async fn a_call_that_waits_no_longer_is_forgotten_and_what_is_not_seen_is_said() {
    let (tell, told) = mpsc::unbounded_channel();
    let world = World::start_with(
        cluster(&[], &[]),
        FakeFirewall::default(),
        LONG,
        Addresses::default(),
        Some(Told(told)),
    );
    let unseen = BridgeSight::Unseen { links: vec!["veth-p".into()], reason: "no br_netfilter".into() };
    let (changed, waits) = attached("p", "10.0.0.1", unseen.clone());
    tell.send(changed).expect("it lives");
    world.until("sight", |w| w.stats.status().sight.as_ref() == Some(&unseen)).await;
    drop(waits);
    let (changed, waits) = attached("p", "10.0.0.1", BridgeSight::Seen);
    tell.send(changed).expect("it lives");
    world.until("sight", |w| w.stats.status().sight == Some(BridgeSight::Seen)).await;
    world.backend.apply_policy(Kind::Pod, pod("p", "10.0.0.1"));
    tokio::time::timeout(LONG, waits).await.expect("it goes on").expect("in force");
}

#[tokio::test]
async fn nothing_is_committed_while_old_marks_would_count() {
    let compiler = Addresses { epoch_ends: true, ..Addresses::default() };
    let firewall = kernel(&["10.0.0.7"]);
    firewall.ruleset().unswept = 2;
    let world = World::start_with(cluster(&[("p", "10.0.0.1")], &[]), firewall, LONG, compiler, None);
    world.until("a failure", |w| w.firewall.ruleset().unswept == 1).await;
    assert!(world.firewall.ruleset().commits.is_empty() && !world.stats.status().in_force);
    world.has(&["10.0.0.1"]).await;
    assert_eq!(world.firewall.ruleset().unswept, 0);
}
