//! The state directory goes away for longer than nodes may be silent, and comes back; names of endpoints are followed
//! meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::mesh::{Mesh, stranger};
use kilo_e2e::{PingReport, Pingers, World, eventually, figure, tests};

tests![a_state_directory_away_changes_nothing(limit = 300, waits = true)];

const SOON: Duration = Duration::from_secs(40);
/// Nodes expire after 40 s here.
const EXPIRY: &str = "--node-expiry=40s";
const OUTAGE: Duration = Duration::from_secs(55);
/// Until all who did not check in again would be dropped.
const AFTER: Duration = Duration::from_secs(35);
/// A name is looked up every half minute.
const NAME: Duration = Duration::from_secs(33);

/// Where the device of a1 expects a peer.
fn endpoint(mesh: &Mesh<'_>, key: &str) -> Result<String> {
    let all = mesh.place.node("a1")?.ns.run("wg show kilo0 endpoints")?;
    let line = all.lines().find_map(|line| line.strip_prefix(key));
    Ok(line.with_context(|| format!("no peer {key}: {all}"))?.trim().to_owned())
}

fn a_state_directory_away_changes_nothing(world: &World) -> Result<()> {
    let mut mesh = Mesh::start(world, &[EXPIRY])?;
    mesh.settle(SOON)?;
    mesh.admit("laptop", 77, SOON)?;
    // Nobody answers for this name: that holds back nobody else, nor the Peer's ranges.
    let key = stranger()?.to_string();
    mesh.state.put(
        "peers/a-roamer.yaml",
        &format!(
            "apiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {{name: a-roamer}}\nspec:\n  allowedIPs: \
             [10.100.9.1/32]\n  endpoint: {{dnsOrIP: {{dns: roamer.example}}, port: 51820}}\n  publicKey: {key}\n"
        ),
    )?;
    mesh.reach_all(SOON)?;
    mesh.kernels_as_planned(SOON)?;
    ensure!(endpoint(&mesh, &key)? == "(none)", "{}", endpoint(&mesh, &key)?);

    let before = mesh.devices()?;
    let pod = |name: &str| mesh.place.node(name).map(|node| &node.pod);
    let laptop = &mesh.traveller("laptop")?.host;
    let (a2, b1) = (pod("a2")?, pod("b1")?);
    let pingers = Pingers::start([a2.to(pod("b2")?), b1.to(pod("a1")?), laptop.to(a2)])?;

    let away = mesh.state.path().with_extension("away");
    std::fs::rename(mesh.state.path(), &away).context("moving the state directory away")?;
    let gone = Instant::now();
    let hosts = mesh.place.node("a1")?.ns.dir().join("hosts");
    let known = std::fs::read_to_string(&hosts).context("reading the file of hosts")?;
    std::fs::write(&hosts, format!("{known}198.51.100.9 roamer.example\n")).context("writing the file of hosts")?;
    let resolved = eventually(NAME, "the name is followed", || {
        let found = endpoint(&mesh, &key)?;
        ensure!(found == "198.51.100.9:51820", "{found}");
        Ok(gone.elapsed())
    })?;
    std::fs::write(&hosts, known).context("writing the file of hosts")?;
    let done = mesh.operations()?;
    let watch = |limit: Duration, since: Instant| -> Result<()> {
        while since.elapsed() < limit {
            std::thread::sleep(Duration::from_secs(3));
            let now = mesh.devices()?;
            ensure!(now == before, "after {:?}: {now:?}\n{before:?}", since.elapsed());
        }
        Ok(())
    };
    watch(OUTAGE, gone)?;
    for (name, agent) in &mesh.agents {
        let ready = agent.get("/readyz?verbose")?;
        ensure!(ready.contains("[-]watch-nodes failed"), "{name} does not see that its directory is gone: {ready}");
    }
    std::fs::rename(&away, mesh.state.path()).context("moving the state directory back")?;
    watch(AFTER, Instant::now())?;

    let PingReport { sent, lost, .. } = pingers.stop()?;
    ensure!(mesh.operations()? == done, "agents changed something");
    ensure!(sent > 1000 && lost == 0, "{lost} of {sent} pings lost");
    // What nobody answers for any more stays as it was.
    ensure!(endpoint(&mesh, &key)? == "198.51.100.9:51820", "{}", endpoint(&mesh, &key)?);
    mesh.settle(SOON)?;
    mesh.kernels_as_planned(SOON)?;
    figure(&format!(
        "state directory away for {} s, nodes expire after 40 s, watched for {} s more: {lost} of {sent} pings lost on \
         3 ways, no operation on 4 nodes; a name that resolves only now is followed after {:.0} s meanwhile",
        OUTAGE.as_secs(),
        AFTER.as_secs(),
        resolved.as_secs_f64()
    ));
    Ok(())
}
