//! The ground that the tests of the mesh stand on, before any agent: the cables are right, NAT is in the way,
//! and a table shows what does not work.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use kilo_e2e::mesh::{Host, Place, Reach, Traveller};
use kilo_e2e::{World, eventually, tests};

tests![ground_is_laid, static_routes_fill_the_table, travellers_have_wireguard];

fn ground_is_laid(world: &World) -> Result<()> {
    world.need("nft")?;
    let place = Place::lay_out(world)?;
    let (a1, a2, b1, b2) = (place.node("a1")?, place.node("a2")?, place.node("b1")?, place.node("b2")?);
    a1.ns.ping(a2.private)?;
    b1.ns.ping(b2.private)?;
    let public: IpAddr = "203.0.113.11".parse()?;
    b1.ns.ping(public)?;
    ensure!(a1.ns.ping("198.51.100.2".parse()?).is_err(), "a NAT box answers strangers");
    ensure!(a1.ns.ping(b1.private).is_err(), "a private address is reached from the internet");
    let laptop = place.traveller(world, "laptop", 77)?;
    laptop.ping(public)?;
    ensure!(a1.pod.reaches(&a2.pod).is_err(), "pods reach each other without a mesh");
    Ok(())
}

/// Inside one location routes alone are enough; across NAT nothing is.
fn static_routes_fill_the_table(world: &World) -> Result<()> {
    world.need("nft")?;
    let place = Place::lay_out(world)?;
    let west: Vec<_> = place.nodes.iter().filter(|node| node.location == "west").collect();
    for node in &west {
        world.forward(&node.ns)?;
        for other in west.iter().filter(|other| other.name != node.name) {
            world.route(&node.ns, &other.pod_cidr.to_string(), other.private)?;
        }
    }
    let pods: Vec<&Host> = place.nodes.iter().map(|node| &node.pod).collect();
    let reach = Reach::of(&pods, &[], &BTreeSet::from(["pod-b2".to_owned()]));
    ensure!(reach.reached() == 2, "{reach}");
    ensure!(reach.failures().len() == 4, "{:?}", reach.failures());
    ensure!(reach.to_string().matches('-').count() == 8 + 6, "{reach}");

    // Masquerade hides the true source, and that is a failure.
    let a1 = place.node("a1")?;
    a1.ns.sh(
        "nft 'table ip t { chain c { type nat hook postrouting priority srcnat; oifname eth0 masquerade; }; }'",
    )?;
    let reach = Reach::of(&pods[..2], &[], &BTreeSet::new());
    let failures = reach.failures();
    ensure!(failures.len() == 1 && failures[0].contains("saw the source 10.1.0.11"), "{failures:?}");
    Ok(())
}

/// The device that travellers use takes what `wg(8)` tells it and carries packets.
fn travellers_have_wireguard(world: &World) -> Result<()> {
    for program in ["nft", "wg"] {
        world.need(program)?;
    }
    world.need_tun()?;
    let place = Place::lay_out(world)?;
    let laptop = Traveller::arrive(world, &place, "laptop", 77)?;
    let phone = Traveller::arrive(world, &place, "phone", 78)?;
    for (one, other) in [(&laptop, &phone), (&phone, &laptop)] {
        let (ip, port) = other.endpoint;
        let (key, address) = (&other.public_key, other.host.address);
        one.host.ns.run(&format!("wg set wg0 peer {key} allowed-ips {address}/32 endpoint {ip}:{port}"))?;
        one.host.ns.run(&format!("ip route add {address}/32 dev wg0"))?;
    }
    eventually(Duration::from_secs(10), "the tunnel carries packets", || laptop.host.reaches(&phone.host))?;
    let dump = phone.host.ns.run("wg show wg0 latest-handshakes")?;
    ensure!(dump.contains(&laptop.public_key) && !dump.trim().ends_with("\t0"), "{dump}");
    Ok(())
}
