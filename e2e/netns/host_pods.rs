//! Pods from CNI: our plugin called as a runtime calls it, behind the bridge plugin. The address of a pod is known
//! before its container starts; where the agent is down a pod starts all the same, and is told of later. What pods of
//! one node send each other passes FORWARD.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kilo_agent::{AttachedPod, BridgeSight, Pods, PodsChanged};
use kilo_e2e::{Skip, World, eventually, figure, program, tests};
use kilo_host::pods::{LinuxPods, PodsConfig, undo_routing};
use serde_json::{Value, json};

use super::host_lab::{sh, wait};

tests![
    a_pod_is_known_before_it_starts,
    a_pod_starts_without_an_agent_and_is_told_of_later,
    a_pod_whose_agent_does_not_answer_starts_after_two_seconds,
    an_address_that_is_given_anew_without_an_agent_is_held,
    pods_of_one_node_meet_in_forward,
    traffic_that_is_not_seen_is_said,
    redirects_are_off_on_our_links,
];

const TABLE: &str = "nft -f - <<'END'
table inet kilo_policy {
  map egress4 { type ipv4_addr : mark; }
  map egress6 { type ipv6_addr : mark; }
  map ingress4 { type ipv4_addr : mark; }
  map ingress6 { type ipv6_addr : mark; }
  counter v4 { }
  counter v6 { }
  chain forward {
    type filter hook forward priority -5;
    meta nfproto ipv4 counter name v4
    meta nfproto ipv6 counter name v6
  }
}
END";

/// Where the project's own plugins are, built if need be.
fn plugins() -> Result<PathBuf> {
    let cache = match std::env::var_os("KILO_TEST_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").context("no HOME")?).join(".cache/kilo-e2e"),
    };
    let plugins = cache.join("cni");
    if plugins.join("bridge").is_file() && plugins.join("host-local").is_file() {
        return Ok(plugins);
    }
    Err(Skip::because(format!("no CNI plugins in {}: .ci/build-cni makes them", plugins.display())))
}

/// A node as a container runtime sees it: the namespace of the test.
#[derive(Clone)]
struct Runtime {
    plugins: PathBuf,
    config: PodsConfig,
    state: PathBuf,
}

impl Runtime {
    fn new(world: &World) -> Result<Self> {
        world.need("nft")?;
        let dir = world.dir();
        sh("ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; \
            for family in '' 6; do [ ! -e /proc/sys/net/bridge ] || echo 0 > /proc/sys/net/bridge/bridge-nf-call-ip${family}tables; done")?;
        let config = PodsConfig {
            socket: dir.join("kilo/cni.sock"),
            records: dir.join("cni/results"),
            bridge: Some("kube-bridge".into()),
            links: Vec::new(),
        };
        Ok(Self { plugins: plugins()?, config, state: dir.join("ipam") })
    }

    fn plugin(&self, program: PathBuf, command: &str, pod: &str, config: &Value) -> Result<Value> {
        let variables = BTreeMap::from([
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", format!("sandbox-{pod}")),
            ("CNI_NETNS", format!("/var/run/netns/{pod}")),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod};K8S_POD_UID=uid-{pod}")),
            ("CNI_PATH", self.plugins.display().to_string()),
        ]);
        let mut child = Command::new(&program)
            .envs(&variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| program.display().to_string())?;
        child.stdin.take().context("no input")?.write_all(config.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{} {command}: {text}", program.display());
        if text.trim().is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&text)?) }
    }

    /// The chain of an ADD or DEL, up to our plugin, as libcni goes through it.
    fn chain(&self, command: &str, pod: &str, result: Option<&Value>) -> Result<Value> {
        let mut bridge = json!({
            "cniVersion": "0.4.0", "name": "kilo", "type": "bridge", "bridge": "kube-bridge",
            "isDefaultGateway": true, "forceAddress": true, "mtu": 1420,
            "ipam": {
                "type": "host-local", "dataDir": self.state,
                "ranges": [[{"subnet": "10.2.1.0/24"}], [{"subnet": "fd02:1::/64"}]]
            }
        });
        let mut ours = json!({
            "cniVersion": "0.4.0", "name": "kilo", "type": "kilo", "bridge": "kube-bridge", "socket": self.config.socket,
        });
        let (first, kilo) = (self.plugins.join("bridge"), program("kg")?);
        match result {
            None => {
                let result = self.plugin(first, command, pod, &bridge)?;
                ours["prevResult"] = result.clone();
                let after = self.plugin(kilo, command, pod, &ours)?;
                ensure!(after == result, "our plugin changes the result: {after}");
                Ok(result)
            }
            Some(result) => {
                (ours["prevResult"], bridge["prevResult"]) = (result.clone(), result.clone());
                self.plugin(kilo, command, pod, &ours)?;
                self.plugin(first, command, pod, &bridge)
            }
        }
    }

    /// Sets a pod up. Its record is written when all plugins are done.
    fn add(&self, pod: &str) -> Result<Value> {
        let result = self.chain("ADD", pod, None)?;
        self.record(pod, &result)?;
        Ok(result)
    }

    /// Writes libcni's record.
    fn record(&self, pod: &str, result: &Value) -> Result<()> {
        std::fs::create_dir_all(&self.config.records)?;
        let record = json!({
            "kind": "cniCacheV1", "containerId": format!("sandbox-{pod}"), "config": "", "ifName": "eth0", "networkName": "kilo",
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", pod],
                        ["K8S_POD_UID", format!("uid-{pod}")]],
            "result": result,
        });
        Ok(std::fs::write(self.path(pod), record.to_string())?)
    }

    fn path(&self, pod: &str) -> PathBuf {
        self.config.records.join(format!("kilo-sandbox-{pod}-eth0"))
    }

    /// Ends a pod.
    fn del(&self, pod: &str, result: &Value) -> Result<()> {
        self.chain("DEL", pod, Some(result))?;
        std::fs::remove_file(self.path(pod))?;
        Ok(())
    }

    fn open(&self) -> Result<LinuxPods> {
        Ok(LinuxPods::open(self.config.clone())?)
    }
}

/// The address of a pod in one family.
fn address(result: &Value, ipv6: bool) -> Result<IpAddr> {
    let ips = result["ips"].as_array().context("no ips")?;
    let parsed = ips.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse::<IpAddr>().ok());
    parsed.into_iter().find(|ip| ip.is_ipv6() == ipv6).context("no address")
}

/// The next list of pods, or an error when nothing happens for this long.
async fn changed(pods: &mut LinuxPods) -> Result<PodsChanged> {
    tokio::time::timeout(Duration::from_secs(3), pods.changed()).await.context("nothing is told")
}

/// Waits until so many pods are told.
async fn until(pods: &mut LinuxPods, count: usize) -> Result<Vec<AttachedPod>> {
    loop {
        let change = changed(pods).await?;
        change.programmed.tell();
        if change.pods.len() == count {
            return Ok(change.pods);
        }
    }
}

fn names(pods: &[AttachedPod]) -> Vec<&str> {
    pods.iter().map(|pod| pod.name.as_str()).collect()
}

/// Does something beside an agent that puts in force what it is told, after this time each.
async fn beside_an_agent<T: Send + 'static>(
    pods: &mut LinuxPods,
    takes: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<(T, Vec<AttachedPod>)> {
    let mut work = tokio::task::spawn_blocking(work);
    let mut last = Vec::new();
    loop {
        tokio::select! {
            done = &mut work => return Ok((done.context("the work panicked")??, last)),
            change = pods.changed() => {
                tokio::time::sleep(takes).await;
                change.programmed.tell();
                last = change.pods;
            }
        }
    }
}

/// Adds and ends a pod beside an agent.
async fn add(pods: &mut LinuxPods, runtime: &Runtime, pod: &'static str) -> Result<(Value, Vec<AttachedPod>)> {
    let runtime = runtime.clone();
    beside_an_agent(pods, Duration::ZERO, move || runtime.add(pod)).await
}

fn a_pod_is_known_before_it_starts(world: &World) -> Result<()> {
    let runtime = Runtime::new(world)?;
    world.ns("web")?;
    wait(async {
        let mut pods = runtime.open()?;
        ensure!(changed(&mut pods).await?.pods.is_empty(), "there are pods before there are any");
        // The call returns when the pod is in force, not before.
        let (takes, copy) = (Duration::from_millis(300), runtime.clone());
        let call = move || {
            let start = Instant::now();
            copy.chain("ADD", "web", None).map(|result| (result, start.elapsed()))
        };
        let ((result, took), told) = beside_an_agent(&mut pods, takes, call).await?;
        ensure!(took >= takes && took < Duration::from_secs(2), "the call took {took:?}");
        let [pod] = told.as_slice() else { bail!("{told:?}") };
        ensure!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()) == ("shop", "web", "uid-web"));
        ensure!(pod.addresses == [address(&result, false)?, address(&result, true)?], "{:?}", pod.addresses);
        sh(&format!("bridge link show dev {} | grep kube-bridge", pod.link)).context("not the pod's link")?;
        // Its record changes nothing, neither does that of somebody who has ended; its end is told at once.
        runtime.record("web", &result)?;
        let copy = runtime.clone();
        let ((), told) = beside_an_agent(&mut pods, Duration::ZERO, move || copy.chain("DEL", "web", Some(&result)).map(drop)).await?;
        ensure!(told.is_empty(), "{told:?}");
        std::fs::write(runtime.config.records.join("other"), "{")?;
        let more = tokio::time::timeout(Duration::from_millis(500), pods.changed()).await;
        ensure!(more.is_err(), "a record of what has ended is told: {more:?}");
        Ok(())
    })
}

fn a_pod_starts_without_an_agent_and_is_told_of_later(world: &World) -> Result<()> {
    let runtime = Runtime::new(world)?;
    world.ns("web")?;
    world.ns("db")?;
    let start = Instant::now();
    let web = runtime.add("web")?;
    ensure!(start.elapsed() < Duration::from_secs(4), "it took {:?}", start.elapsed());
    wait(async {
        let mut pods = runtime.open()?;
        ensure!(names(&changed(&mut pods).await?.pods) == ["web"], "the agent does not learn of it");
        // Another one dies while the socket it has left is there; a record alone is told, too.
        drop(pods);
        runtime.add("db")?;
        let mut pods = runtime.open()?;
        ensure!(names(&until(&mut pods, 2).await?) == ["db", "web"]);
        runtime.del("web", &web)?;
        ensure!(names(&until(&mut pods, 1).await?) == ["db"]);
        // A machine that starts again has records, but no links.
        drop(pods);
        sh("ip link delete kube-bridge; ip -o link | sed -n 's/.*: \\(veth[0-9a-f]*\\)@.*/\\1/p' | xargs -rn1 ip link delete")?;
        ensure!(runtime.config.records.join("kilo-sandbox-db-eth0").exists());
        ensure!(changed(&mut runtime.open()?).await?.pods.is_empty(), "a pod without link is told");
        Ok(())
    })
}

fn a_pod_whose_agent_does_not_answer_starts_after_two_seconds(world: &World) -> Result<()> {
    let runtime = Runtime::new(world)?;
    world.ns("web")?;
    wait(async {
        let _pods = runtime.open()?;
        let copy = runtime.clone();
        let start = Instant::now();
        tokio::task::spawn_blocking(move || copy.add("web")).await.context("it panicked")??;
        let took = start.elapsed();
        ensure!(took >= Duration::from_secs(2) && took < Duration::from_secs(6), "it took {took:?}");
        let mode = sh(&format!("stat -c %a {} {}", runtime.config.socket.display(), world.dir().join("kilo").display()))?;
        ensure!(mode == "600\n700\n", "{mode}");
        Ok(())
    })
}

fn an_address_that_is_given_anew_without_an_agent_is_held(world: &World) -> Result<()> {
    let runtime = Runtime::new(world)?;
    sh(TABLE)?;
    world.ns("web")?;
    let result = runtime.add("web")?;
    let elements = |v4: &str, v6: &str| {
        sh(&format!("for map in egress ingress; do nft add element inet kilo_policy ${{map}}4 '{{ {v4} : 7 }}'; \
                     nft add element inet kilo_policy ${{map}}6 '{{ {v6} : 7 }}'; done"))
    };
    elements(&address(&result, false)?.to_string(), &address(&result, true)?.to_string())?;
    elements("10.2.1.99", "fd02:1::99")?;
    let left = || sh("nft list table inet kilo_policy | grep -c 'elements = { 10.2.1.99 : 0x00000007 }\\|elements = { fd02:1::99 : 0x00000007 }'");
    ensure!(left().is_err(), "{}", sh("nft list table inet kilo_policy")?);
    runtime.del("web", &result)?;
    ensure!(left()?.trim() == "4", "{}", sh("nft list table inet kilo_policy")?);
    ensure!(!sh("ip -6 neigh show proxy")?.contains("fd02"), "somebody is still answered for");
    Ok(())
}

fn pods_of_one_node_meet_in_forward(world: &World) -> Result<()> {
    let runtime = Runtime::new(world)?;
    sh(TABLE)?;
    let [old, web, db] = ["old", "web", "db"].map(|pod| world.ns(pod));
    let (old, web, _db) = (old?, web?, db?);
    let counted = || -> Result<[u64; 2]> {
        let of = |family: &str| -> Result<u64> {
            let listed = sh(&format!("nft list counter inet kilo_policy {family}"))?;
            Ok(listed.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok()).unwrap_or(0))
        };
        Ok([of("v4")?, of("v6")?])
    };
    // A pod from before policies: the bridge switches.
    sh("nft delete table inet kilo_policy")?;
    let first = runtime.add("old")?;
    // A bridge that was made just now does not answer before its own address has been looked for elsewhere.
    eventually(Duration::from_secs(5), "the bridge has its address", || {
        ensure!(sh("ip -6 addr show dev kube-bridge tentative")?.is_empty());
        Ok(())
    })?;
    sh(TABLE)?;
    wait(async {
        // Without an agent the plugin has them routed.
        let second = runtime.add("web")?;
        let isolated = |count: usize| -> Result<()> {
            let text = sh("bridge -d link show")?;
            ensure!(text.matches("isolated on").count() == count, "{text}");
            Ok(())
        };
        isolated(1)?;
        let mut pods = runtime.open()?;
        ensure!(changed(&mut pods).await?.sight == BridgeSight::Seen);
        isolated(2)?;
        let (third, told) = add(&mut pods, &runtime, "db").await?;
        isolated(3)?;
        ensure!(names(&told) == ["db", "old", "web"], "{told:?}");
        let mut slowest = 0.0_f64;
        for (from, to) in [(&web, &first), (&web, &third), (&old, &second), (&old, &third)] {
            for ipv6 in [false, true] {
                let before = counted()?;
                slowest = slowest.max(from.ping(address(to, ipv6)?).context("a pod is not reached")?);
                let after = counted()?;
                let place = usize::from(ipv6);
                ensure!(after[place] == before[place] + 2, "not in forward: {before:?}, then {after:?}");
            }
        }
        figure(&format!("first packets between pods of one node took at most {slowest:.1} ms"));
        // They reach their node, and nobody is told another way.
        web.ping("10.2.1.1".parse()?)?;
        web.ping("fd02:1::1".parse()?)?;
        let redirected = web.sh("ping -n -c 2 -i 0.2 -W 1 $1 2>&1 || true".replace("$1", &address(&third, false)?.to_string()).as_str())?;
        ensure!(!redirected.contains("Redirect"), "{redirected}");
        // An address can be given again: its end makes it free.
        let (copy, ended) = (runtime.clone(), third.clone());
        beside_an_agent(&mut pods, Duration::ZERO, move || copy.del("db", &ended)).await?;
        let free = address(&third, true)?;
        ensure!(!sh("ip -6 neigh show proxy")?.contains(&free.to_string()), "{free} is still answered for");
        // Policies end: the bridge switches again.
        drop(pods);
        undo_routing("kube-bridge")?;
        isolated(0)?;
        let before = counted()?;
        // What the neighbours were is forgotten after a while.
        web.sh("ip neigh flush dev eth0; ip -6 neigh flush dev eth0")?;
        old.sh("ip neigh flush dev eth0; ip -6 neigh flush dev eth0")?;
        for ipv6 in [false, true] {
            web.ping(address(&first, ipv6)?).context("after the end of policies")?;
        }
        ensure!(counted()? == before, "the bridge does not switch");
        Ok(())
    })
}

fn traffic_that_is_not_seen_is_said(world: &World) -> Result<()> {
    let mut runtime = Runtime::new(world)?;
    runtime.config.bridge = None;
    world.ns("web")?;
    let result = runtime.add("web")?;
    wait(async {
        let mut pods = runtime.open()?;
        let change = changed(&mut pods).await?;
        let BridgeSight::Unseen { links, reason } = change.sight else { bail!("it passes for seen") };
        ensure!(links.len() == 1 && result["interfaces"].to_string().contains(&links[0]), "{links:?}");
        ensure!(reason.contains("br_netfilter") && reason.contains("bridge-nf-call-ip6tables"), "{reason}");
        if !std::path::Path::new("/proc/sys/net/bridge").exists() {
            return Ok(());
        }
        drop(pods);
        sh("for family in '' 6; do echo 1 > /proc/sys/net/bridge/bridge-nf-call-ip${family}tables; done")?;
        ensure!(changed(&mut runtime.open()?).await?.sight == BridgeSight::Seen, "br_netfilter is not seen");
        Ok(())
    })
}

fn redirects_are_off_on_our_links(world: &World) -> Result<()> {
    let mut runtime = Runtime::new(world)?;
    sh("ip link add kilo0 type bridge; ip link add other type bridge; \
        for link in kilo0 other; do echo 1 > /proc/sys/net/ipv4/conf/$link/accept_source_route; done")?;
    runtime.config.links = vec!["kilo0".into(), "absent".into()];
    wait(async {
        changed(&mut runtime.open()?).await?;
        let values = |link: &str| {
            sh(&format!("cd /proc/sys/net; cat ipv4/conf/{link}/accept_source_route ipv4/conf/{link}/accept_redirects \
                         ipv4/conf/{link}/send_redirects ipv6/conf/{link}/accept_redirects ipv6/conf/{link}/accept_source_route"))
        };
        ensure!(values("kilo0")? == "0\n0\n0\n0\n0\n", "{}", values("kilo0")?);
        // What others do is their own business.
        ensure!(values("other")? == "1\n1\n1\n1\n0\n", "{}", values("other")?);
        ensure!(sh("cat /proc/sys/net/ipv4/conf/all/send_redirects")?.trim() == "0", "others decide for ours");
        Ok(())
    })
}
