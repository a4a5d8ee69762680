//! A node's kernel, as `ip -j`, `nft -j` and `wg` show it, against the plan of its agent.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use kilo_testkit::netns::Ns;
use serde_json::Value;

/// Where the two differ, in words; empty when the kernel is as planned. The peers of a device whose process is
/// frozen cannot be asked for: it does not `answer`.
pub fn differences(ns: &Ns, plan: &Value, answers: bool) -> Result<Vec<String>> {
    let mut found = Vec::new();
    if plan["outcome"] != "ok" {
        found.push(format!("the plan's outcome is {}", plan["outcome"]));
        return Ok(found);
    }
    compare(&mut found, "route", planned_routes(plan)?, kernel_routes(ns)?);
    compare(&mut found, "rule", planned_rules(plan)?, kernel_rules(ns)?);
    compare(&mut found, "link", planned_link(plan), kernel_link(ns, plan)?);
    if answers {
        compare(&mut found, "peer", planned_peers(plan)?, kernel_peers(ns, plan)?);
    }
    compare(&mut found, "tunnel", planned_tunnel(plan), kernel_tunnel(ns, plan)?);
    let table = kernel_table(ns)?;
    compare(&mut found, "masquerade", planned_masquerade(plan)?, kernel_masquerade(&table)?);
    compare(&mut found, "IPIP", planned_ipip(plan)?, kernel_ipip(&table)?);
    Ok(found)
}

type Lines = BTreeSet<String>;

fn compare(found: &mut Vec<String>, what: &str, planned: Lines, kernel: Lines) {
    found.extend(planned.difference(&kernel).map(|line| format!("{what} {line} is missing")));
    found.extend(kernel.difference(&planned).map(|line| format!("{what} {line} is not planned")));
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Routes of one table read alike from both sides.
fn route(dst: IpNet, value: &Value, [via, dev, src]: [&str; 3], onlink: bool, table: &str) -> String {
    let mut line = format!("{}", dst.trunc());
    for (word, key) in [("via", via), ("dev", dev), ("src", src)] {
        if let Some(found) = value[key].as_str() {
            line.push_str(&format!(" {word} {found}"));
        }
    }
    if onlink {
        line.push_str(" onlink");
    }
    line.push_str(&format!(" table {table}"));
    line
}

fn planned_routes(plan: &Value) -> Result<Lines> {
    let read = |item: &Value| {
        let dst = text(item, "dst").parse().with_context(|| format!("the route {item}"))?;
        let table = item["table"].as_u64().map_or("main".to_owned(), |table| table.to_string());
        let onlink = item["onlink"].as_bool().unwrap_or_default();
        Ok(route(dst, item, ["via", "dev", "src"], onlink, &table))
    };
    list(plan, "routes").iter().map(read).collect()
}

/// Routes of our protocol, which is how the agent knows them again.
fn kernel_routes(ns: &Ns) -> Result<Lines> {
    let mut lines = Lines::new();
    for family in ["-4", "-6"] {
        let routes = ns.json(&format!("ip -j {family} route show table all proto 75"))?;
        for item in routes.as_array().into_iter().flatten() {
            let dst = net(text(item, "dst"))?;
            let onlink = list(item, "flags").iter().any(|flag| flag == "onlink");
            let table = item["table"].as_str().unwrap_or("main");
            lines.insert(route(dst, item, ["gateway", "dev", "prefsrc"], onlink, table));
        }
    }
    Ok(lines)
}

/// `ip` leaves the length of single addresses away.
fn net(text: &str) -> Result<IpNet> {
    let single = text.parse::<IpAddr>().map(IpNet::from);
    single.or_else(|_| text.parse()).with_context(|| format!("the range {text:?}"))
}

fn planned_rules(plan: &Value) -> Result<Lines> {
    let read = |item: &Value| {
        let src = item["src"].as_str().map(net).transpose()?;
        Ok(rule(src, net(text(item, "dst"))?, item["iif"].as_str(), &item["table"].to_string()))
    };
    list(plan, "rules").iter().map(read).collect()
}

fn rule(src: Option<IpNet>, dst: IpNet, iif: Option<&str>, table: &str) -> String {
    let src = src.map_or(String::new(), |src| format!("from {src} "));
    let iif = iif.map_or(String::new(), |iif| format!(" iif {iif}"));
    format!("{src}to {dst}{iif} lookup {table}")
}

fn kernel_rules(ns: &Ns) -> Result<Lines> {
    let mut lines = Lines::new();
    for family in ["-4", "-6"] {
        let rules = ns.json(&format!("ip -j {family} rule show"))?;
        for item in rules.as_array().into_iter().flatten() {
            if text(item, "table") != "1107" {
                continue;
            }
            let end = |key: &str, length: &str| -> Result<Option<IpNet>> {
                let Some(address) = item[key].as_str().filter(|&address| address != "all") else {
                    return Ok(None);
                };
                let whole = item[length].as_u64().map_or(address.to_owned(), |n| format!("{address}/{n}"));
                net(&whole).map(Some)
            };
            let dst = end("dst", "dstlen")?.context("a rule of ours without destination")?;
            lines.insert(rule(end("src", "srclen")?, dst, item["iif"].as_str(), "1107"));
        }
    }
    Ok(lines)
}

fn link_name(plan: &Value) -> &str {
    plan["interfaces"]["wireguard"].as_str().unwrap_or("kilo0")
}

fn planned_link(plan: &Value) -> Lines {
    // Who does not lead has the link, but neither address nor peers.
    let address = if plan["leader"] == true { text(plan, "wireGuardCIDR") } else { "" };
    let state = if plan["leader"] == true { "up" } else { "any" };
    Lines::from([format!("{} mtu {} {state} [{address}]", link_name(plan), plan["mtu"]["value"])])
}

fn kernel_link(ns: &Ns, plan: &Value) -> Result<Lines> {
    let links = ns.json(&format!("ip -j address show dev {}", link_name(plan)))?;
    let read = |item: &Value| {
        let addresses = list(item, "addr_info").iter().filter(|address| address["scope"] != "link");
        let addresses: Vec<String> =
            addresses.map(|address| format!("{}/{}", text(address, "local"), address["prefixlen"])).collect();
        let up = list(item, "flags").iter().any(|flag| flag == "UP");
        let state = if plan["leader"] != true {
            "any"
        } else if up {
            "up"
        } else {
            "down"
        };
        format!("{} mtu {} {state} [{}]", text(item, "ifname"), item["mtu"], addresses.join(" "))
    };
    Ok(links.as_array().into_iter().flatten().map(read).collect())
}

/// A plan that lets IPIP in has a tunnel; what others keep in theirs is no matter of ours.
fn uses_tunnel(plan: &Value) -> bool {
    !list(&plan["firewall"]["ipip"], "allowSources").is_empty()
}

fn planned_tunnel(plan: &Value) -> Lines {
    let line = format!("{} up [{}]", text(&plan["interfaces"], "tunnel"), text(plan, "tunnelAddress"));
    Lines::from_iter(uses_tunnel(plan).then_some(line))
}

fn kernel_tunnel(ns: &Ns, plan: &Value) -> Result<Lines> {
    if !uses_tunnel(plan) {
        return Ok(Lines::new());
    }
    let links = ns.json("ip -j address show")?;
    let name = text(&plan["interfaces"], "tunnel");
    let read = |item: &Value| {
        let addresses = list(item, "addr_info").iter();
        let addresses: Vec<String> =
            addresses.map(|address| format!("{}/{}", text(address, "local"), address["prefixlen"])).collect();
        let up = list(item, "flags").iter().any(|flag| flag == "UP");
        format!("{name} {} [{}]", if up { "up" } else { "down" }, addresses.join(" "))
    };
    Ok(links.as_array().into_iter().flatten().filter(|item| item["ifname"] == name).map(read).collect())
}

/// Port, key, ranges and keepalive. Endpoints are left out where the device may have learned better ones.
fn planned_peers(plan: &Value) -> Result<Lines> {
    if plan["leader"] != true {
        return Ok(Lines::new());
    }
    let mut lines = Lines::from([format!("(port {})", plan["conf"]["listenPort"])]);
    for peer in list(&plan["conf"], "peers") {
        let ranges = list(peer, "allowedIPs").iter().filter_map(Value::as_str).map(net);
        let keepalive = peer["persistentKeepalive"].as_u64().unwrap_or_default();
        lines.insert(peer_line(text(peer, "publicKey"), ranges.collect::<Result<_>>()?, keepalive));
    }
    Ok(lines)
}

fn peer_line(key: &str, ranges: BTreeSet<IpNet>, keepalive: u64) -> String {
    let ranges: BTreeSet<String> = ranges.iter().map(|range| range.trunc().to_string()).collect();
    format!("{key} {} every {keepalive} s", ranges.into_iter().collect::<Vec<_>>().join(","))
}

fn kernel_peers(ns: &Ns, plan: &Value) -> Result<Lines> {
    let mut lines = Lines::new();
    let dump = ns.run(&format!("wg show {} dump", link_name(plan)))?;
    for (number, line) in dump.lines().enumerate() {
        let fields: Vec<&str> = line.split('\t').collect();
        match (number, fields.as_slice()) {
            (0, [_, _, port, ..]) if plan["leader"] == true => {
                lines.insert(format!("(port {port})"));
            }
            (0, _) => {}
            (_, [key, _psk, _endpoint, ranges, _handshake, _rx, _tx, keepalive]) => {
                let ranges = ranges.split(',').filter(|&range| range != "(none)").map(net);
                let keepalive = keepalive.parse().unwrap_or_default();
                lines.insert(peer_line(key, ranges.collect::<Result<_>>()?, keepalive));
            }
            _ => {
                lines.insert(format!("unreadable line {line:?}"));
            }
        }
    }
    Ok(lines)
}

/// The sets of our table by what the plan calls them, and the rules that use them, in order.
const SETS: [(&str, &str); 3] =
    [("exceptDestinations", "except"), ("sources", "masq_src"), ("destinations", "masq_dst")];
const MASQUERADE_RULES: [&str; 6] = [
    "ip daddr @except4 return",
    "ip6 daddr @except6 return",
    "ip saddr @masq_src4 masquerade",
    "ip6 saddr @masq_src6 masquerade",
    "ip daddr @masq_dst4 masquerade",
    "ip6 daddr @masq_dst6 masquerade",
];

fn planned_masquerade(plan: &Value) -> Result<Lines> {
    let mut lines = numbered(MASQUERADE_RULES.map(str::to_owned));
    for (part, _) in SETS {
        let ranges = list(&plan["firewall"]["masquerade"], part).iter().filter_map(Value::as_str).map(net);
        lines.extend(set_line(part, ranges.collect::<Result<_>>()?));
    }
    Ok(lines)
}

/// The objects of our table; `None` when there is no table.
fn kernel_table(ns: &Ns) -> Result<Option<Vec<Value>>> {
    let output = ns.output(&["nft", "-j", "list", "table", "inet", "kilo"])?;
    if !output.status.success() {
        return Ok(None);
    }
    let ruleset: Value = serde_json::from_slice(&output.stdout).context("reading the JSON of nft")?;
    Ok(Some(list(&ruleset, "nftables").to_vec()))
}

fn kernel_masquerade(table: &Option<Vec<Value>>) -> Result<Lines> {
    let Some(objects) = table else { return Ok(Lines::from(["(no table)".to_owned()])) };
    let mut lines = numbered(rules(objects, "postrouting"));
    for (part, set) in SETS {
        lines.extend(set_line(part, elements(objects, set)?));
    }
    Ok(lines)
}

/// Who may send IPIP, and that nobody else may.
const IPIP_RULES: [&str; 3] =
    ["l4proto ipip ip saddr @ipip4 accept", "l4proto ipip ip6 saddr @ipip6 accept", "l4proto ipip drop"];

fn planned_ipip(plan: &Value) -> Result<Lines> {
    if plan["firewall"]["ipip"]["filtered"] != true {
        return Ok(Lines::new());
    }
    let ranges = list(&plan["firewall"]["ipip"], "allowSources").iter().filter_map(Value::as_str).map(net);
    let mut lines = numbered(IPIP_RULES.map(str::to_owned));
    lines.extend(set_line("sources", ranges.collect::<Result<_>>()?));
    Ok(lines)
}

fn kernel_ipip(table: &Option<Vec<Value>>) -> Result<Lines> {
    let objects = table.as_deref().unwrap_or_default();
    let mut lines = numbered(rules(objects, "input"));
    lines.extend(set_line("sources", elements(objects, "ipip")?));
    Ok(lines)
}

fn rules(objects: &[Value], chain: &str) -> Vec<String> {
    let rules = objects.iter().map(|object| &object["rule"]);
    rules.filter(|rule| rule["chain"] == chain).map(rule_line).collect()
}

/// What the sets of both families have.
fn elements(objects: &[Value], set: &str) -> Result<Vec<IpNet>> {
    let mut ranges = Vec::new();
    for object in objects {
        let name = text(&object["set"], "name");
        if name.strip_prefix(set).is_some_and(|family| family == "4" || family == "6") {
            for element in list(&object["set"], "elem") {
                ranges.extend(element_ranges(element)?);
            }
        }
    }
    Ok(ranges)
}

fn numbered(rules: impl IntoIterator<Item = String>) -> Lines {
    rules.into_iter().enumerate().map(|(n, rule)| format!("rule {}: {rule}", n + 1)).collect()
}

/// A rule that compares an address with a set, as `nft` would print it without its counter and comment.
fn rule_line(rule: &Value) -> String {
    let mut words = Vec::new();
    for step in list(rule, "expr") {
        if let Some(compare) = step.get("match")
            && let Some(key) = compare["left"]["meta"]["key"].as_str()
        {
            // The names of protocols come from a file of the machine.
            let ipip =
                ["4", "ipencap", "ipip", "ipv4"].contains(&compare["right"].to_string().trim_matches('"'));
            words.push(format!(
                "{key} {}",
                if ipip { "ipip".to_owned() } else { compare["right"].to_string() }
            ));
        } else if let Some(compare) = step.get("match") {
            let side = &compare["left"]["payload"];
            words.push(format!(
                "{} {} {}",
                text(side, "protocol"),
                text(side, "field"),
                text(compare, "right")
            ));
        } else if let Some(object) = step.as_object() {
            words.extend(object.keys().filter(|&key| key != "counter").cloned());
        }
    }
    words.join(" ")
}

/// An element of an interval set: an address, a prefix or a range.
fn element_ranges(element: &Value) -> Result<Vec<IpNet>> {
    if let Some(address) = element.as_str() {
        return Ok(vec![net(address)?]);
    }
    if let Some(prefix) = element.get("prefix") {
        return Ok(vec![net(&format!("{}/{}", text(prefix, "addr"), prefix["len"]))?]);
    }
    let ends = list(element, "range");
    let end = |n: usize| ends.get(n).and_then(Value::as_str).map(str::parse::<IpAddr>);
    match (end(0).transpose()?, end(1).transpose()?) {
        (Some(IpAddr::V4(a)), Some(IpAddr::V4(b))) => {
            Ok(ipnet::Ipv4Subnets::new(a, b, 0).map(IpNet::V4).collect())
        }
        (Some(IpAddr::V6(a)), Some(IpAddr::V6(b))) => {
            Ok(ipnet::Ipv6Subnets::new(a, b, 0).map(IpNet::V6).collect())
        }
        _ => anyhow::bail!("the element {element} of a set"),
    }
}

/// Ranges joined where they touch: the kernel's sets hold intervals.
fn set_line(part: &str, ranges: Vec<IpNet>) -> Option<String> {
    let ranges: Vec<IpNet> = ranges.iter().map(IpNet::trunc).collect();
    let mut ranges = IpNet::aggregate(&ranges);
    ranges.sort();
    let words: Vec<String> = ranges.iter().map(IpNet::to_string).collect();
    (!words.is_empty()).then(|| format!("{part} {}", words.join(" ")))
}
