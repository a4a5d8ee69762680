//! The size that a mesh may have: 5,000 nodes in 500 locations and 10,000 peers.
#![allow(clippy::disallowed_methods)] // a test may look at the clock

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use ipnet::IpNet;
use kilo_nftables::{Family, Set, Table};
use kilo_state::{Desired, Dev, Device, DevicePeer, Link, LinkKind, MAIN_TABLE, Op, Route, apply_all, diff};
use kilo_wireguard::PublicKey;

use crate::random::as_observed;

fn host(first: u32, n: u32) -> IpNet {
    IpAddr::V4(Ipv4Addr::from(first + 2 * n)).into()
}

fn key(n: u32) -> PublicKey {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    PublicKey::from_bytes(bytes)
}

fn mesh() -> Desired {
    let dst: Vec<IpNet> = (0..20_000).map(|n| host(0x0a00_0000, n)).collect();
    let route = |&dst: &IpNet| Route {
        table: MAIN_TABLE,
        dst,
        dev: Dev::WireGuard,
        via: Some(IpAddr::V4(Ipv4Addr::new(10, 4, 0, 2))),
        src: None,
        onlink: true,
    };
    let peer = |(n, allowed_ips): (usize, &[IpNet])| DevicePeer {
        public_key: key(n as u32),
        preshared_key: None,
        endpoint: None,
        persistent_keepalive: 0,
        allowed_ips: allowed_ips.to_vec(),
    };
    let (nodes, peers) = dst.split_at(10_000);
    let peers = nodes.chunks(20).chain(peers.chunks(1)).enumerate().map(peer).collect();
    let kilo0 = Link {
        dev: Dev::WireGuard,
        name: "kilo0".into(),
        kind: LinkKind::WireGuard,
        create: true,
        mtu: Some(1420),
        up: true,
        addresses: Some(vec!["10.4.0.1/16".parse().unwrap()]),
    };
    Desired {
        links: vec![kilo0],
        device: Some(Device { public_key: Some(key(99_999)), listen_port: 51820, peers }),
        routes: dst.iter().map(route).collect(),
        table: Some(Table {
            name: "kilo".into(),
            sets: [("except4".into(), Set::of_nets(Family::V4, &dst))].into(),
            ..Table::default()
        }),
        ..Desired::default()
    }
}

/// The time that a comparison takes; printed, and bounded so loosely that only more than linear work fails.
fn timed(what: &str, desired: &Desired, observed: &kilo_state::Observed) -> Vec<Op> {
    let start = Instant::now();
    let ops = diff(desired, observed);
    let took = start.elapsed();
    eprintln!("{what}: {} operations in {took:?}", ops.len());
    assert!(took.as_millis() < 1000, "{what} took {took:?}");
    ops
}

#[test]
fn large_meshes_are_compared_quickly() {
    let desired = mesh();
    assert_eq!(desired.device.as_ref().unwrap().peers.len(), 10_500);
    let observed = as_observed(&desired);
    assert_eq!(timed("equal", &desired, &observed), vec![]);

    let mut one = desired.clone();
    let device = one.device.as_mut().unwrap();
    device.peers[5000].allowed_ips = vec!["172.16.0.1/32".parse().unwrap()];
    one.routes.remove(77);
    assert_eq!(timed("one change", &one, &observed).len(), 2);

    // One new range of a peer in the middle, as of an added pod range.
    let mut set = desired.clone();
    let nets: Vec<IpNet> =
        desired.routes.iter().map(|r| r.dst).chain(["8.0.0.0/8".parse().unwrap()]).collect();
    set.table.as_mut().unwrap().sets.insert("except4".into(), Set::of_nets(Family::V4, &nets));
    let ops = timed("one element", &set, &observed);
    assert_eq!(ops.len(), 1);
    let start = Instant::now();
    let Op::Nftables(transaction) = &ops[0] else { panic!("{ops:?}") };
    assert_eq!(transaction.to_string(), "add element inet kilo except4 { 8.0.0.0/8 }\n");
    eprintln!("printed in {:?}", start.elapsed());

    let empty = kilo_state::Observed::default();
    assert_eq!(timed("everything", &desired, &empty).len(), 1 + 1 + 1 + 10_500 + 1 + 1 + 20_000);
    assert_eq!(timed("nothing left", &Desired::default(), &observed).len(), 20_000 + 1);

    let ops = diff(&desired, &empty);
    let (mut state, start) = (empty, Instant::now());
    apply_all(&mut state, &ops.iter().collect::<Vec<_>>());
    let took = start.elapsed();
    eprintln!("everything worked in: {took:?}");
    assert!(took.as_millis() < 1000, "{took:?}");
    assert_eq!(diff(&desired, &state), vec![]);
}
