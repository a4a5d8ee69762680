//! What the demo does, one step after the other, and what it says about it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use kilo_e2e::mesh::{Mesh, Reach};
use kilo_e2e::{PingReport, Pinger, World, eventually};
use serde_json::Value;

use crate::{Break, Options, picture};

/// How long agents may take to be ready, and the mesh to carry packets after a change.
const SOON: Duration = Duration::from_secs(20);
/// Kilo leaves out a node 60 s after its last check-in; a resync may pass before that is seen.
const EXPIRED: Duration = Duration::from_secs(100);
/// The longest gap that a graceful stop of a leader may make.
const GAP: Duration = Duration::from_secs(5);

struct Story<'w> {
    start: Instant,
    mesh: Mesh<'w>,
    problems: Vec<String>,
    pairs: usize,
    lost: usize,
    sent: usize,
}

/// Tells all of it; whether everything was as it should be.
pub fn tell(world: &World, options: &Options, pid: &str) -> Result<bool> {
    let start = Instant::now();
    step(start, "Two locations with two nodes each, east behind NAT; a pod on every node; one agent each");
    let mesh = Mesh::start(world, &[])?;
    let mut story = Story { start, mesh, problems: Vec::new(), pairs: 0, lost: 0, sent: 0 };
    step(start, "Waiting until the agents have found each other");
    story.mesh.settle(SOON)?;
    step(start, "A laptop joins: its Peer is written, its WireGuard gets what `kgctl showconf peer` prints");
    story.mesh.admit("laptop", 77, SOON)?;
    match options.broken {
        Some(Break::Route) => story.break_route()?,
        None => story.changes(options)?,
    }
    println!("\n{}", picture::draw(&story.mesh)?);
    let fine = story.end();
    if options.keep {
        keep(pid);
    }
    Ok(fine)
}

fn step(start: Instant, text: &str) {
    println!("[{:5.1} s] {text}", start.elapsed().as_secs_f64());
}

impl Story<'_> {
    fn step(&self, text: &str) {
        step(self.start, text);
    }

    fn changes(&mut self, options: &Options) -> Result<()> {
        self.table("Who reaches whom: ping, and a TCP connection that shows the caller's own address");

        self.step("A phone joins while packets flow");
        let pings = self.pings(&[("a1", "b2"), ("b2", "laptop"), ("laptop", "a2")])?;
        self.mesh.admit("phone", 78, SOON)?;
        self.table("Who reaches whom with the phone");
        self.count(pings, Duration::ZERO)?;

        self.step("The agent of a1, the leader of west, is stopped; a2 takes over");
        let through = self.pings(&[("a2", "b2")])?;
        let beside = self.pings(&[("b1", "b2"), ("laptop", "b1")])?;
        self.mesh.stop("a1", true)?;
        self.mesh.settle(SOON)?;
        self.mesh.configure_travellers(SOON)?;
        self.table("Who reaches whom without a1");
        self.count(through, GAP)?;
        self.count(beside, Duration::ZERO)?;

        if options.slow {
            self.step(
                "The agent of b1, the leader of east, is killed with SIGKILL; b2 takes over after 60 s",
            );
            let through = self.pings(&[("a2", "b2")])?;
            self.mesh.stop("b1", false)?;
            self.mesh.settle(EXPIRED)?;
            self.mesh.configure_travellers(SOON)?;
            self.table("Who reaches whom without a1 and b1");
            self.count(through, EXPIRED)?;
        }
        Ok(())
    }

    /// The agent would put the route back within moments, so it is frozen first; its plan is asked before.
    fn break_route(&mut self) -> Result<()> {
        self.mesh.reach_all(SOON)?;
        let plans = self.mesh.plans()?;
        self.step("The agent of b2 is frozen, and the route of b2 to the pods of a1 is removed");
        self.mesh.agent("b2")?.freeze()?;
        let (a1, b2) = (self.mesh.place.node("a1")?, self.mesh.place.node("b2")?);
        b2.ns.run(&format!("ip route del {}", a1.pod_cidr))?;
        let reach = self.mesh.reach();
        self.show("Who reaches whom without that route", &reach);
        self.compare(&plans)
    }

    /// Waits until all pairs reach each other, shows the table, compares the kernels.
    fn table(&mut self, title: &str) {
        let mut last = self.mesh.reach();
        let start = Instant::now();
        while !last.failures().is_empty() && start.elapsed() < SOON {
            self.step(&format!("{} pairs do not reach each other yet", last.failures().len()));
            std::thread::sleep(Duration::from_secs(1));
            last = self.mesh.reach();
        }
        self.show(title, &last);
        if let Err(error) = self.mesh.kernels_as_planned(SOON) {
            self.problems.push(format!("{error:#}"));
            return;
        }
        self.step(&format!("Kernel state equals GET /plan on {} nodes", self.mesh.agents.len()));
    }

    fn show(&mut self, title: &str, reach: &Reach) {
        println!("\n  {title}\n\n{reach}\n");
        self.pairs += reach.reached();
        self.problems.extend(reach.failures());
    }

    fn compare(&mut self, plans: &BTreeMap<String, Value>) -> Result<()> {
        self.problems.extend(self.mesh.differences(plans)?);
        Ok(())
    }

    fn pings(&self, pairs: &[(&str, &str)]) -> Result<Vec<(String, Pinger)>> {
        let host = |name: &str| {
            let traveller = self.mesh.travellers.iter().map(|traveller| &traveller.host);
            let mut all = self.mesh.place.nodes.iter().map(|node| &node.pod).chain(traveller);
            let pod = format!("pod-{name}");
            all.find(|host| host.name() == name || host.name() == pod)
                .ok_or_else(|| anyhow::anyhow!("there is no {name}"))
        };
        let mut pingers = Vec::new();
        for (from, to) in pairs {
            let (from, to) = (host(from)?, host(to)?);
            let pinger = from.ns.pinger(to.address)?;
            eventually(SOON, "a ping is answered", || {
                anyhow::ensure!(pinger.answered() > 0, "{} → {}: none yet", from.name(), to.name());
                Ok(())
            })?;
            pingers.push((format!("{} → {}", from.name(), to.name()), pinger));
        }
        Ok(pingers)
    }

    /// Stops pings and says what was lost; a longer gap than `allowed` is a problem.
    fn count(&mut self, pingers: Vec<(String, Pinger)>, allowed: Duration) -> Result<()> {
        for (who, pinger) in pingers {
            let PingReport { sent, lost, longest_gap, ran } = pinger.stop()?;
            let gap = if lost == 0 {
                String::new()
            } else {
                format!(", longest gap {:.2} s", longest_gap.as_secs_f64())
            };
            self.step(&format!("{who}: {lost} of {sent} pings lost in {:.1} s{gap}", ran.as_secs_f64()));
            self.lost += lost;
            self.sent += sent;
            if longest_gap > allowed {
                self.problems.push(format!("{who}: {lost} pings lost{gap}"));
            }
        }
        Ok(())
    }

    fn end(&self) -> bool {
        for problem in &self.problems {
            println!("WRONG: {problem}");
        }
        println!(
            "{} pairs reached each other, {} of {} pings lost during changes, {} things wrong, {:.0} s",
            self.pairs,
            self.lost,
            self.sent,
            self.problems.len(),
            self.start.elapsed().as_secs_f64()
        );
        self.problems.is_empty()
    }
}

/// Waits for ever: the end of the outer half ends everything.
fn keep(pid: &str) {
    let exe = std::env::current_exe().unwrap_or_else(|_| "demo".into());
    let look = format!("nsenter -t {pid} -a --preserve-credentials {} --helper in", exe.display());
    println!(
        "\nIt goes on until you press Ctrl-C. To look inside, from another terminal, as the same user:\n  \
         {look} b1 wg show\n  {look} a2 ip route show proto 75\n  \
         {look} a2 nft list ruleset\n  {look} pod-a2 ping 10.42.4.2\n  \
         {look} b1 sh -c 'cat /run/world/b1/kg.log; ls -R /run/world/state'"
    );
    loop {
        std::thread::park();
    }
}
