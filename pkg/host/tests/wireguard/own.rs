//! Tunnels whose outside leads into their inside.

use std::process::Stdio;
use std::time::Duration;

use crate::builtin::pair;
use crate::world::{Node, cable, can_run, eventually, pings};

/// Bytes that the link has taken from and given to the host.
fn carried(node: &Node) -> u64 {
    let links: serde_json::Value =
        serde_json::from_str(&node.run(&["ip", "-s", "-j", "link", "show", "kilo0"])).unwrap();
    let stats = &links[0]["stats64"];
    stats["rx"]["bytes"].as_u64().unwrap() + stats["tx"]["bytes"].as_u64().unwrap()
}

/// A node behind `a`, at 10.8.0.2, that reaches what is behind the tunnel of `a`.
fn behind(a: &mut Node, b: &mut Node, data: &std::path::Path) -> Node {
    let pod = Node::new(3, data);
    cable(a, &pod, "pod", "10.8.0");
    a.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
    pod.run(&["ip", "route", "add", "10.9.0.0/24", "via", "10.8.0.1"]);
    b.ask(&format!("update {} - 10.9.0.1/32,fd99::1/128,10.8.0.0/24", a.public()));
    b.run(&["ip", "route", "add", "10.8.0.0/24", "dev", "kilo0"]);
    pod
}

/// With full packets: what is put around them makes the host cut them up on their way back into the link.
#[test]
fn an_endpoint_inside_the_tunnel_makes_no_loop() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let (mut a, b) = pair("userspace", data.path());
    let peer = b.public();
    for (inside, endpoint, full) in
        [("10.9.0.2", "10.9.0.2:51820", "1392"), ("fd99::2", "[fd99::2]:51820", "1372")]
    {
        assert_eq!(pings(a.ping(inside, 1)).received, 20, "{inside}");
        a.ask(&format!("update {peer} {endpoint} -"));
        let (before, link) = (a.wg()[&peer].clone(), carried(&a));
        a.output(&["ping", "-n", "-c", "5", "-i", "0.2", "-W", "1", inside]);
        a.output(&["ping", "-n", "-c", "5", "-i", "0.2", "-W", "1", "-s", full, inside]);
        let (after, link) = (a.wg()[&peer].clone(), carried(&a) - link);
        let (rx, tx) = (after.rx - before.rx, after.tx - before.tx);
        println!("endpoint {endpoint}: {rx} bytes received, {tx} sent, {link} over the link");
        assert_eq!(after.endpoint, endpoint);
        assert!(tx > 5000, "the pings went into the tunnel: {tx}");
        assert!(rx < 100_000 && tx < 100_000 && link < 100_000, "{rx} {tx} {link}");
        a.ask(&format!("update {peer} 192.0.2.2:51820 -"));
        assert_eq!(pings(a.ping(inside, 1)).received, 20, "{inside}");
        assert_eq!(b.wg()[&a.public()].endpoint, "192.0.2.1:51820");
    }
}

/// Somebody else's packets may have our port and look like WireGuard's, as long as they go elsewhere.
#[test]
fn others_may_use_the_port() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let (mut a, mut b) = pair("userspace", data.path());
    let pod = behind(&mut a, &mut b, data.path());
    assert_eq!(pings(a.ping("10.9.0.2", 1)).received, 20);
    a.ask(&format!("update {} 10.9.0.2:51820 -", b.public()));
    a.output(&["ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", "10.9.0.2"]);
    a.ask(&format!("update {} 192.0.2.2:51820 -", b.public()));
    assert_eq!(pings(a.ping("10.9.0.2", 1)).received, 20);

    let receive = "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.bind(('10.9.0.2',7777))\ns.settimeout(20)\nprint(flush=True)\nd,f=s.recvfrom(2000)\nprint(f[0],f[1],d.hex())";
    let mut receiver = b.command(&["python3", "-c", receive]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    std::io::Read::read_exact(receiver.stdout.as_mut().unwrap(), &mut first).unwrap();
    let send = "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.bind(('10.8.0.2',51820))\ns.sendto(bytes([4,0,0,0])+b'x'*28,('10.9.0.2',7777))";
    pod.run(&["python3", "-c", send]);
    let output = receiver.wait_with_output().unwrap();
    let received = String::from_utf8(output.stdout).unwrap();
    assert_eq!(received.trim(), format!("10.8.0.2 51820 04000000{}", "78".repeat(28)));
}

/// A peer that calls through the tunnel of another one could only be answered through that tunnel.
#[test]
fn nobody_is_heard_through_the_tunnel() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let (mut a, mut b) = pair("userspace", data.path());
    let mut pod = behind(&mut a, &mut b, data.path());
    assert_eq!(pings(a.ping("10.9.0.2", 1)).received, 20);
    b.ask(&format!("add {} - 0 10.9.1.3/32", pod.public()));
    pod.device("userspace", &["10.9.1.3/24"]);
    let before = b.wg()[&a.public()].rx;
    pod.ask(&format!("add {} 10.9.0.2:51820 0 10.9.1.0/24", b.public()));
    pod.output(&["ping", "-n", "-c", "2", "-W", "1", "10.9.1.2"]);
    eventually("the call arrives", || b.wg()[&a.public()].rx > before + 148);
    std::thread::sleep(Duration::from_secs(1));
    let (caller, other) = (b.wg()[&pod.public()].clone(), b.wg()[&a.public()].clone());
    assert_eq!((caller.endpoint.as_str(), caller.handshake), ("(none)", 0));
    assert_eq!(other.endpoint, "192.0.2.1:51820");
}
