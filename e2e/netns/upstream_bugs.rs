//! What upstream's agent gets wrong about telling how it is, and ours must not.

use std::time::Duration;

use anyhow::{Result, ensure};
use kilo_e2e::mesh::{Agent, Place, StateDir};
use kilo_e2e::{World, eventually, tests};

tests![an_agent_that_is_not_ready_tells_why, health_is_that_of_the_device];

const SOON: Duration = Duration::from_secs(20);

/// B16: upstream's `/graph` panics while its own node takes no part.
fn an_agent_that_is_not_ready_tells_why(world: &World) -> Result<()> {
    world.need_tun()?;
    let place = Place::lay_out(world)?;
    let state = StateDir::new(world.dir().join("state"))?;
    let a1 = place.node("a1")?;
    state.add_node(a1)?;
    let without = std::fs::read_to_string(state.path().join("nodes/a1.yaml"))?.replace("podCIDR", "other");
    state.put("nodes/a1.yaml", &without)?;
    let agent = Agent::start(a1, state.path(), &[])?;
    eventually(SOON, "there is a plan", || {
        ensure!(agent.plan()?["outcome"] == "local-node-not-ready");
        Ok(())
    })?;
    for page in ["/graph", "/graph?format=dot", "/readyz"] {
        let answer = agent.get(page).err().map(|error| format!("{error:#}")).unwrap_or_default();
        // An answer, not the end of the connection.
        ensure!(answer.contains("50"), "{page}: {answer:?}");
    }
    ensure!(agent.get("/livez").is_ok() && agent.get("/metrics").is_ok(), "the agent has ended");
    state.add_node(a1)?;
    eventually(SOON, "it recovers", || agent.get("/graph?format=dot"))?;
    Ok(())
}

/// B10, B35: without its device a node is ill, and a device that comes is taken up.
fn health_is_that_of_the_device(world: &World) -> Result<()> {
    world.need_tun()?;
    world.need("wireguard-go")?;
    let place = Place::lay_out(world)?;
    let state = StateDir::new(world.dir().join("state"))?;
    let a1 = place.node("a1")?;
    state.add_node(a1)?;
    let agent = Agent::start(a1, state.path(), &["--create-interface=false"])?;
    eventually(SOON, "it is ill without a device", || {
        ensure!(agent.get("/health").is_err() && agent.get("/livez").is_ok());
        Ok(())
    })?;
    for _ in 0..2 {
        let mut go = a1.ns.spawn("wireguard-go", &["wireguard-go", "--foreground", "kilo0"])?;
        eventually(SOON, "it is well", || {
            agent.get("/health")?;
            agent.get("/readyz")?;
            a1.ns.run("wg show kilo0 listen-port")
        })?;
        go.kill();
        eventually(SOON, "it is ill again", || {
            ensure!(agent.get("/health").is_err());
            Ok(())
        })?;
    }
    Ok(())
}
