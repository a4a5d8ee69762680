//! Verdicts again, straight from the JSON of the objects, with no thought of speed: an answer to hold the evaluator
//! against. It uses none of its code.

use std::net::IpAddr;

use kilo_policy::Probe;
use serde_json::Value;

use crate::Cell;

/// A thing that cannot be understood.
struct Odd;

/// One end in one family.
struct End<'v> {
    name: String,
    address: IpAddr,
    pod: Option<&'v Value>,
}

/// The table of these objects, sorted; the last one of a name counts.
pub fn table(objects: &[Value], probes: &[Probe], externals: &[IpAddr]) -> Vec<Cell> {
    let last = |n: usize| {
        let id = |o: &Value| {
            (o["kind"].clone(), o["metadata"]["namespace"].clone(), o["metadata"]["name"].clone())
        };
        objects[n + 1..].iter().all(|later| id(later) != id(&objects[n]))
    };
    let objects: Vec<&Value> = (0..objects.len()).filter(|n| last(*n)).map(|n| &objects[n]).collect();
    let ends = ends(&objects, externals);
    let mut cells = Vec::new();
    for from in &ends {
        for to in &ends {
            let family = if from.address.is_ipv4() { "IPv4" } else { "IPv6" };
            let outside = from.name.starts_with("ip/") && to.name.starts_with("ip/");
            if from.name == to.name || from.address.is_ipv4() != to.address.is_ipv4() || outside {
                continue;
            }
            for probe in probes {
                let letters = format!(
                    "{}{}",
                    side(&objects, "Ingress", to, from, to, *probe),
                    side(&objects, "Egress", from, to, to, *probe)
                );
                cells.push((format!("{} {} {family} {probe}", from.name, to.name), letters));
            }
        }
    }
    cells.sort();
    cells
}

fn ends<'v>(objects: &[&'v Value], externals: &[IpAddr]) -> Vec<End<'v>> {
    let alive: Vec<&Value> = objects
        .iter()
        .copied()
        .filter(|o| o["kind"] == "Pod" && !["Succeeded", "Failed"].iter().any(|p| o["status"]["phase"] == *p))
        .collect();
    let mut ends = Vec::new();
    for pod in &alive {
        for v4 in [true, false] {
            let Some(address) = address(pod, v4) else { continue };
            // Of several pods with one address the newest has it.
            let usurped = !host(pod)
                && alive.iter().any(|other| {
                    !host(other) && self::address(other, v4) == Some(address) && age(other) > age(pod)
                });
            if !usurped {
                let name =
                    format!("pod/{}/{}", str(&pod["metadata"]["namespace"]), str(&pod["metadata"]["name"]));
                ends.push(End { name, address, pod: Some(pod) });
            }
        }
    }
    for external in externals {
        let owner = ends.iter().find(|end| end.address == *external && end.pod.is_some_and(|pod| !host(pod)));
        let pod = owner.and_then(|end| end.pod);
        ends.push(End { name: format!("ip/{external}"), address: *external, pod });
    }
    ends
}

fn str(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn host(pod: &Value) -> bool {
    pod["spec"]["hostNetwork"] == true
}

fn age(pod: &Value) -> [&str; 4] {
    let m = &pod["metadata"];
    [str(&m["creationTimestamp"]), str(&m["uid"]), str(&m["namespace"]), str(&m["name"])]
}

fn address(pod: &Value, v4: bool) -> Option<IpAddr> {
    let many: Vec<&str> =
        pod["status"]["podIPs"].as_array().into_iter().flatten().map(|ip| str(&ip["ip"])).collect();
    let all = if many.is_empty() { vec![str(&pod["status"]["podIP"])] } else { many };
    all.iter().filter_map(|text| text.parse::<IpAddr>().ok()).find(|ip| ip.is_ipv4() == v4)
}

/// `a`, `d` or `-`: what the policies of `subject` say.
fn side(
    objects: &[&Value],
    direction: &str,
    subject: &End<'_>,
    other: &End<'_>,
    target: &End<'_>,
    probe: Probe,
) -> char {
    let Some(pod) = subject.pod.filter(|pod| !host(pod)) else { return '-' };
    let node = &pod["spec"]["nodeName"];
    let from_host =
        other.pod.is_some_and(|o| host(o) && o["spec"]["nodeName"] == *node) && !str(node).is_empty();
    if (direction == "Ingress" && from_host) || other.pod.is_some_and(|o| std::ptr::eq(o, pod)) {
        return 'a';
    }
    let (mut isolated, mut allowed) = (false, false);
    for policy in objects.iter().filter(|o| o["kind"] == "NetworkPolicy") {
        if policy["metadata"]["namespace"] != pod["metadata"]["namespace"] {
            continue;
        }
        let spec = &policy["spec"];
        let selected = selects(&spec["podSelector"], &pod["metadata"]["labels"]);
        let understood = selected.is_ok();
        // What the understood terms select is isolated.
        if !selected
            .unwrap_or_else(|Odd| selects_understood(&spec["podSelector"], &pod["metadata"]["labels"]))
        {
            continue;
        }
        if understood && !covers(spec, direction) {
            continue;
        }
        isolated = true;
        let (list, peers) = if direction == "Ingress" { ("ingress", "from") } else { ("egress", "to") };
        for rule in spec[list].as_array().into_iter().flatten() {
            allowed |= understood
                && rule_matches(objects, policy, rule, peers, other)
                && ports_match(&rule["ports"], target, probe);
        }
    }
    if isolated && !allowed { 'd' } else { 'a' }
}

fn covers(spec: &Value, direction: &str) -> bool {
    match spec["policyTypes"].as_array() {
        Some(types) if !types.is_empty() => {
            types.iter().any(|t| t == direction || (t != "Ingress" && t != "Egress"))
        }
        _ if direction == "Ingress" => true,
        _ => spec["egress"].as_array().is_some_and(|rules| !rules.is_empty()),
    }
}

fn rule_matches(objects: &[&Value], policy: &Value, rule: &Value, peers: &str, other: &End<'_>) -> bool {
    let known = |key: &String| key == peers || key == "ports";
    match rule.as_object() {
        Some(map) if map.keys().all(known) => {}
        _ => return false,
    }
    match rule[peers].as_array() {
        Some(entries) if !entries.is_empty() => {
            entries.iter().any(|e| peer_matches(objects, policy, e, other))
        }
        _ => true,
    }
}

fn peer_matches(objects: &[&Value], policy: &Value, entry: &Value, other: &End<'_>) -> bool {
    let (pods, namespaces, block) = (&entry["podSelector"], &entry["namespaceSelector"], &entry["ipBlock"]);
    let selectors = !pods.is_null() || !namespaces.is_null();
    if !block.is_null() {
        return !selectors && block_matches(block, other.address).unwrap_or(false);
    }
    let Some(pod) = other.pod.filter(|pod| !host(pod) && selectors) else { return false };
    let of = &pod["metadata"]["namespace"];
    let there = if namespaces.is_null() {
        Ok(*of == policy["metadata"]["namespace"])
    } else {
        let namespace = objects.iter().find(|o| o["kind"] == "Namespace" && o["metadata"]["name"] == *of);
        match namespace {
            Some(namespace) => selects(namespaces, &namespace["metadata"]["labels"]),
            None => Ok(namespaces.as_object().is_some_and(serde_json::Map::is_empty)),
        }
    };
    let Ok(there) = there else { return false };
    let Ok(selected) = selects(pods, &pod["metadata"]["labels"]) else { return false };
    there && selected
}

fn block_matches(block: &Value, address: IpAddr) -> Result<bool, Odd> {
    let mut inside = within(str(&block["cidr"]), address)?;
    let v4 = |range: &Value| str(range).contains('.');
    for except in block["except"].as_array().into_iter().flatten() {
        inside &= !within(str(except), address)?;
        if v4(except) != v4(&block["cidr"]) {
            return Err(Odd);
        }
    }
    Ok(inside)
}

/// Compares bit by bit, as texts.
fn within(range: &str, address: IpAddr) -> Result<bool, Odd> {
    let (base, length) = range.split_once('/').ok_or(Odd)?;
    let length: usize = length.parse().map_err(|_| Odd)?;
    let decimal: Vec<String> = base.split('.').map(|part| part.trim_start_matches('0').to_owned()).collect();
    let base = if base.contains('.') && !base.contains(':') {
        decimal.iter().map(|p| if p.is_empty() { "0" } else { p }).collect::<Vec<_>>().join(".")
    } else {
        base.to_owned()
    };
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().iter().map(|o| format!("{o:08b}")).collect::<String>(),
        IpAddr::V6(ip) => ip.octets().iter().map(|o| format!("{o:08b}")).collect::<String>(),
    };
    let base = bits(base.parse().map_err(|_| Odd)?);
    let address = bits(address);
    if length > base.len() {
        return Err(Odd);
    }
    Ok(base.len() == address.len() && base[..length] == address[..length])
}

fn selects(selector: &Value, labels: &Value) -> Result<bool, Odd> {
    let mut all = true;
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        all &= labels[key] == *value;
    }
    for term in selector["matchExpressions"].as_array().into_iter().flatten() {
        all &= holds(term, labels)?;
    }
    Ok(all)
}

fn selects_understood(selector: &Value, labels: &Value) -> bool {
    let labelled = selector["matchLabels"].as_object().into_iter().flatten().all(|(k, v)| labels[k] == *v);
    let terms = selector["matchExpressions"].as_array().into_iter().flatten();
    labelled && terms.into_iter().all(|term| holds(term, labels).unwrap_or(true))
}

fn holds(term: &Value, labels: &Value) -> Result<bool, Odd> {
    let value = &labels[str(&term["key"])];
    let values = term["values"].as_array().map(Vec::as_slice).unwrap_or_default();
    let among = values.contains(value) && !value.is_null();
    match (str(&term["operator"]), values.is_empty()) {
        ("In", false) => Ok(among),
        ("NotIn", false) => Ok(!among),
        ("Exists", true) => Ok(!value.is_null()),
        ("DoesNotExist", true) => Ok(value.is_null()),
        _ => Err(Odd),
    }
}

fn ports_match(ports: &Value, target: &End<'_>, probe: Probe) -> bool {
    match (ports.as_array(), probe) {
        (None, _) => true,
        (Some(ports), _) if ports.is_empty() => true,
        (Some(_), Probe::Icmp) => false,
        (Some(ports), Probe::Port(protocol, number)) => {
            ports.iter().any(|port| port_matches(port, target, &protocol.to_string(), number.into()))
        }
    }
}

fn port_matches(port: &Value, target: &End<'_>, protocol: &str, number: u64) -> bool {
    let wanted = if port["protocol"].is_null() { "TCP" } else { str(&port["protocol"]) };
    if wanted != protocol {
        return false;
    }
    let range = 1..=65535;
    match (&port["port"], &port["endPort"]) {
        (Value::Null, Value::Null) => true,
        (Value::Number(first), Value::Null) => first.as_u64() == Some(number),
        (Value::Number(first), last) => {
            let (Some(first), Some(last)) = (first.as_u64(), last.as_u64()) else { return false };
            range.contains(&first) && range.contains(&last) && (first..=last).contains(&number)
        }
        (Value::String(name), Value::Null) => {
            target.pod.filter(|pod| !host(pod)).is_some_and(|pod| called(pod, name, protocol) == Some(number))
        }
        _ => false,
    }
}

/// The number of the port that a pod calls so.
fn called(pod: &Value, name: &str, protocol: &str) -> Option<u64> {
    let list = |key: &str| pod["spec"][key].as_array().cloned().unwrap_or_default();
    let sidecars = list("initContainers").into_iter().filter(|c| c["restartPolicy"] == "Always");
    let containers = list("containers").into_iter().chain(sidecars);
    let ports: Vec<Value> =
        containers.flat_map(|c| c["ports"].as_array().cloned().unwrap_or_default()).collect();
    let of = |p: &Value| p["protocol"].as_str().unwrap_or("TCP").to_owned();
    let found = ports.iter().find(|p| p["name"] == name && of(p) == protocol)?;
    found["containerPort"].as_u64()
}
