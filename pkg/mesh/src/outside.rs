//! What the machine of a Peer should be: a device to all segments and the other Peers, and routes into the tunnel
//! that leave the machine's own way to them alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use kilo_state::{Desired, Dev, Device, DevicePeer, Link, LinkKind, Route};
use kilo_wireguard as wg;
use kilo_wireguard::PublicKey;

use crate::Facts;
use crate::device::one_for_each_range;
use crate::endpoint::Known;
use crate::topology::Topology;

/// A machine that is a Peer of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outsider {
    /// The name of its Peer.
    pub name: String,
    /// The name of its WireGuard link.
    pub interface: String,
    /// Its key.
    pub public_key: PublicKey,
    /// The UDP port of its device.
    pub listen_port: u16,
    /// The address of its link.
    pub address: IpNet,
    /// The MTU of its link in bytes, where it is to be changed.
    pub mtu: Option<u32>,
    /// Further ranges of the cluster that it reaches.
    pub further: Vec<IpNet>,
}

impl Topology {
    /// What the machine of a Peer should be. `facts` are about that machine; names are resolved in the topology.
    ///
    /// Nothing is routed into the tunnel that carries the tunnel itself: of each range those addresses are left
    /// out at which a segment is reached, or a Peer within its own ranges. A default route is written as its two
    /// halves: the machine's own stays in its place.
    pub fn desired_of_outsider(&self, machine: &Outsider, facts: &Facts) -> Desired {
        let ipv6 = facts.host.ipv6 != Some(false);
        let usable = |net: &IpNet| ipv6 || net.addr().is_ipv4();
        Desired {
            links: vec![Link {
                dev: Dev::WireGuard,
                name: machine.interface.as_str().into(),
                kind: LinkKind::WireGuard,
                create: true,
                mtu: machine.mtu,
                up: true,
                addresses: Some(vec![machine.address]),
            }],
            device: Some(self.outsiders_device(machine, facts, usable)),
            routes: self.outsiders_routes(machine, facts, usable),
            ..Desired::default()
        }
    }

    fn outsiders_device(&self, machine: &Outsider, facts: &Facts, usable: impl Fn(&IpNet) -> bool) -> Device {
        let known = Known::new(facts);
        let mut peers: Vec<DevicePeer> = Vec::new();
        for peer in self.peer_conf(&machine.name).peers {
            let (endpoint, _) = known.endpoint(facts, &peer.public_key, address_of(&peer));
            let mut allowed_ips = peer.allowed_ips;
            allowed_ips.retain(&usable);
            allowed_ips.sort_unstable();
            allowed_ips.dedup();
            peers.push(DevicePeer {
                public_key: peer.public_key,
                preshared_key: peer.preshared_key,
                endpoint,
                persistent_keepalive: peer.persistent_keepalive.unwrap_or(0),
                allowed_ips,
            });
        }
        // Of two segments with one key the first stays; nobody is a peer of itself.
        peers.sort_by_key(|peer| peer.public_key);
        peers.dedup_by_key(|peer| peer.public_key);
        peers.retain(|peer| peer.public_key != machine.public_key);
        let mut device =
            Device { public_key: Some(machine.public_key), listen_port: machine.listen_port, peers };
        one_for_each_range(&mut device, self);
        device
    }

    fn outsiders_routes(
        &self,
        machine: &Outsider,
        facts: &Facts,
        usable: impl Fn(&IpNet) -> bool,
    ) -> Vec<Route> {
        let known = Known::new(facts);
        let mut carriers: BTreeSet<IpAddr> = BTreeSet::new();
        for segment in &self.segments {
            let places = [self.segment_addr(segment), known.seen(facts, &segment.key)];
            carriers.extend(places.into_iter().flatten().map(|addr| addr.ip()));
        }
        // That of a Peer may be anywhere, also behind a segment or in somebody else's range: then it is reached there.
        for peer in self.peers.iter().filter(|peer| *peer.name != *machine.name) {
            let place = known.seen(facts, &peer.public_key).or(self.peer_addr(peer));
            let within =
                |addr: &SocketAddr| self.allowed_ips(peer).iter().any(|net| net.contains(&addr.ip()));
            carriers.extend(place.filter(within).map(|addr| addr.ip()));
        }
        let carriers: Vec<IpAddr> = carriers.into_iter().collect();
        let mut routes = Vec::new();
        for route in self.peer_routes(&machine.name, &machine.further) {
            let mut parts = Vec::new();
            around(route.dst, &carriers, &mut parts);
            routes.extend(parts.into_iter().filter(&usable).map(|dst| Route { dst, ..route }));
        }
        // The device finds the peer by the destination; any one of the routes there will do.
        routes.sort_unstable();
        routes.dedup_by_key(|route| (route.table, route.dst));
        routes
    }
}

/// Where the peer of a configuration is.
fn address_of(peer: &wg::Peer) -> Option<SocketAddr> {
    let endpoint = peer.endpoint.as_ref()?;
    if endpoint.dns().is_some() { peer.endpoint_addr } else { endpoint.addr() }
}

/// Adds the parts of a range that hold none of these addresses, which are sorted. It is cut in as few parts as may
/// be; a range of all addresses is always cut.
fn around(net: IpNet, addresses: &[IpAddr], parts: &mut Vec<IpNet>) {
    let from = addresses.partition_point(|ip| *ip < net.network());
    let to = addresses.partition_point(|ip| *ip <= net.broadcast());
    let inside = addresses.get(from..to).unwrap_or_default();
    if inside.is_empty() && net.prefix_len() > 0 {
        return parts.push(net);
    }
    if net.prefix_len() < net.max_prefix_len()
        && let Ok(halves) = net.subnets(net.prefix_len() + 1)
    {
        halves.for_each(|half| around(half, inside, parts));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Node, NodeObject, Peer, PeerObject};

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a range")).collect()
    }

    fn cut(net: &str, addresses: &[&str]) -> Vec<IpNet> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        let mut parts = Vec::new();
        around(net.parse().expect("a range"), &addresses, &mut parts);
        parts
    }

    #[test]
    fn a_range_is_cut_around_addresses() {
        assert_eq!(cut("10.0.0.0/8", &["11.0.0.1", "fd00::1"]), nets(&["10.0.0.0/8"]));
        assert_eq!(cut("10.0.0.1/32", &["10.0.0.1"]), []);
        assert_eq!(cut("10.0.0.0/30", &["10.0.0.2"]), nets(&["10.0.0.0/31", "10.0.0.3/32"]));
        assert_eq!(cut("0.0.0.0/0", &[]), nets(&["0.0.0.0/1", "128.0.0.0/1"]));
        assert_eq!(cut("::/0", &["192.0.2.1"]), nets(&["::/1", "8000::/1"]));
        assert_eq!(cut("fd00::/126", &["fd00::", "fd00::3"]), nets(&["fd00::1/128", "fd00::2/128"]));
        let parts = cut("0.0.0.0/0", &["192.0.2.1", "198.51.100.7"]);
        assert!(parts.len() < 64 && !parts.contains(&"0.0.0.0/0".parse().expect("a range")));
        let covered: u64 = parts.iter().map(|net| 1 << (32 - net.prefix_len())).sum();
        assert_eq!(covered, (1 << 32) - 2);
    }

    const NOW: u64 = 1_800_000_000;

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    fn node(n: u8, endpoint: &str) -> Node {
        let text = format!(
            r#"{{"metadata": {{"name": "n{n}", "labels": {{"topology.kubernetes.io/region": "r{n}"}}, "annotations": {{
              "kilo.squat.ai/endpoint": "{endpoint}", "kilo.squat.ai/internal-ip": "192.168.1.{n}/24", "kilo.squat.ai/key": "{}",
              "kilo.squat.ai/wireguard-ip": "10.4.0.{n}/16", "kilo.squat.ai/last-seen": "{NOW}"}}}},
              "spec": {{"podCIDR": "10.42.{n}.0/24"}}}}"#,
            key(n)
        );
        let object: NodeObject = serde_json::from_str(&text).expect("a Node");
        Node::from_object(&object, "topology.kubernetes.io/region").0
    }

    fn peer(name: &str, n: u8, spec: &str) -> Peer {
        let text =
            format!(r#"{{"metadata": {{"name": "{name}"}}, "spec": {{"publicKey": "{}", {spec}}}}}"#, key(n));
        let object: PeerObject = serde_json::from_str(&text).expect("a Peer");
        Peer::from_object(&object).0
    }

    fn laptop(further: &[&str]) -> Outsider {
        Outsider {
            name: "laptop".into(),
            interface: "kilo0".into(),
            public_key: key(77),
            listen_port: 51820,
            address: "10.5.0.1/32".parse().expect("a range"),
            mtu: Some(1420),
            further: nets(further),
        }
    }

    fn desired(nodes: &[Node], peers: &[Peer], machine: &Outsider, facts: &Facts) -> Desired {
        let config = Config { hostname: "n1".into(), ..Config::default() };
        let (nodes, peers): (Vec<_>, Vec<_>) = (nodes.iter().collect(), peers.iter().collect());
        let (topology, _) = Topology::new(&config, &nodes, &peers, &Facts { now: NOW, ..Facts::default() })
            .expect("a topology");
        topology.desired_of_outsider(machine, facts)
    }

    fn goes_in(desired: &Desired, ip: &str) -> bool {
        let ip: IpAddr = ip.parse().expect("an address");
        desired.routes.iter().any(|route| route.dst.contains(&ip))
    }

    #[test]
    fn the_way_to_an_endpoint_stays_out_of_the_tunnel() {
        // The first node is in the same network, the second far away behind a public address.
        let nodes = [node(1, "192.168.1.1:51820"), node(2, "203.0.113.2:51820")];
        let laptop = peer("laptop", 77, r#""allowedIPs": ["10.5.0.1/32"], "persistentKeepalive": 25"#);
        let other = peer(
            "other",
            78,
            r#""allowedIPs": ["198.51.100.0/24"], "endpoint": {"dnsOrIP": {"ip": "198.51.100.9"}, "port": 1}"#,
        );
        let facts = Facts { now: NOW, ..Facts::default() };
        let machine = self::laptop(&["203.0.113.0/24", "0.0.0.0/0"]);
        let desired = desired(&nodes, &[laptop, other], &machine, &facts);
        for endpoint in ["192.168.1.1", "203.0.113.2", "198.51.100.9"] {
            assert!(!goes_in(&desired, endpoint), "{endpoint}: {:?}", desired.routes);
        }
        for inside in ["192.168.1.2", "10.42.1.1", "10.42.2.1", "203.0.113.3", "198.51.100.8", "9.9.9.9"] {
            assert!(goes_in(&desired, inside), "{inside}: {:?}", desired.routes);
        }
        assert!(desired.routes.iter().all(|route| route.dst.prefix_len() > 0));
        assert!(desired.routes.is_sorted() && desired.routes.windows(2).all(|two| two[0].dst != two[1].dst));
        let device = desired.device.expect("a device");
        let keys: Vec<PublicKey> = device.peers.iter().map(|peer| peer.public_key).collect();
        assert_eq!(keys, [key(1), key(2), key(78)]);
        assert!(device.peers.iter().all(|peer| peer.persistent_keepalive == 25));
        assert_eq!(device.peers[0].endpoint, "192.168.1.1:51820".parse().ok());
        // What a peer may send is not what is routed: packets of the node itself come in by the tunnel as well.
        assert!(device.peers[0].allowed_ips.contains(&"192.168.1.1/32".parse().expect("a range")));
    }

    #[test]
    fn an_endpoint_that_the_device_has_learned_stays_out_as_well() {
        let nodes = [node(1, "203.0.113.1:51820")];
        let laptop = peer("laptop", 77, r#""allowedIPs": ["10.5.0.1/32"]"#);
        let mut facts = Facts { now: NOW, ..Facts::default() };
        assert!(goes_in(
            &desired(&nodes, std::slice::from_ref(&laptop), &self::laptop(&[]), &facts),
            "192.168.1.1"
        ));
        facts.host.device.push(crate::DeviceFact {
            public_key: key(1),
            endpoint: "192.168.1.1:51820".parse().ok(),
            latest_handshake: NOW - 10,
        });
        let desired = desired(&nodes, &[laptop], &self::laptop(&[]), &facts);
        assert!(!goes_in(&desired, "192.168.1.1"), "{:?}", desired.routes);
        assert_eq!(desired.device.expect("a device").peers[0].endpoint, None, "the session goes on");
    }

    #[test]
    fn a_node_without_endpoint_and_a_kernel_without_ipv6_are_no_obstacle() {
        let nodes = [node(1, "203.0.113.1:51820"), node(2, "")];
        let other = peer("other", 78, r#""allowedIPs": ["fd00:5::/64", "10.5.1.0/24"]"#);
        let mut facts = Facts { now: NOW, ..Facts::default() };
        facts.host.ipv6 = Some(false);
        let desired = desired(&nodes, &[other], &laptop(&["fd00:6::/64"]), &facts);
        let device = desired.device.as_ref().expect("a device");
        assert_eq!(device.peers.iter().map(|peer| peer.public_key).collect::<Vec<_>>(), [key(1), key(78)]);
        assert!(goes_in(&desired, "10.42.1.1") && !goes_in(&desired, "10.42.2.1"));
        assert!(desired.routes.iter().all(|route| route.dst.addr().is_ipv4()));
        assert_eq!(device.peers[1].allowed_ips, nets(&["10.5.1.0/24"]));
    }
}
