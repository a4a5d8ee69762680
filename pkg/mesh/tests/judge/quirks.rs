//! Quirks of upstream that may be left behind without any other agent of the mesh computing something else:
//! in which fields they may show, and which elements they explain.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde_json::Value;

use super::compare::{Difference, atoms};

/// Which side of a difference a quirk explains.
#[derive(Clone, Copy, PartialEq)]
enum How {
    /// Either.
    Both,
    /// Only what the plan has in addition.
    More,
    /// Only what the plan lacks.
    Less,
    /// The plan's value is this.
    Is(&'static str),
}

/// What makes an element one that the quirk explains.
#[derive(Clone, Copy)]
enum Why {
    Anything,
    /// It holds one of these texts, in any case.
    Holds(&'static [&'static str]),
    /// The other side has it without host bits.
    Masked,
    /// It is a route of mixed families, or the plan's route in place of such a one.
    Mixed,
    /// It names one of these.
    Names(fn(&Value) -> BTreeSet<String>),
}

type Rule = (&'static [&'static str], How, Why);

const LISTS: &[&str] = &["routes", "rules", "firewall", "conf", "peers"];

/// The quirks and their rules.
const QUIRKS: &[(&str, &[Rule])] = &[
    (
        "subnet-exhaustion",
        &[
            (&["outcome"], How::Is("topology-error"), Why::Anything),
            (&["annotations"], How::Both, Why::Holds(&["wireguard-ip"])),
        ],
    ),
    (
        "unresolvable-endpoint-blocks",
        &[
            (&["outcome"], How::Is("ok"), Why::Anything),
            (&["annotations", "readyNodes"], How::Both, Why::Anything),
        ],
    ),
    ("numeric-names-are-dns", &[(&["translated"], How::Both, Why::Holds(&["endpoint"]))]),
    ("graph-shared-vertex", &[(&["graph"], How::Both, Why::Anything)]),
    ("mixed-family-route", &[(&["routes"], How::Both, Why::Mixed)]),
    (
        "host-bits-kept",
        &[
            (
                &["routes", "rules", "firewall", "conf", "asPeer", "peers", "segment ranges", "translated"],
                How::Both,
                Why::Masked,
            ),
            (&["routes", "firewall", "conf", "peers"], How::Less, Why::Names(twice)),
        ],
    ),
    (
        "dual-stack-first-only",
        &[(
            &["routes", "rules", "firewall", "conf", "asPeer", "segment ranges"],
            How::More,
            Why::Names(further),
        )],
    ),
    (
        "peer-may-shadow-node",
        &[(LISTS, How::Less, Why::Names(shadowing)), (&["graph"], How::Both, Why::Anything)],
    ),
    ("peers-with-same-key", &[(LISTS, How::Both, Why::Names(all_claims))]),
    (
        "keepalive-not-validated",
        &[(
            &["conf", "asPeer", "persistentKeepalive", "segments", "translated"],
            How::Both,
            Why::Holds(&["keepalive"]),
        )],
    ),
];

fn list<'a>(v: &'a Value, key: &str) -> Vec<&'a str> {
    v[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn objects<'a>(d: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    d[key].as_array().into_iter().flatten()
}

fn masked(text: &str) -> Option<IpNet> {
    text.parse().ok().map(|n: IpNet| n.trunc())
}

/// What a Peer claims: its name, its key, its ranges.
fn claims(peer: &Value) -> impl Iterator<Item = String> + '_ {
    let name = peer["metadata"]["name"].as_str().map(|n| format!("[{n}]"));
    let key = peer["spec"]["publicKey"].as_str().map(|k| k.trim().to_owned()).filter(|k| !k.is_empty());
    name.into_iter().chain(key).chain(list(&peer["spec"], "allowedIPs").into_iter().map(str::to_owned))
}

fn all_claims(d: &Value) -> BTreeSet<String> {
    objects(d, "peers").flat_map(claims).collect()
}

/// What those Peers claim of which some claim is a node's key, or an address in a node's ranges or in the
/// WireGuard subnet.
pub fn shadowing(d: &Value) -> BTreeSet<String> {
    let nodes = || objects(&d["translated"], "nodes");
    let mut taken: Vec<IpNet> = d["kg"]["subnet"].as_str().and_then(masked).into_iter().collect();
    taken.extend(nodes().filter_map(|n| n["subnet"].as_str().and_then(masked)));
    let private = |n: &Value| n["internalIP"].as_str().and_then(|t| t.parse::<IpNet>().ok());
    taken.extend(nodes().filter_map(private).map(|n| IpNet::from(n.addr())));
    let keys: Vec<&str> = nodes().filter_map(|n| n["key"].as_str()).collect();
    let takes = |p: &&Value| {
        let overlaps = |a: IpNet| taken.iter().any(|t| t.contains(&a) || a.contains(t));
        p["spec"]["publicKey"].as_str().is_some_and(|k| keys.contains(&k.trim()))
            || list(&p["spec"], "allowedIPs")
                .into_iter()
                .filter_map(masked)
                .any(|a| a.prefix_len() != 0 && overlaps(a))
    };
    objects(d, "peers").filter(takes).flat_map(claims).collect()
}

/// Ranges that Peers claim more than once when written without host bits.
fn twice(d: &Value) -> BTreeSet<String> {
    let all: Vec<&str> = objects(d, "peers").flat_map(|p| list(&p["spec"], "allowedIPs")).collect();
    let mut count: BTreeMap<IpNet, u32> = BTreeMap::new();
    for net in all.iter().filter_map(|t| masked(t)) {
        *count.entry(net).or_default() += 1;
    }
    let often = |t: &&&str| masked(t).is_some_and(|n| count[&n] > 1);
    all.iter().filter(often).map(|t| (*t).to_owned()).collect()
}

/// Pod ranges after each node's first.
fn further(d: &Value) -> BTreeSet<String> {
    let nets = objects(d, "nodes").flat_map(|n| list(&n["spec"], "podCIDRs").into_iter().skip(1));
    nets.filter_map(masked).map(|n| n.to_string()).collect()
}

/// The text with each range in it written without host bits.
fn mask(text: &str) -> String {
    let part = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.' | '/');
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(part) {
        out.push_str(&rest[..start]);
        let end = rest[start..].find(|c| !part(c)).map_or(rest.len(), |n| start + n);
        match masked(&rest[start..end]) {
            Some(net) => out.push_str(&net.to_string()),
            None => out.push_str(&rest[start..end]),
        }
        rest = &rest[end..];
    }
    out + rest
}

/// Whether a text holds this word: no letter, digit, `.`, `:` or `/` beside it.
fn names(text: &str, word: &str) -> bool {
    if word.starts_with('[') {
        return text.contains(word);
    }
    let part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | ':' | '/');
    text.match_indices(word)
        .any(|(i, _)| !text[..i].ends_with(part) && !text[i + word.len()..].starts_with(part))
}

/// The fields of a route, if the text is one.
fn fields(atom: &str) -> BTreeMap<String, Value> {
    serde_json::from_str(atom).unwrap_or_default()
}

fn mixed(atom: &str) -> bool {
    let fields = fields(atom);
    let v6 = |k: &&str| fields.get(*k).and_then(Value::as_str).map(|t| t.contains(':'));
    ["dst", "via", "src"].iter().filter_map(v6).collect::<BTreeSet<_>>().len() > 1
}

fn dst(atom: &str) -> Option<IpNet> {
    fields(atom).get("dst").and_then(Value::as_str).and_then(masked)
}

fn explains(
    why: Why,
    more: bool,
    atom: &str,
    other: &BTreeSet<String>,
    want: &BTreeSet<String>,
    d: &Value,
) -> bool {
    match why {
        Why::Anything => true,
        Why::Holds(texts) => texts.iter().any(|t| atom.to_lowercase().contains(t)),
        Why::Masked => {
            let text = mask(atom);
            let text = text.rsplit('=').next().unwrap_or_default();
            other.iter().any(|x| mask(x).ends_with(text))
        }
        Why::Mixed if more => {
            let replaced = || want.iter().filter(|x| mixed(x)).any(|x| dst(x) == dst(atom));
            !mixed(atom) && dst(atom).is_some() && replaced()
        }
        Why::Mixed => mixed(atom),
        Why::Names(values) => values(d).iter().any(|v| names(atom, v) || names(atom, &mask(v))),
    }
}

/// Whether each element of the difference is one that a quirk of these explains.
pub fn explained(difference: &Difference, tags: &BTreeSet<&str>, d: &Value) -> bool {
    let (what, got, want) = difference;
    let field = what.split_once(") ").map_or(what.as_str(), |(_, f)| f);
    let rules: Vec<&Rule> = QUIRKS
        .iter()
        .filter(|(tag, _)| tags.contains(tag))
        .flat_map(|(_, rules)| *rules)
        .filter(|(places, _, _)| places.iter().any(|p| field.starts_with(p)))
        .collect();
    let root = |v: &Value| if v.is_object() || v.is_array() { "" } else { field };
    let (a, b) = (atoms(got, root(got)), atoms(want, root(want)));
    let judged = |atom: &String, more: bool, other: &BTreeSet<String>| {
        rules.iter().any(|(_, how, why)| match how {
            How::Is(value) => got.as_str() == Some(value),
            How::More if !more => false,
            How::Less if more => false,
            How::Both | How::More | How::Less => explains(*why, more, atom, other, &b, d),
        })
    };
    // Equal elements in another order, or twice, are no quirk's doing.
    a != b && a.difference(&b).all(|x| judged(x, true, &b)) && b.difference(&a).all(|x| judged(x, false, &a))
}
