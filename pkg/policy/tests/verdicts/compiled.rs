//! The compiler: what it makes of changes one by one is what it makes of everything at once, and its transactions lead
//! there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kilo_nftables::{Table, Transaction};
use kilo_policy::{Compiler, CompilerConfig, Kind, LocalPod, LocalPods, MeshFacts, Owner};
use proptest::prelude::*;
use serde_json::Value;

use crate::random;

pub const KINDS: [Kind; 3] = [Kind::Pod, Kind::Namespace, Kind::NetworkPolicy];

pub fn config() -> CompilerConfig {
    CompilerConfig { node: "n1".to_owned(), ..CompilerConfig::default() }
}

pub fn net(text: &str) -> ipnet::IpNet {
    text.parse().expect("a network")
}

pub fn facts(leader: bool) -> MeshFacts {
    let mut facts = MeshFacts { leader, wireguard_port: 51820, ..MeshFacts::default() };
    facts.bindings.insert(net("10.5.0.7/32"), Owner::Peer("alice".to_owned()));
    facts.bindings.insert(net("fd00:5::7/128"), Owner::Peer("alice".to_owned()));
    facts.segments.insert(net("10.4.0.2/32"));
    facts.segments.insert(net("10.0.2.0/24"));
    facts.subnets.insert(net("10.4.0.0/16"));
    facts.own_pods.insert(net("10.0.0.0/24"));
    facts.own_pods.insert(net("fd00::/124"));
    facts.all_pods.insert(net("10.0.0.0/16"));
    facts.own.insert(net("192.168.1.5/24"));
    facts.leaders.insert("192.168.1.6".parse().expect("an address"));
    facts.links.wireguard.insert("kilo0".to_owned());
    facts.links.tunnels.insert("tunl0".to_owned());
    facts.links.underlay.insert("eth0".to_owned());
    facts.links.pods.insert("kube-bridge".to_owned());
    facts
}

pub fn kind(object: &Value) -> Kind {
    Kind::of(object["apiVersion"].as_str().expect("a version"), object["kind"].as_str().expect("a kind"))
        .expect("ours")
}

fn key(object: &Value) -> (Kind, String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (kind(object), text("namespace"), text("name"))
}

/// The compiler of a node that knows all of these.
pub fn compiled<'o>(
    config: CompilerConfig,
    objects: impl IntoIterator<Item = &'o Value>,
    facts: MeshFacts,
    local: LocalPods,
) -> Compiler {
    let mut compiler = Compiler::new(config);
    KINDS.into_iter().for_each(|kind| compiler.restarted(kind));
    objects.into_iter().for_each(|object| _ = compiler.apply(kind(object), object));
    KINDS.into_iter().for_each(|kind| compiler.synced(kind));
    compiler.set_mesh(facts);
    compiler.set_local(local);
    compiler
}

/// The tables without the epoch, which depends on what was before.
fn without_epoch(compiler: &Compiler) -> Vec<Table> {
    let mut tables: Vec<Table> = compiler.tables().into_iter().cloned().collect();
    for table in &mut tables {
        table.chains.remove("known");
        table.chains.remove("stamp");
    }
    tables
}

/// What a kernel with these tables has after some transactions.
fn carry_out(kernel: &mut BTreeMap<Box<str>, Option<Table>>, transactions: &[Transaction]) {
    for transaction in transactions {
        transaction.apply_to(kernel.entry(transaction.table.clone()).or_default());
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    Apply(Value),
    Remove(usize),
    Leader(bool),
    Local(Vec<(u8, String)>),
    Relist,
    Take,
    Fail,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let some =
        || random::cluster().prop_map(|objects| objects.into_iter().map(Event::Apply).collect::<Vec<_>>());
    let local = prop::collection::vec(
        (1..8_u8, prop::sample::select(&["p0", "p1", "p9"][..]).prop_map(str::to_owned)),
        0..3,
    );
    let other = prop_oneof![
        4 => (0..20_usize).prop_map(Event::Remove),
        8 => Just(Event::Take),
        1 => any::<bool>().prop_map(Event::Leader),
        1 => local.prop_map(Event::Local),
        1 => Just(Event::Relist),
        1 => Just(Event::Fail),
    ];
    (some(), prop::collection::vec((some(), prop::collection::vec(other, 0..12)), 0..3)).prop_flat_map(
        |(first, rest)| {
            let mut events = first;
            events.push(Event::Take);
            for (objects, others) in rest {
                events.extend(objects.into_iter().chain(others));
            }
            let (start, mixed) = (events.len().min(12), events.len());
            (Just(events[..start].to_vec()), Just(events[start..mixed].to_vec()).prop_shuffle())
                .prop_map(|(start, rest)| start.into_iter().chain(rest).collect())
        },
    )
}

fn local(pods: &[(u8, String)]) -> LocalPods {
    pods.iter()
        .map(|(n, name)| {
            let pod = LocalPod {
                namespace: "x".to_owned(),
                name: name.clone(),
                uid: format!("u-{name}"),
                link: format!("veth{n}"),
            };
            (IpAddr::from([10, 0, 0, *n]), pod)
        })
        .collect()
}

/// Two pods of the node as CNI says.
pub fn events_local() -> LocalPods {
    local(&[(1, "p0".to_owned()), (7, "p1".to_owned())])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn changes_one_by_one_are_everything_at_once(events in events(), own_cni in any::<bool>()) {
        let config = CompilerConfig { own_cni, ..config() };
        let mut objects: BTreeMap<(Kind, String, String), Value> = BTreeMap::new();
        let (mut facts, mut pods) = (facts(false), LocalPods::new());
        let mut compiler = compiled(config.clone(), [], facts.clone(), pods.clone());
        let mut kernel = BTreeMap::new();
        for event in events.into_iter().chain([Event::Take]) {
            match event {
                Event::Apply(object) => {
                    compiler.apply(kind(&object), &object);
                    objects.insert(key(&object), object);
                }
                Event::Remove(n) => {
                    if let Some(gone) = objects.keys().nth(n).cloned() {
                        compiler.remove(gone.0, &gone.1, &gone.2);
                        objects.remove(&gone);
                    }
                }
                Event::Leader(leader) => {
                    facts.leader = leader;
                    compiler.set_mesh(facts.clone());
                }
                Event::Local(said) => {
                    pods = local(&said);
                    compiler.set_local(pods.clone());
                }
                Event::Relist => {
                    compiler.restarted(Kind::Pod);
                    let gone: Vec<_> = objects.keys().filter(|(kind, ..)| *kind == Kind::Pod).take(1).cloned().collect();
                    gone.iter().for_each(|gone| _ = objects.remove(gone));
                    objects.values().filter(|o| kind(o) == Kind::Pod).for_each(|o| _ = compiler.apply(Kind::Pod, o));
                    compiler.synced(Kind::Pod);
                }
                Event::Fail => {
                    compiler.take();
                    compiler.failed();
                }
                Event::Take => {
                    carry_out(&mut kernel, &compiler.take());
                    for table in compiler.tables() {
                        prop_assert_eq!(kernel[&table.name].as_ref(), Some(table));
                    }
                    prop_assert_eq!(compiler.take(), vec![], "nothing is left to be done");
                }
            }
        }
        let mut whole = compiled(config.clone(), objects.values(), facts.clone(), pods.clone());
        whole.take();
        prop_assert_eq!(without_epoch(&compiler), without_epoch(&whole));
        // A new agent that finds this in the kernel has nothing to do, and keeps the epoch.
        let kernel: Vec<Table> = kernel.into_values().flatten().collect();
        let mut again = compiled(config, objects.values(), facts, pods);
        again.adopt(&kernel);
        prop_assert_eq!(again.take(), vec![]);
        prop_assert_eq!(again.sweep(), None);
    }
}
