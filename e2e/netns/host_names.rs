//! Names of endpoints and of the node itself: from a name server, from `/etc/hosts`, and from nobody.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kilo_agent::{DiscoverConfig, Host};
use kilo_e2e::{World, tests};
use kilo_host::LinuxHost;

use super::host_lab::{config, neighbour, net, open, sh, wait};

tests![names_are_resolved_ipv4_first, nobody_is_waited_for_long, the_hosts_file_is_enough];

/// Makes this the only name server of the test.
fn name_server(world: &World, hosts: &str) -> Result<UdpSocket> {
    let (resolv, file) = (world.dir().join("resolv.conf"), world.dir().join("hosts"));
    std::fs::write(&resolv, "nameserver 127.0.0.1\nsearch example\noptions timeout:1 attempts:2\n")?;
    std::fs::write(&file, hosts)?;
    sh(&format!("mount --bind {} /etc/resolv.conf; mount --bind {} /etc/hosts", resolv.display(), file.display()))?;
    Ok(UdpSocket::bind("127.0.0.1:53")?)
}

/// Answers questions for `peer.example.` with an address of the family that is asked for, any other with "no
/// such name".
fn answer(server: &UdpSocket) {
    let mut question = [0; 512];
    while let Ok((length, from)) = server.recv_from(&mut question) {
        let question = &question[..length];
        let Some(end) = question[12..].iter().position(|byte| *byte == 0).map(|at| 12 + at + 5) else { continue };
        let known = question[12..].starts_with(b"\x04peer\x07example\x00");
        let data: Vec<u8> = match (known, question[end - 3]) {
            (true, 1) => vec![192, 0, 2, 7],
            (true, 28) => "2001:db8::7".parse::<std::net::Ipv6Addr>().expect("an address").octets().to_vec(),
            _ => Vec::new(),
        };
        let mut reply = question[..2].to_vec();
        reply.extend([0x81, if known { 0x80 } else { 0x83 }, 0, 1, 0, u8::from(!data.is_empty()), 0, 0, 0, 0]);
        reply.extend(&question[12..end]);
        if !data.is_empty() {
            reply.extend([0xc0, 12, 0, question[end - 3], 0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
            reply.extend(data);
        }
        let _asker_went = server.send_to(&reply, from);
    }
}

fn names_are_resolved_ipv4_first(world: &World) -> Result<()> {
    neighbour(world)?;
    let server = name_server(world, "127.0.0.1 localhost\n192.168.5.10 node1\n192.0.2.99 alias.test\n")?;
    std::thread::spawn(move || answer(&server));
    wait(async {
        let mut host = open(config(world)).await?;
        let wanted: Vec<IpAddr> = vec!["192.0.2.7".parse()?, "2001:db8::7".parse()?];
        for name in ["peer.example", "peer"] {
            let found = host.resolve(name.into()).await;
            ensure!(found.as_ref() == Some(&wanted), "{name}: {found:?}");
        }
        ensure!(host.resolve("alias.test".into()).await == Some(vec!["192.0.2.99".parse()?]));
        ensure!(host.resolve("nobody.example".into()).await.is_none());
        // The files are followed.
        std::fs::write(world.dir().join("hosts"), "192.0.2.98 alias.test\n192.168.5.10 node1\n")?;
        ensure!(host.resolve("alias.test".into()).await == Some(vec!["192.0.2.98".parse()?]));
        sh("ip addr add 10.0.0.1/8 dev eth0")?;
        let facts = host.discover(&DiscoverConfig { hostname: "node1".into(), ..Default::default() }).await?;
        ensure!(facts.internal_ip == Some(net("192.168.5.10/24")), "{:?}", facts.internal_ip);
        Ok(())
    })
}

fn nobody_is_waited_for_long(world: &World) -> Result<()> {
    neighbour(world)?;
    // It is there, and says nothing.
    let _server = name_server(world, "127.0.0.1 localhost\n")?;
    wait(async {
        let mut host = LinuxHost::open(config(world))?;
        let start = Instant::now();
        let facts = host.discover(&DiscoverConfig { hostname: "node1".into(), ..Default::default() }).await?;
        ensure!(facts.internal_ip == Some(net("192.168.5.10/24")));
        let took = start.elapsed();
        ensure!(took < Duration::from_millis(2500), "the hostname took {took:?}");
        let start = Instant::now();
        ensure!(host.resolve("peer.example".into()).await.is_none());
        let took = start.elapsed();
        ensure!(took < Duration::from_millis(5500), "a name took {took:?}");
        Ok(())
    })
}

/// A host that stands in its own `/etc/hosts` with one family needs no server.
fn the_hosts_file_is_enough(world: &World) -> Result<()> {
    neighbour(world)?;
    sh("ip addr add 10.0.0.1/8 dev eth0")?;
    let _server = name_server(world, "127.0.0.1 localhost\n192.168.5.10 node1.example node1\n")?;
    wait(async {
        let mut host = LinuxHost::open(config(world))?;
        let start = Instant::now();
        let facts = host.discover(&DiscoverConfig { hostname: "node1".into(), ..Default::default() }).await?;
        let took = start.elapsed();
        ensure!(facts.internal_ip == Some(net("192.168.5.10/24")), "{:?}", facts.internal_ip);
        ensure!(took < Duration::from_millis(1000), "the hostname took {took:?}");
        Ok(())
    })
}
