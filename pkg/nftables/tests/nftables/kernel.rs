//! Our batches in a real kernel, in a network namespace of the test's own: what `nft` lists and what we read
//! back is the table that was sent.
#![allow(clippy::disallowed_methods)] // a test may start programs

use std::io::Write as _;
use std::process::{Command, Stdio};

use ipnet::IpNet;
use kilo_nftables::{
    Batch, Change, Data, DataType, Dump, Element, Expr, Family, Key, KeyType, Query, Rule, Set, SetType,
    Table, TableFamily, Timeout, Transaction, diff, flags,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, TestRunner};

use crate::policy;
use crate::random::any_table;
use crate::table::{net, table};

const INSIDE: &str = "KILO_TEST_IN_NAMESPACE";

/// Whether this process is the one in the namespace. If not, it runs the test of this name there, or says why
/// it cannot.
pub fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    // As root a namespace is enough; others need a user namespace around it.
    let works = |args: &[&str]| {
        let nft = Command::new("unshare").args(args).args(["nft", "list", "tables"]).output();
        nft.is_ok_and(|out| out.status.success())
    };
    let Some(args) = [&["-n"][..], &["-rn"]].into_iter().find(|args| works(args)) else {
        eprintln!("skipped: {test}: `unshare -n nft list tables` does not work here");
        return false;
    };
    let status = Command::new("unshare")
        .args(args)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(status.unwrap().success(), "{test} failed in its namespace");
    false
}

pub struct Nft {
    socket: Socket,
    seq: u32,
    family: TableFamily,
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

impl Nft {
    pub fn new() -> Self {
        let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
        socket.bind_auto().unwrap();
        socket.connect(&SocketAddr::new(0, 0)).unwrap();
        Self { socket, seq: 1, family: TableFamily::Inet }
    }

    /// Sends a batch and waits for its only acknowledgement.
    fn send(&mut self, transaction: &Transaction) -> Result<(), String> {
        let batch = transaction.encode(self.seq, None);
        self.send_batch(&batch).map_err(|(error, seq)| {
            let change = batch.change(seq).map(|i| &transaction.changes[i]);
            format!("errno {error}: {change:?}")
        })
    }

    fn send_batch(&mut self, batch: &Batch) -> Result<(), (i32, u32)> {
        self.seq = batch.acknowledged + 2;
        assert_eq!(self.socket.send(&batch.bytes, 0).unwrap(), batch.bytes.len());
        let (answer, _) = self.socket.recv_from_full().unwrap();
        let (kind, seq, error) = (u16_at(&answer, 4), u32_at(&answer, 8), u32_at(&answer, 16));
        assert_eq!(kind, NLMSG_ERROR);
        if error != 0 {
            return Err((error.cast_signed(), seq));
        }
        assert_eq!(seq, batch.acknowledged);
        Ok(())
    }

    fn query(&mut self, query: Query<'_>, dump: &mut Dump) {
        self.seq += 1;
        self.socket.send(&query.encode(dump.family(), dump.name(), self.seq), 0).unwrap();
        loop {
            let (answer, _) = self.socket.recv_from_full().unwrap();
            if matches!(u16_at(&answer, 4), NLMSG_ERROR | NLMSG_DONE) {
                return;
            }
            dump.read(&answer).unwrap();
            // The end of a dump may come with its last part.
            let mut rest = &answer[..];
            while rest.len() >= 16 {
                if matches!(u16_at(rest, 4), NLMSG_ERROR | NLMSG_DONE) {
                    return;
                }
                rest = &rest[(u32_at(rest, 0) as usize).next_multiple_of(4).min(rest.len())..];
            }
        }
    }

    pub fn read(&mut self) -> Option<Table> {
        let mut dump = Dump::new(self.family, "kilo");
        for query in Query::ALL {
            self.query(query, &mut dump);
        }
        for set in dump.sets().map(str::to_owned).collect::<Vec<_>>() {
            self.query(Query::Elements(&set), &mut dump);
        }
        dump.finish()
    }

    /// Makes the table this one, if it is not, and checks that it is.
    pub fn become_table(&mut self, want: Option<&Table>) -> Option<Transaction> {
        let transaction = diff(self.read().as_ref(), want);
        if let Some(transaction) = &transaction {
            self.send(transaction).unwrap_or_else(|error| panic!("{error} in\n{transaction}"));
        }
        assert_eq!(self.read().as_ref(), want);
        transaction
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn nft_list() -> String {
    let out = Command::new("nft").args(["-s", "list", "table", "inet", "kilo"]).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

fn nft_file(text: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "{text}");
}

#[test]
fn nft_lists_the_table_that_was_sent() {
    if !inside("kernel::nft_lists_the_table_that_was_sent") {
        return;
    }
    let mut nft = Nft::new();
    assert_eq!(nft.read(), None);
    nft.become_table(Some(&table()));
    assert_eq!(nft_list(), table().to_text());
    assert_eq!(nft.become_table(Some(&table())), None, "nothing to do a second time");
    nft.become_table(None);
    assert_eq!(nft_list(), "");
}

#[test]
fn table_of_nft_is_ours() {
    if !inside("kernel::table_of_nft_is_ours") {
        return;
    }
    let mut nft = Nft::new();
    nft_file(&table().to_text());
    assert_eq!(nft.become_table(Some(&table())), None);
}

/// Random tables one after the other, by our bytes and by our text through `nft`.
#[test]
fn any_table_becomes_any_other() {
    if !inside("kernel::any_table_becomes_any_other") {
        return;
    }
    let mut nft = Nft::new();
    let mut runner = TestRunner::new(Config::default());
    for round in 0..60 {
        let want = any_table().new_tree(&mut runner).unwrap().current();
        if round % 3 == 0 {
            nft.become_table(None);
            nft.become_table(Some(&want));
            assert_eq!(nft_list(), want.to_text());
        } else if round % 3 == 1 {
            nft.become_table(Some(&want));
        } else if let Some(transaction) = diff(nft.read().as_ref(), Some(&want)) {
            nft_file(&transaction.to_string());
            assert_eq!(nft.read(), Some(want), "{transaction}");
        }
    }
}

/// What others did to our table is undone, and no more than that.
#[test]
fn drift_is_repaired() {
    if !inside("kernel::drift_is_repaired") {
        return;
    }
    let mut nft = Nft::new();
    nft.become_table(Some(&table()));
    let mut repair = |text: &str| {
        nft_file(text);
        nft.become_table(Some(&table())).unwrap().to_string()
    };
    let flush_and_add = repair("insert rule inet kilo c-postrouting ct state new limit rate 5/second drop");
    assert_eq!(
        flush_and_add,
        "flush chain inet kilo c-postrouting\n\
         add rule inet kilo c-postrouting ip saddr @except4 jump a-masq\n"
    );
    assert_eq!(
        repair("delete element inet kilo except4 { 11.0.0.1 }"),
        "add element inet kilo except4 { 11.0.0.1 }\n"
    );
    assert_eq!(
        repair("add element inet kilo except6 { fe80::/64 }"),
        "delete element inet kilo except6 { fe80::/64 }\n"
    );
    // A neighbour of a range of ours is a range of its own in the kernel.
    assert_eq!(
        repair("add element inet kilo except4 { 11.0.0.2 }"),
        "delete element inet kilo except4 { 11.0.0.2 }\n"
    );
    let chain = repair("add chain inet kilo x; add rule inet kilo b-all jump x");
    assert!(chain.ends_with("delete chain inet kilo x\n"), "{chain}");
    // Both go at once, the one that is jumped to first.
    repair("add chain inet kilo x; add chain inet kilo y; add rule inet kilo y jump x");
    assert_eq!(
        repair("add chain inet kilo d-input { policy accept; }"),
        "add chain inet kilo d-input { type filter hook input priority filter + 5; policy drop; }\n"
    );
    assert!(repair("add table inet kilo { flags dormant; }").starts_with("add table"));
    assert!(repair("add set inet kilo odd { type inet_service; }").ends_with("delete set inet kilo odd\n"));
}

/// A comparison with bits set that the mask clears never holds: no network says that.
#[test]
fn masked_comparison_with_host_bits_is_unknown() {
    if !inside("kernel::masked_comparison_with_host_bits_is_unknown") {
        return;
    }
    let mut nft = Nft::new();
    nft.become_table(Some(&table()));
    nft_file("add rule inet kilo d-input ip saddr & 255.255.240.0 == 10.0.0.1 drop");
    let rules = nft.read().unwrap().chains["d-input"].rules.clone();
    let unknown = |rule: &Rule| rule.exprs().iter().any(|e| matches!(e, Expr::Unknown { .. }));
    assert!(rules.iter().all(unknown) && rules.len() == 1, "{rules:?}");
}

#[test]
fn thousands_of_elements_come_and_go() {
    if !inside("kernel::thousands_of_elements_come_and_go") {
        return;
    }
    let mut nft = Nft::new();
    // Every other host, so that nothing merges: no power of 500 divides the number.
    let nets: Vec<IpNet> =
        (0..2222u32).map(|n| IpNet::from(std::net::IpAddr::V4((0x0a00_0000 + 2 * n).into()))).collect();
    let mut want = table();
    want.sets.insert("except4".into(), Set::of_nets(Family::V4, &nets));
    nft.become_table(Some(&want));
    // One network over 128 hosts, merged with the neighbour behind it: they make room in the same transaction.
    let wider: Vec<IpNet> = nets.iter().copied().chain([net("10.0.1.0/24")]).collect();
    want.sets.insert("except4".into(), Set::of_nets(Family::V4, &wider));
    let transaction = nft.become_table(Some(&want)).unwrap();
    let [Change::DeleteElements { places: gone, .. }, Change::AddElements { elements: come, .. }] =
        &transaction.changes[..]
    else {
        panic!("{transaction}")
    };
    assert_eq!((gone.len(), come.len()), (129, 1));
}

/// Batches are all or nothing, and the answer names the change that the kernel refused.
#[test]
fn refused_batch_changes_nothing() {
    if !inside("kernel::refused_batch_changes_nothing") {
        return;
    }
    let mut nft = Nft::new();
    nft.become_table(Some(&table()));
    let transaction = Transaction {
        family: TableFamily::Inet,
        table: "kilo".into(),
        changes: vec![Change::FlushChain("a-masq".into()), Change::DeleteSet("except4".into())],
    };
    let error = nft.send(&transaction).unwrap_err();
    assert!(error.contains("DeleteSet"), "{error}");
    assert_eq!(nft.read(), Some(table()));
}

/// Each set and each expression, on its own to know which.
#[test]
fn kernel_lists_each_expression_as_it_was_sent() {
    if !inside("kernel::kernel_lists_each_expression_as_it_was_sent") {
        return;
    }
    let mut nft = Nft::new();
    for expr in policy::sayable().into_iter().chain(policy::unsayable()) {
        let want = policy::table_of(vec![expr]);
        nft.become_table(Some(&want));
        assert_eq!(nft.become_table(Some(&want)), None);
    }
    nft.become_table(None);
    let bridge = policy::bridge();
    nft.family = TableFamily::Bridge;
    nft.become_table(Some(&bridge));
    assert_eq!(nft.become_table(Some(&bridge)), None, "nothing to do a second time");
    nft.become_table(None);
}

/// What `nft` makes of our words is what we mean by them.
#[test]
fn nft_reads_each_expression_as_it_was_meant() {
    if !inside("kernel::nft_reads_each_expression_as_it_was_meant") {
        return;
    }
    let mut nft = Nft::new();
    let everything = policy::table_of(policy::sayable());
    nft_file(&everything.to_text());
    let read = nft.read().unwrap();
    for (name, set) in &everything.sets {
        assert_eq!(&read.sets[name], set, "{name}");
    }
    for (ours, theirs) in everything.chains["judge"].rules.iter().zip(&read.chains["judge"].rules) {
        assert_eq!(ours, theirs, "{ours}");
    }
    assert_eq!(read, everything);
    nft_file("delete table inet kilo");
    // The kernel refuses elements of interval maps that `nft` sends in one file with the chains they name.
    let transaction = diff(None, Some(&everything)).unwrap().to_string();
    let late = transaction.lines().filter(|line| line.starts_with("add element inet kilo cidr_chains6"));
    let late: String = late.map(|line| format!("{line}\n")).collect();
    nft_file(&transaction.replace(&late, ""));
    nft_file(&late);
    assert_eq!(nft.read(), Some(everything));
    let bridge = policy::bridge();
    nft.family = TableFamily::Bridge;
    nft.become_table(Some(&bridge));
    let listed = Command::new("nft").args(["-s", "list", "table", "bridge", "kilo"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("iifname . arp saddr ip != @bound4 drop"), "{listed}");
    assert!(listed.contains("iifname . ip saddr != @bound4 counter name \"denied\" drop"), "{listed}");
}

/// One key gets something else, a map with chains goes, and what it named goes with it.
#[test]
fn maps_and_chains_change_in_one_step() {
    if !inside("kernel::maps_and_chains_change_in_one_step") {
        return;
    }
    let mut nft = Nft::new();
    let before = policy::table_of(Vec::new());
    nft.become_table(Some(&before));
    let mut after = before.clone();
    after.chains.remove("one");
    after.chains.insert("three".into(), before.chains["one"].clone());
    for name in ["profiles", "classes"] {
        let set = after.sets.get_mut(name).unwrap();
        let places: Vec<_> =
            set.iter().filter(|e| e.item.data == policy::goto("one")).map(|e| e.place).collect();
        for place in places {
            set.insert(Element { place, item: policy::goto("three").into() });
        }
    }
    after.sets.remove("cidr_chains6");
    after.counters.remove("denied");
    after.counters.insert("granted".into(), Default::default());
    nft.become_table(Some(&after));
    nft.become_table(Some(&before));
    // One element is one change.
    let mut wider = before.clone();
    let place = Key::Address(policy::ip("10.0.0.3")).into();
    wider.sets.get_mut("ids4").unwrap().insert(Element { place, item: Data::Integer(7).into() });
    let transaction = nft.become_table(Some(&wider)).unwrap();
    assert_eq!(
        transaction.to_string(),
        "add element inet kilo ids4 { 10.0.0.3 : 0x00000000 . 0x00000007 }\n"
    );
    // The kernel takes out what had its time.
    let mut timed = Element::new(Key::Address(policy::ip("10.0.0.7")));
    timed.item.timeout = Some(Timeout(50));
    let change = Change::AddElements { set: "timed4".into(), elements: vec![timed] };
    nft.send(&Transaction { table: "kilo".into(), changes: vec![change], ..Transaction::default() }).unwrap();
    assert_eq!(nft.read().unwrap().sets["timed4"].len(), 3);
    std::thread::sleep(std::time::Duration::from_millis(400));
    assert_eq!(nft.read(), Some(wider));
}

/// Tables with owners outlive them and are taken over by the next.
#[test]
fn owned_table_is_taken_over() {
    if !inside("kernel::owned_table_is_taken_over") {
        return;
    }
    let mut first = Nft::new();
    let mut want = policy::table_of(Vec::new());
    want.flags = flags::OWNER | flags::PERSIST;
    if first.send(&diff(None, Some(&want)).unwrap()).is_err() {
        eprintln!("skipped: owned_table_is_taken_over: the kernel has no persistent owned tables (6.9)");
        return;
    }
    let change = diff(Some(&want), None).unwrap();
    let mut second = Nft::new();
    assert!(second.send(&change).is_err(), "another socket removes an owned table");
    drop(first);
    let left = second.read().unwrap();
    assert_eq!(left.flags, flags::PERSIST);
    let transaction = diff(Some(&left), Some(&want)).unwrap();
    assert_eq!(transaction.changes, [Change::AddTable { flags: want.flags }]);
    second.send(&transaction).unwrap();
    assert_eq!(second.read(), Some(want.clone()));
    assert_eq!(transaction.apply(Some(left)), Some(want));
    second.send(&change).unwrap();
}

/// More than 64 KiB of elements, in messages that the kernel takes, and batches of several tables.
#[test]
fn long_elements_and_several_tables_land_at_once() {
    if !inside("kernel::long_elements_and_several_tables_land_at_once") {
        return;
    }
    let mut nft = Nft::new();
    let mut want = policy::table_of(Vec::new());
    let long = "a".repeat(200);
    want.chains.insert(long.as_str().into(), Default::default());
    let of = SetType::exact(KeyType::Service(Family::V6)).to(DataType::Verdict);
    let key = |n: u32| Key::Service(std::net::Ipv6Addr::from(u128::from(n)).into(), 6, 80);
    want.sets
        .insert("many".into(), Set::of(of, (0..600).map(|n| Element::with(key(n), policy::goto(&long)))));
    let bridge = policy::bridge();
    let both = [diff(None, Some(&want)).unwrap(), diff(None, Some(&bridge)).unwrap()];
    let batch = Batch::encode(&both, 100, None);
    nft.send_batch(&batch).unwrap();
    assert_eq!(batch.place(batch.acknowledged), Some((1, both[1].changes.len() - 1)));
    assert_eq!(nft.read(), Some(want));
    nft.family = TableFamily::Bridge;
    assert_eq!(nft.read(), Some(bridge));
}
