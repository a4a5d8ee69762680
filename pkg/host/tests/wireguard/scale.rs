//! Ten thousand peers on a built-in device, timed.

use std::time::Instant;

use crate::world::{Node, can_run, key};

#[test]
fn ten_thousand_peers() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let mut a = Node::new(1, data.path());
    a.device("userspace", &["10.9.0.1/24"]);
    let added: u64 = a.ask("crowd 0 10000").parse().unwrap();
    let one = key(77).public_key();
    let mut timed = |command: &str| {
        let start = Instant::now();
        a.ask(command);
        start.elapsed().as_millis()
    };
    let add = timed(&format!("add {one} - 0 10.1.0.0/16,10.2.0.0/16"));
    let change = timed(&format!("update {one} - 10.1.0.0/16,10.3.0.0/16"));
    let endpoint = timed(&format!("update {one} 192.0.2.9:1 -"));
    let remove = timed(&format!("remove {one}"));
    let read = timed("read");
    let rss = std::fs::read_to_string(format!("/proc/{}/status", a.pid())).unwrap();
    let rss =
        rss.lines().find(|l| l.starts_with("VmRSS")).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    println!(
        "10000 peers of 2 ranges: added in {added} ms; with them there: add {add} ms, ranges {change} ms, \
         endpoint {endpoint} ms, remove {remove} ms, read all {read} ms; {rss} KiB resident"
    );
    assert!(added < 60_000 && add < 1000 && change < 1000 && endpoint < 1000 && remove < 1000 && read < 5000);
    assert_eq!(a.wg().len(), 10_000);
}
