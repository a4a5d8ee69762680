//! All that the agents do with a real kernel's WireGuard and IPIP, in one virtual machine: what `make test-vm`
//! runs on each kernel.

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::{Place, World, figure, tests};

use super::machine;

tests![every_mode_on_one_kernel(place = Place::Host, hidden = true, limit = 7200)];

/// What is run inside, each with a limit of its own.
const INSIDE: [&str; 8] = [
    "vm::crash::a_kill_with_kernel_wireguard_is_mended",
    "vm::mesh_drift::tunnels_and_kernel_devices_are_repaired",
    "vm::mesh_ipip::agents_with_ipip",
    "vm::mesh_kernel::one_of_a_thousand_peers_changes",
    "vm::mesh_overlay::agents_with_cilium",
    "vm::mesh_overlay::agents_with_flannel",
    "vm::taking_over::kernel_and_iptables_legacy",
    "vm::taking_over::kernel_and_iptables_nft",
];

fn every_mode_on_one_kernel(_world: &World) -> Result<()> {
    let text = machine::own_tests(768, 3500, &INSIDE)?;
    let kernel = text.lines().next().context("no kernel says its name")?;
    let wanted = machine::kernel().map_or_else(|| "6.".to_owned(), |name| format!("{name}."));
    ensure!(kernel.starts_with(&wanted), "the kernel is {kernel}, not {wanted}*");
    text.lines().for_each(|line| figure(line.trim_start()));
    Ok(())
}
