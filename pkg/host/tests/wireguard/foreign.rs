//! A device that somebody else runs: wireguard-go.

use std::process::{Command, Stdio};

use crate::world::{Keeper, Node, cable, can_run, eventually, pings};

fn installed() -> bool {
    let found = Command::new("which").arg("wireguard-go").stdout(Stdio::null()).status();
    let found = found.is_ok_and(|s| s.success());
    if !found {
        println!("skipped: no wireguard-go");
    }
    found
}

#[test]
fn wireguard_go_is_used_as_it_is() {
    if !can_run() || !installed() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let (mut a, mut b) = (Node::new(1, data.path()), Node::new(2, data.path()));
    cable(&a, &b, "eth0", "192.0.2");
    a.ask("open auto false");
    assert!(a.try_ask("create").starts_with("error"), "there is no device yet");
    let mut go = a.command(&["wireguard-go", "--foreground", "kilo0"]);
    let mut go = go.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the socket", || a.try_ask("create") == "ok");
    a.configure();
    a.run(&["ip", "addr", "add", "10.9.0.1/24", "dev", "kilo0"]);
    a.run(&["ip", "link", "set", "kilo0", "up"]);
    b.device("userspace", &["10.9.0.2/24"]);
    b.ask(&format!("add {} 192.0.2.1:51820 0 10.9.0.1/32", a.public()));
    a.ask(&format!("add {} 192.0.2.2:51820 0 10.9.0.2/32", b.public()));
    assert_eq!(a.ask("read"), "foreign port 51820 peers 1 handshakes 0");
    assert_eq!(pings(a.ping("10.9.0.2", 1)).received, 20);
    let before = a.wg()[&b.public()].clone();

    a.ask("crowd 0 600");
    a.ask(&format!("update {} - 10.9.0.2/32,10.66.0.0/16", b.public()));
    assert_eq!(a.ask("read"), "foreign port 51820 peers 601 handshakes 1");
    assert_eq!(pings(a.ping("10.9.0.2", 1)).received, 20);
    let after = a.wg()[&b.public()].clone();
    assert!(after.handshake.abs_diff(before.handshake) <= 1 && after.rx > before.rx, "{before:?} {after:?}");

    a.ask("close");
    assert!(a.output(&["ip", "link", "show", "kilo0"]).status.success(), "it is not ours to remove");
    a.ask("read");
    go.kill().unwrap();
    go.wait().unwrap();
    eventually("the loss is noticed", || a.ask("read") == "none");
}

/// Answers on the socket of a device, and has no link.
const ANSWERS: &str = "
import os, socket
os.makedirs('/run/wireguard')
s = socket.socket(socket.AF_UNIX)
s.bind('/run/wireguard/kilo0.sock')
s.listen()
print(flush=True)
while True:
    c, _ = s.accept()
    if c.recv(4096):
        c.sendall(b'listen_port=7\\nerrno=0\\n\\n')
";

/// A device is its link: a process that has none any more is replaced.
#[test]
fn a_process_without_a_link_is_no_device() {
    if !can_run() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let mut a = Node::new(1, data.path());
    let mut ghost = a.command(&["python3", "-c", ANSWERS]);
    let mut ghost = Keeper(ghost.stdout(Stdio::piped()).spawn().unwrap());
    std::io::Read::read(&mut ghost.0.stdout.take().unwrap(), &mut [0]).unwrap();
    let before = a.try_ask("read");
    a.device("userspace", &["10.9.0.1/24"]);
    let other = crate::world::key(50).public_key();
    a.ask(&format!("add {other} - 0 10.1.0.0/16"));
    assert_eq!((&*before, &*a.ask("read")), ("none", "built-in port 51820 peers 1 handshakes 0"));
    assert!(a.wg().contains_key(&other), "wg asks ours");
}
