//! What a host's network should be as a list of things with a name and a value, and the words for what differs
//! between two such lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use kilo_mesh::{Firewall, Mesh, SegmentName, Topology};
use kilo_state::{Desired, Dev, Device, DevicePeer, LinkKind, MAIN_TABLE, Route, Rule};
use kilo_wireguard::{PresharedKey, PublicKey};

/// The order of the words: what others need comes first, as it is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Link,
    Address,
    Firewall,
    Device,
    Peer,
    Route,
    Rule,
    Sysctl,
    Cni,
}

/// One thing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Thing {
    /// Something with this value; the value may be empty.
    Value(String),
    /// A peer of the device.
    Peer(PeerThing),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PeerThing {
    name: String,
    endpoint: String,
    keepalive: u16,
    preshared_key: Option<PresharedKey>,
    allowed_ips: BTreeSet<IpNet>,
}

/// Things of a host's network, by rank and name.
#[derive(Clone, Debug, Default)]
struct Things(BTreeMap<(Rank, String), Thing>);

/// The words for what leads from one host's network to another; from nothing where there is no old one.
pub fn diff(old: Option<&Mesh>, new: &Mesh) -> Vec<String> {
    let gone = old.map(|old| Things::new(old, Some(new))).unwrap_or_default();
    gone.diff(&Things::new(new, old))
}

/// What is in a sorted list and not in another one.
fn missing<'a, T: Ord>(list: &'a [T], other: Option<&'a [T]>) -> impl Iterator<Item = &'a T> {
    list.iter().filter(move |item| other.is_none_or(|other| other.binary_search(item).is_err()))
}

impl Things {
    /// The things of one host that are not, or not so, among those of another. Words are made of these only:
    /// most of a large mesh stays as it is.
    fn new(mesh: &Mesh, other: Option<&Mesh>) -> Self {
        let mut things = Self::default();
        let desired = &mesh.desired;
        let names = Names::new(desired);
        for link in &desired.links {
            if link.kind != LinkKind::Foreign {
                let state = if link.up { "up" } else { "down" };
                let mtu = link.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
                things.add(Rank::Link, format!("link {}", link.name), format!("{state}{mtu}"));
            }
            for net in link.addresses.iter().flatten() {
                things.add(Rank::Address, format!("address {net} dev {}", link.name), String::new());
            }
        }
        things.firewall(&mesh.firewall, other.map(|other| &other.firewall));
        if let Some(device) = &desired.device {
            things.add(Rank::Device, "listen port".to_owned(), device.listen_port.to_string());
            things.peers(mesh, device, other.and_then(|other| other.desired.device.as_ref()));
        }
        for route in missing(&desired.routes, other.map(|other| other.desired.routes.as_slice())) {
            things.route(route, &names);
        }
        for rule in missing(&desired.rules, other.map(|other| other.desired.rules.as_slice())) {
            things.rule(rule, &names);
        }
        for (path, value) in &desired.sysctls {
            things.add(Rank::Sysctl, format!("sysctl {}", path.replace('/', ".")), format!("= {value}"));
        }
        if let Some(cni) = &desired.cni {
            things.add(Rank::Cni, format!("pod ranges in {}", cni.path), list(&cni.ranges));
        }
        things
    }

    fn add(&mut self, rank: Rank, name: String, value: String) {
        self.0.insert((rank, name), Thing::Value(value));
    }

    fn firewall(&mut self, firewall: &Firewall, other: Option<&Firewall>) {
        type List = fn(&Firewall) -> &[IpNet];
        let lists: [(&str, List); 5] = [
            ("masquerade from", |f| &f.masquerade.sources),
            ("masquerade to", |f| &f.masquerade.destinations),
            ("no masquerade to", |f| &f.masquerade.except_destinations),
            ("forward", |f| &f.forward.accept),
            ("accept IPIP from", |f| &f.ipip.allow_sources),
        ];
        for (words, nets) in lists {
            for net in missing(nets(firewall), other.map(nets)) {
                self.add(Rank::Firewall, format!("{words} {net}"), String::new());
            }
        }
    }

    fn peers(&mut self, mesh: &Mesh, device: &Device, other: Option<&Device>) {
        let there = |peer: &&DevicePeer| {
            let same = |other: &Device| {
                let at = other.peers.binary_search_by_key(&peer.public_key, |peer| peer.public_key);
                at.is_ok_and(|at| other.peers[at] == **peer)
            };
            other.is_some_and(same)
        };
        let mut peers = device.peers.iter().filter(|peer| !there(peer)).peekable();
        // Names are looked for only when there is something to tell.
        let who = if peers.peek().is_some() { who(&mesh.topology) } else { BTreeMap::new() };
        for peer in peers {
            let who = who.get(&peer.public_key).map_or_else(String::new, ToString::to_string);
            let key = peer.public_key.to_string();
            let thing = PeerThing {
                name: format!("peer {who} {key}"),
                endpoint: peer.endpoint.map(|addr| addr.to_string()).unwrap_or_default(),
                keepalive: peer.persistent_keepalive,
                preshared_key: peer.preshared_key.clone(),
                allowed_ips: peer.allowed_ips.iter().copied().collect(),
            };
            // A peer is its key: one of another name is still the same.
            self.0.insert((Rank::Peer, key), Thing::Peer(thing));
        }
    }

    fn route(&mut self, route: &Route, names: &Names) {
        let mut value = String::new();
        if let Some(via) = route.via {
            value.push_str(&format!("via {via} "));
        }
        value.push_str(&format!("dev {}", names.of(route.dev)));
        if let Some(src) = route.src {
            value.push_str(&format!(" src {src}"));
        }
        if route.onlink {
            value.push_str(" onlink");
        }
        let table = if route.table == MAIN_TABLE { String::new() } else { format!(" table {}", route.table) };
        self.add(Rank::Route, format!("route {}{table}", route.dst), value);
    }

    fn rule(&mut self, rule: &Rule, names: &Names) {
        let src = rule.src.map_or_else(|| "all".to_owned(), |src| src.to_string());
        let iif = rule.iif.map(|dev| format!(" iif {}", names.of(dev))).unwrap_or_default();
        let name = format!("rule from {src} to {}{iif} lookup {}", rule.dst, rule.table);
        self.add(Rank::Rule, name, String::new());
    }

    /// The words for what leads from these things to others.
    fn diff(&self, new: &Self) -> Vec<String> {
        let keys: BTreeSet<_> = self.0.keys().chain(new.0.keys()).collect();
        let mut lines = Lines::default();
        for key in keys {
            let (rank, name) = key;
            match (self.0.get(key), new.0.get(key)) {
                (Some(Thing::Value(old)), Some(Thing::Value(new))) if old != new => {
                    lines.add(*rank, name, format!("~ {name} {new} (was {old})"));
                }
                (Some(Thing::Peer(old)), Some(Thing::Peer(new))) => old.diff(new, &mut lines),
                (None, Some(Thing::Value(value))) => lines.add(*rank, name, format!("+ {name} {value}")),
                (Some(Thing::Value(value)), None) => lines.add(*rank, name, format!("- {name} {value}")),
                (None, Some(Thing::Peer(peer))) => {
                    lines.add(*rank, &peer.name, format!("+ {}{}", peer.name, peer.words()));
                }
                (Some(Thing::Peer(peer)), None) => lines.add(*rank, &peer.name, format!("- {}", peer.name)),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        lines.in_order()
    }
}

/// Lines with what they are about.
#[derive(Default)]
struct Lines(Vec<(Rank, String, String)>);

impl Lines {
    fn add(&mut self, rank: Rank, name: &str, line: String) {
        self.0.push((rank, name.to_owned(), line.trim_end().to_owned()));
    }

    /// By rank and name; lines about one thing stay in their order.
    fn in_order(mut self) -> Vec<String> {
        self.0.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        self.0.into_iter().map(|(_, _, line)| line).collect()
    }
}

impl PeerThing {
    fn words(&self) -> String {
        let mut words = String::new();
        if !self.endpoint.is_empty() {
            words.push_str(&format!(" endpoint {}", self.endpoint));
        }
        if self.keepalive != 0 {
            words.push_str(&format!(" keepalive {}s", self.keepalive));
        }
        if self.preshared_key.is_some() {
            words.push_str(" with a preshared key");
        }
        let nets: Vec<IpNet> = self.allowed_ips.iter().copied().collect();
        if !nets.is_empty() {
            words.push_str(&format!(" allowed-ips {}", list(&nets)));
        }
        words
    }

    fn diff(&self, new: &Self, lines: &mut Lines) {
        let name = &new.name;
        let mut add = |line| lines.add(Rank::Peer, name, line);
        if self.endpoint != new.endpoint {
            let or_none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
            add(format!("~ {name} endpoint {} (was {})", or_none(&new.endpoint), or_none(&self.endpoint)));
        }
        if self.keepalive != new.keepalive {
            add(format!("~ {name} keepalive {}s (was {}s)", new.keepalive, self.keepalive));
        }
        if self.preshared_key != new.preshared_key {
            let what = match (&self.preshared_key, &new.preshared_key) {
                (None, _) => "gets a preshared key",
                (_, None) => "loses its preshared key",
                (Some(_), Some(_)) => "gets another preshared key",
            };
            add(format!("~ {name} {what}"));
        }
        for net in new.allowed_ips.difference(&self.allowed_ips) {
            add(format!("+ {name} allowed-ip {net}"));
        }
        for net in self.allowed_ips.difference(&new.allowed_ips) {
            add(format!("- {name} allowed-ip {net}"));
        }
    }
}

/// Names of links by the part they play.
struct Names(BTreeMap<Dev, String>);

impl Names {
    fn new(desired: &Desired) -> Self {
        Self(desired.links.iter().map(|link| (link.dev, link.name.to_string())).collect())
    }

    fn of(&self, dev: Dev) -> String {
        self.0.get(&dev).cloned().unwrap_or_else(|| match dev {
            Dev::WireGuard => "kilo0".to_owned(),
            Dev::Private => "eth0".to_owned(),
            Dev::Tunnel => "tunl0".to_owned(),
            Dev::Other(index) => format!("link {index}"),
        })
    }
}

/// Whose key it is.
enum Who<'a> {
    Segment(&'a SegmentName),
    Peer(&'a str),
}

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => name.fmt(f),
            Self::Peer(name) => f.write_str(name),
        }
    }
}

fn who(topology: &Topology) -> BTreeMap<PublicKey, Who<'_>> {
    let segments = topology.segments.iter().map(|segment| (segment.key, Who::Segment(&segment.name)));
    let peers = topology.peers.iter().map(|peer| (peer.public_key, Who::Peer(&peer.name)));
    segments.chain(peers).collect()
}

fn list(nets: &[IpNet]) -> String {
    nets.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ")
}
