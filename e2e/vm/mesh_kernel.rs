//! Whole agents with the WireGuard and the IPIP tunnels of a real kernel: this program runs its own tests once
//! more in the virtual machine.

use anyhow::Result;
use kilo_e2e::mesh::Messages;
use kilo_e2e::{Place, World, figure, tests};

use super::machine;
use crate::netns::mesh_crowd::change_one;

tests![
    meshes_with_kernel_wireguard(place = Place::Host, limit = 2200),
    one_of_a_thousand_peers_changes(hidden = true, limit = 700),
];

/// What is run inside.
const INSIDE: [&str; 3] = [
    "vm::mesh_ipip::agents_with_ipip",
    "vm::mesh_kernel::one_of_a_thousand_peers_changes",
    "vm::taking_over::kernel_and_iptables_nft",
];
/// The agent's flags: under emulation, looking at a thousand peers all the time is dear.
const KERNEL: [&str; 2] = ["--wireguard=kernel", "--resync-period=30s"];

fn meshes_with_kernel_wireguard(_world: &World) -> Result<()> {
    // Two minutes on an idle machine; each test has a limit of its own, and then shows its logs.
    let text = machine::own_tests(768, 1000, &INSIDE)?;
    text.lines().for_each(|line| figure(line.trim_start()));
    Ok(())
}

fn one_of_a_thousand_peers_changes(world: &World) -> Result<()> {
    change_one(world, &KERNEL, Some(Messages::count))
}
