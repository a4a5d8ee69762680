//! The host with a WireGuard device that it makes itself, and all else that a plan may want.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use kilo_agent::{Host, HostEvent};
use kilo_e2e::{World, tests};
use kilo_host::HostConfig;
use kilo_state::{CniFile, Desired, Dev, Device, DevicePeer, Link, LinkKind, MAIN_TABLE, Op, Route, diff};
use kilo_wireguard::PrivateKey;

use super::host_lab::{apply, config, event, json, kilo0, neighbour, net, open, reach, sh, wait};

tests![everything_is_reached_and_removed, cni_file_is_only_changed];

fn peer(seed: u8, range: &str) -> DevicePeer {
    DevicePeer {
        public_key: PrivateKey::from_random([seed; 32]).public_key(),
        preshared_key: None,
        endpoint: Some("192.168.5.11:51820".parse().expect("a test's address")),
        persistent_keepalive: 0,
        allowed_ips: vec![net(range)],
    }
}

fn everything_is_reached_and_removed(world: &World) -> Result<()> {
    neighbour(world)?;
    sh("echo 0 > /proc/sys/net/ipv4/ip_forward")?;
    let config = HostConfig { create_interface: true, ..config(world) };
    wait(async {
        let mut host = open(config.clone()).await?;
        let mut peers = vec![peer(1, "10.2.2.0/24"), peer(2, "10.2.3.0/24")];
        peers.sort_by_key(|peer| peer.public_key);
        let route = |dst| Route {
            table: MAIN_TABLE,
            dst: net(dst),
            dev: Dev::WireGuard,
            via: None,
            src: Some("192.168.5.10".parse().expect("a test's address")),
            onlink: false,
        };
        let mut desired = Desired {
            links: vec![Link { create: true, ..kilo0() }],
            device: Some(Device { public_key: host.facts().await?.public_key, listen_port: 51820, peers }),
            routes: vec![route("10.2.2.0/24"), route("10.2.3.0/24")],
            sysctls: [("net/ipv4/ip_forward".into(), "1".into()), ("net/ipv4/conf/kilo0/rp_filter".into(), "2".into())]
                .into(),
            ..Desired::default()
        };
        // A parameter of a link that is still to be made can be set only in a second round.
        let ops = diff(&desired, &host.observe().await?);
        apply(&mut host, &ops).await?;
        ensure!(reach(&mut host, &desired).await? == 1);
        ensure!(event(&mut host, 500).await.is_none(), "we wake ourselves");
        ensure!(sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/kilo0/rp_filter")? == "1\n2\n");
        let link = &json("ip -j addr show kilo0")?[0];
        ensure!(link["mtu"] == 1420 && link.to_string().contains("10.4.0.1"), "{link}");
        ensure!(host.facts().await?.device.len() == 2);

        // One peer changes, one goes, one comes.
        let device = desired.device.as_mut().context("a device")?;
        device.peers.remove(0);
        device.peers[0].persistent_keepalive = 25;
        device.peers.push(peer(3, "10.2.4.0/24"));
        device.peers.sort_by_key(|peer| peer.public_key);
        ensure!(reach(&mut host, &desired).await? == 3, "one operation each");
        ensure!(event(&mut host, 300).await.is_none(), "we wake ourselves");

        // The device goes from under our feet, and comes back whole.
        sh("ip link del kilo0")?;
        ensure!(event(&mut host, 2000).await == Some(HostEvent::Device));
        let ops = diff(&desired, &host.observe().await?);
        apply(&mut host, &ops).await?;
        ensure!(reach(&mut host, &desired).await? == 1);
        ensure!(json("ip -j route show dev kilo0 proto 75")?.as_array().is_some_and(|routes| routes.len() == 2));

        // The end: all of ours goes.
        let remove_links = vec![(Dev::WireGuard, "kilo0".into())];
        reach(&mut host, &Desired { remove_links, ..Desired::default() }).await?;
        host.close().await;
        ensure!(!sh("ip link")?.contains("kilo0"), "the link stays");
        let op = Op::CreateLink { dev: Dev::Tunnel, name: "flannel.1".into(), kind: LinkKind::Foreign, mtu: None };
        let error = host.apply(&[op]).await.remove(0).err().context("a missing link of others is no error")?;
        ensure!(error.action == "using link flannel.1");
        Ok(())
    })
}

fn cni_file_is_only_changed(world: &World) -> Result<()> {
    neighbour(world)?;
    let path = world.dir().join("10-kilo.conflist");
    let file = CniFile { path: path.to_string_lossy().into(), ranges: vec![net("10.2.1.0/24")] };
    let config = HostConfig { cni_path: Some(file.path.to_string()), ..config(world) };
    let desired = Desired { cni: Some(file.clone()), ..Desired::default() };
    wait(async {
        let mut host = open(config).await?;
        let error = host.apply(&[Op::WriteCni(file.clone())]).await.remove(0).err().context("a file is made")?;
        ensure!(error.action.contains("10-kilo.conflist") && !path.exists(), "{}", error.action);
        std::fs::write(&path, r#"{"plugins":[{"type":"bridge","ipam":{"type":"host-local"}}],"name":"kilo"}"#)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604))?;
        ensure!(reach(&mut host, &desired).await? == 1);
        let text = std::fs::read_to_string(&path)?;
        let wanted = r#"{"name":"kilo","plugins":[{"ipam":{"ranges":[[{"subnet":"10.2.1.0/24"}]],"type":"host-local"},"type":"bridge"}]}"#;
        ensure!(text == wanted, "{text}");
        ensure!(std::fs::metadata(&path)?.permissions().mode() & 0o777 == 0o604);
        Ok(())
    })
}
