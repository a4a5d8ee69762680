//! Random desired and observed states out of few names and addresses, so that they meet.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use kilo_nftables::{Family, Set, Table};
use kilo_state::{
    CniFile, Desired, Dev, Device, DevicePeer, ForwardAccept, Leftover, Link, LinkKind, MAIN_TABLE, Observed,
    ObservedLink, ObservedRoute, PROTOCOL, PROTOCOL_STATIC, Route, Rule, TABLE, UpstreamChain,
};
use kilo_wireguard::{PresharedKey, PublicKey};
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn nets(texts: &'static [&'static str]) -> impl Strategy<Value = IpNet> {
    select(texts).prop_map(net)
}

const RANGES: &[&str] =
    &["10.2.0.0/24", "10.2.1.0/24", "10.2.2.0/24", "10.4.0.1/32", "fd00:1::/64", "fd00:2::/64"];

fn any_ranges() -> impl Strategy<Value = Vec<IpNet>> {
    btree_set(nets(RANGES), 0..4).prop_map(|set| set.into_iter().collect())
}

fn any_route(dev: impl Strategy<Value = Dev>) -> impl Strategy<Value = Route> {
    let via = option::of(select(&["10.4.0.2", "192.168.0.7"][..]).prop_map(|ip| ip.parse().unwrap()));
    let src = option::of(select(&["10.4.0.1", "10.4.0.9"][..]).prop_map(|ip| ip.parse().unwrap()));
    (select(&[MAIN_TABLE, TABLE][..]), nets(RANGES), dev, via, src, any::<bool>())
        .prop_map(|(table, dst, dev, via, src, onlink)| Route { table, dst, dev, via, src, onlink })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    (option::of(nets(RANGES)), nets(RANGES), option::of(Just(Dev::Tunnel))).prop_map(|(src, dst, iif)| Rule {
        src,
        dst,
        iif,
        table: TABLE,
    })
}

fn any_peer() -> impl Strategy<Value = DevicePeer> {
    let endpoint = option::of(select(&["203.0.113.1:51820", "[2001:db8::1]:7"][..]));
    let psk = option::of(select(&[1u8, 2][..]));
    (0u8..6, psk, endpoint, select(&[0u16, 25][..]), any_ranges()).prop_map(
        |(key, psk, endpoint, persistent_keepalive, allowed_ips)| DevicePeer {
            public_key: PublicKey::from_bytes([key + 1; 32]),
            preshared_key: psk.map(|psk| PresharedKey::from_bytes([psk; 32])),
            endpoint: endpoint.map(|e| e.parse().unwrap()),
            persistent_keepalive,
            allowed_ips,
        },
    )
}

fn any_device() -> impl Strategy<Value = Device> {
    (1u8..3, select(&[51820u16, 51821][..]), vec(any_peer(), 0..5)).prop_map(|(key, listen_port, peers)| {
        let peers: BTreeMap<_, _> = peers.into_iter().map(|peer| (peer.public_key, peer)).collect();
        Device {
            public_key: Some(PublicKey::from_bytes([100 + key; 32])),
            listen_port,
            peers: peers.into_values().collect(),
        }
    })
}

fn any_link(dev: Dev, name: &'static str, kind: LinkKind) -> impl Strategy<Value = Link> {
    let addresses = btree_set(nets(&["10.4.0.1/16", "10.4.0.9/16", "10.5.0.1/32", "fd00:4::1/64"]), 0..3);
    (option::of(select(&[1420u32, 1400][..])), any::<bool>(), addresses).prop_map(
        move |(mtu, up, addresses)| Link {
            dev,
            name: name.into(),
            kind,
            create: true,
            mtu,
            up,
            addresses: Some(addresses.into_iter().collect()),
        },
    )
}

fn any_table() -> impl Strategy<Value = Table> {
    any_ranges().prop_map(|nets| Table {
        name: "kilo".into(),
        sets: [("except4".into(), Set::of_nets(Family::V4, &nets))].into(),
        ..Table::default()
    })
}

/// Desired states that can be reached: routes only over links that shall be up.
pub fn any_desired() -> impl Strategy<Value = Desired> {
    let wireguard =
        option::of((any_link(Dev::WireGuard, "kilo0", LinkKind::WireGuard), option::of(any_device())));
    let tunnel = option::of(any_link(Dev::Tunnel, "tunl0", LinkKind::Ipip));
    let dev = || select(&[Dev::WireGuard, Dev::Private, Dev::Tunnel][..]);
    let lists = (vec(any_route(dev()), 0..6), btree_set(any_rule(), 0..4), btree_set(nets(RANGES), 0..4));
    let cni = option::of(
        any_ranges().prop_map(|ranges| CniFile { path: "/etc/cni/net.d/10-kilo.conflist".into(), ranges }),
    );
    (wireguard, tunnel, any::<bool>(), lists, option::of(any_table()), select(&["0", "1"][..]), cni).prop_map(
        |(wireguard, tunnel, remove, (routes, rules, forward), table, sysctl, cni)| {
            let (wireguard, device) = wireguard.map_or((None, None), |(link, device)| (Some(link), device));
            let private = Link {
                dev: Dev::Private,
                name: "eth0".into(),
                kind: LinkKind::Foreign,
                create: false,
                mtu: None,
                up: true,
                addresses: None,
            };
            let remove_links =
                [(Dev::WireGuard, wireguard.is_none(), "kilo0"), (Dev::Tunnel, tunnel.is_none(), "tunl0")];
            let remove_links = remove_links.into_iter().filter(|(_, unwanted, _)| remove && *unwanted);
            let links: Vec<Link> = [wireguard, Some(private), tunnel].into_iter().flatten().collect();
            let up = |dev: Dev| links.iter().any(|link| link.dev == dev && link.up);
            let routes: BTreeMap<_, _> =
                routes.into_iter().filter(|r| up(r.dev)).map(|r| ((r.table, r.dst), r)).collect();
            Desired {
                remove_links: remove_links.map(|(dev, _, name)| (dev, name.into())).collect(),
                links,
                device,
                routes: routes.into_values().collect(),
                neighbours: vec!["192.168.0.7".parse().unwrap()],
                rules: rules.into_iter().collect(),
                table,
                forward: forward.into_iter().map(ForwardAccept).collect(),
                sysctls: [("net/ipv4/ip_forward".into(), sysctl.into()), ("net/odd".into(), "1".into())]
                    .into(),
                cni,
            }
        },
    )
}

/// The state in which a desired state is reached, told without `diff` and `apply`.
pub fn as_observed(desired: &Desired) -> Observed {
    let link = |link: &Link| ObservedLink {
        dev: link.dev,
        name: link.name.clone(),
        index: 1,
        mtu: link.mtu.unwrap_or(1500),
        up: link.up,
        addresses: link.addresses.clone().unwrap_or_else(|| vec![net("192.168.0.1/24")]),
    };
    let mut device = desired.device.clone();
    if let Some(device) = &mut device {
        let owners = owners(device);
        for peer in &mut device.peers {
            peer.allowed_ips.retain(|range| owners[range] == peer.public_key);
        }
    }
    let fresh = Device { public_key: None, listen_port: 0, peers: vec![] };
    let has_wireguard = desired.links.iter().any(|link| link.dev == Dev::WireGuard);
    let mut sysctls = desired.sysctls.clone();
    sysctls.remove("net/odd");
    Observed {
        links: desired.links.iter().map(link).collect(),
        device: device.or_else(|| has_wireguard.then_some(fresh)),
        routes: desired.routes.iter().map(|&route| ObservedRoute { route, protocol: PROTOCOL }).collect(),
        rules: desired.rules.clone(),
        table: desired.table.clone(),
        forward: desired.forward.clone(),
        leftovers: Vec::new(),
        sysctls,
        cni: desired.cni.clone(),
    }
}

/// Who has a range in the end: the last of those that it is given to.
pub fn owners(device: &Device) -> BTreeMap<IpNet, PublicKey> {
    let given = device.peers.iter().flat_map(|peer| peer.allowed_ips.iter().map(|r| (*r, peer.public_key)));
    given.collect()
}

/// A state that some other plan was carried out on, in which others have routes, too.
pub fn any_observed() -> impl Strategy<Value = Observed> {
    let foreign = vec(
        (any_route(select(&[Dev::Private, Dev::Other(7)][..])), select(&[3u8, PROTOCOL_STATIC, 16][..])),
        0..4,
    );
    let left_behind = vec(
        (any_route(select(&[Dev::WireGuard, Dev::Private][..])), select(&[PROTOCOL_STATIC, PROTOCOL][..])),
        0..4,
    );
    let chain = (any::<bool>(), select(&[UpstreamChain::Nat, UpstreamChain::Ipip][..]));
    let leftovers = (btree_set(chain, 0..3), btree_set(nets(RANGES), 0..2));
    (any_desired(), foreign, left_behind, leftovers).prop_map(|(desired, foreign, left_behind, leftovers)| {
        let mut observed = as_observed(&desired);
        let (chains, half) = leftovers;
        let half = half.into_iter().map(ForwardAccept).filter(|range| !desired.forward.contains(range));
        let chains = chains.into_iter().map(|(ipv6, chain)| Leftover::Chain { ipv6, chain });
        observed.leftovers = chains.chain(half.map(Leftover::HalfForward)).collect();
        let up = |dev: Dev| observed.links.iter().any(|link| link.dev == dev && link.up);
        let more = foreign.into_iter().map(|(mut route, protocol)| {
            route.src = None;
            ObservedRoute { route, protocol }
        });
        let left = left_behind.into_iter().filter(|(route, _)| up(route.dev));
        let more = more.chain(left.map(|(mut route, protocol)| {
            // The kernel drops a route with its source address, whoever made it.
            route.src = route.src.filter(|_| ObservedRoute { route, protocol }.is_ours());
            ObservedRoute { route, protocol }
        }));
        let mut seen: BTreeSet<Route> = observed.routes.iter().map(|r| r.route).collect();
        let more: Vec<_> = more.filter(|r| seen.insert(r.route)).collect();
        observed.routes.extend(more);
        observed.routes.sort_unstable();
        observed
    })
}
