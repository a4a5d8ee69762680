//! Routes, rules, addresses and links of a real kernel: reached, left alone, taken over, and watched.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kilo_agent::{Host, HostEvent};
use kilo_e2e::{World, figure, tests};
use kilo_state::{Desired, Dev, MAIN_TABLE, Op, Route, Rule, TABLE, diff};

use super::host_lab::{KILO0, apply, config, event, json, kilo0, neighbour, net, open, reach, sh, wait};

tests![
    desired_is_reached_and_known_again_after_a_restart,
    upstreams_routes_are_taken_over_without_a_lost_ping,
    what_others_made_stays,
    a_refused_operation_is_told_and_stops_no_other,
    twenty_thousand_routes(limit = 120),
    others_wake_us_and_we_do_not(limit = 120),
    a_rule_whose_link_has_gone_is_removed,
];

fn route(table: u32, dst: &str, dev: Dev, via: Option<&str>, src: Option<&str>) -> Route {
    let ip = |text: &str| text.parse().expect("a test's address");
    Route { table, dst: net(dst), dev, via: via.map(ip), src: src.map(ip), onlink: via.is_some() }
}

/// What a leader of a mesh of both families wants.
fn leader() -> Desired {
    let mut routes = vec![
        route(MAIN_TABLE, "10.2.2.0/24", Dev::WireGuard, Some("10.4.0.2"), Some("192.168.5.10")),
        route(MAIN_TABLE, "10.2.3.0/24", Dev::Private, Some("192.168.5.11"), None),
        route(MAIN_TABLE, "10.5.0.1/32", Dev::WireGuard, None, Some("192.168.5.10")),
        route(TABLE, "192.168.9.9/32", Dev::Private, Some("192.168.5.11"), None),
        route(MAIN_TABLE, "fd02:2::/64", Dev::WireGuard, Some("fd04::2"), Some("fd00:5::10")),
        route(MAIN_TABLE, "fd06::1/128", Dev::WireGuard, None, None),
        route(TABLE, "fd09::9/128", Dev::Private, Some("fd00:5::11"), None),
    ];
    routes.sort_unstable();
    let rule = |src: Option<&str>, dst: &str, iif| Rule { src: src.map(net), dst: net(dst), iif, table: TABLE };
    let mut rules = vec![
        rule(Some("10.2.1.0/24"), "192.168.9.9/32", None),
        rule(None, "192.168.9.9/32", Some(Dev::WireGuard)),
        rule(Some("fd02:1::/64"), "fd09::9/128", None),
        rule(None, "fd09::9/128", Some(Dev::WireGuard)),
    ];
    rules.sort_unstable();
    Desired { links: vec![kilo0()], routes, rules, ..Desired::default() }
}

fn desired_is_reached_and_known_again_after_a_restart(world: &World) -> Result<()> {
    neighbour(world)?;
    sh("ip tuntap add kilo0 mode tun; ip addr add 10.9.9.9/24 dev kilo0")?;
    wait(async {
        let mut host = open(config(world)).await?;
        let ops = reach(&mut host, &leader()).await?;
        ensure!(ops >= 14, "{ops} operations");

        // What the kernel says in its own words.
        let text = sh("ip -4 route show; ip -4 route show table 1107; ip -4 rule; ip -6 rule")?;
        for line in [
            "10.2.2.0/24 via 10.4.0.2 dev kilo0 proto 75 src 192.168.5.10 onlink",
            "10.2.3.0/24 via 192.168.5.11 dev eth0 proto 75 onlink",
            "10.5.0.1 dev kilo0 proto 75 src 192.168.5.10",
            "192.168.9.9 via 192.168.5.11 dev eth0 proto 75 onlink",
            "32000:\tfrom 10.2.1.0/24 to 192.168.9.9 lookup 1107 proto 75",
            "32000:\tfrom all to 192.168.9.9 iif kilo0 lookup 1107 proto 75",
            "32000:\tfrom all to fd09::9 iif kilo0 lookup 1107 proto 75",
        ] {
            // Nobody reads from the TUN, so that its routes are marked "linkdown".
            let same = |found: &str| found.trim().trim_end_matches(" linkdown") == line;
            ensure!(
                text.lines().any(same),
                "no line {line:?} in\n{text}"
            );
        }
        let six = json("ip -6 -j route show")?;
        let six = six.as_array().into_iter().flatten().find(|route| route["dst"] == "fd02:2::/64");
        ensure!(six.is_some_and(|r| r["gateway"] == "fd04::2" && r["protocol"] == "75"), "{six:?}");
        let link = &json("ip -j addr show kilo0")?[0];
        ensure!(link["mtu"] == 1420 && link["flags"].as_array().is_some_and(|f| f.iter().any(|f| f == "UP")));
        ensure!(!link.to_string().contains("10.9.9.9"), "an address too many stays: {link}");

        // Another process knows it all again.
        drop(host);
        let mut again = open(config(world)).await?;
        let observed = again.observe().await?;
        ensure!(diff(&leader(), &observed).is_empty(), "{:?}", diff(&leader(), &observed));
        ensure!(observed.routes.iter().filter(|route| route.is_ours()).count() == leader().routes.len());

        // And removes it all.
        let nothing = Desired { links: vec![kilo0()], ..Desired::default() };
        reach(&mut again, &nothing).await?;
        let left = sh("ip route; ip route show table 1107; ip -6 route; ip rule; ip -6 rule")?;
        ensure!(!left.contains("proto 75") && !left.contains("1107"), "{left}");
        // To remove what is gone already is no error, nor to add what is there.
        let all = leader();
        let remove: Vec<Op> = all.routes.iter().map(|r| Op::DeleteRoute(*r)).collect();
        apply(&mut again, &remove).await?;
        apply(&mut again, &all.rules.iter().map(|r| Op::DeleteRule(*r)).collect::<Vec<_>>()).await?;
        for _ in 0..2 {
            apply(&mut again, &all.routes.iter().map(|r| Op::AddRoute(*r)).collect::<Vec<_>>()).await?;
            apply(&mut again, &all.rules.iter().map(|r| Op::AddRule(*r)).collect::<Vec<_>>()).await?;
        }
        Ok(())
    })
}

/// Upstream Kilo's routes and rules of both kinds: one that is still wanted and in use, one that is not.
fn upstreams_routes_are_taken_over_without_a_lost_ping(world: &World) -> Result<()> {
    let other = neighbour(world)?;
    let pod = world.ns("pod")?;
    world.cable((&other, "pod0"), (&pod, "eth0"))?;
    world.address(&other, "pod0", net("10.2.3.1/24"))?;
    world.address(&pod, "eth0", net("10.2.3.2/24"))?;
    world.route(&pod, "default", "10.2.3.1".parse()?)?;
    sh(KILO0)?;
    sh("ip route add 10.2.3.0/24 via 192.168.5.11 dev eth0 proto static onlink; \
        ip route add 10.2.2.0/24 via 10.4.0.2 dev kilo0 proto static src 192.168.5.10 onlink; \
        ip route add 10.7.0.0/24 via 10.4.0.7 dev kilo0 proto static src 192.168.5.10 onlink; \
        ip route add 192.168.7.7 via 192.168.5.11 dev eth0 proto static onlink table 1107; \
        ip rule add from 10.2.1.0/24 to 192.168.7.7 lookup 1107; \
        ip rule add to 192.168.9.9 iif kilo0 lookup 1107; \
        ip route add 10.99.0.0/16 via 192.168.5.11 dev eth0 proto static")?;
    wait(async {
        let pinger = pod.pinger("192.168.5.10".parse()?)?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut host = open(config(world)).await?;
        reach(&mut host, &leader()).await?;
        tokio::time::sleep(Duration::from_millis(700)).await;
        let report = pinger.stop()?;
        ensure!(report.lost == 0 && report.sent >= 20, "{report:?}");
        let text = sh("ip route; ip route show table 1107; ip rule")?;
        ensure!(text.contains("10.2.3.0/24 via 192.168.5.11 dev eth0 proto 75 onlink"), "{text}");
        ensure!(text.contains("10.2.2.0/24 via 10.4.0.2 dev kilo0 proto 75"), "{text}");
        ensure!(!text.contains("10.7.0.0/24") && !text.contains("192.168.7.7"), "a leftover stays: {text}");
        ensure!(text.contains("10.99.0.0/16 via 192.168.5.11 dev eth0 proto static"), "{text}");
        Ok(())
    })
}

/// The kernel keeps rules by the name of their link.
fn a_rule_whose_link_has_gone_is_removed(world: &World) -> Result<()> {
    neighbour(world)?;
    sh("ip rule add to 192.168.9.9 iif kilo0 lookup 1107")?;
    ensure!(sh("ip rule")?.contains("[detached]"), "the kernel knows the link");
    wait(async {
        let mut host = open(config(world)).await?;
        ensure!(reach(&mut host, &Desired::default()).await? == 1);
        ensure!(!sh("ip rule")?.contains("1107"), "it stays");
        Ok(())
    })
}

fn what_others_made_stays(world: &World) -> Result<()> {
    neighbour(world)?;
    sh(KILO0)?;
    sh("ip route add 10.50.0.0/16 nexthop via 192.168.5.11 dev eth0 nexthop via 192.168.5.12 dev eth0; \
        ip route add 10.51.0.0/16 via 192.168.5.11 proto bird; ip route add blackhole 10.52.0.0/16; \
        ip route add 10.2.2.0/24 via 192.168.5.11 metric 500; ip route add 10.53.0.0/16 dev kilo0 proto bird; \
        ip route add 10.2.2.0/24 via 192.168.5.11 table 99; ip rule add fwmark 7 lookup 99; \
        ip rule add from 10.6.0.0/16 lookup 99; ip -6 route add fd50::/64 via fd00:5::11; \
        ip rule add fwmark 9 to 192.168.9.9 lookup 1107; \
        ip route add 10.5.0.1 dev kilo0 src 192.168.5.10 metric 50 proto bird")?;
    let show = "ip route show table all; ip -6 route show table main; ip rule; ip -6 rule";
    let before = sh(show)?;
    wait(async {
        let mut host = open(config(world)).await?;
        reach(&mut host, &leader()).await?;
        let during = sh(show)?;
        for line in before.lines().filter(|line| !line.contains("kernel")) {
            ensure!(during.contains(line), "{line:?} went:\n{during}");
        }
        let nothing = Desired { links: vec![kilo0()], ..Desired::default() };
        reach(&mut host, &nothing).await?;
        // Ours are gone; to remove them once more must not take somebody else's that looks like one.
        apply(&mut host, &leader().routes.into_iter().map(Op::DeleteRoute).collect::<Vec<_>>()).await?;
        let (mut before, after) = (before.lines().collect::<Vec<_>>(), sh(show)?);
        let mut after: Vec<&str> = after.lines().collect();
        before.sort_unstable();
        after.sort_unstable();
        ensure!(before == after, "before {before:#?} after {after:#?}");
        Ok(())
    })
}

fn a_refused_operation_is_told_and_stops_no_other(world: &World) -> Result<()> {
    neighbour(world)?;
    sh(KILO0)?;
    wait(async {
        let mut host = open(config(world)).await?;
        let good = route(MAIN_TABLE, "10.2.2.0/24", Dev::WireGuard, None, None);
        let bad_source = route(MAIN_TABLE, "10.2.4.0/24", Dev::WireGuard, None, Some("192.0.2.1"));
        let no_tunnel = route(MAIN_TABLE, "10.2.5.0/24", Dev::Tunnel, None, None);
        let taken = route(MAIN_TABLE, "10.51.0.0/16", Dev::WireGuard, None, None);
        sh("ip route add 10.51.0.0/16 via 192.168.5.11 proto bird")?;
        let ops = [bad_source, no_tunnel, taken, good].map(Op::AddRoute);
        let answers = host.apply(&ops).await;
        let text = |at: usize| match &answers[at] {
            Ok(()) => "fine".to_owned(),
            Err(error) => format!("{error}: {}", error.source),
        };
        ensure!(text(0).starts_with("adding route 10.2.4.0/24 via kilo0: Invalid argument"), "{}", text(0));
        ensure!(text(1) == "adding route 10.2.5.0/24 via tunl0: there is no tunnel", "{}", text(1));
        ensure!(text(2).contains("File exists"), "{}", text(2));
        ensure!(answers[3].is_ok() && sh("ip route")?.contains("10.2.2.0/24 dev kilo0 proto 75"));
        Ok(())
    })
}

/// As many routes as 10,000 nodes have, and how long they take.
fn twenty_thousand_routes(world: &World) -> Result<()> {
    neighbour(world)?;
    sh(KILO0)?;
    let mut desired = Desired { links: vec![kilo0()], ..Desired::default() };
    for i in 0..10_000u32 {
        let (a, b) = (i >> 8, i & 0xff);
        let v4 = format!("10.{}.{b}.0/24", 100 + a);
        desired.routes.push(route(MAIN_TABLE, &v4, Dev::WireGuard, Some("10.4.0.2"), Some("192.168.5.10")));
        desired.routes.push(route(MAIN_TABLE, &format!("fd07:{i:x}::/64"), Dev::WireGuard, Some("fd04::2"), None));
    }
    desired.routes.sort_unstable();
    wait(async {
        let mut host = open(config(world)).await?;
        let ops = diff(&desired, &host.observe().await?);
        let start = Instant::now();
        apply(&mut host, &ops).await?;
        let added = start.elapsed();
        let start = Instant::now();
        let observed = host.observe().await?;
        let read = start.elapsed();
        ensure!(diff(&desired, &observed).is_empty());
        ensure!(event(&mut host, 300).await.is_none(), "our own routes wake us");
        let ops = diff(&Desired { links: vec![kilo0()], ..Desired::default() }, &observed);
        let start = Instant::now();
        apply(&mut host, &ops).await?;
        let removed = start.elapsed();
        ensure!(!sh("ip route; ip -6 route")?.contains("proto 75"));
        figure(&format!(
            "20000 routes: added in {added:.2?}, everything read in {read:.2?}, removed in {removed:.2?}"
        ));
        ensure!(added < Duration::from_secs(2), "adding took {added:?}");
        Ok(())
    })
}

fn others_wake_us_and_we_do_not(world: &World) -> Result<()> {
    neighbour(world)?;
    sh(KILO0)?;
    wait(async {
        let mut host = open(config(world)).await?;
        // Ours: links, addresses, routes, rules.
        reach(&mut host, &leader()).await?;
        let mut other_mtu = leader();
        other_mtu.links[0].mtu = Some(1380);
        other_mtu.links[0].addresses = Some(vec![net("10.4.0.9/16"), net("fd04::9/64")]);
        reach(&mut host, &other_mtu).await?;
        reach(&mut host, &leader()).await?;
        let down = vec![Op::SetDown(Dev::WireGuard), Op::SetUp(Dev::WireGuard)];
        reach(&mut host, &Desired { links: vec![kilo0()], ..Desired::default() }).await?;
        apply(&mut host, &down).await?;
        reach(&mut host, &leader()).await?;
        ensure!(event(&mut host, 500).await.is_none(), "we wake ourselves");

        // Others', but none of our business.
        sh("ip link add pod1 type veth peer name pod2; ip link set pod1 up; ip addr add 10.60.0.1/24 dev pod1; \
            ip route add 10.61.0.0/24 via 192.168.5.11; ip route add 10.62.0.0/24 dev pod1 table 77; \
            ip rule add from 10.60.0.0/24 lookup 77; ip link del pod1; \
            nft add table ip foreign; nft add chain ip foreign c; nft delete table ip foreign")?;
        ensure!(event(&mut host, 300).await.is_none(), "strangers wake us");

        // Others', and ours to mend.
        for (script, wanted) in [
            ("ip route del 10.2.2.0/24", HostEvent::Routing),
            ("ip route replace 10.2.3.0/24 via 192.168.5.12 dev eth0", HostEvent::Routing),
            ("ip -6 route del fd02:2::/64", HostEvent::Routing),
            ("ip route del 192.168.9.9 table 1107", HostEvent::Routing),
            ("ip rule del from 10.2.1.0/24 to 192.168.9.9 lookup 1107", HostEvent::Routing),
            ("ip addr del 10.4.0.1/16 dev kilo0", HostEvent::Routing),
            ("ip link set kilo0 mtu 1300", HostEvent::Routing),
            ("ip link set kilo0 down", HostEvent::Routing),
            ("ip link del kilo0", HostEvent::Device),
        ] {
            sh(script)?;
            ensure!(event(&mut host, 1000).await == Some(wanted), "{script} does not wake us");
            while event(&mut host, 100).await.is_some() {}
        }

        // A future that is dropped takes no event along.
        for _ in 0..50 {
            ensure!(event(&mut host, 0).await.is_none());
        }
        sh("ip tuntap add kilo0 mode tun")?;
        for _ in 0..3 {
            drop(tokio::time::timeout(Duration::ZERO, std::future::pending::<()>()).await);
        }
        ensure!(event(&mut host, 1000).await == Some(HostEvent::Device));
        while event(&mut host, 100).await.is_some() {}

        // More than the socket holds.
        let script: String = (0..60_000u32)
            .map(|i| format!("route add 10.{}.{}.{}/32 dev eth0 table 77\n", 70 + (i >> 16), i >> 8 & 0xff, i & 0xff))
            .collect();
        let file = world.dir().join("batch");
        std::fs::write(&file, script)?;
        sh(&format!("ip -force -batch {}", file.display()))?;
        ensure!(event(&mut host, 2000).await == Some(HostEvent::Lost), "lost events are not told");
        ensure!(event(&mut host, 300).await.is_none(), "it goes on after an overrun");
        sh("ip link set kilo0 up")?;
        ensure!(event(&mut host, 1000).await == Some(HostEvent::Routing), "it hears nothing after an overrun");
        Ok(())
    })
}
