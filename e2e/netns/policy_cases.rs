//! The connectivity cases of the upstream Netpol suite, judged by packets: nine pods on two nodes with real agents, every
//! pair and port, against what two other engines say (the recordings of `pkg/policy`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::policy::{Cluster, POD_NAMES};
use kilo_e2e::{World, eventually, figure, tests};
use serde_json::{Value, json};

tests![connectivity_cases_are_kept(limit = 300), policies_are_left_alone_without_the_engine(limit = 120)];

const SOON: Duration = Duration::from_secs(30);

/// A recorded case without the cells of SCTP, which the kernel of a test need not have.
struct Case {
    name: String,
    ports: Vec<(u16, String)>,
    objects: Vec<Value>,
    /// By pair and port, as in [`POD_NAMES`] and `ports`.
    want: Vec<(usize, usize, usize, bool)>,
    /// It says the same of IPv6: no policy names an address.
    both: bool,
}

fn cases() -> Result<Vec<Case>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pkg/policy/tests/vectors");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).context("the recordings")? {
        let path = entry?.path();
        let name = path.file_stem().context("a name")?.to_string_lossy().into_owned();
        if name.starts_with("netpol-") {
            names.push((name, path));
        }
    }
    names.sort();
    names.into_iter().map(|(name, path)| case(name, &std::fs::read_to_string(path)?)).collect()
}

fn case(name: String, text: &str) -> Result<Case> {
    let recorded: Value = serde_json::from_str(text).with_context(|| name.clone())?;
    let all: Vec<String> = serde_json::from_value(recorded["ports"].clone())?;
    let rows: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_value(recorded["rows"].clone())?;
    let mut ports = Vec::new();
    let mut at = Vec::new();
    for (n, port) in all.iter().enumerate().filter(|(_, port)| !port.ends_with("sctp")) {
        let (number, protocol) = port.split_once('/').context("a port")?;
        ports.push((number.parse()?, protocol.to_owned()));
        at.push(n);
    }
    let mut want = Vec::new();
    for (from, a) in POD_NAMES.iter().enumerate() {
        for (to, b) in POD_NAMES.iter().enumerate().filter(|(to, _)| *to != from) {
            let letters = rows.get(a.0).and_then(|row| row.get(&format!("{} IPv4", b.0)));
            let letters: Vec<&str> = letters.with_context(|| format!("{name}: {} {}", a.0, b.0))?.split(' ').collect();
            for (port, n) in at.iter().enumerate() {
                let letters = letters.get(*n).context("a cell")?;
                want.push((from, to, port, !letters.contains('d')));
            }
        }
    }
    let mut objects: Vec<Value> = serde_json::from_value(recorded["objects"].clone())?;
    for object in objects.iter_mut().filter(|object| object["kind"] == "Pod") {
        let pod = format!("pod/{}/{}", object["metadata"]["namespace"].as_str().unwrap_or_default(),
            object["metadata"]["name"].as_str().unwrap_or_default());
        let number = POD_NAMES.iter().position(|(name, ..)| *name == pod).with_context(|| format!("{name}: {pod}"))?;
        let ips = [Cluster::address(number, false)?, Cluster::address(number, true)?];
        ensure!(object["status"]["podIP"] == ips[0].to_string(), "{name}: {pod} has another address");
        object["status"]["podIPs"] = json!([{"ip": ips[0]}, {"ip": ips[1]}]);
    }
    Ok(Case { name, ports, objects, want, both: !text.contains("\"ipBlock\"") })
}

/// Puts the objects of a case into force, in one file.
fn put(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    cluster.state.put("objects.json", &json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())
}

/// Cells that are otherwise than wanted, as text.
fn wrong(case: &Case, got: &[(usize, usize, usize, bool)]) -> Vec<String> {
    let pairs = case.want.iter().zip(got).filter(|(want, got)| want != got);
    pairs.map(|(w, g)| format!("{} → {} {:?}: answered {}", POD_NAMES[w.0].0, POD_NAMES[w.1].0, case.ports[w.2], g.3)).collect()
}

fn connectivity_cases_are_kept(world: &World) -> Result<()> {
    let cases = cases()?;
    let mut cluster = Cluster::start(world, &["--network-policy=on", "--mesh-antispoof=enforce"])?;
    let (mut cells, mut denied, mut later, mut v6) = (0, 0, 0, 0);
    for case in &cases {
        put(&cluster, &case.objects)?;
        // An agent hears of a file within 20 ms.
        std::thread::sleep(Duration::from_millis(200));
        let mut looks = 0;
        for ipv6 in [false, true] {
            if ipv6 && !case.both {
                continue;
            }
            let limit = SOON;
            eventually(limit, &format!("{} ({})", case.name, if ipv6 { "IPv6" } else { "IPv4" }), || {
                looks += 1;
                let got = cluster.probe(&case.ports, ipv6)?;
                ensure!(got.len() == case.want.len(), "{} cells", got.len());
                let wrong = wrong(case, &got);
                ensure!(wrong.is_empty(), "{} of {} wrong: {:?}", wrong.len(), got.len(), &wrong[..wrong.len().min(6)]);
                Ok(())
            })?;
            cells += case.want.len();
            denied += case.want.iter().filter(|cell| !cell.3).count();
            v6 += usize::from(ipv6);
            later += looks - 1;
            looks = 0;
        }
    }
    // Whoever looks at a ruleset sees it, with an nft that is older than our tables as well.
    for node in &cluster.nodes {
        ensure!(node.run("nft list ruleset")?.contains("table inet kilo_policy"), "nft does not list our table");
    }
    ensure!(cases.len() == 55 && denied > 500 && cells - denied > 500, "{} cases, {denied} denied", cases.len());
    figure(&format!(
        "{0} of {0} cases ({v6} in IPv6, too), {cells} cells identical by packets ({denied} denied); {later} looks repeated; SCTP is not sent",
        cases.len()
    ));
    Ok(())
}

/// With the engine off everybody reaches everybody: what the other test sees denied, policies have denied.
fn policies_are_left_alone_without_the_engine(world: &World) -> Result<()> {
    let case = cases()?.into_iter().find(|case| case.name == "netpol-01").context("no case")?;
    let mut cluster = Cluster::start(world, &["--network-policy=off", "--mesh-antispoof=off"])?;
    put(&cluster, &case.objects)?;
    for ipv6 in [false, true] {
        eventually(SOON, "everybody answers", || {
            let got = cluster.probe(&case.ports, ipv6)?;
            ensure!(got.iter().all(|cell| cell.3), "{} do not", got.iter().filter(|cell| !cell.3).count());
            ensure!(!wrong(&case, &got).is_empty(), "the case denies nothing");
            Ok(())
        })?;
    }
    Ok(())
}
