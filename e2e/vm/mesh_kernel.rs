//! Whole agents with the WireGuard and the IPIP tunnels of a real kernel: this program runs its own tests once
//! more in the virtual machine.

use std::ffi::OsString;

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::mesh::Messages;
use kilo_e2e::{Place, World, figure, tests};

use super::machine;
use crate::netns::mesh_crowd::change_one;

tests![
    meshes_with_kernel_wireguard(place = Place::Host, limit = 900),
    one_of_a_thousand_peers_changes(hidden = true, limit = 300),
];

/// What is run inside.
const INSIDE: [&str; 2] =
    ["vm::mesh_ipip::agents_with_ipip", "vm::mesh_kernel::one_of_a_thousand_peers_changes"];
/// The agent's flags: under emulation, looking at a thousand peers all the time is dear.
const KERNEL: [&str; 2] = ["--wireguard=kernel", "--resync-period=30s"];

fn meshes_with_kernel_wireguard(_world: &World) -> Result<()> {
    let exe = std::env::current_exe().context("finding this program")?;
    // Two minutes on an idle machine; each test has a limit of its own, and then shows its logs.
    // /dev/net/tun comes with its module; the others are loaded when they are asked for.
    let words = ["sh", "-c", "modprobe tun && exec \"$@\"", "sh"].map(OsString::from);
    let exact = std::iter::once("--exact").chain(INSIDE).map(OsString::from);
    let text = machine::run(768, 850, words.into_iter().chain([exe.into()]).chain(exact))?;
    let all = format!("{} passed, 0 failed, 0 skipped", INSIDE.len());
    ensure!(text.lines().any(|line| line == all), "not all tests ran:\n{text}");
    text.lines().filter(|line| *line != all).for_each(|line| figure(line.trim_start()));
    Ok(())
}

fn one_of_a_thousand_peers_changes(world: &World) -> Result<()> {
    change_one(world, &KERNEL, Some(Messages::count))
}
