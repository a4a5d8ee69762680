//! What a host's network should be as a list of things with a name and a value, and the words for what differs
//! between two such lists.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use kilo_mesh::{Firewall, Topology};
use kilo_state::{Desired, Dev, DevicePeer, LinkKind, MAIN_TABLE, Route, Rule};
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
    endpoint: String,
    keepalive: u16,
    preshared_key: Option<PresharedKey>,
    allowed_ips: BTreeSet<IpNet>,
}

/// All that a host's network should have, by rank and name.
#[derive(Clone, Debug, Default)]
pub struct Things(BTreeMap<(Rank, String), Thing>);

impl Things {
    /// The things of one plan.
    pub fn new(desired: &Desired, firewall: &Firewall, topology: &Topology) -> Self {
        let mut things = Self::default();
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
        things.firewall(firewall);
        if let Some(device) = &desired.device {
            let who = who(topology);
            things.add(Rank::Device, "listen port".to_owned(), device.listen_port.to_string());
            device.peers.iter().for_each(|peer| things.peer(peer, &who));
        }
        desired.routes.iter().for_each(|route| things.route(route, &names));
        desired.rules.iter().for_each(|rule| things.rule(rule, &names));
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

    fn firewall(&mut self, firewall: &Firewall) {
        let masquerade = &firewall.masquerade;
        let lists = [
            ("masquerade from", &masquerade.sources),
            ("masquerade to", &masquerade.destinations),
            ("no masquerade to", &masquerade.except_destinations),
            ("forward", &firewall.forward.accept),
            ("accept IPIP from", &firewall.ipip.allow_sources),
        ];
        for (words, nets) in lists {
            nets.iter().for_each(|net| self.add(Rank::Firewall, format!("{words} {net}"), String::new()));
        }
    }

    fn peer(&mut self, peer: &DevicePeer, who: &BTreeMap<PublicKey, String>) {
        let who = who.get(&peer.public_key).map_or("", String::as_str);
        let thing = PeerThing {
            endpoint: peer.endpoint.map(|addr| addr.to_string()).unwrap_or_default(),
            keepalive: peer.persistent_keepalive,
            preshared_key: peer.preshared_key.clone(),
            allowed_ips: peer.allowed_ips.iter().copied().collect(),
        };
        self.0.insert((Rank::Peer, format!("peer {who} {}", peer.public_key)), Thing::Peer(thing));
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
    pub fn diff(&self, new: &Self) -> Vec<String> {
        let names: BTreeSet<_> = self.0.keys().chain(new.0.keys()).collect();
        let mut lines = Vec::new();
        for key in names {
            let name = &key.1;
            match (self.0.get(key), new.0.get(key)) {
                (Some(old), Some(new)) if old == new => {}
                (Some(Thing::Value(old)), Some(Thing::Value(new))) => {
                    lines.push(format!("~ {name} {new} (was {old})"));
                }
                (Some(Thing::Peer(old)), Some(Thing::Peer(new))) => old.diff(new, name, &mut lines),
                (_, Some(Thing::Value(value))) => {
                    lines.push(format!("+ {name} {value}").trim_end().to_owned())
                }
                (_, Some(Thing::Peer(peer))) => lines.push(format!("+ {name}{}", peer.words())),
                (Some(Thing::Value(value)), None) => {
                    lines.push(format!("- {name} {value}").trim_end().to_owned());
                }
                (Some(Thing::Peer(_)), None) => lines.push(format!("- {name}")),
                (None, None) => {}
            }
        }
        lines
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

    fn diff(&self, new: &Self, name: &str, lines: &mut Vec<String>) {
        let or_none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
        if self.endpoint != new.endpoint {
            let (old, new) = (or_none(&self.endpoint), or_none(&new.endpoint));
            lines.push(format!("~ {name} endpoint {new} (was {old})"));
        }
        if self.keepalive != new.keepalive {
            lines.push(format!("~ {name} keepalive {}s (was {}s)", new.keepalive, self.keepalive));
        }
        if self.preshared_key != new.preshared_key {
            let what = match (&self.preshared_key, &new.preshared_key) {
                (None, _) => "gets a preshared key",
                (_, None) => "loses its preshared key",
                (Some(_), Some(_)) => "gets another preshared key",
            };
            lines.push(format!("~ {name} {what}"));
        }
        for net in new.allowed_ips.difference(&self.allowed_ips) {
            lines.push(format!("+ {name} allowed-ip {net}"));
        }
        for net in self.allowed_ips.difference(&new.allowed_ips) {
            lines.push(format!("- {name} allowed-ip {net}"));
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

/// Whose keys they are: a segment's or a peer's.
fn who(topology: &Topology) -> BTreeMap<PublicKey, String> {
    let segments = topology.segments.iter().map(|segment| (segment.key, segment.name.to_string()));
    let peers = topology.peers.iter().map(|peer| (peer.public_key, peer.name.to_string()));
    segments.chain(peers).collect()
}

fn list(nets: &[IpNet]) -> String {
    nets.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ")
}
