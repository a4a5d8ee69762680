//! The policy tables of the kernel: what is committed is what is read, others are heard of or kept out, and a table
//! outlives the process that made it. Logged packets, counters and the marks of connections.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kilo_agent::{Firewall, FirewallEvent, Logged, LoggedAt};
use kilo_e2e::{Skip, World, figure, tests};
use kilo_host::firewall::{FirewallConfig, LinuxFirewall};
use kilo_nftables::{Change, Family, Set, Table, TableFamily, Transaction, diff};

use super::host_lab::{net, sh, wait};

tests![
    a_big_table_is_read_as_it_was_written,
    transactions_land_together_or_not_at_all,
    what_others_do_to_an_unprotected_table_is_heard,
    a_protected_table_survives_others_and_its_owner,
    the_table_of_an_older_process_is_replaced,
    logged_packets_are_read,
    counters_are_read,
    marks_of_connections_are_cleared,
];

const NAME: &str = "kilo_policy";
/// Elements of each family.
const MANY: u32 = 25_000;

fn open(config: FirewallConfig) -> Result<LinuxFirewall> {
    Ok(LinuxFirewall::open(config)?)
}

fn unprotected() -> FirewallConfig {
    FirewallConfig { own: false, ..FirewallConfig::default() }
}

/// A table with one set of each family, of every second address.
fn table(many: u32) -> Table {
    let v4 = (0..many).map(|n| net(&format!("{}/32", Ipv4Addr::from(0x0a00_0000 + 2 * n)))).collect::<Vec<_>>();
    let v6 = (0..many)
        .map(|n| net(&format!("{}/128", Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(2 * n)))))
        .collect::<Vec<_>>();
    let sets = [
        ("v4".into(), Set::of_nets(Family::V4, &v4)),
        ("v6".into(), Set::of_nets(Family::V6, &v6)),
    ];
    Table { name: NAME.into(), sets: sets.into(), ..Table::default() }
}

/// Brings the kernel to this table, from what it has.
async fn reach(firewall: &mut LinuxFirewall, wanted: Option<&Table>) -> Result<()> {
    let there = firewall.read().await?;
    if let Some(transaction) = diff(there.first(), wanted) {
        firewall.commit(&[transaction]).await?;
    }
    let there = firewall.read().await?;
    ensure!(there.first() == wanted, "the kernel has something else");
    Ok(())
}

/// The next event, or `None` when nothing happens for this long.
async fn event(firewall: &mut LinuxFirewall, millis: u64) -> Option<FirewallEvent> {
    tokio::time::timeout(Duration::from_millis(millis), firewall.next()).await.ok()
}

fn a_big_table_is_read_as_it_was_written(world: &World) -> Result<()> {
    world.need("nft")?;
    wait(async {
        let mut firewall = open(FirewallConfig::default())?;
        ensure!(firewall.read().await?.is_empty(), "there is a table before there is one");
        let wanted = table(MANY);
        let transaction = diff(None, Some(&wanted)).context("nothing to do")?;
        let start = Instant::now();
        let took = firewall.commit(&[transaction]).await?;
        let written = start.elapsed();
        let start = Instant::now();
        let read = firewall.read().await?;
        let reading = start.elapsed();
        ensure!(read == [wanted], "the kernel has something else");
        figure(&format!(
            "{} elements written in {written:.0?} ({} messages, {} bytes), read in {reading:.0?}",
            2 * MANY,
            took.messages,
            took.bytes
        ));
        ensure!(event(&mut firewall, 300).await.is_none(), "our own commit wakes us");
        let listed = sh("nft list set inet kilo_policy v4 | tr , '\\n' | grep -c '10\\.'")?;
        ensure!(listed.trim() == MANY.to_string(), "nft counts {listed}");
        reach(&mut firewall, None).await?;
        ensure!(!sh("nft list tables")?.contains(NAME));
        Ok(())
    })
}

fn transactions_land_together_or_not_at_all(world: &World) -> Result<()> {
    world.need("nft")?;
    wait(async {
        let mut firewall = open(FirewallConfig::default())?;
        let mut wanted = table(2);
        let first = diff(None, Some(&wanted)).context("nothing to do")?;
        let bad = Transaction { table: NAME.into(), changes: vec![Change::DeleteSet("nothing".into())], ..Transaction::default() };
        let empty = Transaction { table: NAME.into(), changes: Vec::new(), ..Transaction::default() };
        let error = firewall.commit(&[empty.clone(), first.clone(), bad]).await.err().context("it is not refused")?;
        ensure!(error.action.contains(NAME) && error.action.contains("nothing"), "{}", error.action);
        ensure!(firewall.read().await?.is_empty(), "half of it has landed");
        wanted.sets.remove("v6");
        let second = Transaction { table: NAME.into(), changes: vec![Change::DeleteSet("v6".into())], ..Transaction::default() };
        let took = firewall.commit(&[first, empty.clone(), second]).await?;
        ensure!(took.messages >= 4 && took.bytes > 100, "{took:?}");
        ensure!(firewall.read().await? == [wanted]);
        ensure!(firewall.commit(&[empty]).await?.messages == 0, "nothing is something");
        Ok(())
    })
}

fn what_others_do_to_an_unprotected_table_is_heard(world: &World) -> Result<()> {
    world.need("nft")?;
    wait(async {
        let mut firewall = open(unprotected())?;
        ensure!(!firewall.protects());
        let wanted = table(1000);
        reach(&mut firewall, Some(&wanted)).await?;
        ensure!(event(&mut firewall, 300).await.is_none(), "we wake ourselves");
        sh("nft add table inet other; nft add set inet other s '{ type ipv4_addr; }'")?;
        ensure!(event(&mut firewall, 300).await.is_none(), "strangers wake us");
        for script in ["nft flush set inet kilo_policy v4", "nft delete table inet kilo_policy", "nft flush ruleset"] {
            reach(&mut firewall, Some(&wanted)).await?;
            sh(script)?;
            match event(&mut firewall, 1000).await {
                Some(FirewallEvent::Changed { by: Some(by) }) => ensure!(by.contains("(nft)"), "{by}"),
                other => bail!("{script}: {other:?}"),
            }
            ensure!(event(&mut firewall, 200).await.is_none(), "{script} is told twice");
        }
        Ok(())
    })
}

fn a_protected_table_survives_others_and_its_owner(world: &World) -> Result<()> {
    world.need("nft")?;
    wait(async {
        let wanted = table(10);
        let mut firewall = open(FirewallConfig::default())?;
        need_owners(&firewall)?;
        reach(&mut firewall, Some(&wanted)).await?;
        let attack = "nft flush ruleset; ! nft delete table inet kilo_policy 2>&1; ! nft flush set inet kilo_policy v4 2>&1";
        sh(attack)?;
        ensure!(firewall.read().await?.first() == Some(&wanted), "others have changed it");
        // Another process of ours has to wait until the owner has gone.
        let mut next = open(FirewallConfig::default())?;
        let more = diff(Some(&wanted), Some(&table(11)));
        let refused = next.commit(more.as_slice()).await.err().context("two processes own one table")?;
        ensure!(refused.action.contains("another process owns the table"), "{}", refused.action);
        let refused = next.remove().err().context("a living owner's table is removed")?;
        ensure!(refused.action.contains(NAME), "{}", refused.action);
        drop(firewall);
        ensure!(sh("nft list tables")?.contains(NAME), "the table went with its owner");
        ensure!(next.read().await?.first() == Some(&wanted), "what was taken over is something else");
        sh(attack)?;
        reach(&mut next, Some(&table(11))).await?;
        next.remove()?;
        ensure!(!sh("nft list tables")?.contains(NAME), "it is not removed");
        next.remove().context("nothing to remove")?;
        Ok(())
    })
}

fn the_table_of_an_older_process_is_replaced(world: &World) -> Result<()> {
    world.need("nft")?;
    wait(async {
        let wanted = table(10);
        reach(&mut open(unprotected())?, Some(&wanted)).await?;
        let mut firewall = open(FirewallConfig::default())?;
        need_owners(&firewall)?;
        let there = firewall.read().await?;
        ensure!(there.first() != Some(&wanted), "a table without owner passes for one with");
        reach(&mut firewall, Some(&wanted)).await?;
        // And ours, when it has to be written anew.
        let transaction = Transaction {
            family: TableFamily::Inet,
            table: NAME.into(),
            changes: [vec![Change::AddTable { flags: 0 }, Change::DeleteTable],
                diff(None, Some(&table(3))).context("nothing to do")?.changes].concat(),
        };
        firewall.commit(&[transaction]).await?;
        ensure!(firewall.read().await?.first() == Some(&table(3)));
        sh("nft flush ruleset; nft list table inet kilo_policy | grep -q 10.0.0.4")?;
        Ok(())
    })
}

fn need_owners(firewall: &LinuxFirewall) -> Result<()> {
    if firewall.protects() {
        return Ok(());
    }
    Err(Skip::because("the kernel has no tables that outlive their owners (6.9)"))
}

fn logged_packets_are_read(world: &World) -> Result<()> {
    world.need("nft")?;
    sh("ip link set lo up; nft -f - <<'END'
table inet rules {
  chain output { type filter hook output priority 0; udp dport 4242 log prefix \"kilo:17\" group 77 drop; }
  chain input { type filter hook input priority 0; icmp type echo-request log prefix \"kilo:18\" group 77 drop; }
}
END")?;
    wait(async {
        let mut firewall = open(FirewallConfig { log_group: Some(77), ..FirewallConfig::default() })?;
        let busy = LinuxFirewall::open(FirewallConfig { log_group: Some(77), ..FirewallConfig::default() }).err();
        ensure!(busy.context("two listen to one group")?.action.contains("NFLOG group 77"));
        for (from, to) in [("127.0.0.1:999", "127.0.0.1:4242"), ("[::1]:999", "[::1]:4242")] {
            let socket = std::net::UdpSocket::bind(from)?;
            // The rule refuses it in the way of this socket.
            let _ = socket.send_to(&[0; 2000], to);
            let logged = logged(&mut firewall).await?;
            let packet = logged.packet.context("no packet")?;
            let ip: IpAddr = to.parse::<std::net::SocketAddr>()?.ip();
            ensure!((logged.prefix.as_str(), logged.hook) == ("kilo:17", Some(LoggedAt::Output)), "{logged:?}");
            ensure!((logged.input, logged.output) == (None, Some("lo".into())));
            ensure!((packet.source, packet.destination, packet.protocol) == (ip, ip, 17), "{packet:?}");
            ensure!(packet.ports == Some((999, 4242)), "{packet:?}");
        }
        let _ = sh("ping -c 1 -W 1 127.0.0.1");
        let logged = logged(&mut firewall).await?;
        ensure!((logged.prefix.as_str(), logged.hook) == ("kilo:18", Some(LoggedAt::Input)), "{logged:?}");
        ensure!(logged.input.as_deref() == Some("lo") && logged.packet.is_some_and(|packet| packet.ports.is_none()));
        Ok(())
    })
}

/// The next logged packet.
async fn logged(firewall: &mut LinuxFirewall) -> Result<Logged> {
    match event(firewall, 2000).await {
        Some(FirewallEvent::Logged(logged)) => Ok(logged),
        other => bail!("no packet is logged: {other:?}"),
    }
}

fn counters_are_read(world: &World) -> Result<()> {
    world.need("nft")?;
    sh("ip link set lo up; nft -f - <<'END'
table inet kilo_policy {
  counter denied { }
  counter other { }
  chain input { type filter hook input priority 0; udp dport 4242 counter name denied drop; }
}
table inet foreign {
  counter strange { }
}
END")?;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    for _ in 0..3 {
        socket.send_to(&[0; 72], "127.0.0.1:4242")?;
    }
    wait(async {
        let counters = open(unprotected())?.counters().await?;
        let text: Vec<String> = counters.iter().map(|c| format!("{} {} {}", c.name, c.packets, c.bytes)).collect();
        ensure!(text == ["denied 3 300", "other 0 0"], "{text:?}");
        sh("nft delete table inet kilo_policy")?;
        ensure!(open(unprotected())?.counters().await?.is_empty());
        Ok(())
    })
}

fn marks_of_connections_are_cleared(world: &World) -> Result<()> {
    world.need("nft")?;
    sh("ip link set lo up; nft -f - <<'END'
table inet rules {
  counter stamped { }
  counter cleared { }
  chain output {
    type filter hook output priority 0;
    ct mark 0 ct mark set 0x7f000001
    ct mark 0x7f000001 counter name stamped
    ct mark 0x00000001 counter name cleared
  }
}
END")?;
    let sockets = [("127.0.0.1:0", "127.0.0.1:4242"), ("[::1]:0", "[::1]:4242")]
        .map(|(from, to)| std::net::UdpSocket::bind(from).and_then(|socket| socket.connect(to).map(|()| socket)));
    let send = || -> Result<()> {
        for socket in &sockets {
            let socket = socket.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
            // Nobody listens: the answer to an earlier one may be told here.
            let _ = socket.send(b"x").or_else(|_| socket.send(b"x"));
        }
        Ok(())
    };
    let counted = |name: &str| sh(&format!("nft list counter inet rules {name}"));
    let _servers = (std::net::UdpSocket::bind("127.0.0.1:4242")?, std::net::UdpSocket::bind("[::1]:4242")?);
    send()?;
    ensure!(counted("stamped")?.contains("packets 2 "), "{}", counted("stamped")?);
    wait(async {
        let mut firewall = open(unprotected())?;
        ensure!(firewall.sweep(0x0080_0000).await? == 0, "bits that nobody has");
        let swept = firewall.sweep(0x7f00_0000).await?;
        ensure!(swept == 2, "{swept} connections were swept");
        ensure!(firewall.sweep(0x7f00_0000).await? == 0, "they have their bits still");
        send()?;
        ensure!(counted("cleared")?.contains("packets 2 "), "{}", counted("cleared")?);
        ensure!(counted("stamped")?.contains("packets 2 "), "{}", counted("stamped")?);
        Ok(())
    })
}
