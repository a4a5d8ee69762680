//! Where each source may come from: one chain for each class of links, and the table of our own bridge.

use std::collections::BTreeSet;

use ipnet::IpNet;
use kilo_nftables::{
    CtDirection, Data, DataType, Element, End, Expr, Family, Hook, IfName, IpRange, Key, KeyType, Load, Rule,
    Set, SetType, Verdict, ct_state,
};

use super::facts::{Antispoof, CompilerConfig, LocalPods, MeshFacts, Owner};
use super::judge::{Part, refusal};
use super::name::digit;
use super::reason::Reason;
use super::rules::{
    FAMILIES, GRE, IPIP, IPV6, LINK, UDP, all_among, among, between, goto, jump, mark_packet, not_among,
    rule, state, when,
};

/// VXLAN, Geneve, and VXLAN as the kernel numbered it first.
const TUNNEL_PORTS: [u16; 3] = [4789, 6081, 8472];

/// A Peer with a shorter prefix is a way out, not a place: whatever comes from the outside would be its.
const SHORTEST: u8 = 8;

fn of(prefix: &str, family: Family) -> String {
    format!("{prefix}{}", digit(family))
}

fn names(names: &BTreeSet<String>) -> impl Iterator<Item = IfName> {
    names.iter().filter_map(|name| IfName::new(name))
}

/// A set of links.
fn links(names: impl Iterator<Item = IfName>) -> Set {
    Set::of(SetType::exact(KeyType::Link), names.map(|name| Element::new(Key::Link(name))))
}

/// Networks less others, as a set.
fn less<'a>(
    family: Family,
    nets: impl Iterator<Item = &'a IpNet>,
    others: impl Iterator<Item = &'a IpNet>,
) -> Set {
    let mut ranges = kilo_nftables::Ranges::from_nets(family, nets);
    for other in others.filter(|net| Family::of(net.addr()) == family) {
        ranges.subtract(IpRange::from(*other));
    }
    Set::of_ranges(family, ranges)
}

/// All chains that ask where a source comes from, and the sets of facts that they look at.
pub(crate) fn binding(config: &CompilerConfig, facts: &MeshFacts) -> Part {
    let mut part = Part::default();
    if config.antispoof == Antispoof::Off {
        return part;
    }
    for reason in Reason::ALL.into_iter().filter(|reason| reason.is_spoof() && *reason != Reason::Weak) {
        part.chain(reason.name(), refusal(config, reason, config.antispoof == Antispoof::Enforce));
    }
    sets(&mut part, facts);
    mesh(&mut part, config);
    tunnel(&mut part, config);
    pod(&mut part, facts);
    underlay(&mut part, config, facts);
    part.chain("nested", nested());
    classes(&mut part, config);
    part
}

fn sets(part: &mut Part, facts: &MeshFacts) {
    let all = [&facts.links.wireguard, &facts.links.tunnels, &facts.links.pods];
    let inside = all.into_iter().flat_map(names).chain(IfName::new("lo"));
    part.set("inside", links(inside));
    part.set("underlay", links(names(&facts.links.underlay)));
    part.set("tunnels", links(names(&facts.links.tunnels)));
    let mut class = Set::new(SetType::exact(KeyType::Link).to(DataType::Verdict));
    let mut put =
        |name: IfName, verdict| class.insert(Element::with(Key::Link(name), Data::Verdict(verdict)));
    for (links, chain) in [
        (&facts.links.underlay, "from_underlay"),
        (&facts.links.pods, "from_pod"),
        (&facts.links.tunnels, "from_tunnel"),
        (&facts.links.wireguard, "from_mesh"),
    ] {
        names(links).for_each(|name| put(name, goto(chain)));
    }
    IfName::new("lo").into_iter().for_each(|name| put(name, Verdict::Return));
    part.set("class", class);

    let peers =
        || facts.bindings.iter().filter(|(_, owner)| matches!(owner, Owner::Peer(_))).map(|(net, _)| net);
    let nodes =
        || facts.bindings.iter().filter(|(_, owner)| matches!(owner, Owner::Node(_))).map(|(net, _)| net);
    let hosts: Vec<IpNet> = facts
        .own
        .iter()
        .map(|net| net.addr())
        .chain(facts.leaders.iter().copied())
        .map(IpNet::from)
        .collect();
    for family in FAMILIES {
        let bound = facts.bindings.keys().chain(&facts.segments);
        part.set(&of("bound", family), Set::of_nets(family, bound));
        part.set(&of("spoof_peers", family), less(family, peers(), facts.segments.iter().chain(nodes())));
        // What is a place in the mesh and nowhere else.
        let places = peers().filter(|net| net.prefix_len() >= SHORTEST).chain(&facts.subnets);
        let elsewhere = facts.own.iter().chain(&facts.all_pods).chain(&facts.services).chain(&hosts);
        let nodes_elsewhere = nodes().filter(|net| !facts.subnets.iter().any(|subnet| subnet.contains(*net)));
        part.set(&of("mesh", family), less(family, places, elsewhere.chain(nodes_elsewhere)));
        // What another location may send, too: in a tunnel a leader must have sent it.
        let relayed =
            peers().filter(|net| net.prefix_len() >= SHORTEST).chain(&facts.segments).chain(&facts.subnets);
        part.set(
            &of("relayed_mesh", family),
            less(family, relayed, facts.own_pods.iter().chain(&facts.plain).chain(&hosts)),
        );
        part.set(&of("remote", family), Set::of_nets(family, &facts.segments));
        part.set(&of("leaders", family), Set::of_nets(family, hosts_of(&facts.leaders).iter()));
        part.set(&of("plain", family), Set::of_nets(family, &facts.plain));
        part.set(&of("all_pods", family), Set::of_nets(family, &facts.all_pods));
        part.set(&of("own_pods", family), Set::of_nets(family, &facts.own_pods));
        let targets = nodes().chain(&facts.segments).chain(&hosts);
        part.set(&of("nodes", family), less(family, targets, facts.all_pods.iter()));
        part.set(&of("self_host", family), Set::of_nets(family, &hosts));
    }
}

fn hosts_of(addresses: &BTreeSet<std::net::IpAddr>) -> Vec<IpNet> {
    addresses.iter().copied().map(IpNet::from).collect()
}

fn source(family: Family) -> Load {
    Load::Address(family, End::Source)
}

/// A tunnel by its protocol, or by its port.
fn tunnelled() -> Vec<Vec<Expr>> {
    let protocols = [IPIP, IPV6, GRE].map(|protocol| vec![Expr::L4Proto(protocol)]);
    let ports =
        TUNNEL_PORTS.map(|port| vec![Expr::L4Proto(UDP), between(Load::Port(End::Destination), port, port)]);
    protocols.into_iter().chain(ports).collect()
}

/// Tunnels to nodes.
fn nested() -> Vec<Rule> {
    let to_node = |family| among(Load::Address(family, End::Destination), &of("nodes", family));
    FAMILIES
        .into_iter()
        .flat_map(|family| {
            tunnelled().into_iter().map(move |mut matches| {
                matches.push(to_node(family));
                when(&matches, goto(Reason::NestedTunnel.name()))
            })
        })
        .collect()
}

/// Rules that mark a tunnel whose outer source is in a set.
fn trusted(config: &CompilerConfig, set: &str) -> Vec<Rule> {
    FAMILIES
        .into_iter()
        .flat_map(|family| {
            tunnelled().into_iter().map(move |mut matches| {
                matches.push(among(source(family), &of(set, family)));
                rule(matches.into_iter().chain([mark_packet(config.leader_bit, config.leader_bit)]))
            })
        })
        .collect()
}

/// By WireGuard: the source is bound, and no Peer tunnels to a node.
fn mesh(part: &mut Part, config: &CompilerConfig) {
    let mut rules = Vec::new();
    for family in FAMILIES {
        rules
            .push(when(&[not_among(source(family), &of("bound", family))], goto(Reason::UnboundPeer.name())));
        rules.push(when(&[among(source(family), &of("spoof_peers", family))], goto("nested")));
    }
    // Tunnels between the nodes of two locations, flannel's for one, are signed by WireGuard.
    rules.extend(trusted(config, "remote"));
    part.chain("from_mesh", rules);
}

fn tunnel(part: &mut Part, config: &CompilerConfig) {
    let unmarked = Expr::Bits { of: Load::Mark, mask: config.leader_bit, value: 0, negated: false };
    let mut rules: Vec<_> = FAMILIES
        .into_iter()
        .map(|family| {
            let matches = [unmarked.clone(), among(source(family), &of("relayed_mesh", family))];
            when(&matches, goto(Reason::OuterNotLeader.name()))
        })
        .collect();
    rules.push(rule([mark_packet(config.leader_bit, 0)]));
    part.chain("from_tunnel", rules);
}

fn pod(part: &mut Part, facts: &MeshFacts) {
    let mut rules = Vec::new();
    // An address that is bound to a link comes by no other one.
    for family in FAMILIES {
        rules.push(when(&[all_among(&[LINK, source(family)], &of("bind", family))], goto("nested")));
    }
    rules.push(when(&[among(LINK, "veths")], jump("from_veth")));
    rules.extend(homeless());
    for family in FAMILIES {
        rules.push(when(&[among(source(family), &of("mesh", family))], goto(Reason::MeshSrcFromPod.name())));
        if facts.own_pods.iter().any(|net| Family::of(net.addr()) == family) {
            let matches = [not_among(source(family), &of("own_pods", family))];
            rules.push(when(&matches, goto(Reason::PodSrcMismatch.name())));
        }
    }
    rules.push(when(&[], goto("nested")));
    part.chain("from_pod", rules);
    let mut rules: Vec<_> = homeless();
    for family in FAMILIES {
        rules.push(when(&[among(source(family), &of("mesh", family))], goto(Reason::MeshSrcFromPod.name())));
    }
    rules.push(when(&[], goto(Reason::PodSrcMismatch.name())));
    part.chain("from_veth", rules);
}

/// Sources that everybody has on a link: none yet, and those of the link itself.
fn homeless() -> Vec<Rule> {
    ["0.0.0.0/32", "::/128", "fe80::/10"]
        .into_iter()
        .filter_map(|net| net.parse::<IpNet>().ok())
        .map(|net| {
            let among = kilo_nftables::Addresses::Net(net);
            when(&[Expr::Address { end: End::Source, among, negated: false }], Verdict::Accept)
        })
        .collect()
}

fn underlay(part: &mut Part, config: &CompilerConfig, facts: &MeshFacts) {
    let mut rules = Vec::new();
    if facts.wireguard_port > 0 {
        // Peers of another cluster may list addresses of nodes that are their endpoints, too.
        let port = facts.wireguard_port;
        let matches = [Expr::L4Proto(UDP), between(Load::Port(End::Destination), port, port)];
        rules.push(when(&matches, Verdict::Return));
    }
    rules.extend(trusted(config, "leaders"));
    for family in FAMILIES {
        let weak = [
            among(source(family), &of("plain", family)),
            Expr::CountIn(Reason::Weak.counter().into()),
            Expr::Verdict(Verdict::Return),
        ];
        rules.push(rule(weak));
        rules.push(when(
            &[among(source(family), &of("mesh", family))],
            goto(Reason::MeshSrcOnUnderlay.name()),
        ));
    }
    part.chain("from_underlay", rules);
    // Pods' sources wait for conntrack: where both ends are on one network, replies to this host come plain.
    let mut rules: Vec<_> = FAMILIES
        .into_iter()
        .map(|family| {
            let opened = Load::CtAddress(CtDirection::Original, family, End::Source);
            let matches =
                [state(ct_state::ESTABLISHED | ct_state::RELATED), among(opened, &of("self_host", family))];
            when(&matches, Verdict::Return)
        })
        .collect();
    for family in FAMILIES {
        rules.push(when(&[among(source(family), &of("plain", family))], Verdict::Return));
        rules.push(when(
            &[among(source(family), &of("all_pods", family))],
            goto(Reason::MeshSrcOnUnderlay.name()),
        ));
    }
    part.chain("pods_from_underlay", rules);
}

fn classes(part: &mut Part, config: &CompilerConfig) {
    let rules = vec![
        rule([not_among(LINK, "tunnels"), mark_packet(config.leader_bit, 0)]),
        rule([Expr::Vmap { keys: vec![LINK], map: "class".into() }]),
        when(&[among(LINK, "veths")], goto("from_pod")),
        when(&[], goto("from_underlay")),
    ];
    part.base("sources", Hook::Prerouting, -300, rules);
    let known = if config.own_cni {
        vec![
            when(&[among(LINK, "inside")], Verdict::Return),
            when(&[among(LINK, "veths")], Verdict::Return),
            when(&[], goto("pods_from_underlay")),
        ]
    } else {
        // A link of no class may be a pod's of another CNI.
        vec![when(&[among(LINK, "underlay")], goto("pods_from_underlay"))]
    };
    part.base("pod_sources", Hook::Prerouting, -150, known);
}

/// The sets of this node's pods' links: on our own bridge they are looked at in its table, else one by one.
pub(crate) fn local(config: &CompilerConfig, local: &LocalPods) -> Part {
    let mut part = Part::default();
    if config.antispoof == Antispoof::Off {
        return part;
    }
    let bound = || bound(local).filter(|_| !config.own_cni);
    part.set("veths", links(bound().map(|(link, _)| link)));
    for family in FAMILIES {
        let keys = bound().filter(|(_, ip)| Family::of(*ip) == family);
        let elements = keys.map(|(link, ip)| Element::new(Key::Bound(link, ip)));
        part.set(&of("bind", family), Set::of(SetType::exact(KeyType::Bound(family)), elements));
    }
    part
}

/// Links with the addresses of the pods behind them.
fn bound(local: &LocalPods) -> impl Iterator<Item = (IfName, std::net::IpAddr)> {
    local.iter().filter_map(|(ip, pod)| Some((IfName::new(&pod.link)?, *ip)))
}

/// The table of our own bridge: a pod's link carries the pod's sources, and they come by no other link of it.
pub(crate) fn bridge(config: &CompilerConfig, local: &LocalPods) -> Option<Part> {
    if config.antispoof == Antispoof::Off || !config.own_cni {
        return None;
    }
    let mut part = Part::default();
    let drops = config.antispoof == Antispoof::Enforce;
    part.chain(Reason::PodSrcMismatch.name(), refusal(config, Reason::PodSrcMismatch, drops));
    part.set("veths", links(bound(local).map(|(link, _)| link)));
    let mut rules = homeless();
    for family in FAMILIES {
        let here = || bound(local).filter(move |(_, ip)| Family::of(*ip) == family);
        let elements = here().map(|(link, ip)| Element::new(Key::Bound(link, ip)));
        part.set(&of("bind", family), Set::of(SetType::exact(KeyType::Bound(family)), elements));
        let elements = here().map(|(_, ip)| Element::new(Key::Address(ip)));
        part.set(&of("addresses", family), Set::of(SetType::exact(KeyType::Address(family)), elements));
        rules.push(when(&[all_among(&[LINK, source(family)], &of("bind", family))], Verdict::Accept));
        let mismatch = || goto(Reason::PodSrcMismatch.name());
        rules.push(when(&[among(source(family), &of("addresses", family))], mismatch()));
        rules.push(when(&[Expr::NfProto(family), among(LINK, "veths")], mismatch()));
    }
    part.base("sources", Hook::Prerouting, -300, rules);
    Some(part)
}
