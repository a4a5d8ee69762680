//! The wall clocks of two agents jump by an hour, forth and back: nobody is dropped and no packet is lost. A library in
//! front of the C library's makes them jump; the time since the machine's start goes on, as it does in a real jump.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::mesh::{Agent, Mesh};
use kilo_e2e::{Pingers, World, eventually, figure, tests};

tests![clocks_that_jump_drop_nobody(limit = 300, waits = true)];

const SOON: Duration = Duration::from_secs(40);
/// Long enough for a check-in of every agent, which makes one every 30 s.
const WATCHED: Duration = Duration::from_secs(34);
/// The program leaves files behind by which another one of the same process id would fail.
const MOUNT: &str = "mount -t tmpfs tmpfs /dev/shm && exec \"$@\"";
/// A leader and a node that leads nothing, and how far their clocks are off at first, then later.
const JUMPS: [(&str, [&str; 2]); 2] = [("a1", ["+3600", "+0"]), ("b2", ["-3600", "+0"])];
const NODES: [&str; 4] = ["a1", "a2", "b1", "b2"];

fn clocks_that_jump_drop_nobody(world: &World) -> Result<()> {
    world.need("faketime")?;
    let mut mesh = Mesh::start_on(world, &["a2", "b1"], &[])?;
    for (name, _) in JUMPS {
        let node = mesh.place.node(name)?;
        let offset = node.ns.dir().join("clock");
        std::fs::write(&offset, "+0").context("setting a clock")?;
        // `faketime` knows where its library is; the file is read again with every look at the clock.
        let file = format!("FAKETIME_TIMESTAMP_FILE={}", offset.display());
        let settings = ["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1", &file];
        let words = ["sh", "-c", MOUNT, "sh", "faketime", "-m", "-f", "+0", "env", "-u", "FAKETIME"];
        let words = words.iter().chain(&settings);
        let before: Vec<String> = words.map(|&word| word.to_owned()).collect();
        mesh.state.add_node(node)?;
        let agent = Agent::start_under(node, &before, mesh.state.path(), &[])?;
        mesh.stopped.remove(node.pod.name());
        mesh.agents.insert(name.to_owned(), agent);
    }
    mesh.settle(SOON)?;
    mesh.admit("laptop", 77, SOON)?;
    mesh.reach_all(SOON)?;
    mesh.kernels_as_planned(SOON)?;

    let before = mesh.devices()?;
    let pod = |name: &str| mesh.place.node(name).map(|node| &node.pod);
    let pingers = Pingers::start([
        pod("a1")?.to(pod("b2")?),
        pod("b2")?.to(pod("a2")?),
        mesh.traveller("laptop")?.host.to(pod("b1")?),
    ])?;
    for phase in 0..2 {
        for (name, offsets) in JUMPS {
            // In one write, so that nobody reads half of it.
            let file = mesh.place.node(name)?.ns.dir().join("clock");
            std::fs::write(&file, offsets[phase]).context("setting a clock")?;
        }
        let jumped = Instant::now();
        if phase == 0 {
            for (name, _) in JUMPS {
                let agent = &mesh.agents[name];
                eventually(SOON, &format!("the clock of {name} has jumped"), || {
                    ensure!(agent.log().contains("Clock has jumped"), "{}", agent.log());
                    Ok(())
                })?;
            }
        }
        while jumped.elapsed() < WATCHED {
            std::thread::sleep(Duration::from_secs(1));
            for (name, agent) in &mesh.agents {
                let ready = &agent.plan()?["readyNodes"];
                ensure!(*ready == serde_json::json!(NODES), "{name} sees {ready} after {:?}", jumped.elapsed());
            }
            ensure!(mesh.devices()? == before, "after {:?}: {:?}\n{before:?}", jumped.elapsed(), mesh.devices()?);
        }
    }
    let report = pingers.stop()?;
    mesh.reach_all(SOON)?;
    mesh.kernels_as_planned(SOON)?;
    for agent in mesh.agents.values() {
        agent.get("/readyz")?;
    }
    let text = format!(
        "the clocks of a leader (+1 h) and of another node (-1 h) jump, and back {} s later: {} of {} pings lost on 3 \
         ways, no node dropped by anybody, devices as before",
        WATCHED.as_secs(),
        report.lost,
        report.sent
    );
    ensure!(report.lost == 0 && report.sent > 1000, "{text}");
    figure(&text);
    Ok(())
}
