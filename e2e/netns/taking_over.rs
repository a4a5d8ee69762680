//! A node on which an upstream agent was killed: ours takes over while packets flow through it, cleans up what
//! is upstream's and no longer right, leaves alone what is others', and gives the node back.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kilo_agent::Host as _;
use kilo_e2e::mesh::{Iptables, Mesh, Node, Place, add_others, dress, survey};
use kilo_e2e::{PingReport, Pingers, Process, Skip, World, eventually, figure, tests};
use kilo_state::{Desired, Op, UpstreamChain};

use super::host_lab::{config, neighbour, open, reach, sh, wait};

tests![
    chains_go_and_what_others_have_in_them_stays,
    an_upstream_node_with_iptables_nft(limit = 180),
    an_upstream_node_with_iptables_legacy(limit = 180),
];

const SOON: Duration = Duration::from_secs(60);

/// Chains that somebody else leads to, chains of which only a part is left, and comments in either form.
const CHAINS: &str = "
    iptables-nft -t nat -N KILO-NAT; iptables-nft -t nat -A KILO-NAT -j MASQUERADE
    iptables-nft -t nat -A POSTROUTING -s 10.2.1.0/24 -m comment --comment 'Kilo: jump to KILO-NAT chain' -j KILO-NAT
    iptables-nft -t nat -A POSTROUTING -s 10.9.0.0/16 -j KILO-NAT
    ip6tables-nft -t nat -N KILO-NAT; ip6tables-nft -t nat -A POSTROUTING -j RETURN
    nft 'insert rule ip6 nat POSTROUTING ip6 saddr fd02:1::/64 jump KILO-NAT comment \"Kilo: jump to KILO-NAT chain\"'
    iptables-nft -A INPUT -p ipencap -m comment --comment 'Kilo: reject other IPIP traffic' -j DROP
    iptables-nft -A INPUT -p ipencap -s 10.9.0.0/16 -j DROP
    iptables-nft -A FORWARD -s 10.2.9.0/24 -m comment --comment 'Kilo: forward packets from the pod subnet' -j ACCEPT";

fn chains_go_and_what_others_have_in_them_stays(world: &World) -> Result<()> {
    world.need("iptables-nft")?;
    neighbour(world)?;
    sh(CHAINS)?;
    let saved = || sh("iptables-nft-save | grep -e '^-A' -e KILO; ip6tables-nft-save | grep -e '^-A' -e KILO || :");
    wait(async {
        let mut host = open(config(world)).await?;
        // Nothing goes before ours could be put in its place.
        let change = kilo_nftables::Change::DeleteSet("nothing".into());
        let refused = kilo_nftables::Transaction { table: "kilo".into(), changes: vec![change], ..Default::default() };
        let chain = Op::RemoveChain { ipv6: false, chain: UpstreamChain::Nat };
        let before = saved()?;
        let answers = host.apply(&[Op::Nftables(refused), chain]).await;
        ensure!(answers.iter().all(Result::is_err) && saved()? == before, "{answers:?}");

        let nothing = Desired::default();
        ensure!(reach(&mut host, &nothing).await? == 4, "two chains of iptables, one of ip6tables, half a forward");
        let after = saved()?;
        let wanted = "-A INPUT -s 10.9.0.0/16 -p ipencap -j DROP\n:KILO-NAT - [0:0]\n\
                      -A POSTROUTING -s 10.9.0.0/16 -j KILO-NAT\n-A POSTROUTING -j RETURN\n";
        ensure!(after == wanted, "{after}");
        ensure!(reach(&mut host, &nothing).await? == 0);
        // One that comes later is found by its name.
        sh("ip6tables-nft -N KILO-IPIP; ip6tables-nft -A INPUT -m comment --comment 'Kilo: jump' -j KILO-IPIP")?;
        ensure!(reach(&mut host, &nothing).await? == 1 && saved()? == wanted, "{}", saved()?);
        Ok(())
    })
}

fn an_upstream_node_with_iptables_nft(world: &World) -> Result<()> {
    with_wireguard_go(world, Iptables::Nft)
}

fn an_upstream_node_with_iptables_legacy(world: &World) -> Result<()> {
    with_wireguard_go(world, Iptables::Legacy)
}

/// As upstream's manifests for kernels without WireGuard have it, except that the device outlives the agent.
fn with_wireguard_go(world: &World, iptables: Iptables) -> Result<()> {
    world.need("wireguard-go")?;
    world.need_tun()?;
    let place = Place::lay_out(world)?;
    let go = |node: &Node| -> Result<Process> {
        let process = node.ns.spawn("wireguard-go", &["wireguard-go", "--foreground", "kilo0"])?;
        eventually(SOON, "wireguard-go runs", || node.ns.run("wg show kilo0 listen-port"))?;
        Ok(process)
    };
    // On a2 the sidecar has died: its socket stays, its link does not.
    go(place.node("a2")?)?.kill();
    let socket = place.node("a2")?.ns.dir().join("wireguard/kilo0.sock");
    ensure!(socket.exists(), "the dead device has no socket");
    let _device = go(place.node("a1")?)?;
    take_over(world, place, &["a1", "a2", "b1", "b2"], &[], iptables)
}

/// Runs agents on these nodes, of which a1 leads the location that a2 is in, too, and is dressed up as an
/// upstream node whose agent has been killed.
pub(crate) fn take_over(
    world: &World,
    place: Place,
    names: &[&str],
    flags: &[&str],
    iptables: Iptables,
) -> Result<()> {
    for suffix in ["nft", "legacy"] {
        world.need(&format!("iptables-{suffix}"))?;
    }
    let look = "iptables-legacy -t nat -S; ip6tables-legacy -t nat -S";
    if iptables == Iptables::Legacy
        && let Err(error) = place.node("a1")?.ns.sh(look)
    {
        return Err(Skip::because(format!("the kernel has no legacy tables: {error:#}")));
    }
    let mut mesh = Mesh::start_at(world, place, names, flags)?;
    mesh.settle(SOON)?;
    mesh.reach_all(SOON)?;
    let outside = mesh.place.node("b1")?.private.to_string();
    let plan = eventually(SOON, "a1 leads and has found b1 behind its router", || {
        let plan = mesh.agents["a1"].plan()?;
        let found = plan["routes"].as_array().into_iter().flatten().any(|r| r["dst"] == format!("{outside}/32"));
        ensure!(found && plan["leader"] == true);
        Ok(plan)
    })?;
    add_others(mesh.place.node("a1")?, mesh.place.node("a2")?, iptables)?;
    mesh.kernels_as_planned(SOON)?;
    let right = survey(mesh.place.node("a1")?)?;

    // Upstream's rules, on this node alone, work with ours on the others.
    mesh.stop("a1", false)?;
    dress(mesh.place.node("a1")?, mesh.place.node("a2")?, &plan, iptables, true)?;
    let dressed = survey(mesh.place.node("a1")?)?;
    let chains = dressed.iter().filter(|line| line.contains("KILO-") || line.contains("Kilo: ")).count();
    ensure!(chains > 10, "upstream's rules are not there: {dressed:#?}");
    let pingers = flow(&mesh)?;

    let before = received(&mesh)?;
    mesh.restart("a1", flags)?;
    mesh.settle(SOON)?;
    mesh.kernels_as_planned(SOON)?;
    let commands = if iptables == Iptables::Legacy { follow_the_findings(&mut mesh)? } else { 0 };
    eventually(SOON, "all is as before upstream came", || same(&right, &survey(mesh.place.node("a1")?)?))?;
    std::thread::sleep(Duration::from_millis(500));
    let PingReport { sent, lost, .. } = pingers.stop()?;
    ensure!(lost == 0 && sent > 60, "{lost} of {sent} pings lost");
    for (key, count) in received(&mesh)? {
        let old = before.iter().find(|(old, _)| *old == key);
        ensure!(old.is_none_or(|(_, old)| count >= *old), "the sessions with {key} began anew");
    }
    let findings = mesh.agent("a1")?.plan()?["findings"].to_string();
    ensure!(!findings.contains("another Kilo"), "{findings}");
    let operations = mesh.agent("a1")?.operations(&["peer", "device", "address"])?;
    ensure!(operations == 0.0, "{operations} operations on a device that was right");

    give_back(&mut mesh, &plan, iptables)?;
    figure(&format!(
        "{chains} rules of upstream's gone, {} lines of others' the same, {commands} commands told; {lost} of \
         {sent} pings lost; 0 operations on the device; given back",
        right.len()
    ));
    Ok(())
}

/// A graceful stop leaves nothing that an upstream agent could trip over, whose commands then do what they say.
fn give_back(mesh: &mut Mesh<'_>, plan: &serde_json::Value, iptables: Iptables) -> Result<()> {
    let object = mesh.state.path().join("nodes/a1.yaml");
    let announced = std::fs::read(&object).context("reading the Node of a1")?;
    mesh.stop("a1", true)?;
    let node = mesh.place.node("a1")?;
    let left = survey(node)?;
    let ours = ["proto 75", "1107", "Kilo: ", "KILO-"];
    let found: Vec<&String> = left.iter().filter(|line| ours.iter().any(|word| line.contains(word))).collect();
    ensure!(found.is_empty(), "a graceful stop leaves {found:?}");
    ensure!(!node.ns.run("nft list tables")?.contains("inet kilo"), "our table stays");
    let withdrawn = std::fs::read_to_string(&object).context("reading the Node of a1")?;
    ensure!(!withdrawn.contains("last-seen"), "the node is not withdrawn:\n{withdrawn}");

    // Upstream's turn; it announces what we did.
    if let Some(address) = plan["tunnelAddress"].as_str() {
        node.ns.sh(&format!("ip link set tunl0 up; ip addr replace {address} dev tunl0"))?;
    }
    dress(node, mesh.place.node("a2")?, plan, iptables, false)?;
    std::fs::write(&object, announced).context("writing the Node of a1")?;
    let PingReport { sent, lost, .. } = flow(mesh)?.stop()?;
    ensure!(lost == 0, "{lost} of {sent} pings lost after upstream came back");
    Ok(())
}

/// Pings in both directions through a1 and from its pod, once they are answered.
fn flow(mesh: &Mesh<'_>) -> Result<Pingers> {
    let pod = |name: &str| mesh.place.node(name).map(|node| &node.pod);
    let (a1, a2, b1) = (pod("a1")?, pod("a2")?, pod("b1")?);
    let ways = [a1.to(b1), a2.to(b1), b1.to(a2), a2.to(a1)];
    for (ns, address) in ways {
        eventually(SOON, "pings are answered", || ns.ping(address))?;
    }
    Pingers::start(ways)
}

/// What a1's device has received from each peer.
fn received(mesh: &Mesh<'_>) -> Result<Vec<(String, u64)>> {
    let text = mesh.place.node("a1")?.ns.run("wg show kilo0 transfer")?;
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    Ok(text.lines().filter_map(line).collect())
}

fn same(right: &[String], now: &[String]) -> Result<()> {
    let (right, now): (BTreeSet<_>, BTreeSet<_>) = (right.iter().collect(), now.iter().collect());
    let more: Vec<_> = now.difference(&right).collect();
    let less: Vec<_> = right.difference(&now).collect();
    ensure!(more.is_empty() && less.is_empty(), "too many: {more:#?}, missing: {less:#?}");
    Ok(())
}

/// Runs the commands of the findings about iptables-legacy, which are then settled.
fn follow_the_findings(mesh: &mut Mesh<'_>) -> Result<usize> {
    let told = |mesh: &mut Mesh<'_>| -> Result<Vec<String>> {
        let plan = mesh.agent("a1")?.plan()?;
        let findings = plan["findings"].as_array().cloned().unwrap_or_default();
        let ours = findings.iter().filter(|f| f["field"].as_str().is_some_and(|f| f.ends_with("tables-legacy")));
        Ok(ours.filter_map(|finding| finding["reason"].as_str().map(str::to_owned)).collect())
    };
    let reasons = told(mesh)?;
    ensure!(reasons.len() == 4, "nat and filter of both families are to be told of: {reasons:#?}");
    for reason in &reasons {
        let (_, command) = reason.split_once("run: ").context("a finding without a command")?;
        mesh.place.node("a1")?.ns.sh(command)?;
    }
    eventually(SOON, "the findings are settled", || {
        let left = told(mesh)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    Ok(reasons.len())
}
