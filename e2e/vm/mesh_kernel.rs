//! Whole agents with the WireGuard and the IPIP tunnels of a real kernel: this program runs its own tests once
//! more in the virtual machine.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::mesh::Messages;
use kilo_e2e::{Place, Skip, World, figure, tests};

use crate::netns::mesh_crowd::change_one;

tests![
    meshes_with_kernel_wireguard(place = Place::Host, limit = 600),
    one_of_a_thousand_peers_changes(hidden = true, limit = 300),
];

/// What `vm-run` ends with when there is no virtual machine to be had.
const NO_MACHINE: i32 = 125;
/// What is run inside.
const INSIDE: [&str; 2] =
    ["vm::mesh_ipip::agents_with_ipip", "vm::mesh_kernel::one_of_a_thousand_peers_changes"];
/// The agent's flags: under emulation, looking at a thousand peers all the time is dear.
const KERNEL: [&str; 2] = ["--wireguard=kernel", "--resync-period=30s"];

fn meshes_with_kernel_wireguard(_world: &World) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let output = Command::new(root.join(".ci/vm-run"))
        // Under emulation the processor's counter is the machine's, which may jump where that is virtual, too.
        .args(["--mem", "768", "--timeout", "550", "--append", "clocksource=hpet", "--"])
        // /dev/net/tun comes with its module; the others are loaded when they are asked for.
        .args(["sh", "-c", "modprobe tun && exec \"$@\"", "sh"])
        .arg(std::env::current_exe().context("finding this program")?)
        .arg("--exact")
        .args(INSIDE)
        .env_remove("E2E_SUMMARY")
        .current_dir(root)
        .stdin(Stdio::null())
        .output()
        .context("starting vm-run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(NO_MACHINE) {
        let why = errors.lines().rev().find(|line| line.starts_with("vm-run:")).unwrap_or("vm-run failed");
        return Err(Skip::because(why.to_owned()));
    }
    ensure!(output.status.success(), "{}:\n{text}\n{errors}", output.status);
    let all = format!("{} passed, 0 failed, 0 skipped", INSIDE.len());
    ensure!(text.lines().any(|line| line == all), "not all tests ran:\n{text}");
    text.lines().filter(|line| *line != all).for_each(|line| figure(line.trim_start()));
    Ok(())
}

fn one_of_a_thousand_peers_changes(world: &World) -> Result<()> {
    change_one(world, &KERNEL, Some(Messages::count))
}
