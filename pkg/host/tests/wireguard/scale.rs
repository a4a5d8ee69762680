//! Ten thousand peers on a built-in device, timed.

use std::time::{Duration, Instant};

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
    let rss = resident(&a);
    println!(
        "10000 peers of 2 ranges: added in {added} ms; with them there: add {add} ms, ranges {change} ms, \
         endpoint {endpoint} ms, remove {remove} ms, read all {read} ms; {rss} KiB resident"
    );
    assert!(added < 60_000 && add < 1000 && change < 1000 && endpoint < 1000 && remove < 1000 && read < 5000);
    assert_eq!(a.wg().len(), 10_000);
    let (wakes, cpu) = idle(&a);
    println!("idle with 10000 peers: {wakes:.1} wake-ups/s, {cpu:.1} % of a processor");
    // gotatun yields to others while it goes through the timers of all peers.
    assert!(wakes < 1000.0 && cpu < 50.0);
}

#[test]
fn a_device_without_peers_sleeps() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let mut a = Node::new(1, data.path());
    a.device("userspace", &["10.9.0.1/24"]);
    let (wakes, cpu) = idle(&a);
    println!(
        "idle without peers: {wakes:.1} wake-ups/s, {cpu:.1} % of a processor, {} KiB resident",
        resident(&a)
    );
    assert!(wakes < 1.0 && cpu < 1.0);

    // With one peer gotatun looks at its timers four times a second; without it nobody does again.
    a.ask(&format!("add {} - 0 10.1.0.0/16", key(5).public_key()));
    let (wakes, cpu) = idle(&a);
    println!("idle with one peer: {wakes:.1} wake-ups/s, {cpu:.1} % of a processor");
    assert!(wakes > 2.0 && wakes < 20.0);
    a.ask(&format!("remove {}", key(5).public_key()));
    assert!(idle(&a).0 < 1.0);
}

/// Wake-ups a second and per cent of a processor, over three seconds.
fn idle(node: &Node) -> (f64, f64) {
    let read = || {
        let mut sum = (0.0, 0.0);
        for task in std::fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap() {
            let task = task.unwrap().path();
            let status = std::fs::read_to_string(task.join("status")).unwrap();
            let line = status.lines().find(|l| l.starts_with("voluntary_ctxt")).unwrap();
            sum.0 += line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap();
            let schedstat = std::fs::read_to_string(task.join("schedstat")).unwrap();
            sum.1 += schedstat.split(' ').next().unwrap().parse::<f64>().unwrap();
        }
        sum
    };
    // Threads of a pool that were just used go to sleep first.
    std::thread::sleep(Duration::from_millis(500));
    let before = read();
    std::thread::sleep(Duration::from_secs(3));
    let after = read();
    ((after.0 - before.0) / 3.0, (after.1 - before.1) / 3e7)
}

fn resident(node: &Node) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    status.lines().find(|l| l.starts_with("VmRSS")).unwrap().split_whitespace().nth(1).unwrap().to_owned()
}
