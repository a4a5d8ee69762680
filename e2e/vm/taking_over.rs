//! Taking over from an upstream agent with the kernel's WireGuard and IPIP tunnels, in the virtual machine.

use anyhow::Result;
use kilo_e2e::mesh::{Iptables, Place};
use kilo_e2e::{World, tests};

use crate::netns::taking_over::take_over;

tests![
    kernel_and_iptables_nft(hidden = true, limit = 900),
    kernel_and_iptables_legacy(hidden = true, limit = 900),
];

const NODES: [&str; 4] = ["a1", "a2", "a3", "b1"];
const FLAGS: [&str; 2] = ["--wireguard=kernel", "--encapsulate=always"];

fn kernel_and_iptables_nft(world: &World) -> Result<()> {
    take_over(world, Place::lay_out_routed(world)?, &NODES, &FLAGS, Iptables::Nft)
}

fn kernel_and_iptables_legacy(world: &World) -> Result<()> {
    take_over(world, Place::lay_out_routed(world)?, &NODES, &FLAGS, Iptables::Legacy)
}
