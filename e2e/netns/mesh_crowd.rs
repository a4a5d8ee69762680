//! A thousand Peers of which a hundred have live sessions: a change of one leaves all others alone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::mesh::{Crowd, Mesh, Messages, crowd_address, stranger};
use kilo_e2e::{Ns, World, eventually, figure, tests};

tests![one_of_a_thousand_peers_changes(limit = 240)];

const SOON: Duration = Duration::from_secs(60);
/// Seconds until WireGuard makes new keys by itself (`REKEY_AFTER_TIME`).
const REKEY_AFTER: u64 = 120;
const LIVE: usize = 99;
const SILENT: usize = 900;
/// What goes to the WireGuard device; the rest are routes and elements of nftables sets.
const DEVICE: [&str; 2] = ["device", "peer"];

/// A peer of `wg show dump`.
#[derive(Clone, Copy, Debug)]
struct Counters {
    handshake: u64,
    received: u64,
    sent: u64,
}

fn one_of_a_thousand_peers_changes(world: &World) -> Result<()> {
    change_one(world, &[], None)
}

/// Adds, changes and removes one of a thousand Peers, a hundred of them live, with `flags` for the agent. With
/// `count`, the requests that the kernel's WireGuard gets are counted by it.
pub fn change_one(world: &World, flags: &[&str], count: Option<fn(&Ns) -> Result<Messages>>) -> Result<()> {
    let mut mesh = Mesh::start_on(world, &["a1"], flags)?;
    mesh.settle(SOON)?;
    mesh.admit("laptop", 77, SOON)?;
    let a1 = mesh.place.node("a1")?;
    let key = a1.ns.run("wg show kilo0 public-key")?;
    let public = a1.public.context("a1 has a public address")?;
    let crowd_ns = mesh.place.traveller(world, "crowd", 90)?;
    let crowd = Crowd::gather(&crowd_ns, LIVE, key.trim(), (public, 51_820).into())?;

    let mut text = String::new();
    for number in 0..LIVE + SILENT {
        let key = crowd.keys.get(number).copied().map_or_else(stranger, Ok)?;
        text.push_str(&manifest(number, &key.to_string(), crowd_address(number)?));
    }
    mesh.state.put("peers/all.yaml", &text)?;
    let counters = || -> Result<BTreeMap<String, Counters>> { read(&a1.ns.run("wg show kilo0 dump")?) };
    let live = |all: &BTreeMap<String, Counters>| all.values().filter(|peer| peer.handshake > 0).count();
    eventually(SOON, "all peers are there, a hundred of them live", || {
        let found = counters()?;
        let (peers, live) = (found.len(), live(&found));
        ensure!((peers, live) == (LIVE + SILENT + 1, LIVE + 1), "{peers} peers, {live} live");
        Ok(())
    })?;
    crowd.ping_all(&a1.ns)?;
    mesh.kernels_as_planned(SOON)?;
    let before = counters()?;
    let start = std::time::UNIX_EPOCH.elapsed().context("the clock")?.as_secs();

    let pinger = mesh.traveller("laptop")?.host.ns.pinger(a1.pod.address)?;
    pinger.wait(5)?;
    let stranger = stranger()?.to_string();
    let range_of = || -> Result<Option<String>> {
        let found = a1.ns.run("wg show kilo0 allowed-ips")?;
        let mut lines = found.lines().filter_map(|line| line.split_once('\t'));
        Ok(lines.find(|(key, _)| *key == stranger).map(|(_, ranges)| ranges.to_owned()))
    };
    let agent = &mesh.agents["a1"];
    let messages = count.map(|count| count(&a1.ns)).transpose()?;
    let seen = || messages.as_ref().map(Messages::so_far);
    let (mut operations, mut asked) = (Vec::new(), Vec::new());
    let steps = [Some([10, 100, 200, 1]), Some([10, 100, 200, 2]), None].map(|address| address.map(IpAddr::from));
    for wanted in steps {
        let counts = || anyhow::Ok((agent.operations(&DEVICE)?, agent.operations(&[])?));
        let (device, all) = counts()?;
        let seen_before = seen();
        match wanted {
            Some(address) => mesh.state.put_peer("stranger", &stranger, address, None)?,
            None => mesh.state.remove_peer("stranger")?,
        }
        eventually(SOON, "the change is on the device", || {
            let found = range_of()?;
            ensure!(found == wanted.map(|address| format!("{address}/32")), "{found:?}");
            Ok(())
        })?;
        // Whatever else the agent does because of it comes within moments.
        std::thread::sleep(Duration::from_secs(1));
        let (device_then, all_then) = counts()?;
        operations.push((device_then - device, all_then - all));
        asked.extend(seen().zip(seen_before).map(|(then, before)| then - before));
    }
    crowd.ping_all(&a1.ns)?;
    let report = pinger.stop()?;
    let after = counters()?;

    let mut went_on = 0;
    for (key, old) in before.iter().filter(|(_, old)| old.handshake > 0) {
        let new = after.get(key).with_context(|| format!("{key} is gone"))?;
        // A session that began anew counts from zero. On a slow machine one may have come of age meanwhile.
        let aged = new.handshake >= old.handshake + REKEY_AFTER;
        ensure!(
            ((1..start).contains(&new.handshake) || aged) && new.received > old.received && new.sent > old.sent,
            "{key} began anew: {old:?}, then {new:?}"
        );
        went_on += 1;
    }
    let messages = match messages {
        Some(_) => format!("; netlink messages to WireGuard: {asked:?}"),
        None => String::new(),
    };
    let text = format!(
        "{} peers, {went_on} live sessions went on; {} of {} pings lost; operations to add, change, \
         remove (device, all): {operations:?}{messages}",
        after.len(),
        report.lost,
        report.sent
    );
    ensure!(went_on == LIVE + 1 && report.lost == 0 && report.sent > 60, "{text}");
    ensure!(operations.iter().all(|&(device, all)| device == 1.0 && all <= 4.0), "{text}");
    ensure!(asked.iter().all(|&asked| (1..=3).contains(&asked)), "{text}");
    figure(&text);
    mesh.kernels_as_planned(SOON)
}

fn manifest(number: usize, key: &str, address: IpAddr) -> String {
    format!(
        "---\napiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata:\n  name: p{number:04}\nspec:\n  \
         allowedIPs:\n  - {address}/32\n  publicKey: {key}\n"
    )
}

fn read(dump: &str) -> Result<BTreeMap<String, Counters>> {
    let mut peers = BTreeMap::new();
    for line in dump.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [key, _psk, _endpoint, _ranges, handshake, received, sent, _keepalive] = fields.as_slice() else {
            anyhow::bail!("a line of wg: {line:?}")
        };
        let counters =
            Counters { handshake: handshake.parse()?, received: received.parse()?, sent: sent.parse()? };
        peers.insert((*key).to_owned(), counters);
    }
    Ok(peers)
}
