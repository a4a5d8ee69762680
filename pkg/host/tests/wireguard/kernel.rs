//! The kernel's WireGuard, where the kernel has it.

use std::process::{Command, Stdio};

use crate::builtin::{others_are_left_alone, pair};
use crate::world::{can_run, key, pings};

fn has_wireguard() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["-n", "ip", "link", "add", "probe", "type", "wireguard"]);
    let has = can_run() && probe.stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !has {
        println!("skipped: the kernel has no WireGuard");
    }
    has
}

#[test]
fn a_kernel_tunnel() {
    if !has_wireguard() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let (mut a, mut b) = pair("auto", data.path());
    for to in ["10.9.0.2", "fd99::2"] {
        let result = pings(a.ping(to, 1));
        assert_eq!(result.sent, result.received, "{to}: {result:?}");
    }
    assert_eq!(a.ask("read"), "kernel port 51820 peers 1 handshakes 1");
    let link = b.run(&["ip", "-d", "link", "show", "kilo0"]);
    assert!(link.contains("wireguard") && link.contains("mtu 1420"), "{link}");

    a.ask("close");
    assert_eq!(a.ask("read"), "kernel port 51820 peers 1 handshakes 1");
    a.ask("delete");
    assert_eq!(a.ask("read"), "none");
    b.run(&["ip", "link", "delete", "kilo0"]);
    assert_eq!(b.ask("read"), "none");
}

#[test]
fn kernel_changes_leave_other_peers_alone() {
    if has_wireguard() {
        others_are_left_alone("kernel", 1000, 3);
    }
}

#[test]
fn a_kernel_peer_with_many_ranges() {
    if !has_wireguard() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let (mut a, _b) = pair("kernel", data.path());
    let (x, y) = (key(50).public_key(), key(51).public_key());
    a.ask(&format!("add {x} - 0 10.64.0.0*3000"));
    assert_eq!(a.ask(&format!("ranges {x}")), "3000 first Some(\"10.64.0.0/32\")");
    assert_eq!(a.wg()[&x].ranges.split(',').count(), 3000);
    // Two thirds of them go to another peer, then all are replaced.
    a.ask(&format!("add {y} - 0 10.64.3.232*2000"));
    assert_eq!(a.ask(&format!("ranges {x}")), "1000 first Some(\"10.64.0.0/32\")");
    a.ask(&format!("update {x} - 10.70.0.0*900"));
    assert_eq!(a.ask(&format!("ranges {x}")), "900 first Some(\"10.70.0.0/32\")");
    assert_eq!(a.ask(&format!("ranges {y}")), "2000 first Some(\"10.64.3.232/32\")");
    println!("kernel: 3000 ranges of one peer written and read, operations and messages {}", a.ask("ops"));
    let answer = a.try_ask(&format!("update {} - 10.0.0.0/8", key(52).public_key()));
    assert_eq!(answer, "ok", "the kernel says nothing about a peer that is not there");
    assert!(!a.wg().contains_key(&key(52).public_key()));
}
