//! Pictures of meshes: everything in them, nothing that a name could add to them, bounded at any size.
#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods)] // a test may look at the clock and write a file

use std::collections::BTreeMap;

use kilo_mesh::{
    Config, Facts, Granularity, Layout, Metadata, Node, NodeObject, NodeSpec, Outcome, PREFIX, Peer,
    PeerObject, PeerSpec, Topology, plan, svg,
};
use kilo_wireguard::PublicKey;

fn key(n: usize) -> String {
    let mut bytes = [9; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    PublicKey::from_bytes(bytes).to_string()
}

/// `nodes` in `locations` in turn, and `peers`; the location of the first is given as it is.
fn topology(nodes: usize, locations: usize, peers: usize, odd: &str, granularity: Granularity) -> Topology {
    let node = |i: usize| {
        let location =
            if i.is_multiple_of(locations) { odd.to_owned() } else { format!("site-{}", i % locations) };
        let annotations: BTreeMap<String, String> = [
            ("endpoint", format!("203.0.{}.{}:51820", i / 250, i % 250 + 1)),
            ("internal-ip", format!("192.168.{}.{}/16", i / 250, i % 250 + 1)),
            ("key", key(i)),
            ("location", location),
            ("last-seen", "1000".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (format!("{PREFIX}{name}"), value))
        .collect();
        let spec =
            NodeSpec { pod_cidr: format!("10.{}.{}.0/24", 64 + i / 250, i % 250), ..NodeSpec::default() };
        let metadata = Metadata { name: format!("node-{i:04}"), annotations, ..Metadata::default() };
        NodeObject { metadata, spec }
    };
    let peer = |i: usize| PeerObject {
        metadata: Metadata { name: format!("laptop-{i}"), ..Metadata::default() },
        spec: PeerSpec {
            public_key: key(100_000 + i),
            allowed_ips: vec![format!("172.{}.{}.{}/32", 16 + i / 62_500, i / 250 % 250, i % 250 + 1)],
            ..PeerSpec::default()
        },
    };
    let config = Config { hostname: "node-0000".to_owned(), granularity, ..Config::default() };
    let nodes: Vec<_> = (0..nodes).map(|i| Node::from_object(&node(i), &config.topology_label).0).collect();
    let peers: Vec<_> = (0..peers).map(|i| Peer::from_object(&peer(i)).0).collect();
    let (nodes, peers): (Vec<_>, Vec<_>) = (nodes.iter().collect(), peers.iter().collect());
    let plan = plan(&config, &nodes, &peers, &Facts { now: 1000, ..Facts::default() });
    assert_eq!(plan.outcome, Outcome::Ok, "{:?} {:?}", plan.error, plan.findings);
    plan.mesh.unwrap().topology
}

/// Checks that the text is nothing but the elements of a picture, each closed, and gives their number.
fn elements(picture: &str) -> usize {
    let mut open = Vec::new();
    let mut count = 0;
    for tag in picture.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap_or_else(|| panic!("{tag}"));
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
            continue;
        }
        let name = tag.split([' ', '/']).next().unwrap();
        assert!(["svg", "style", "g", "title", "rect", "text", "path", "circle"].contains(&name), "{tag}");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        count += 1;
        if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty());
    count
}

/// With `SVG_DIR` set, pictures are written there to be looked at.
fn keep(name: &str, picture: &str) {
    if let Some(dir) = std::env::var_os("SVG_DIR") {
        std::fs::write(std::path::Path::new(&dir).join(format!("{name}.svg")), picture).unwrap();
    }
}

const LAYOUTS: [Layout; 2] = [Layout::Rows, Layout::Circle];

#[test]
fn everything_is_in_the_picture() {
    let topology = topology(30, 3, 4, "gcp", Granularity::Location);
    for layout in LAYOUTS {
        let picture = svg(&topology, layout);
        keep(&format!("thirty-{layout:?}"), &picture);
        elements(&picture);
        for segment in &topology.segments {
            assert!(picture.contains(&format!(">{}</text>", segment.name)));
            assert!(picture.contains(&format!(">WireGuard {}</text>", segment.wireguard_ip)));
            assert!(picture.contains(&format!(">{}</text>", segment.endpoint.as_ref().unwrap())));
            for node in topology.members(segment) {
                assert!(picture.contains(&format!(">{}</text>", node.subnet)));
                assert!(picture.contains(&format!(">{}</text>", node.private_ip.unwrap())));
                let star = if topology.leader_of(segment) == Some(node) { "★ " } else { "" };
                assert!(picture.contains(&format!(">{star}{}</text>", node.name)));
            }
        }
        for peer in &topology.peers {
            assert!(picture.contains(&format!(">{}</text>", peer.name)));
        }
        assert_eq!(picture.matches("class=\"dashed\"").count(), 3 * 4);
        assert_eq!(picture.matches("★").count(), 2 * 3, "in the card and in its tooltip");
    }
    assert_ne!(svg(&topology, Layout::Rows), svg(&topology, Layout::Circle));
}

#[test]
fn names_add_nothing() {
    let odd = "</text><script>alert('1')</script>&\"\u{1}\u{ffff}";
    let topology = topology(3, 2, 1, odd, Granularity::Location);
    for layout in LAYOUTS {
        let picture = svg(&topology, layout);
        keep(&format!("odd-{layout:?}"), &picture);
        elements(&picture);
        assert!(picture.contains("&lt;/text&gt;&lt;script&gt;alert(&#39;1&#39;)"));
        assert!(!picture.contains('\u{1}') && !picture.contains('\u{ffff}'));
    }
}

#[test]
fn small_meshes_are_pictures_too() {
    for (nodes, locations, peers) in [(1, 1, 0), (1, 1, 1), (2, 2, 0), (2, 1, 3), (4, 4, 2), (12, 6, 1)] {
        let topology = topology(nodes, locations, peers, "here", Granularity::Location);
        for layout in LAYOUTS {
            let picture = svg(&topology, layout);
            keep(&format!("small-{nodes}-{locations}-{peers}-{layout:?}"), &picture);
            elements(&picture);
            assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
        }
    }
}

/// Lines grow with the nodes, not with their pairs.
#[test]
fn large_meshes_are_bounded() {
    for granularity in [Granularity::Location, Granularity::Full] {
        let topology = topology(5000, 500, 10_000, "here", granularity);
        for layout in LAYOUTS {
            let start = std::time::Instant::now();
            let picture = svg(&topology, layout);
            eprintln!("{granularity:?} {layout:?}: {} bytes in {:?}", picture.len(), start.elapsed());
            keep(&format!("large-{granularity:?}-{layout:?}"), &picture);
            assert!(picture.matches("<path").count() < 3 * 15_000);
            assert!(picture.len() < 15_000_000, "{}", picture.len());
            elements(&picture);
        }
    }
}

#[test]
fn names_of_layouts_are_those_of_graphviz() {
    for (name, layout) in [("", Layout::Circle), ("circo", Layout::Circle), ("neato", Layout::Circle)] {
        assert_eq!(name.parse(), Ok(layout));
    }
    assert_eq!("dot".parse(), Ok(Layout::Rows));
    assert_eq!(
        "fake".parse::<Layout>().unwrap_err().to_string(),
        "unsupported layout \"fake\"; there are circo, dot, neato, twopi and fdp"
    );
}
