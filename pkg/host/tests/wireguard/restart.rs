//! A built-in device whose process is killed and started again.

use std::time::{Duration, Instant};

use crate::world::{Keeper, Node, cable, can_run, eventually, pings};

/// A server that has never been told where its client is, and the client behind NAT.
#[test]
fn a_client_behind_nat_loses_less_than_a_second() {
    if !can_run() {
        return;
    }
    let (data, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut server, router) = (Node::new(1, data.path()), Node::new(3, elsewhere.path()));
    let mut client = Node::new(2, elsewhere.path());
    cable(&server, &router, "wan", "192.0.2");
    cable(&client, &router, "lan", "192.168.7");
    client.run(&["ip", "route", "add", "default", "via", "192.168.7.2"]);
    router.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
    router.run(&["nft", "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }; add rule ip nat post oifname wan masquerade random"]);
    // Nothing gets in that was not asked for.
    router.run(&["nft", "add table ip f; add chain ip f pass { type filter hook forward priority 0; policy drop; }; add rule ip f pass ct state established accept; add rule ip f pass iifname lan accept"]);

    let keeper = Keeper::of(&server);
    let public = client.public();
    let start = |server: &mut Node| {
        server.device("userspace", &["10.9.0.1/24"]);
        server.ask(&format!("add {public} - 0 10.9.0.2/32"));
    };
    start(&mut server);
    client.device("userspace", &["10.9.0.2/24"]);
    client.ask(&format!("add {} 192.0.2.1:51820 0 10.9.0.1/32", server.public()));

    let running = client.ping("10.9.0.1", 8);
    let stored = data.path().join("endpoints.json");
    eventually("the endpoint is stored", || {
        std::fs::read_to_string(&stored).is_ok_and(|s| s.contains("192.0.2.2:"))
    });
    let endpoint = server.wg()[&public].endpoint.clone();
    std::thread::sleep(Duration::from_secs(1));

    server.kill();
    let killed = Instant::now();
    let mut server = Node::again(&keeper, 1, data.path());
    start(&mut server);
    let up = killed.elapsed();
    let result = pings(running);
    let lost = Duration::from_millis(50) * (result.sent - result.received);
    println!(
        "restart: device there after {up:?}, {} of {} pings lost",
        result.sent - result.received,
        result.sent
    );
    assert!(lost < up + Duration::from_secs(1), "{result:?}, device up after {up:?}");
    assert_eq!(server.wg()[&public].endpoint, endpoint);
}
