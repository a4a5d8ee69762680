//! Two and three built-in devices.

use crate::world::{Node, cable, can_run, eventually, pings};

/// Two nodes whose devices know each other; `.1` and `.2` of 10.9.0.0/24 and fd99::/64.
pub fn pair(mode: &str, data: &std::path::Path) -> (Node, Node) {
    let (mut a, mut b) = (Node::new(1, data), Node::new(2, &data.join("b")));
    std::fs::create_dir_all(data.join("b")).unwrap();
    cable(&a, &b, "eth0", "192.0.2");
    a.device(mode, &["10.9.0.1/24", "fd99::1/64"]);
    b.device(mode, &["10.9.0.2/24", "fd99::2/64"]);
    a.ask(&format!("add {} 192.0.2.2:51820 0 10.9.0.2/32,fd99::2/128", b.public()));
    b.ask(&format!("add {} 192.0.2.1:51820 0 10.9.0.1/32,fd99::1/128", a.public()));
    (a, b)
}

#[test]
fn a_tunnel_that_wg_shows() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let (mut a, mut b) = pair("userspace", data.path());
    let before = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    for to in ["10.9.0.2", "fd99::2"] {
        let pings = pings(a.ping(to, 1));
        assert_eq!((pings.sent, pings.received), (20, 20), "{to}");
    }
    let shown = a.wg()[&b.public()].clone();
    assert_eq!(shown.endpoint, "192.0.2.2:51820");
    assert_eq!(shown.ranges, "10.9.0.2/32,fd99::2/128");
    assert!(shown.handshake >= before - 1 && shown.handshake <= before + 10, "{shown:?}");
    assert!(shown.rx > 2000 && shown.tx > 2000, "{shown:?}");
    assert_eq!(a.run(&["stat", "-c", "%a", "/run/wireguard", "/run/wireguard/kilo0.sock"]), "700\n600\n");
    assert_eq!(a.run(&["wg", "show", "kilo0", "listen-port"]), "51820\n");
    assert_eq!(a.run(&["wg", "show", "kilo0", "public-key"]).trim(), a.public().to_string());
    assert_eq!(b.ask("read"), "built-in port 51820 peers 1 handshakes 1");

    a.ask("close");
    assert!(!a.output(&["ip", "link", "show", "kilo0"]).status.success(), "the link is gone");
    assert!(!a.output(&["stat", "/run/wireguard/kilo0.sock"]).status.success(), "the socket is gone");
    assert_eq!(a.ask("read"), "none");
}

/// One peer is added, changed and removed while another one is pinged.
pub fn others_are_left_alone(mode: &str, crowd: u32, messages: u64) {
    let data = tempfile::tempdir().unwrap();
    let (mut a, b) = pair(mode, data.path());
    a.ask(&format!("crowd 0 {crowd}"));
    assert_eq!(pings(a.ping("10.9.0.2", 1)).received, 20);
    let before = a.wg()[&b.public()].clone();
    let ops = |a: &mut Node| {
        let answer = a.ask("ops");
        let (operations, messages) = answer.split_once(' ').unwrap();
        (operations.parse::<u64>().unwrap(), messages.parse::<u64>().unwrap())
    };

    let running = a.ping("10.9.0.2", 5 * crate::world::slow().min(3));
    let start = ops(&mut a);
    let other = crate::world::key(99).public_key();
    for (command, shown) in [
        (format!("add {other} 192.0.2.77:1 25 10.7.0.0/16"), Some("10.7.0.0/16")),
        (format!("update {other} - 10.7.0.0/16,10.8.0.0/16"), Some("10.7.0.0/16,10.8.0.0/16")),
        (format!("remove {other}"), None),
    ] {
        std::thread::sleep(std::time::Duration::from_millis(700));
        a.ask(&command);
        let mut ranges =
            a.wg().get(&other).map(|p| p.ranges.split(',').map(str::to_owned).collect::<Vec<_>>());
        if let Some(ranges) = &mut ranges {
            ranges.sort();
        }
        assert_eq!(ranges.map(|r| r.join(",")).as_deref(), shown, "{command}");
    }
    let end = ops(&mut a);
    assert_eq!((end.0 - start.0, end.1 - start.1), (3, messages));
    let result = pings(running);
    let after = a.wg()[&b.public()].clone();
    println!("{mode}, {crowd} other peers: {result:?}, operations 3, messages {}", end.1 - start.1);
    assert_eq!(result.sent, result.received, "{result:?}");
    assert!(result.gap < std::time::Duration::from_secs(1), "{result:?}");
    assert!(after.handshake.abs_diff(before.handshake) <= 1, "{before:?} {after:?}");
    assert!(after.rx > before.rx + 5000 && after.tx > before.tx + 5000, "{before:?} {after:?}");
}

#[test]
fn changes_leave_other_peers_alone() {
    if can_run() {
        others_are_left_alone("userspace", 1000, 3);
    }
}

/// Long streams make the kernel hand over and take many segments in one piece.
#[test]
fn streams_arrive_as_they_were_sent() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let (mut a, mut b) = pair("userspace", data.path());
    for address in ["10.9.0.2:7", "[fd99::2]:7"] {
        b.ask(&format!("sink {address}"));
        let start = std::time::Instant::now();
        let sent = a.ask(&format!("pour {address} {}", 20 / crate::world::slow()));
        assert_eq!(b.ask("sunk"), sent, "{address}");
        println!("stream to {address} in {:?}", start.elapsed());
    }
}

#[test]
fn an_update_keeps_session_counters_and_learned_endpoint() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let (mut a, b) = pair("userspace", data.path());
    assert_eq!(pings(a.ping("10.9.0.2", 1)).received, 20);
    let before = a.wg()[&b.public()].clone();
    a.ask(&format!("update {} - 10.9.0.2/32,10.66.0.0/16", b.public()));
    a.run(&["wg", "set", "kilo0", "peer", &b.public().to_string(), "persistent-keepalive", "21"]);
    assert_eq!(pings(a.ping("10.9.0.2", 1)).received, 20);
    let after = a.wg()[&b.public()].clone();
    assert_eq!(
        (after.endpoint.as_str(), after.ranges.as_str()),
        ("192.0.2.2:51820", "10.9.0.2/32,10.66.0.0/16")
    );
    assert!(after.handshake.abs_diff(before.handshake) <= 1 && after.rx > before.rx && after.tx > before.tx);
}

#[test]
fn a_range_has_one_owner() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let mut a = Node::new(1, data.path());
    a.device("userspace", &[]);
    let (x, y) = (crate::world::key(50).public_key(), crate::world::key(51).public_key());
    a.ask(&format!("add {x} - 0 10.1.0.0/16,10.2.0.0/16"));
    a.ask(&format!("add {y} - 0 10.2.0.0/16"));
    assert_eq!((a.wg()[&x].ranges.as_str(), a.wg()[&y].ranges.as_str()), ("10.1.0.0/16", "10.2.0.0/16"));
    a.ask(&format!("update {x} - 10.1.0.0/16,10.2.0.0/16,10.3.0.0/16"));
    assert_eq!(
        (a.wg()[&x].ranges.as_str(), a.wg()[&y].ranges.as_str()),
        ("10.1.0.0/16,10.2.0.0/16,10.3.0.0/16", "(none)")
    );
}

#[test]
fn key_and_port_change_on_a_live_device() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let (mut a, mut b) = pair("userspace", data.path());
    assert_eq!(pings(a.ping("10.9.0.2", 1)).received, 20);
    // Binding the same port again must not fail, however often.
    for n in [60, 61, 62] {
        let old = b.public();
        for key in [n + 100, n + 110, n] {
            b.key = crate::world::key(key);
            b.configure();
        }
        a.ask(&format!("remove {old}"));
        a.ask(&format!("add {} 192.0.2.2:51820 0 10.9.0.2/32", b.public()));
        eventually("a ping", || a.output(&["ping", "-c1", "-W1", "10.9.0.2"]).status.success());
    }
    a.run(&["wg", "set", "kilo0", "listen-port", "4444"]);
    assert_eq!(a.ask("read"), "built-in port 4444 peers 1 handshakes 1");
    eventually("a ping", || a.output(&["ping", "-c1", "-W1", "10.9.0.2"]).status.success());
    assert_eq!(b.wg()[&a.public()].endpoint, "192.0.2.1:4444");
}

#[test]
fn a_link_removed_by_others_is_made_again() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let (mut a, b) = pair("userspace", data.path());
    a.run(&["ip", "link", "delete", "kilo0"]);
    eventually("the loss is noticed", || a.ask("read") == "none");
    a.device("userspace", &["10.9.0.1/24"]);
    a.ask(&format!("add {} 192.0.2.2:51820 0 10.9.0.2/32", b.public()));
    eventually("a ping", || a.output(&["ping", "-c1", "-W1", "10.9.0.2"]).status.success());
}

#[test]
fn errors_say_what_is_wrong() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let mut a = Node::new(1, data.path());
    a.ask("open userspace false");
    let answer = a.try_ask("create");
    assert!(answer.contains("--create-interface"), "{answer}");
    a.run(&["ip", "link", "add", "kilo0", "type", "bridge"]);
    a.ask("open userspace true");
    let answer = a.try_ask("create");
    assert!(answer.contains("is no WireGuard device"), "{answer}");
    a.run(&["ip", "link", "delete", "kilo0"]);
    a.ask("create");
    let key = crate::world::key(9).public_key();
    let answer = a.try_ask(&format!("add {key} - 0 10.0.0.0/8"));
    assert_eq!(answer, format!("error adding peer {key}: the device has no private key yet"));
    a.configure();
    let answer = a.try_ask(&format!("update {key} 192.0.2.9:1 -"));
    assert_eq!(answer, format!("error changing peer {key}: there is no such peer"));
    // Somebody else has the port: an error, and no error any more once the port is free.
    let mut thief = a.command(&["python3", "-c", "import socket,time\ns=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM)\ns.bind(('::',51820))\nprint(flush=True)\ntime.sleep(60)"]);
    let mut thief = thief.stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Read::read(&mut thief.stdout.take().unwrap(), &mut [0]).unwrap();
    let answer = a.try_ask(&format!("add {key} - 0 10.0.0.0/8"));
    assert!(answer.contains("UDP port 51820 cannot be used: Address already in use"), "{answer}");
    assert!(a.try_ask("read").contains("UDP port 51820"));
    thief.kill().unwrap();
    thief.wait().unwrap();
    assert_eq!(a.ask("read"), "built-in port 51820 peers 1 handshakes 0");
}
