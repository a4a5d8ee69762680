//! Our rules among those of iptables: they beat a program that drops, are listed and removed by iptables like its
//! own, and go again. And our own nftables table.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use kilo_agent::{Host, HostEvent};
use kilo_e2e::{Skip, World, tests};
use kilo_host::HostConfig;
use kilo_state::{Desired, ForwardAccept, Op};
use kilo_testkit::netns::Ns;

use super::host_lab::{apply, config, event, neighbour, net, open, reach, sh, wait};

tests![
    accepts_beat_dockers_drop,
    rules_are_those_of_iptables,
    upstreams_rules_are_known,
    legacy_tables_are_told_with_commands,
    our_table_is_reached_and_watched,
];

/// What Docker leaves: a policy of DROP and jumps of its own.
const DOCKER: &str = "for i in iptables ip6tables; do $i -P FORWARD DROP; $i -N DOCKER-USER; $i -A DOCKER-USER -j RETURN; \
                      $i -A FORWARD -j DOCKER-USER; $i -A FORWARD -i docker0 -j ACCEPT; $i -A FORWARD -j DROP; done";

fn forwarding(world: &World) -> HostConfig {
    HostConfig { forward_rules: true, ..config(world) }
}

/// A pod behind this machine, and the neighbour's way to it.
fn pod(world: &World) -> Result<(Ns, Ns)> {
    let other = neighbour(world)?;
    let pod = world.ns("pod")?;
    world.ip("link add pod0 type veth peer name eth0 netns pod")?;
    sh("ip link set pod0 up; ip addr add 10.2.1.1/24 dev pod0; ip addr add fd02:1::1/64 dev pod0 nodad")?;
    pod.sh("ip link set eth0 up; ip addr add 10.2.1.2/24 dev eth0; ip addr add fd02:1::2/64 dev eth0 nodad; \
            ip route add default via 10.2.1.1; ip -6 route add default via fd02:1::1")?;
    other.sh("ip route add 10.2.1.0/24 via 192.168.5.10; ip -6 route add fd02:1::/64 via fd00:5::10")?;
    Ok((other, pod))
}

fn accepted() -> Desired {
    let forward = vec![ForwardAccept(net("10.2.1.0/24")), ForwardAccept(net("fd02:1::/64"))];
    Desired { forward, ..Desired::default() }
}

fn accepts_beat_dockers_drop(world: &World) -> Result<()> {
    for program in ["iptables", "ip6tables"] {
        world.need(program)?;
    }
    let (other, pod) = pod(world)?;
    sh(DOCKER)?;
    let ways: [(&Ns, &str); 4] =
        [(&pod, "192.168.5.11"), (&pod, "fd00:5::11"), (&other, "10.2.1.2"), (&other, "fd02:1::2")];
    let reaches = |(from, to): &(&Ns, &str)| -> Result<bool> {
        let to: IpAddr = to.parse()?;
        Ok(from.ping(to).is_ok())
    };
    for way in &ways {
        ensure!(!reaches(way)?, "Docker's rules let {} pass before ours are there", way.1);
    }
    wait(async {
        let mut host = open(forwarding(world)).await?;
        reach(&mut host, &accepted()).await?;
        for way in &ways {
            ensure!(reaches(way)?, "{} is not reached", way.1);
        }
        // Docker starts again and puts its jump before ours; that drops nothing.
        sh("iptables -D FORWARD -j DOCKER-USER; iptables -I FORWARD -j DOCKER-USER")?;
        ensure!(event(&mut host, 1000).await == Some(HostEvent::Firewall), "iptables does not wake us");
        ensure!(reach(&mut host, &accepted()).await? == 0, "nothing is to be mended");
        ensure!(event(&mut host, 300).await.is_none(), "we wake ourselves");
        ensure!(reaches(&ways[0])?);
        // Somebody flushes.
        sh("iptables -F FORWARD")?;
        ensure!(!reaches(&ways[0])?);
        ensure!(event(&mut host, 1000).await == Some(HostEvent::Firewall));
        reach(&mut host, &accepted()).await?;
        ensure!(reaches(&ways[0])?);
        ensure!(event(&mut host, 300).await.is_none(), "we wake ourselves");
        reach(&mut host, &Desired::default()).await?;
        ensure!(!reaches(&ways[0])? && !reaches(&ways[1])?, "our rules stay");
        ensure!(!sh("iptables-save; ip6tables-save")?.contains("Kilo"));
        ensure!(sh("iptables -S FORWARD")?.contains("-P FORWARD DROP"), "the policy is another's");
        Ok(())
    })
}

/// Where there is no chain it is made; what we make and what iptables makes are the same to both.
fn rules_are_those_of_iptables(world: &World) -> Result<()> {
    world.need("iptables")?;
    neighbour(world)?;
    let nets = ["10.2.1.0/24", "10.2.1.7/32", "10.2.0.0/17", "0.0.0.0/0", "fd02:1::/64", "fd02:1::/70", "fd02::7/128"];
    let mut desired = Desired { forward: nets.map(|text| ForwardAccept(net(text))).to_vec(), ..Desired::default() };
    desired.forward.sort_unstable();
    wait(async {
        let mut host = open(forwarding(world)).await?;
        reach(&mut host, &desired).await?;
        for (range, accept) in nets.iter().zip(nets.map(net)) {
            let iptables = if accept.addr().is_ipv4() { "iptables" } else { "ip6tables" };
            let saved = sh(&format!("{iptables}-save"))?;
            for (side, word) in [("-s", "from"), ("-d", "to")] {
                let comment = format!("-m comment --comment \"Kilo: forward packets {word} the pod subnet\" -j ACCEPT");
                let place = if accept.prefix_len() == 0 { String::new() } else { format!("{side} {range} ") };
                let line = format!("-A FORWARD {place}{comment}");
                ensure!(saved.lines().any(|found| found == line), "no {line:?} in\n{saved}");
                sh(&format!("{iptables} -C FORWARD {side} {range} {comment}")).context("iptables -C")?;
            }
        }
        ensure!(sh("iptables -S FORWARD")?.contains("-P FORWARD ACCEPT"));
        // iptables removes one of ours: both directions are wanted, so it is put back, once.
        let comment = "-m comment --comment \"Kilo: forward packets from the pod subnet\" -j ACCEPT";
        sh(&format!("iptables -D FORWARD -s 10.2.1.0/24 {comment}"))?;
        ensure!(reach(&mut host, &desired).await? == 1);
        let lines = sh("iptables -S FORWARD")?.lines().filter(|line| line.contains(" 10.2.1.0/24 ")).count();
        ensure!(lines == 2, "{lines} rules for one range");
        Ok(())
    })
}

fn upstreams_rules_are_known(world: &World) -> Result<()> {
    world.need("iptables")?;
    neighbour(world)?;
    let upstream = |word: &str, range: &str, what: &str| {
        let side = if word == "from" { "-s" } else { "-d" };
        sh(&format!("iptables -I FORWARD -m comment --comment \"Kilo: forward packets {word} {what}\" {side} {range} -j ACCEPT"))
    };
    for word in ["from", "to"] {
        upstream(word, "10.2.1.0/24", "the node's pod subnet")?;
        upstream(word, "192.168.5.10/32", "private IPs")?;
    }
    sh("iptables -A FORWARD -s 10.9.0.0/16 -m comment --comment \"Kilograms\" -j ACCEPT")?;
    wait(async {
        let mut host = open(forwarding(world)).await?;
        let observed = host.observe().await?.forward;
        ensure!(observed == [ForwardAccept(net("10.2.1.0/24")), ForwardAccept(net("192.168.5.10/32"))], "{observed:?}");
        let desired = Desired { forward: vec![ForwardAccept(net("10.2.1.0/24"))], ..Desired::default() };
        ensure!(reach(&mut host, &desired).await? == 1, "what is right is left as it is");
        let text = sh("iptables -S FORWARD")?;
        ensure!(!text.contains("192.168.5.10") && text.contains("Kilograms"), "{text}");
        Ok(())
    })
}

fn legacy_tables_are_told_with_commands(world: &World) -> Result<()> {
    world.need("iptables-legacy")?;
    let (_other, pod) = pod(world)?;
    if let Err(error) = sh("iptables-legacy -P FORWARD DROP") {
        return Err(Skip::because(format!("the kernel has no legacy tables: {error:#}")));
    }
    wait(async {
        let mut host = open(forwarding(world)).await?;
        apply(&mut host, &[Op::AddForward(ForwardAccept(net("10.2.1.0/24")))]).await?;
        let to: IpAddr = "192.168.5.11".parse()?;
        ensure!(pod.ping(to).is_err());
        let findings = forwarding_findings(host.facts().await?);
        let [finding] = findings.as_slice() else { anyhow::bail!("the findings are {findings:?}") };
        ensure!(finding.field == "--iptables-forward-rules" && finding.value == "10.2.1.0/24", "{finding}");
        sh(finding.reason.split_once("run: ").context("no commands")?.1)?;
        pod.ping(to).context("after the commands")?;
        Ok(())
    })
}

/// What a plan with --iptables-forward-rules finds about the forwarding of a machine that says this of itself.
fn forwarding_findings(host: kilo_mesh::HostFacts) -> Vec<kilo_mesh::Finding> {
    let config = kilo_mesh::Config {
        hostname: "a".into(),
        iptables_forward_rules: true,
        local: false,
        node_expiry: 0,
        ..kilo_mesh::Config::default()
    };
    let object = kilo_mesh::NodeObject {
        metadata: kilo_mesh::Metadata { name: "a".into(), ..Default::default() },
        spec: kilo_mesh::NodeSpec { pod_cidr: "10.2.1.0/24".into(), pod_cidrs: Vec::new() },
    };
    let (node, _) = kilo_mesh::Node::from_object(&object, &config.topology_label);
    // Without a private address there is one range to accept, that of the pods.
    let host = kilo_mesh::HostFacts { internal_ip: None, ..host };
    let plan = kilo_mesh::plan(&config, &[&node], &[], &kilo_mesh::Facts { host, ..Default::default() });
    plan.findings.into_iter().filter(|finding| finding.field == "--iptables-forward-rules").collect()
}

fn our_table_is_reached_and_watched(world: &World) -> Result<()> {
    world.need("nft")?;
    neighbour(world)?;
    let firewall = kilo_nftables::Table {
        name: kilo_mesh::TABLE_NAME.into(),
        sets: [(
            "pods".into(),
            kilo_nftables::Set::of_nets(kilo_nftables::Family::V4, &[net("10.2.1.0/24"), net("10.2.7.0/24")]),
        )]
        .into(),
        ..Default::default()
    };
    let desired = Desired { table: Some(firewall), ..Desired::default() };
    wait(async {
        let mut host = open(config(world)).await?;
        reach(&mut host, &desired).await?;
        let listed = sh("nft list table inet kilo")?;
        ensure!(listed.contains("10.2.1.0/24") && listed.contains("10.2.7.0/24"), "{listed}");
        ensure!(event(&mut host, 300).await.is_none(), "we wake ourselves");
        sh("nft add table inet other; nft add set inet other s '{ type ipv4_addr; }'")?;
        ensure!(event(&mut host, 300).await.is_none(), "strangers wake us");
        sh("nft flush set inet kilo pods")?;
        ensure!(event(&mut host, 1000).await == Some(HostEvent::Firewall), "a flushed set does not wake us");
        ensure!(reach(&mut host, &desired).await? == 1);
        sh("nft delete table inet kilo")?;
        ensure!(event(&mut host, 1000).await == Some(HostEvent::Firewall), "a deleted table does not wake us");
        reach(&mut host, &desired).await?;
        // A refused change names itself, and changes nothing.
        let change = kilo_nftables::Change::DeleteSet("nothing".into());
        let transaction = kilo_nftables::Transaction { table: "kilo".into(), changes: vec![change], ..Default::default() };
        let error = host.apply(&[Op::Nftables(transaction)]).await.remove(0).err().context("it is not refused")?;
        ensure!(error.action.contains("kilo") && error.action.contains("nothing"), "{}", error.action);
        apply(&mut host, &[]).await?;
        reach(&mut host, &Desired::default()).await?;
        ensure!(!sh("nft list tables")?.contains("kilo"));
        Ok(())
    })
}
