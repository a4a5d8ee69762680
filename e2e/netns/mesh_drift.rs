//! What others break on a node is put right within a second of the kernel's word, counted and told once, and those
//! who have nothing to do with it lose no packet. Nothing is read again without a cause here.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kilo_e2e::mesh::{Agent, Mesh, Place, stranger};
use kilo_e2e::{Ns, World, eventually, figure, tests};

tests![
    what_others_break_is_repaired(limit = 180),
    a_rule_is_repaired(limit = 120),
    lost_notifications_lead_to_one_reading(limit = 120),
    who_undoes_repairs_is_named_and_not_fought(limit = 120),
];

const SOON: Duration = Duration::from_secs(30);
/// Only events count.
const NO_RESYNC: &str = "--resync-period=1h";
const FORWARD: &str = "--iptables-forward-rules=true";
/// From the breaking on, the time of the programs that break and look included.
const SECOND: Duration = Duration::from_secs(1);

/// The address of a Peer that nobody talks to.
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 99);

/// Something that somebody breaks on the leader of west.
struct Break {
    what: &'static str,
    /// The kind that is counted.
    kind: &'static str,
    /// What breaks it, with `sh` in the node's namespace.
    script: String,
    /// What succeeds when it is right.
    check: String,
    /// Everybody's packets need it.
    cuts: bool,
    /// What the log must say of who it was.
    by: &'static str,
}

fn what_others_break_is_repaired(world: &World) -> Result<()> {
    let mesh = Mesh::start(world, &[NO_RESYNC, FORWARD])?;
    mesh.settle(SOON)?;
    let key = stranger()?.to_string();
    mesh.state.put_peer("stranger", &key, STRANGER.into(), None)?;
    mesh.reach_all(SOON)?;
    mesh.kernels_as_planned(SOON)?;
    let mut failures = Vec::new();
    for broken in breaks(&mesh, &key)? {
        let result = break_and_wait(&mesh, &broken, ["a2", "b2"]);
        if let Err(error) = result {
            failures.push(format!("{}: {error:#}", broken.what));
        }
        // What one left broken is not the next one's fault.
        mesh.kernels_as_planned(SOON).with_context(|| broken.what)?;
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    mesh.reach_all(SOON)?;
    Ok(())
}

fn breaks(mesh: &Mesh<'_>, key: &str) -> Result<Vec<Break>> {
    let a1 = mesh.place.node("a1")?;
    let address = STRANGER;
    let plan = mesh.agents["a1"].plan()?;
    let wireguard = plan["wireGuardCIDR"].as_str().context("a1 has an address")?.to_owned();
    let mtu = plan["mtu"]["value"].to_string();
    let cni = Agent::cni_file(a1).display().to_string();
    let pods = a1.pod_cidr;
    let one = |what, kind, script: String, check: String| Break { what, kind, script, check, cuts: false, by: "" };
    let route = format!("ip route show {address} | grep -q 'dev kilo0 proto 75'");
    let up = format!("ip -br addr show dev kilo0 up | grep -q {wireguard}");
    let masquerades = "nft list chain inet kilo postrouting | grep -q masq_dst6";
    let peer = format!("wg show kilo0 allowed-ips | grep -q '^{key}.*{address}/32$'");
    let handle = "$(nft -a list chain inet kilo postrouting | sed -n 's/.*masq_src4.* handle //p')";
    let listed = format!("nft list set inet kilo except4 | grep -q {address}");
    let ranged = format!("grep -q '\"subnet\":\"{pods}\"' {cni}");
    let forward = "nft list chain ip filter FORWARD | grep -q ' accept$'";
    let mut list = vec![
        one("a route", "route", format!("ip route del {address}"), route.clone()),
        Break {
            by: "a route of protocol bird",
            ..one("a replaced route", "route", format!("ip route replace {address} dev eth0 proto bird"), route)
        },
        one("a peer", "peer", format!("wg set kilo0 peer {key} remove"), peer.clone()),
        one("a peer's ranges", "peer", format!("wg set kilo0 peer {key} allowed-ips 192.0.2.9/32"), peer),
        one("a set element", "nftables", format!("nft delete element inet kilo except4 '{{ {address} }}'"), listed),
        one("a rule of nftables", "nftables", format!("nft delete rule inet kilo postrouting handle {handle}"),
            "nft list chain inet kilo postrouting | grep -q masq_src4".into()),
        one("a chain", "nftables", "nft 'flush chain inet kilo postrouting; delete chain inet kilo postrouting'".into(),
            masquerades.into()),
        one("the table", "nftables", "nft delete table inet kilo".into(), masquerades.into()),
        one("rules of iptables FORWARD", "forward", "nft flush chain ip filter FORWARD".into(), forward.into()),
        one("an emptied CNI file", "cni", format!("sed -i 's/\"ranges\":[^]]*]]/\"ranges\":[]/' {cni}"), ranged.clone()),
        one("a removed CNI file", "cni", format!("rm {cni}"), ranged),
        one("the MTU", "link", "ip link set kilo0 mtu 1300".into(), format!("ip link show kilo0 | grep -q 'mtu {mtu} '")),
    ];
    for broken in list.iter_mut().filter(|broken| broken.script.starts_with("nft ")) {
        broken.by = "(nft)";
    }
    let cut = |what, kind, script: &str, check: &str| Break { cuts: true, ..one(what, kind, script.into(), check.into()) };
    list.extend([
        cut("a kernel parameter", "sysctl", "echo 0 > /proc/sys/net/ipv4/ip_forward",
            "grep -q 1 /proc/sys/net/ipv4/ip_forward"),
        cut("an address", "address", &format!("ip address del {wireguard} dev kilo0"), &up),
        cut("a link that is down", "link", "ip link set kilo0 down", &up),
        cut("the link", "link", "ip link del kilo0", &format!("{up} && wg show kilo0 peers | grep -q '{key}'")),
    ]);
    Ok(list)
}

/// With flannel there are rules on a leader, for the way back to nodes of its location.
fn a_rule_is_repaired(world: &World) -> Result<()> {
    let place = Place::lay_out(world)?;
    for node in &place.nodes {
        node.ns.sh(&format!(
            "ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0; ip link set flannel.1 up
             ip addr add {}/32 dev flannel.1",
            node.pod_cidr.network()
        ))?;
    }
    let flags = [NO_RESYNC, "--compatibility=flannel", "--encapsulate=always"];
    let mesh = Mesh::start_at(world, place, &["a1", "a2", "b1", "b2"], &flags)?;
    mesh.settle(SOON)?;
    mesh.kernels_as_planned(SOON)?;
    let rule = "ip rule show | sed -n 's/^[0-9]*:\\(.*lookup 1107\\).*/\\1/p' | head -1";
    let rule = mesh.place.node("a1")?.ns.sh(rule)?.trim().to_owned();
    ensure!(!rule.is_empty(), "a1 has no rule");
    let broken = Break {
        what: "a rule",
        kind: "rule",
        script: format!("ip rule del {rule}"),
        check: format!("ip rule show | grep -q '{}'", rule.split_whitespace().take(4).collect::<Vec<_>>().join(" ")),
        cuts: false,
        by: "by=\"process ",
    };
    break_and_wait(&mesh, &broken, ["a1", "b1"])?;
    mesh.kernels_as_planned(SOON)
}

/// Breaks one thing on a1, while pods of these two nodes talk to each other.
fn break_and_wait(mesh: &Mesh<'_>, broken: &Break, [from, to]: [&str; 2]) -> Result<()> {
    let (ns, agent) = (&mesh.place.node("a1")?.ns, &mesh.agents["a1"]);
    let pinger = mesh.place.node(from)?.pod.ns.pinger(mesh.place.node(to)?.pod.address)?;
    pinger.wait(5)?;
    let (counted, told) = (agent.repairs(&[broken.kind])?, repairs_told(agent));

    let took = break_until(ns, &broken.script, &broken.check)?;
    // A packet that was cut off is not answered, whereas the path is there again now.
    pinger.wait(5)?;
    let report = pinger.stop()?;

    let counted = agent.repairs(&[broken.kind])? - counted;
    let lines = repairs_told(agent);
    let told = lines.get(told.len()..).unwrap_or_default();
    figure(&format!(
        "{}: repaired after {} ms, {} of {} pings lost{}",
        broken.what,
        took.as_millis(),
        report.lost,
        report.sent,
        if broken.cuts { ", whose way it is" } else { "" }
    ));
    ensure!(took < SECOND, "repaired only after {took:?}");
    ensure!(counted >= 1.0, "{counted} repairs of kind {} are counted", broken.kind);
    let mut once = told.to_vec();
    once.sort();
    once.dedup();
    ensure!(!told.is_empty() && once.len() == told.len(), "not told once: {told:#?}");
    ensure!(told.iter().any(|line| line.contains(broken.by)), "{} is not named: {told:#?}", broken.by);
    ensure!(broken.cuts || report.lost == 0, "{report:?}");
    // A device that is made anew has no session, and a call that is lost is repeated after 5 s (REKEY_TIMEOUT).
    let longest = if broken.what == "the link" { SECOND * 6 } else { SECOND * 3 / 2 };
    ensure!(report.longest_gap <= longest, "{report:?}");
    Ok(())
}

/// What the agent told of repairs, without the time. A change of nftables takes several lines.
fn repairs_told(agent: &Agent) -> Vec<String> {
    let log = agent.log();
    let rest_of = |rest: &str| {
        let lines = rest.lines().enumerate().take_while(|(n, line)| *n == 0 || line.starts_with("~ "));
        lines.map(|(_, line)| line).collect::<Vec<_>>().join("\n")
    };
    log.split("Repaired the host").skip(1).map(rest_of).collect()
}

/// Runs a script and waits until a check succeeds: from before the one until after the other.
pub fn break_until(ns: &Ns, script: &str, check: &str) -> Result<Duration> {
    ensure!(ns.sh(check).is_ok(), "it is broken already: {check}");
    let start = Instant::now();
    ns.sh(script)?;
    until(ns, check)?;
    Ok(start.elapsed())
}

fn until(ns: &Ns, check: &str) -> Result<()> {
    let line = format!("n=0; until {check}; do n=$((n+1)); [ $n -lt 3000 ] || exit 9; sleep 0.01; done");
    ns.sh(&line).context("it is not repaired").map(drop)
}

/// How many messages sockets of a namespace have lost.
fn drops(ns: &Ns) -> Result<u64> {
    let table = ns.sh("cat /proc/self/net/netlink")?;
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
    let drops = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok());
    Ok(drops.sum())
}

/// While an agent sleeps so much happens that its sockets overflow, and what is broken after that nobody tells.
fn lost_notifications_lead_to_one_reading(world: &World) -> Result<()> {
    let mut mesh = Mesh::start(world, &[NO_RESYNC])?;
    mesh.settle(SOON)?;
    mesh.reach_all(SOON)?;
    let routes: String = (0..60_000u32)
        .map(|i| format!("route add 10.{}.{}.{}/32 dev eth0 table 77\n", 70 + (i >> 16), i >> 8 & 0xff, i & 0xff))
        .collect();
    let routes_file = world.dir().join("routes");
    std::fs::write(&routes_file, routes)?;
    let mut sets = String::from("add table ip foreign\nadd set ip foreign s { type ipv4_addr; }\n");
    for i in 0..20_000u32 {
        let ip = Ipv4Addr::from(0x0a46_0000 + i);
        sets.push_str(&format!("add element ip foreign s {{ {ip} }}\n"));
    }
    let sets_file = world.dir().join("sets");
    std::fs::write(&sets_file, sets)?;
    let floods = [
        (
            "routes",
            format!("ip -force -batch {}", routes_file.display()),
            "ip route del 10.42.1.0/24",
            "ip route show 10.42.1.0/24 | grep -q 'proto 75'",
        ),
        (
            "nftables",
            format!("for i in $(seq 12); do nft -f {}; nft delete table ip foreign; done", sets_file.display()),
            "nft flush chain inet kilo postrouting",
            "nft list chain inet kilo postrouting | grep -q masq_src4",
        ),
    ];
    for (what, flood, script, check) in floods {
        let pinger = mesh.place.node("a2")?.pod.ns.pinger(mesh.place.node("b1")?.pod.address)?;
        pinger.wait(5)?;
        let before = reconciles(&mesh.agents["b2"])?;
        mesh.agent("b2")?.freeze()?;
        let ns = mesh.place.node("b2")?.ns.clone();
        let lost = drops(&ns)?;
        ns.sh(&flood)?;
        let lost = drops(&ns)? - lost;
        ns.sh(script)?;
        ensure!(ns.sh(check).is_err(), "it is not broken");
        let start = Instant::now();
        mesh.agent("b2")?.thaw()?;
        until(&ns, check)?;
        let took = start.elapsed();
        std::thread::sleep(Duration::from_secs(2));
        let rounds = reconciles(&mesh.agents["b2"])? - before;
        let report = pinger.stop()?;
        figure(&format!(
            "{what}: {lost} notifications lost; repaired {} ms after the agent woke, {rounds} rounds, {} of {} \
             pings of others lost",
            took.as_millis(),
            report.lost,
            report.sent
        ));
        ensure!(lost > 0, "nothing was lost");
        ensure!(took < SECOND, "repaired only after {took:?}");
        ensure!((1.0..=3.0).contains(&rounds), "{rounds} rounds");
        ensure!(report.lost == 0, "{report:?}");
    }
    mesh.kernels_as_planned(SOON)
}

fn reconciles(agent: &Agent) -> Result<f64> {
    let metrics = agent.get("/metrics")?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("kilo_reconciles_total "));
    line.context("no kilo_reconciles_total")?.parse().context("kilo_reconciles_total")
}

/// Processor time of a process so far.
fn busy(id: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// One takes a route away as fast as it is there, another puts his own in its place all the time.
fn who_undoes_repairs_is_named_and_not_fought(world: &World) -> Result<()> {
    const FIGHT: Duration = Duration::from_secs(15);
    let mesh = Mesh::start(world, &[NO_RESYNC])?;
    mesh.settle(SOON)?;
    mesh.reach_all(SOON)?;
    let node = mesh.place.node("b2")?;
    let (ns, agent) = (node.ns.clone(), &mesh.agents["b2"]);
    let batch = world.dir().join("replace");
    std::fs::write(&batch, "route replace 10.42.2.0/24 dev eth0 proto bird\n".repeat(1000))?;
    let foes = [
        ("10.42.1.0/24", "while :; do ip route del 10.42.1.0/24 2>/dev/null || true; done".to_owned(), "by=\"process "),
        (
            "10.42.2.0/24",
            format!("while :; do ip -batch {}; done", batch.display()),
            "by=\"a route of protocol bird by process ",
        ),
    ];
    for (range, script, by) in foes {
        let pinger = mesh.place.node("a2")?.pod.ns.pinger(mesh.place.node("b1")?.pod.address)?;
        let (repairs, used) = (agent.repairs(&["route"])?, busy(agent.id())?);
        let mut foe = ns.spawn("foe", &["sh", "-c", &script])?;
        let start = Instant::now();
        std::thread::sleep(Duration::from_secs(5));
        // What others break meanwhile does not wait.
        let other = break_until(
            &ns,
            "ip route del 10.42.3.0/24",
            "ip route show 10.42.3.0/24 | grep -q 'proto 75'",
        )?;
        std::thread::sleep(FIGHT.saturating_sub(start.elapsed()));
        let share = (busy(agent.id())? - used).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
        let repairs = agent.repairs(&["route"])? - repairs;
        let ready = agent.get("/readyz?verbose").err().map(|error| format!("{error:#}")).unwrap_or_default();
        foe.kill();
        let start = Instant::now();
        eventually(SOON, "the route is there again", || {
            let found = ns.run(&format!("ip route show {range}"))?;
            ensure!(found.contains("proto 75"), "{found}");
            Ok(())
        })?;
        let peace = start.elapsed();
        let report = pinger.stop()?;
        let log = agent.log();
        let told: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("Somebody undoes this again and again") && line.contains(range))
            .collect();
        figure(&format!(
            "{range}: {repairs} repairs in {} s, {share:.1} % of a processor, another route back after {} ms, this \
             one {:.1} s after the end, {} of {} pings of others lost; {}",
            FIGHT.as_secs(),
            other.as_millis(),
            peace.as_secs_f64(),
            report.lost,
            report.sent,
            told.first().and_then(|line| line.split_once("by=")).map_or("", |(_, who)| who),
        ));
        ensure!((4.0..=12.0).contains(&repairs), "{repairs} repairs");
        ensure!(share < 20.0, "{share} % of a processor");
        ensure!(other < SECOND, "another route came back only after {other:?}");
        ensure!(ready.contains("somebody undoes them"), "readiness does not tell: {ready:?}");
        let [line] = told[..] else { bail!("told {} times: {told:#?}", told.len()) };
        ensure!(line.contains(by), "{by} is not in {line}");
        ensure!(report.lost == 0, "{report:?}");
    }
    mesh.kernels_as_planned(SOON)
}
