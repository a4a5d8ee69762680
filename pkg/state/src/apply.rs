//! What an operation does to the state it is carried out on: a model of the kernel, for fakes and properties.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use ipnet::IpNet;
use kilo_wireguard::PublicKey;

use crate::part::places;
use crate::{
    Address, Dev, Device, DevicePeer, Leftover, Observed, ObservedLink, ObservedRoute, Op, PROTOCOL,
    PeerChange, Route,
};

/// So many changes of peers are worked into a device one by one.
const FEW: usize = 8;

/// Carries out operations on a state in order, each as [`apply`] does. The work is that of the state and the
/// operations together, however many there are.
pub fn apply_all(observed: &mut Observed, ops: &[&Op]) {
    for run in ops.chunk_by(|a, b| a.kind() == b.kind() && a.stage() == b.stage()) {
        match (run, &mut observed.device) {
            ([Op::DeleteRoute(_), _, ..], _) => {
                let route = |op: &&Op| if let Op::DeleteRoute(route) = op { Some(*route) } else { None };
                let gone: BTreeSet<Route> = run.iter().filter_map(route).collect();
                observed.routes.retain(|r| !(may_go(r) && gone.contains(&r.route)));
            }
            ([Op::RemovePeer(_) | Op::UpdatePeer(_) | Op::AddPeer(_), ..], Some(device))
                if run.len() > FEW =>
            {
                let mut peers = Peers::of(device);
                run.iter().for_each(|op| peers.apply(op));
                device.peers = peers.by_key.into_values().collect();
            }
            (run, _) => run.iter().for_each(|op| apply(observed, op)),
        }
    }
}

/// Carries out one operation on a state. Like the kernel it drops routes together with the address or link
/// they depend on, and moves an allowed range to the peer it is given to last. What the kernel would refuse
/// does nothing.
pub fn apply(observed: &mut Observed, op: &Op) {
    match op {
        Op::SetSysctl { path, value } => {
            if let Some(now) = observed.sysctls.get_mut(path) {
                now.clone_from(value);
            }
        }
        Op::CreateLink { dev, name, kind: _, mtu } => {
            let Err(at) = observed.links.binary_search_by_key(dev, |link| link.dev) else { return };
            let index = observed.links.iter().map(|link| link.index).max().unwrap_or(0) + 1;
            let link = ObservedLink {
                dev: *dev,
                name: name.clone(),
                index,
                mtu: mtu.unwrap_or(1500),
                up: false,
                addresses: Vec::new(),
            };
            observed.links.insert(at, link);
            if *dev == Dev::WireGuard {
                observed.device = Some(Device { public_key: None, listen_port: 0, peers: Vec::new() });
            }
        }
        Op::SetMtu(dev, mtu) => with_link(observed, *dev, |link| link.mtu = *mtu),
        Op::SetUp(dev) => with_link(observed, *dev, |link| link.up = true),
        Op::SetDown(dev) => {
            with_link(observed, *dev, |link| link.up = false);
            observed.routes.retain(|r| r.route.dev != *dev);
        }
        Op::DeleteLink { dev, .. } => {
            observed.links.retain(|link| link.dev != *dev);
            observed.routes.retain(|r| r.route.dev != *dev);
            if *dev == Dev::WireGuard {
                observed.device = None;
            }
        }
        Op::AddAddress(Address { dev, net }) => {
            with_link(observed, *dev, |link| insert(&mut link.addresses, *net));
        }
        Op::DeleteAddress(address) => delete_address(observed, address),
        Op::Nftables(transaction) => observed.table = transaction.apply(observed.table.take()),
        Op::AddForward(range) => {
            insert(&mut observed.forward, *range);
            observed.leftovers.retain(|leftover| *leftover != Leftover::HalfForward(*range));
        }
        Op::DeleteForward(range) => {
            observed.forward.retain(|r| r != range);
            observed.leftovers.retain(|leftover| *leftover != Leftover::HalfForward(*range));
        }
        Op::RemoveChain { ipv6, chain } => {
            let gone = Leftover::Chain { ipv6: *ipv6, chain: *chain };
            observed.leftovers.retain(|leftover| *leftover != gone);
        }
        Op::ConfigureDevice(_) | Op::RemovePeer(_) | Op::UpdatePeer(_) | Op::AddPeer(_) => {
            if let Some(device) = &mut observed.device {
                configure(device, op);
            }
        }
        Op::AddRoute(route) => insert(&mut observed.routes, ours(*route)),
        Op::ReplaceRoute(route) => {
            let there = to_one_destination(observed, route);
            let group = observed.routes.get(there.clone()).unwrap_or_default();
            let ours_there = group.iter().position(ObservedRoute::is_ours);
            if !group.is_empty() {
                observed.routes.remove(there.start + ours_there.unwrap_or(0));
            }
            insert(&mut observed.routes, ours(*route));
        }
        Op::DeleteRoute(route) => {
            let there = to_one_destination(observed, route);
            observed.routes.extract_if(there, |r| r.route == *route && may_go(r)).for_each(drop);
        }
        Op::AddRule(rule) => insert(&mut observed.rules, *rule),
        Op::DeleteRule(rule) => observed.rules.retain(|r| r != rule),
        Op::WriteCni(file) => observed.cni = Some(file.clone()),
    }
}

/// Puts an item into a sorted list, where it is not yet.
fn insert<T: Ord>(list: &mut Vec<T>, item: T) {
    if let Err(at) = list.binary_search(&item) {
        list.insert(at, item);
    }
}

/// The places of the routes of this one's table and destination.
fn to_one_destination(observed: &Observed, route: &Route) -> Range<usize> {
    places(&observed.routes, |r| (r.route.table, r.route.dst).cmp(&(route.table, route.dst)))
}

/// Whether a route is one that a host deletes when it is told to.
fn may_go(route: &ObservedRoute) -> bool {
    route.is_ours() || route.has_upstreams_shape()
}

fn ours(route: Route) -> ObservedRoute {
    ObservedRoute { route, protocol: PROTOCOL }
}

fn with_link(observed: &mut Observed, dev: Dev, change: impl FnOnce(&mut ObservedLink)) {
    if let Some(link) = observed.links.iter_mut().find(|link| link.dev == dev) {
        change(link);
    }
}

fn delete_address(observed: &mut Observed, address: &Address) {
    let v4 = address.net.addr().is_ipv4();
    let mut last = false;
    with_link(observed, address.dev, |link| {
        link.addresses.retain(|net| net != &address.net);
        last = v4 && !link.addresses.iter().any(|net| net.addr().is_ipv4());
    });
    observed.routes.retain(|ObservedRoute { route, .. }| {
        let over_it = route.dev == address.dev && route.dst.addr().is_ipv4();
        route.src != Some(address.net.addr()) && !(last && over_it)
    });
}

fn configure(device: &mut Device, op: &Op) {
    if let Op::ConfigureDevice(change) = op {
        device.public_key = change.public_key.or(device.public_key);
        device.listen_port = change.listen_port.unwrap_or(device.listen_port);
    } else if let Op::RemovePeer(key) = op {
        if let Ok(i) = find(device, key) {
            device.peers.remove(i);
        }
    } else if let Op::AddPeer(peer) = op {
        take_ranges(device, &peer.public_key, &peer.allowed_ips);
        match find(device, &peer.public_key) {
            Ok(i) => device.peers[i] = peer.clone(),
            Err(i) => device.peers.insert(i, peer.clone()),
        }
    } else if let Op::UpdatePeer(change) = op {
        let Ok(i) = find(device, &change.public_key) else { return };
        take_ranges(device, &change.public_key, change.allowed_ips.as_deref().unwrap_or_default());
        update(&mut device.peers[i], change);
    }
}

/// What a peer is after a change.
fn update(peer: &mut DevicePeer, change: &PeerChange) {
    *peer = DevicePeer {
        public_key: peer.public_key,
        preshared_key: change.preshared_key.clone().unwrap_or_else(|| peer.preshared_key.clone()),
        endpoint: change.endpoint.or(peer.endpoint),
        persistent_keepalive: change.persistent_keepalive.unwrap_or(peer.persistent_keepalive),
        allowed_ips: change.allowed_ips.clone().unwrap_or_else(|| peer.allowed_ips.clone()),
    };
}

fn find(device: &Device, key: &PublicKey) -> Result<usize, usize> {
    device.peers.binary_search_by_key(key, |peer| peer.public_key)
}

/// Takes ranges from all peers but one.
fn take_ranges(device: &mut Device, key: &PublicKey, ranges: &[IpNet]) {
    if ranges.is_empty() {
        return;
    }
    for peer in device.peers.iter_mut().filter(|peer| peer.public_key != *key) {
        peer.allowed_ips.retain(|range| ranges.binary_search(range).is_err());
    }
}

/// The peers of a device, found by key and by range.
struct Peers {
    by_key: BTreeMap<PublicKey, DevicePeer>,
    owners: BTreeMap<IpNet, PublicKey>,
}

impl Peers {
    fn of(device: &mut Device) -> Self {
        let mut peers = Self { by_key: BTreeMap::new(), owners: BTreeMap::new() };
        for peer in std::mem::take(&mut device.peers) {
            peers.owners.extend(peer.allowed_ips.iter().map(|range| (*range, peer.public_key)));
            peers.by_key.insert(peer.public_key, peer);
        }
        peers
    }

    fn apply(&mut self, op: &Op) {
        if let Op::RemovePeer(key) = op {
            self.give(key, &[]);
            self.by_key.remove(key);
        } else if let Op::AddPeer(peer) = op {
            self.give(&peer.public_key, &peer.allowed_ips);
            self.by_key.insert(peer.public_key, peer.clone());
        } else if let Op::UpdatePeer(change) = op
            && self.by_key.contains_key(&change.public_key)
        {
            if let Some(ranges) = &change.allowed_ips {
                self.give(&change.public_key, ranges);
            }
            if let Some(peer) = self.by_key.get_mut(&change.public_key) {
                update(peer, change);
            }
        }
    }

    /// Gives a peer these ranges and no other.
    fn give(&mut self, key: &PublicKey, ranges: &[IpNet]) {
        for range in self.by_key.get(key).map_or(&[][..], |peer| &peer.allowed_ips) {
            self.owners.remove(range);
        }
        for range in ranges {
            let before = self.owners.insert(*range, *key).filter(|before| before != key);
            let Some(peer) = before.and_then(|before| self.by_key.get_mut(&before)) else { continue };
            if let Ok(at) = peer.allowed_ips.binary_search(range) {
                peer.allowed_ips.remove(at);
            }
        }
    }
}
