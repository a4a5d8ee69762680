//! The harness itself: worlds carry packets, count lost ones, show sources, and vanish.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use kilo_e2e::{World, tests};

tests![packets_flow, nat_hides_the_source, lost_pings_are_counted, sockets_are_private];

/// Two namespaces with a cable, both families.
fn packets_flow(world: &World) -> Result<()> {
    let (a, b) = (world.ns("a")?, world.ns("b")?);
    world.cable((&a, "eth0"), (&b, "eth0"))?;
    for (left, right) in [("10.0.0.1/24", "10.0.0.2/24"), ("fd00::1/64", "fd00::2/64")] {
        world.address(&a, "eth0", left.parse()?)?;
        world.address(&b, "eth0", right.parse()?)?;
    }
    let _server = b.tcp_server(7)?;
    for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
        let (from, to): (IpAddr, IpAddr) = (from.parse()?, to.parse()?);
        a.ping(to)?;
        ensure!(a.tcp_source((to, 7).into())? == from);
    }
    ensure!(a.ping("10.0.0.3".parse()?).is_err(), "nobody has this address");
    Ok(())
}

fn nat_hides_the_source(world: &World) -> Result<()> {
    world.need("nft")?;
    let (inside, gateway, outside) = (world.ns("inside")?, world.ns("gateway")?, world.ns("outside")?);
    world.cable((&inside, "eth0"), (&gateway, "lan"))?;
    world.cable((&gateway, "wan"), (&outside, "eth0"))?;
    world.address(&inside, "eth0", "192.168.0.2/24".parse()?)?;
    world.address(&gateway, "lan", "192.168.0.1/24".parse()?)?;
    world.address(&gateway, "wan", "203.0.113.1/24".parse()?)?;
    world.address(&outside, "eth0", "203.0.113.2/24".parse()?)?;
    world.route(&inside, "default", "192.168.0.1".parse()?)?;
    world.route(&outside, "192.168.0.0/24", "203.0.113.1".parse()?)?;
    world.nat(&gateway, "wan")?;
    let _servers = [outside.tcp_server(7)?, inside.tcp_server(7)?];
    let seen = inside.tcp_source("203.0.113.2:7".parse()?)?;
    ensure!(seen == "203.0.113.1".parse::<IpAddr>()?, "the server saw {seen}");
    ensure!(outside.tcp_source("192.168.0.2:7".parse()?).is_err(), "NAT lets connections in");
    Ok(())
}

fn lost_pings_are_counted(world: &World) -> Result<()> {
    let (a, b) = (world.ns("a")?, world.ns("b")?);
    world.cable((&a, "eth0"), (&b, "eth0"))?;
    world.address(&a, "eth0", "10.0.0.1/24".parse()?)?;
    world.address(&b, "eth0", "10.0.0.2/24".parse()?)?;
    let pinger = a.pinger("10.0.0.2".parse()?)?;
    std::thread::sleep(Duration::from_secs(1));
    let report = pinger.stop()?;
    ensure!(report.sent >= 15 && report.lost == 0, "{report:?}");

    let pinger = a.pinger("10.0.0.2".parse()?)?;
    std::thread::sleep(Duration::from_millis(500));
    b.sh("ip address del 10.0.0.2/24 dev eth0; sleep 0.5; ip address add 10.0.0.2/24 dev eth0")?;
    std::thread::sleep(Duration::from_millis(500));
    let report = pinger.stop()?;
    ensure!((5..=20).contains(&report.lost), "{report:?}");
    ensure!(report.longest_gap >= Duration::from_millis(250), "{report:?}");
    Ok(())
}

/// Each namespace has a `/run/wireguard` of its own.
fn sockets_are_private(world: &World) -> Result<()> {
    let (a, b) = (world.ns("a")?, world.ns("b")?);
    a.sh("touch /run/wireguard/kilo0.sock")?;
    ensure!(a.run("ls /var/run/wireguard")?.trim() == "kilo0.sock");
    ensure!(b.run("ls /var/run/wireguard")?.trim().is_empty());
    Ok(())
}
