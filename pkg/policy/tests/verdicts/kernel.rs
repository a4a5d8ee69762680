//! The compiler's transactions in a real kernel, in a network namespace of the test's own: taken as they are, and read
//! back as the tables that they should make.

use std::process::Command;

use kilo_nftables::{Batch, Dump, Query, Table, TableFamily, Transaction};
use kilo_policy::{Compiler, Kind};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;

use crate::compiled::{KINDS, compiled, config, events_local, facts, kind};
use crate::random;

const INSIDE: &str = "KILO_TEST_IN_NAMESPACE";

/// Whether this process is the one in the namespace. If not, it runs the test of this name there, or says why
/// it cannot.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let works = |args: &[&str]| {
        let nft = Command::new("unshare").args(args).args(["nft", "list", "tables"]).output();
        nft.is_ok_and(|out| out.status.success())
    };
    let Some(args) = [&["-n"][..], &["-rn"]].into_iter().find(|args| works(args)) else {
        crate::load::tell(&format!("skipped: {test}: `unshare -n nft list tables` does not work here"));
        return false;
    };
    let status = Command::new("unshare")
        .args(args)
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(status.expect("run").success(), "{test} failed in its namespace");
    false
}

struct Nft {
    socket: Socket,
    seq: u32,
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

impl Nft {
    fn new() -> Self {
        let mut socket = Socket::new(NETLINK_NETFILTER).expect("a socket");
        socket.bind_auto().expect("bind");
        socket.connect(&SocketAddr::new(0, 0)).expect("connect");
        Self { socket, seq: 1 }
    }

    fn commit(&mut self, transactions: &[Transaction]) {
        if transactions.is_empty() {
            return;
        }
        let batch = Batch::encode(transactions, self.seq, None);
        self.seq = batch.acknowledged + 2;
        self.socket.send(&batch.bytes, 0).expect("send");
        let (answer, _) = self.socket.recv_from_full().expect("an answer");
        let (seq, error) = (u32_at(&answer, 8), u32_at(&answer, 16));
        assert_eq!(u16_at(&answer, 4), NLMSG_ERROR);
        if error != 0 {
            let place = batch.place(seq).map(|(t, c)| &transactions[t].changes[c]);
            panic!("errno {}: {place:?}", error.cast_signed());
        }
    }

    fn query(&mut self, query: Query<'_>, dump: &mut Dump) {
        self.seq += 1;
        self.socket.send(&query.encode(dump.family(), dump.name(), self.seq), 0).expect("send");
        loop {
            let (answer, _) = self.socket.recv_from_full().expect("an answer");
            if matches!(u16_at(&answer, 4), NLMSG_ERROR | NLMSG_DONE) {
                return;
            }
            dump.read(&answer).expect("whole");
            let mut rest = &answer[..];
            while rest.len() >= 16 {
                if matches!(u16_at(rest, 4), NLMSG_ERROR | NLMSG_DONE) {
                    return;
                }
                rest = &rest[(u32_at(rest, 0) as usize).next_multiple_of(4).min(rest.len())..];
            }
        }
    }

    fn read(&mut self, family: TableFamily, name: &str) -> Option<Table> {
        let mut dump = Dump::new(family, name);
        for query in Query::ALL {
            self.query(query, &mut dump);
        }
        for set in dump.sets().map(str::to_owned).collect::<Vec<_>>() {
            self.query(Query::Elements(&set), &mut dump);
        }
        dump.finish()
    }

    fn has(&mut self, compiler: &Compiler) {
        for table in compiler.tables() {
            let there = self.read(table.family, &table.name).expect("a table");
            for (name, set) in &table.sets {
                assert_eq!(there.sets.get(name), Some(set), "{name}");
            }
            for (name, chain) in &table.chains {
                assert_eq!(there.chains.get(name), Some(chain), "{name}");
            }
            assert_eq!(&there, table);
        }
    }
}

#[test]
fn the_kernel_takes_every_transaction() {
    if !inside("kernel::the_kernel_takes_every_transaction") {
        return;
    }
    let mut nft = Nft::new();
    let mut runner = TestRunner::new(Config::default());
    let mut clusters = || random::cluster().new_tree(&mut runner).expect("a cluster").current();
    let mut compiler = compiled(config(), [], facts(true), events_local());
    nft.commit(&compiler.take());
    nft.has(&compiler);
    for round in 0..40 {
        let objects: Vec<Value> = clusters();
        for kind in KINDS {
            compiler.restarted(kind);
        }
        // Every object by a transaction of its own, and now and then all at once.
        for object in &objects {
            compiler.apply(kind(object), object);
            if round % 4 != 0 {
                nft.commit(&compiler.take());
            }
        }
        for kind in KINDS {
            compiler.synced(kind);
        }
        nft.commit(&compiler.take());
        nft.has(&compiler);
        compiler.set_mesh(facts(round % 3 != 0));
    }
    compiler.failed();
    compiler.remove(Kind::Pod, "x", "p0");
    nft.commit(&compiler.take());
    nft.has(&compiler);
}
