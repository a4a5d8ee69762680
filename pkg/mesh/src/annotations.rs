//! The annotations that an agent writes on its own Node, and the map of discovered endpoints in one of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use ipnet::IpNet;
use kilo_wireguard::PublicKey;

use crate::node::OLD_CNI;
use crate::{Config, Granularity, LeaderFailover, Node, PREFIX, parse};

/// The annotations that an agent writes, and upstream's do as well, without the prefix.
pub const WRITTEN: [&str; 8] = [
    "cni-compatibility-ip",
    "discovered-endpoints",
    "endpoint",
    "granularity",
    "internal-ip",
    "key",
    "last-seen",
    "wireguard-ip",
];

/// The annotation that marks a check-in as one of our agent, without the prefix. Its text is our version, the very
/// `last-seen` that is written with it, and `age` where leaders are to be told by that alone: the check-ins of
/// upstream agents, who know no marker, leave one behind that fits no longer.
pub const MARKER: &str = "agent";

/// The annotation in which an agent of ours reports nodes that it finds unreachable, without the prefix: their names
/// with commas between them.
pub const UNREACHABLE: &str = "unreachable";

/// How many nodes one node may report.
pub const REPORTS: usize = 64;

const AGE: &str = "age";

/// What an agent of ours writes into [`MARKER`] with this `last-seen`.
pub fn marker(last_seen: &str, failover: LeaderFailover) -> String {
    let version = env!("CARGO_PKG_VERSION");
    match failover {
        LeaderFailover::DataPath => format!("{version} {last_seen}"),
        LeaderFailover::Age => format!("{version} {last_seen} {AGE}"),
    }
}

/// What a marker says if it belongs to the check-in of this time. Words to come are no concern of ours.
pub(crate) fn read_marker(marker: &str, last_seen: i64) -> Option<LeaderFailover> {
    let mut words = marker.split(' ').skip(1);
    let time = words.next().and_then(parse::integer);
    let fits = last_seen != 0 && time == Some(last_seen);
    fits.then(|| if words.any(|word| word == AGE) { LeaderFailover::Age } else { LeaderFailover::DataPath })
}

/// Kilo's annotations on a Node that an agent does not write, by full name.
pub(crate) fn foreign(all: &BTreeMap<String, String>) -> Box<[(Box<str>, Box<str>)]> {
    let written = |name: &str| WRITTEN.contains(&name) || name == MARKER || name == UNREACHABLE;
    let foreign = |name: &str| name.strip_prefix(PREFIX).is_some_and(|name| !written(name));
    all.iter().filter(|(k, _)| foreign(k)).map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect()
}

/// All of Kilo's annotations that the local node should end up with. `address` is that of its WireGuard link
/// if it leads.
pub(crate) fn settled(config: &Config, local: &Node, address: Option<IpNet>) -> BTreeMap<String, String> {
    let mut out: BTreeMap<String, String> =
        local.foreign_annotations.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    fn text(value: Option<impl ToString>) -> String {
        value.map(|v| v.to_string()).unwrap_or_default()
    }
    let granularity = match config.granularity {
        Granularity::Location => "location",
        Granularity::Full => "full",
    };
    for (name, value) in WRITTEN.iter().zip([
        text(local.cni_compatibility_ip),
        discovered_text(&local.discovered_endpoints),
        text(local.endpoint.as_ref()),
        granularity.to_owned(),
        text(local.internal_ip),
        text(local.key),
        local.last_seen.to_string(),
        text(address),
    ]) {
        out.insert(format!("{PREFIX}{name}"), value);
    }
    out
}

/// Settles the old annotation of the address inside Cilium where an agent of a fork has left it on the local
/// node: it follows the address as long as such agents, who read no other, are among the `others`; then it goes.
/// The full name of an annotation that goes.
pub(crate) fn settle_old_cni(
    all: &mut BTreeMap<String, String>,
    local: &Node,
    others: &[&Node],
) -> Option<String> {
    let name = format!("{PREFIX}{OLD_CNI}");
    let old = all.get_mut(&name)?;
    if others.iter().any(|node| node.old_cni_annotation && node.name != local.name) {
        *old = local.cni_compatibility_ip.map(|net| net.addr().to_string()).unwrap_or_default();
        return None;
    }
    all.remove(&name);
    Some(name)
}

/// The JSON that Go writes for a map of UDP addresses, keys sorted as texts.
pub(crate) fn discovered_text(map: &BTreeMap<PublicKey, SocketAddr>) -> String {
    let mut entries: Vec<(String, &SocketAddr)> = map.iter().map(|(k, v)| (k.to_string(), v)).collect();
    entries.sort_unstable();
    let mut out = String::from("{");
    for (i, (key, addr)) in entries.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        // Writing to a String does not fail; keys and addresses hold nothing that JSON escapes.
        let _ = write!(
            out,
            r#"{comma}"{key}":{{"IP":"{}","Port":{},"Zone":""}}"#,
            addr.ip().to_canonical(),
            addr.port()
        );
    }
    out.push('}');
    out
}

/// Reads such a map as Go does: names of fields in any case, `null` for an absent endpoint. An entry that is
/// no key or no endpoint is left out; one of the wrong shape makes the whole map void.
pub(crate) fn parse_discovered(text: &str) -> Result<BTreeMap<PublicKey, SocketAddr>, String> {
    let map: BTreeMap<String, Option<serde_json::Map<String, serde_json::Value>>> =
        serde_json::from_str(text)
            .map_err(|e| format!("not a map of endpoints ({e}); it counts as empty"))?;
    let mut out = BTreeMap::new();
    for (key, fields) in map {
        let Ok(key) = key.parse() else { continue };
        let Some(fields) = fields else { continue };
        let field = |name: &str| {
            fields.iter().filter(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v).next_back()
        };
        let ip = match field("IP") {
            Some(serde_json::Value::String(s)) if !s.is_empty() => {
                Some(parse::ip(s).ok_or("an IP is not an address; it counts as empty")?)
            }
            _ => None,
        };
        let port = field("Port").and_then(serde_json::Value::as_u64).and_then(|p| u16::try_from(p).ok());
        if let (Some(ip), Some(port)) = (ip, port.filter(|&p| p != 0)) {
            out.insert(key, SocketAddr::new(ip, port));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "a2V5MgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    #[test]
    fn discovered_endpoints_round_trip() {
        let text = format!(r#"{{"{KEY}":{{"IP":"1.2.3.4","Port":51820,"Zone":""}}}}"#);
        let map = parse_discovered(&text).expect("a map");
        assert_eq!(map.len(), 1);
        assert_eq!(discovered_text(&map), text);
        assert_eq!(discovered_text(&BTreeMap::new()), "{}");
    }

    #[test]
    fn a_marker_fits_its_own_check_in_only() {
        let time = 1_767_225_600;
        for failover in [LeaderFailover::DataPath, LeaderFailover::Age] {
            let ours = marker("1767225600", failover);
            assert_eq!(read_marker(&ours, time), Some(failover));
            assert_eq!(read_marker(&ours, time + 30), None, "somebody else has checked in since");
        }
        for odd in ["", "1767225600", "0.1.0", "0.1.0 ", "0.1.0  1767225600", "0.1.0\t1767225600"] {
            assert_eq!(read_marker(odd, time), None, "{odd}");
        }
        assert_eq!(read_marker("9.0 1767225600 more", time), Some(LeaderFailover::DataPath));
        assert_eq!(read_marker("0.1.0 0", 0), None, "nobody has checked in");
    }

    #[test]
    fn odd_entries_are_left_out_and_odd_maps_are_empty() {
        let odd = format!(r#"{{"{KEY}":null,"x":{{"ip":"1.2.3.4","port":1}}}}"#);
        assert_eq!(parse_discovered(&odd), Ok(BTreeMap::new()));
        let lower = format!(r#"{{"{KEY}":{{"ip":"::ffff:1.2.3.4","port":7}}}}"#);
        let text = discovered_text(&parse_discovered(&lower).expect("a map"));
        assert_eq!(text, format!(r#"{{"{KEY}":{{"IP":"1.2.3.4","Port":7,"Zone":""}}}}"#));
        assert!(parse_discovered("[]").is_err() && parse_discovered("{").is_err());
    }
}
