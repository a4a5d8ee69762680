//! What befalls a leader: cables that are pulled, power that is cut; and who leads then.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kilo_testkit::netns::{Ns, Pingers, eventually};
use serde_json::Value;

use super::{Mesh, Place};

/// The time a witness takes to learn that a leader answers at all.
const ANSWERS: Duration = Duration::from_secs(6);
/// How often a `ping` of the tests is to be sent.
const INTERVAL: Duration = Duration::from_millis(50);
/// How long nodes take for everything but a failover.
const SOON: Duration = Duration::from_secs(40);

/// One of a node's cables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    /// To the others of its location.
    Inside,
    /// To the internet.
    Uplink,
}

impl Place {
    /// Plugs a node's cable in or pulls it, at the far end: the node sees no more than that nobody is there.
    pub fn plug(&self, node: &str, cable: Cable, plugged: bool) -> Result<()> {
        let node = self.node(node)?;
        let (switch, port) = match cable {
            Cable::Inside => (node.switch, node.name.clone()),
            Cable::Uplink => ("internet", format!("to-{}", node.name)),
        };
        let state = if plugged { "up" } else { "down" };
        Ns::existing(switch)?.run(&format!("ip link set {port} {state}")).map(drop)
    }
}

impl Mesh<'_> {
    /// Cuts a node's power: nobody hears of it again, and nothing is written.
    pub fn cut_power(&mut self, name: &str) -> Result<()> {
        self.pull(name)?;
        self.stop(name, false)
    }

    /// Pulls all cables of a node.
    pub fn pull(&self, name: &str) -> Result<()> {
        self.place.plug(name, Cable::Inside, false)?;
        if self.place.node(name)?.public.is_some() {
            self.place.plug(name, Cable::Uplink, false)?;
        }
        Ok(())
    }

    /// Plugs them in again.
    pub fn plug(&self, name: &str) -> Result<()> {
        self.place.plug(name, Cable::Inside, true)?;
        if self.place.node(name)?.public.is_some() {
            self.place.plug(name, Cable::Uplink, true)?;
        }
        Ok(())
    }

    /// Who leads a location in the plan of a node.
    pub fn leader(&self, of: &str, seen_by: &str) -> Result<String> {
        let agent = self.agents.get(seen_by).with_context(|| format!("no agent runs on {seen_by}"))?;
        leader(&agent.plan()?, of)
    }

    /// Cuts the power of `a1` while pods of `a2` and `b2` ping each other; for how long they had no answer.
    pub fn fail_over(&mut self) -> Result<Duration> {
        std::thread::sleep(ANSWERS);
        let (a2, b2) = (&self.place.node("a2")?.pod, &self.place.node("b2")?.pod);
        let pingers = Pingers::start([a2.to(b2), b2.to(a2)])?;
        self.cut_power("a1")?;
        std::thread::sleep(Duration::from_secs(2));
        eventually(SOON, "the next one leads", || {
            for name in ["a2", "b1", "b2"] {
                let leader = self.leader("west", name)?;
                ensure!(leader == "a2", "{name} follows {leader}");
            }
            Ok(())
        })?;
        let (a2, b2) = (&self.place.node("a2")?.pod, &self.place.node("b2")?.pod);
        for (from, to) in [(a2, b2), (b2, a2)] {
            eventually(SOON, "the locations reach each other", || from.ns.ping(to.address))?;
        }
        std::thread::sleep(Duration::from_secs(1));
        let report = pingers.stop()?;
        // On a busy machine pings are sent less often than they should be.
        let each = report.ran.as_secs_f64() * 2.0 / report.sent.max(1) as f64;
        Ok(report.longest_gap.mul_f64((each / INTERVAL.as_secs_f64()).max(1.0)))
    }
}

/// Who leads a location in a plan.
pub fn leader(plan: &Value, of: &str) -> Result<String> {
    let name = format!("location:{of}");
    let segments = plan["segments"].as_array().map(Vec::as_slice).unwrap_or_default();
    let segment = segments.iter().find(|segment| segment["location"] == *name);
    let segment = segment.with_context(|| format!("there is no segment {name}"))?;
    let at = segment["leader"].as_u64().and_then(|at| usize::try_from(at).ok()).context("no leader")?;
    segment["hostnames"][at].as_str().map(str::to_owned).context("no name of a leader")
}
