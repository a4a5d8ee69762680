//! What others break on a node with the kernel's WireGuard and IPIP tunnels, in the virtual machine, which is some
//! ten times slower than a real one.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::mesh::{Mesh, Place};
use kilo_e2e::{World, eventually, figure, tests};

use crate::netns::mesh_drift::break_until;

tests![tunnels_and_kernel_devices_are_repaired(hidden = true, limit = 900)];

const SOON: Duration = Duration::from_secs(60);
/// The kernel tells nobody about peers: they are looked at this often.
const RESYNC: Duration = Duration::from_secs(25);
/// What a machine as slow as this takes for the programs that break and look.
const SLOW: Duration = Duration::from_secs(10);

fn tunnels_and_kernel_devices_are_repaired(world: &World) -> Result<()> {
    let flags = ["--wireguard=kernel", "--encapsulate=always", "--resync-period=25s"];
    let mut mesh = Mesh::start_at(world, Place::lay_out(world)?, &["a1", "a2", "b1", "b2"], &flags)?;
    mesh.settle(SOON)?;
    mesh.kernels_as_planned(SOON)?;
    mesh.reach_all(SOON)?;
    let b1 = mesh.place.node("b1")?.ns.run("wg show kilo0 public-key")?;
    let key = b1.trim();
    let up = "ip -br addr show dev tunl0 up | grep -q 10.42.1.1/32";
    let rule = "ip rule show | sed -n 's/^[0-9]*:\\(.*lookup 1107\\).*/\\1/p' | head -1";
    let rules = "[ $(ip rule show | grep -c 'lookup 1107') = ";
    let ns = mesh.place.node("a1")?.ns.clone();
    let count = ns.sh("ip rule show | grep -c 'lookup 1107'")?;
    let mtu = ns.json("ip -j link show dev tunl0")?[0]["mtu"].to_string();
    let breaks = [
        ("the tunnel's address", "ip addr flush dev tunl0".to_owned(), up.to_owned()),
        ("a tunnel that is down", "ip link set tunl0 down".into(), up.into()),
        ("the tunnel's MTU", "ip link set tunl0 mtu 1300".into(), format!("ip link show tunl0 | grep -q 'mtu {mtu} '")),
        ("a route over the tunnel", "ip route del 10.1.0.12 table 1107".into(), "ip route show table 1107 | grep -q tunl0".into()),
        ("a rule", format!("ip rule del $({rule})"), format!("{rules}{} ]", count.trim())),
        ("the filter of IPIP", "nft flush chain inet kilo input".into(), "nft list chain inet kilo input | grep -q drop".into()),
        ("the kernel's device", "ip link del kilo0".into(), format!("wg show kilo0 peers | grep -q '{key}'")),
        ("a peer of the kernel's device", format!("wg set kilo0 peer {key} remove"), format!("wg show kilo0 peers | grep -q '{key}'")),
    ];
    let mut told = Vec::new();
    for (what, script, check) in breaks {
        let took = break_until(&ns, &script, &check).context(what)?;
        let limit = if what.starts_with("a peer") { RESYNC } else { Duration::ZERO } + SLOW;
        ensure!(took < limit, "{what}: repaired only after {took:?}");
        told.push(format!("{what} {} ms", took.as_millis()));
        mesh.kernels_as_planned(SOON).context(what)?;
    }
    eventually(SOON, "repairs are counted", || {
        let repairs = mesh.agent("a1")?.repairs(&["address", "link", "route", "rule", "nftables", "peer"])?;
        ensure!(repairs >= 8.0, "{repairs} repairs");
        Ok(())
    })?;
    mesh.reach_all(SOON)?;
    figure(&format!("repaired: {}", told.join(", ")));
    Ok(())
}
