//! A node as an upstream agent leaves it, and as others leave it: what our agent made of it is made again by the
//! commands that upstream Kilo runs, with some that are no longer right.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::Node;

/// Which of its two programs upstream's image picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iptables {
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

impl Iptables {
    /// What stands behind `iptables-` and `ip6tables-`.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

/// What an upstream agent had when it was killed and would not have now: a node and a Peer that have gone.
const STALE: &str = "
    route replace 10.42.99.0/24 via 10.4.0.99 dev kilo0 proto static src SELF onlink
    route replace 10.42.98.0/24 via NEIGHBOUR dev eth0 proto static onlink
    route replace 10.5.9.9 dev kilo0 proto static src SELF
    route replace 10.1.0.99 via NEIGHBOUR dev eth0 proto static onlink table 1107
    rule add from POD to 10.1.0.99 lookup 1107
    rule add to 10.1.0.99 iif kilo0 lookup 1107";

/// What Docker, kube-proxy and an administrator have beside it, some of it almost of upstream's shape.
const OTHERS: &str = "
    route add 10.70.0.0/24 via NEIGHBOUR dev eth0 proto static
    route add 10.71.0.0/24 via 10.1.0.77 dev eth0 proto static onlink
    route add 10.72.0.0/24 via NEIGHBOUR dev eth0 proto static onlink metric 50
    route add 10.73.0.0/24 via NEIGHBOUR dev eth0 proto static onlink src SELF
    route add 10.74.0.0/24 via NEIGHBOUR dev eth0 proto bird onlink
    route add 10.75.0.0/24 via NEIGHBOUR dev eth0 proto static onlink table 99
    rule add from 10.70.0.0/24 lookup 99";
const OTHERS_NAT: &str = "
:DOCKER - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE";
const OTHERS_FILTER: &str = "
:DOCKER-USER - [0:0]
-A INPUT -p ipencap -s 10.99.0.0/16 -j DROP
-A FORWARD -s 10.9.0.0/16 -m comment --comment \"Kilograms\" -j ACCEPT
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -j RETURN";

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn words(text: &mut String, item: &Value, pairs: &[(&str, &str)]) {
    for (word, key) in pairs {
        if let Some(value) = item[*key].as_str() {
            // Writing to a String does not fail; so for all of this file.
            let _ = write!(text, " {word} {value}");
        }
    }
}

/// Addresses of the node in a template.
fn filled(node: &Node, neighbour: &Node, template: &str) -> String {
    template
        .replace("SELF", &node.private.to_string())
        .replace("NEIGHBOUR", &neighbour.private.to_string())
        .replace("POD", &node.pod_cidr.to_string())
}

fn batch(node: &Node, lines: &str) -> Result<()> {
    let file = node.ns.dir().join("upstream.batch");
    std::fs::write(&file, lines)?;
    node.ns.run(&format!("ip -batch {}", file.display())).map(drop)
}

/// The input of `iptables-restore --noflush` for one family: upstream's rules for a plan, or a third party's.
fn restore(node: &Node, command: &str, nat: &str, filter: &str) -> Result<()> {
    let file = node.ns.dir().join("upstream.rules");
    std::fs::write(&file, format!("*nat{nat}\nCOMMIT\n*filter{filter}\nCOMMIT\n"))?;
    node.ns.sh(&format!("{command}-restore --noflush < {}", file.display())).map(drop)
}

/// What others have on the node.
pub fn add_others(node: &Node, neighbour: &Node, iptables: Iptables) -> Result<()> {
    batch(node, &filled(node, neighbour, OTHERS))?;
    restore(node, &format!("iptables-{}", iptables.suffix()), OTHERS_NAT, OTHERS_FILTER)
}

/// Makes upstream's routes, rules and chains of a plan, in the place of ours. With `stale` come such as upstream
/// leaves for ever when it is killed.
pub fn dress(node: &Node, neighbour: &Node, plan: &Value, iptables: Iptables, stale: bool) -> Result<()> {
    ensure!(plan["outcome"] == "ok", "there is no plan: {}", plan["outcome"]);
    let mut lines = String::new();
    for route in list(plan, "routes").filter(|route| route["leftOut"] != true) {
        let _ = write!(lines, "route replace {}", route["dst"].as_str().unwrap_or_default());
        words(&mut lines, route, &[("via", "via"), ("dev", "dev"), ("src", "src")]);
        lines.push_str(if route["onlink"] == true { " onlink" } else { "" });
        if let Some(table) = route["table"].as_u64() {
            let _ = write!(lines, " table {table}");
        }
        lines.push_str(" proto static\n");
    }
    node.ns.sh("while ip rule del pref 32000 2>/dev/null; do :; done")?;
    for rule in list(plan, "rules").filter(|rule| rule["leftOut"] != true) {
        lines.push_str("rule add");
        words(&mut lines, rule, &[("from", "src"), ("to", "dst"), ("iif", "iif")]);
        lines.push_str(" lookup 1107\n");
    }
    if stale {
        lines.push_str(&filled(node, neighbour, STALE));
        lines.push('\n');
    }
    batch(node, &lines)?;
    for (v6, program) in [(false, "iptables"), (true, "ip6tables")] {
        let command = format!("{program}-{}", iptables.suffix());
        restore(node, &command, &nat(plan, v6, stale), &filter(plan, v6, stale))?;
    }
    // Ours are there no more when upstream's are.
    node.ns.sh("if nft list table inet kilo >/dev/null 2>&1; then nft delete table inet kilo; fi").map(drop)
}

/// The ranges of a list that are of one family.
fn ranges<'a>(value: &'a Value, key: &str, v6: bool) -> impl Iterator<Item = &'a str> {
    list(value, key).filter_map(Value::as_str).filter(move |range| range.contains(':') == v6)
}

fn nat(plan: &Value, v6: bool, stale: bool) -> String {
    let masquerade = &plan["firewall"]["masquerade"];
    let mut rules = "\n:KILO-NAT - [0:0]".to_owned();
    let mut rule = |line: &str, comment: &str, target: &str| {
        let _ = write!(rules, "\n-I {line} -m comment --comment \"Kilo: {comment}\" -j {target}");
    };
    let pods = plan["subnet"].as_str().unwrap_or_default();
    for range in ranges(masquerade, "sources", v6) {
        let comment = if range == pods { "jump to KILO-NAT chain" } else { "jump to NAT chain" };
        rule(&format!("POSTROUTING -s {range}"), comment, "KILO-NAT");
    }
    for range in ranges(masquerade, "destinations", v6) {
        rule(&format!("POSTROUTING -d {range}"), "jump to NAT chain", "KILO-NAT");
    }
    rule("KILO-NAT", "NAT remaining packets", "MASQUERADE");
    for range in ranges(masquerade, "exceptDestinations", v6) {
        rule(&format!("KILO-NAT -d {range}"), "do not NAT packets destined for known IPs", "RETURN");
    }
    if stale && !v6 {
        rule("POSTROUTING -s 10.5.9.9/32", "jump to NAT chain", "KILO-NAT");
        rule("KILO-NAT -d 10.42.99.0/24", "do not NAT packets destined for known IPs", "RETURN");
    }
    rules
}

fn filter(plan: &Value, v6: bool, stale: bool) -> String {
    let mut rules = String::new();
    let from: Vec<&str> = ranges(&plan["firewall"]["ipip"], "allowSources", false).collect();
    if !from.is_empty() || stale {
        rules.push_str(
            "\n:KILO-IPIP - [0:0]
-A INPUT -p ipencap -m comment --comment \"Kilo: jump to IPIP chain\" -j KILO-IPIP
-A INPUT -p ipencap -m comment --comment \"Kilo: reject other IPIP traffic\" -j DROP",
        );
        for range in from.iter().filter(|_| !v6) {
            let comment = "-m comment --comment \"Kilo: allow IPIP traffic\"";
            let _ = write!(rules, "\n-I KILO-IPIP -s {range} {comment} -j ACCEPT");
        }
    }
    if stale && !v6 {
        let forward = "-m comment --comment \"Kilo: forward packets";
        let _ = write!(
            rules,
            "\n-I FORWARD {forward} from the pod subnet\" -s 10.42.99.0/24 -j ACCEPT
-I FORWARD {forward} to the node's pod subnet\" -d 10.42.98.0/24 -j ACCEPT
-I FORWARD {forward} from the node's pod subnet\" -s 10.42.98.0/24 -j ACCEPT"
        );
    }
    rules
}

/// All routes, rules, and rules of iptables of a node as sorted lines; who made a rule is left out.
pub fn survey(node: &Node) -> Result<Vec<String>> {
    let text = node.ns.sh(
        "ip -4 route show table all; ip -6 route show table 1107 2>/dev/null || :; ip -4 rule; ip -6 rule
         for i in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do $i-save 2>/dev/null | sed \"s/^/$i /\"; done",
    )?;
    // Counters and dates, chains that are made by looking, and by whom and where a rule was made.
    let plain = |line: &str| {
        let line = line.split(" [").next().unwrap_or_default().replace(" linkdown", "");
        let rule = line
            .split_once(":\tfrom ")
            .map(|(_, rest)| format!("rule from {}", rest.replace(" proto 75", "")));
        rule.unwrap_or(line).trim_end().to_owned()
    };
    let mut lines: Vec<String> = text
        .lines()
        .map(plain)
        .filter(|line| !line.contains(" #") && !line.contains(" *") && !line.ends_with("COMMIT"))
        .filter(|line| !(line.is_empty() || line.contains(" :") && line.ends_with(" ACCEPT")))
        .collect();
    lines.sort();
    Ok(lines)
}
