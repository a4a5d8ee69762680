//! SIGKILL after every operation with the kernel's WireGuard, in the virtual machine.

use anyhow::Result;
use kilo_e2e::{World, tests};

use crate::netns::crash::{Device, every_kill};

tests![a_kill_with_kernel_wireguard_is_mended(hidden = true, limit = 2400)];

fn a_kill_with_kernel_wireguard_is_mended(world: &World) -> Result<()> {
    every_kill(world, Device::Kernel)
}
