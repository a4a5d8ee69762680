//! One recorded scenario: its objects and facts go through the planner for every recorded case, and each
//! answer is compared with upstream's.

use std::collections::{BTreeMap, BTreeSet};

use kilo_mesh::{
    Compatibility, Config, Encapsulate, Facts, Granularity, HostFacts, Node, NodeObject, Peer, PeerObject,
    Topology,
};
use serde_json::{Value, json};

use super::compare::{Difference, bag, norm, only, set, statements};
use super::document;

const FIELDS: [&str; 9] = [
    "location",
    "leader",
    "wireGuardCIDR",
    "privateIP",
    "subnet",
    "listenPort",
    "persistentKeepalive",
    "natEndpoints",
    "discoveredEndpoints",
];
const WGPEER: [&str; 5] = ["publicKey", "endpoint", "endpointAddr", "allowedIPs", "persistentKeepalive"];
const ROUTE: [&str; 6] = ["dst", "via", "dev", "src", "onlink", "table"];
const RULE: [&str; 4] = ["src", "dst", "iif", "table"];
const SEGMENT: [&str; 11] = [
    "location",
    "hostnames",
    "cidrs",
    "privateIPs",
    "cniCompatibilityIPs",
    "leader",
    "key",
    "endpoint",
    "endpointAddr",
    "persistentKeepalive",
    "wireGuardIP",
];
const TPEER: [&str; 7] =
    ["name", "valid", "ready", "publicKey", "endpoint", "persistentKeepalive", "allowedIPs"];

/// What came of one scenario.
#[derive(Default)]
pub struct Verdict {
    pub comparisons: usize,
    pub differences: Vec<Difference>,
}

impl Verdict {
    fn eq(&mut self, what: impl Into<String>, got: Value, want: Value) {
        self.comparisons += 1;
        let void =
            |v: &Value| norm(&json!({ "v": v }), "").as_object().is_some_and(serde_json::Map::is_empty);
        if got != want && !(void(&got) && void(&want)) {
            self.differences.push((what.into(), got, want));
        }
    }
}

/// A scenario with its objects translated.
pub struct Scenario {
    pub document: Value,
    pub nodes: Vec<Node>,
    pub peers: Vec<Peer>,
    pub findings: BTreeSet<String>,
}

fn array(v: &Value) -> impl Iterator<Item = &Value> {
    v.as_array().into_iter().flatten()
}

fn strings(v: &Value) -> impl Iterator<Item = &str> {
    array(v).filter_map(Value::as_str)
}

/// Peers of a configuration without secrets, by key.
fn conf(c: &Value) -> Value {
    let mut peers: Vec<Value> = array(&c["peers"]).map(|p| norm(&only(p, &WGPEER), "")).collect();
    peers.sort_by_key(Value::to_string);
    norm(&json!({"listenPort": c["listenPort"], "peers": peers}), "")
}

/// The word after this one in an iptables rule.
fn after<'a>(words: &[&'a str], flag: &str) -> Option<&'a str> {
    words.iter().position(|w| *w == flag).and_then(|i| words.get(i + 1)).copied()
}

/// The recorded iptables rules as the sets they stand for.
fn recorded_firewall(group: &Value, encapsulation: Option<&Value>) -> Value {
    let mut out: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for rule in strings(&group["append"]).chain(strings(&group["prepend"])) {
        let words: Vec<&str> = rule.split_whitespace().collect();
        let (source, destination) = (after(&words, "-s"), after(&words, "-d"));
        match (after(&words, "-A"), after(&words, "-j")) {
            (Some("POSTROUTING"), Some("KILO-NAT")) => {
                out.entry("sources").or_default().extend(source);
                out.entry("destinations").or_default().extend(destination);
            }
            (Some("KILO-NAT"), Some("RETURN")) => out.entry("except").or_default().extend(destination),
            (Some("FORWARD"), _) => out.entry("forward").or_default().extend(source.or(destination)),
            _ => {}
        }
    }
    for rule in encapsulation.into_iter().flat_map(|g| strings(&g["prepend"])) {
        let words: Vec<&str> = rule.split_whitespace().collect();
        if words.contains(&"KILO-IPIP") {
            out.entry("ipip").or_default().extend(after(&words, "-s"));
        }
    }
    norm(&json!(out), "")
}

fn planned_firewall(plan: &Value) -> Value {
    let list = |path: &str| set(strings(plan["firewall"].pointer(path).unwrap_or(&Value::Null)));
    norm(
        &json!({
            "sources": list("/masquerade/sources"),
            "destinations": list("/masquerade/destinations"),
            "except": list("/masquerade/exceptDestinations"),
            "forward": list("/forward/accept"),
            "ipip": list("/ipip/allowSources"),
        }),
        "",
    )
}

/// Annotations, of which `{}` and nothing both say that there is none.
fn annotations(v: &Value) -> Value {
    let fields = v.as_object().into_iter().flatten().filter(|(_, v)| v.as_str() != Some("{}"));
    norm(&fields.map(|(k, v)| (k.clone(), v.clone())).collect(), "")
}

impl Scenario {
    pub fn new(document: Value) -> Self {
        let label = document["kg"]["topologyLabel"].as_str().expect("a label");
        let mut findings = BTreeSet::new();
        let nodes = array(&document["nodes"]).map(|n| {
            let object: NodeObject = serde_json::from_value(n.clone()).expect("a Node");
            Node::from_object(&object, label).0
        });
        let nodes = nodes.collect();
        let mut peers = Vec::new();
        for p in array(&document["peers"]) {
            let object: PeerObject = serde_json::from_value(p.clone()).expect("a Peer");
            let (peer, found) = Peer::from_object(&object);
            findings.extend(found.into_iter().map(|f| f.object));
            peers.push(peer);
        }
        Self { document, nodes, peers, findings }
    }

    pub fn config(&self, case: &Value) -> Config {
        let kg = &self.document["kg"];
        Config {
            hostname: case["local"].as_str().expect("a name").to_owned(),
            granularity: match case["granularity"].as_str() {
                Some("full") => Granularity::Full,
                _ => Granularity::Location,
            },
            topology_label: kg["topologyLabel"].as_str().expect("a label").to_owned(),
            subnet: document::net(kg["subnet"].as_str().expect("a subnet")),
            port: u16::try_from(kg["port"].as_u64().expect("a port")).expect("a port"),
            service_cidrs: strings(&kg["serviceCIDRs"]).map(document::net).collect(),
            encapsulate: Encapsulate::Never,
            local: false,
            ..Config::default()
        }
    }

    pub fn facts(&self, local: &str) -> Facts {
        let mut host = self.document["hosts"][local].clone();
        let mut host_facts = HostFacts::default();
        if let Some(fields) = host.as_object_mut() {
            let private = fields.remove("privateKey");
            fields.retain(|_, v| !v.is_null());
            host_facts = serde_json::from_value(host).expect("facts");
            let key = private.as_ref().and_then(Value::as_str).and_then(|k| k.parse().ok());
            host_facts.public_key = key.map(|k: kilo_wireguard::PrivateKey| k.public_key());
        }
        let dns = serde_json::from_value(self.document["dns"].clone()).expect("names");
        Facts { now: self.document["now"].as_u64().expect("a time"), dns, host: host_facts }
    }

    pub fn nodes(&self) -> Vec<&Node> {
        self.nodes.iter().collect()
    }

    pub fn peers(&self) -> Vec<&Peer> {
        self.peers.iter().collect()
    }

    fn plan(&self, config: &Config) -> Value {
        let facts = self.facts(&config.hostname);
        document::plan(&kilo_mesh::plan(config, &self.nodes(), &self.peers(), &facts))
    }

    pub fn judge(&self) -> Verdict {
        let mut v = Verdict::default();
        self.translated(&mut v);
        let cases: Vec<Value> = array(&self.document["cases"]).cloned().collect();
        for (i, case) in cases.iter().enumerate() {
            let mut expect = case["expect"].clone();
            for (k, of) in [("segments", "segmentsOf"), ("peers", "peersOf")] {
                if let Some(j) = expect[of].as_u64() {
                    expect[k] = cases[usize::try_from(j).expect("an index")]["expect"][k].clone();
                }
            }
            self.case(&mut v, i, case, &expect);
        }
        self.graphs(&mut v);
        v
    }

    fn translated(&self, v: &mut Verdict) {
        let now = self.document["now"].as_u64().expect("a time");
        let translated = &self.document["translated"];
        for (node, want) in self.nodes.iter().zip(array(&translated["nodes"])) {
            let got = norm(&document::node(node, now), "");
            v.eq(format!("({}) translated", node.name), got, norm(want, ""));
        }
        for (peer, want) in self.peers.iter().zip(array(&translated["peers"])) {
            let got = norm(&only(&document::peer(peer), &TPEER), "");
            v.eq(format!("({}) translated", peer.name), got, norm(&only(want, &TPEER), ""));
            if want["valid"] != json!(true) {
                let named = self.findings.contains(&format!("Peer/{}", peer.name));
                v.eq(format!("({}) finding", peer.name), json!(named), json!(true));
            }
        }
    }

    fn case(&self, v: &mut Verdict, i: usize, case: &Value, e: &Value) {
        let at = |what: &str| format!("case {i} ({}, {}) {what}", case["local"], case["granularity"]);
        let config = self.config(case);
        let p = self.plan(&config);
        v.eq(at("outcome"), p["outcome"].clone(), e["outcome"].clone());
        v.eq(at("annotations"), annotations(&p["annotations"]), annotations(&e["settledAnnotations"]));
        if e.get("readyNodes").is_some() {
            v.eq(at("readyNodes"), p["readyNodes"].clone(), e["readyNodes"].clone());
        }
        if e["outcome"] != "ok" || p["outcome"] != "ok" {
            return;
        }
        let list = |x: &Value, keys: &[&str], ordered: bool| -> Value {
            let clean = |s: &Value| {
                let mut s = only(s, keys);
                if ordered {
                    let addresses = array(&s["privateIPs"]).filter(|a| !a.is_null() && **a != json!(""));
                    s["privateIPs"] = addresses.cloned().collect();
                }
                norm(&s, "")
            };
            array(x).map(clean).collect()
        };
        v.eq(at("segments"), list(&p["segments"], &SEGMENT, true), list(&e["segments"], &SEGMENT, true));
        let ranges = ["location", "allowedIPs", "allowedLocationIPs"];
        v.eq(
            at("segment ranges"),
            list(&p["segments"], &ranges, false),
            list(&e["segments"], &ranges, false),
        );
        let peer = ["name", "publicKey", "allowedIPs"];
        v.eq(at("peers"), list(&p["peers"], &peer, false), list(&e["peers"], &peer, false));
        for f in FIELDS {
            v.eq(at(f), norm(&p[f], f), norm(&e[f], f));
        }
        if e.get("conf").is_some() {
            v.eq(at("conf"), conf(&p["conf"]), conf(&e["conf"]));
        }
        let own = |p: &Value| norm(&only(p, &WGPEER), "");
        v.eq(at("asPeer"), own(&p["asPeer"]), own(&e["asPeer"]));
        self.routes(v, &config, e, &at);
        for group in array(&e["iptables"]) {
            for combo in strings(&group["for"]) {
                let (cni, forward) = combo.split_once(':').expect("two parts");
                let config = Config {
                    cni: cni == "cni",
                    iptables_forward_rules: forward == "forward",
                    ..config.clone()
                };
                let got = planned_firewall(&self.plan(&config));
                v.eq(at(&format!("firewall {combo}")), got, recorded_firewall(group, None));
            }
        }
        self.peer_views(v, &config, e, &at);
    }

    fn routes(&self, v: &mut Verdict, config: &Config, e: &Value, at: &dyn Fn(&str) -> String) {
        let noop = self.document["hosts"][&config.hostname]["internalIP"].is_null();
        let recorded =
            |enc: &str| array(&e["encapsulationRules"]).find(|g| strings(&g["for"]).any(|x| x == enc));
        for group in array(&e["routes"]) {
            for combo in strings(&group["for"]) {
                let parts: Vec<&str> = combo.split(':').collect();
                let [enc, strategy, local] = parts[..] else { panic!("{combo} has not three parts") };
                if (enc == "noop") != noop {
                    continue;
                }
                let config = Config {
                    compatibility: match enc {
                        "flannel" => Compatibility::Flannel,
                        "cilium" => Compatibility::Cilium,
                        _ => Compatibility::None,
                    },
                    encapsulate: match strategy {
                        "never" => Encapsulate::Never,
                        "crosssubnet" => Encapsulate::CrossSubnet,
                        _ => Encapsulate::Always,
                    },
                    local: local == "local",
                    ..config.clone()
                };
                let q = self.plan(&config);
                v.eq(
                    at(&format!("routes {combo}")),
                    bag(&q["routes"], &ROUTE),
                    bag(&group["routes"], &ROUTE),
                );
                v.eq(at(&format!("rules {combo}")), bag(&q["rules"], &RULE), bag(&group["rules"], &RULE));
                let on = strategy != "never" && local == "local" && matches!(enc, "ipip" | "cilium");
                if e.get("encapsulationRules").is_some() {
                    let want = recorded_firewall(&Value::Null, recorded(enc).filter(|_| on));
                    let got = planned_firewall(&q);
                    v.eq(at(&format!("firewall.ipip {combo}")), got["ipip"].clone(), want["ipip"].clone());
                }
                let want = if on { e["tunnelAddress"].clone() } else { Value::Null };
                v.eq(at(&format!("tunnelAddress {combo}")), q["tunnelAddress"].clone(), want);
            }
        }
    }

    fn topology(&self, config: &Config) -> Option<Topology> {
        let facts = self.facts(&config.hostname);
        kilo_mesh::plan(config, &self.nodes(), &self.peers(), &facts).mesh.map(|m| m.topology)
    }

    /// What others are told about the mesh.
    fn peer_views(&self, v: &mut Verdict, config: &Config, e: &Value, at: &dyn Fn(&str) -> String) {
        let Some(t) = self.topology(config) else { return };
        let extra: Vec<_> = strings(&self.document["kg"]["connectAllowedIPs"]).map(document::net).collect();
        for (name, want) in e["peerConfs"].as_object().into_iter().flatten() {
            v.eq(at(&format!("conf of peer {name}")), conf(&document::conf(&t.peer_conf(name))), conf(want));
        }
        for (name, want) in e["peerRoutes"].as_object().into_iter().flatten() {
            let got: Value = t.peer_routes(name, &extra).iter().map(document::route).collect();
            v.eq(at(&format!("routes of peer {name}")), bag(&got, &ROUTE), bag(want, &ROUTE));
        }
    }

    fn graphs(&self, v: &mut Verdict) {
        for case in array(&self.document["cases"]) {
            let config = self.config(case);
            let (local, granularity) = (&config.hostname, case["granularity"].as_str().expect("a text"));
            let graphs = &self.document["graphs"];
            let Some(want) = graphs.get(format!("{granularity}@{local}")).or_else(|| graphs.get(granularity))
            else {
                continue;
            };
            let Some(t) = self.topology(&config) else { continue };
            let what = format!("case ({local}, {granularity}) graph");
            match want["dot"].as_str() {
                Some(text) => v.eq(what, statements(&t.dot()), statements(text)),
                None => v.eq(what, json!(t.dot().len()), want["bytes"].clone()),
            }
        }
    }
}
