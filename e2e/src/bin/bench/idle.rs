//! An agent at rest: its memory, its wake-ups and its CPU time, in a mesh of four.

use std::time::Duration;

use anyhow::Result;
use kilo_e2e::mesh::Mesh;
use kilo_e2e::netns::World;

use crate::figures::Figure;
use crate::process::{cpu_of, memory_of, wakeups_of};

/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(60);

pub fn measure() -> Result<Vec<Figure>> {
    let world = World::new()?;
    let mut mesh = Mesh::start(&world, &[])?;
    std::thread::sleep(Duration::from_secs(10));
    let pid = mesh.agent("a1")?.process().id();
    let (cpu, wakeups) = (cpu_of(pid)?, wakeups_of(pid)?);
    std::thread::sleep(WATCHED);
    let minutes = WATCHED.as_secs_f64() / 60.0;
    let cpu = (cpu_of(pid)? - cpu).as_secs_f64() * 1e3 / minutes;
    let wakeups = (wakeups_of(pid)? - wakeups) as f64 / minutes;
    let resident = memory_of(&pid.to_string(), "VmRSS")? as f64 / 1024.0;
    let private = memory_of(&pid.to_string(), "RssAnon")? as f64 / 1024.0;
    Ok(vec![
        Figure::new("idle/builtin-wireguard/resident-mib", resident).upstream("41, and wireguard-go 6–40"),
        Figure::new("idle/builtin-wireguard/private-mib", private).upstream("9, and wireguard-go"),
        Figure::new("idle/builtin-wireguard/wakeups-a-minute", wakeups).upstream("260–480"),
        Figure::new("idle/builtin-wireguard/cpu-ms-a-minute", cpu).upstream("30"),
    ])
}
