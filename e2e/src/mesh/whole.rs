//! The whole mesh: the ground, the state directory, an agent on every node, and the travellers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kilo_testkit::netns::{World, eventually};
use serde_json::Value;

use super::{Agent, Host, Node, Place, Reach, StateDir, Traveller, differences};

/// A mesh and those who use it.
#[derive(Debug)]
pub struct Mesh<'w> {
    /// Where it is.
    pub world: &'w World,
    /// The ground.
    pub place: Place,
    /// The objects.
    pub state: StateDir,
    /// The agents that run, by the name of their node.
    pub agents: BTreeMap<String, Agent>,
    /// The travellers, in the order of their coming.
    pub travellers: Vec<Traveller>,
    /// Pods whose node has no agent any more.
    pub stopped: BTreeSet<String>,
}

impl<'w> Mesh<'w> {
    /// Lays out the ground and starts an agent on every node. The mesh is not waited for.
    pub fn start(world: &'w World, flags: &[&str]) -> Result<Self> {
        Self::start_on(world, &["a1", "a2", "b1", "b2"], flags)
    }

    /// Lays out the ground and starts agents on some nodes only; the others have no Node object either.
    pub fn start_on(world: &'w World, names: &[&str], flags: &[&str]) -> Result<Self> {
        needs(world)?;
        Self::start_at(world, Place::lay_out(world)?, names, flags)
    }

    /// Starts agents on some nodes of a ground.
    pub fn start_at(world: &'w World, place: Place, names: &[&str], flags: &[&str]) -> Result<Self> {
        needs(world)?;
        let state = StateDir::new(world.dir().join("state"))?;
        let mut agents = BTreeMap::new();
        let mut stopped = BTreeSet::new();
        for node in &place.nodes {
            if names.contains(&node.name.as_str()) {
                state.add_node(node)?;
            } else {
                stopped.insert(node.pod.name().to_owned());
            }
        }
        for name in names {
            let node = place.node(name)?;
            agents.insert(node.name.clone(), Agent::start(node, state.path(), flags)?);
        }
        Ok(Self { world, place, state, agents, travellers: Vec::new(), stopped })
    }

    /// Starts the agent of a node again.
    pub fn restart(&mut self, name: &str, flags: &[&str]) -> Result<()> {
        let node = self.place.node(name)?;
        self.stopped.remove(node.pod.name());
        self.agents.insert(name.to_owned(), Agent::start(node, self.state.path(), flags)?);
        Ok(())
    }

    /// The traveller of this name.
    pub fn traveller(&self, name: &str) -> Result<&Traveller> {
        let found = self.travellers.iter().find(|traveller| traveller.host.name() == name);
        found.with_context(|| format!("there is no traveller {name}"))
    }

    /// The agent of a node.
    pub fn agent(&mut self, name: &str) -> Result<&mut Agent> {
        self.agents.get_mut(name).with_context(|| format!("no agent runs on {name}"))
    }

    /// Lets a traveller in: its Peer is written, and once an agent shows it, its device is configured.
    pub fn admit(&mut self, name: &str, number: u8, limit: Duration) -> Result<()> {
        let traveller = Traveller::arrive(self.world, &self.place, name, number)?;
        let (address, endpoint) = (traveller.host.address, traveller.endpoint);
        self.state.put_peer(name, &traveller.public_key, address, Some(endpoint))?;
        self.travellers.push(traveller);
        self.everywhere(limit, &format!("{name} is planned"), |plan| {
            let peers = plan["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
            ensure!(peers.iter().any(|peer| peer["name"] == name), "it is not");
            Ok(())
        })?;
        // Only the newcomer: a new configuration makes a device forget where it found the others.
        self.travellers.last().map_or(Ok(()), |traveller| traveller.configure(&self.state, limit))
    }

    /// Gives every traveller the configuration that `kgctl showconf peer` prints now.
    pub fn configure_travellers(&self, limit: Duration) -> Result<()> {
        self.travellers.iter().try_for_each(|traveller| traveller.configure(&self.state, limit))
    }

    /// Waits until a condition holds for the plan of every agent.
    pub fn everywhere(
        &self,
        limit: Duration,
        what: &str,
        holds: impl Fn(&Value) -> Result<()>,
    ) -> Result<()> {
        for (name, agent) in &self.agents {
            eventually(limit, &format!("{what} on {name}"), || holds(&agent.plan()?))?;
        }
        Ok(())
    }

    /// Waits until every agent is ready and its plan has exactly the nodes whose agents run.
    pub fn settle(&self, limit: Duration) -> Result<()> {
        let wanted: Vec<&String> = self.agents.keys().collect();
        for (name, agent) in &self.agents {
            eventually(limit, &format!("{name} is ready"), || {
                agent.get("/readyz?verbose")?;
                let plan = agent.plan()?;
                ensure!(plan["readyNodes"] == serde_json::json!(wanted), "it sees {}", plan["readyNodes"]);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Who reaches whom at this moment.
    pub fn reach(&self) -> Reach {
        let pods: Vec<&Host> = self.place.nodes.iter().map(|node| &node.pod).collect();
        let travellers: Vec<&Host> = self.travellers.iter().map(|traveller| &traveller.host).collect();
        Reach::of(&pods, &travellers, &self.stopped)
    }

    /// Waits until everybody who should reaches everybody; the table, or the last one with its failures.
    pub fn reach_all(&self, limit: Duration) -> Result<Reach> {
        eventually(limit, "everybody reaches everybody", || {
            let reach = self.reach();
            let failures = reach.failures();
            if !failures.is_empty() {
                bail!("{}\n{reach}", failures.join("\n"));
            }
            Ok(reach)
        })
    }

    /// Stops the agent of a node, gracefully or with SIGKILL; its pod counts as stopped.
    pub fn stop(&mut self, name: &str, gracefully: bool) -> Result<()> {
        let mut agent = self.agents.remove(name).with_context(|| format!("no agent runs on {name}"))?;
        self.stopped.insert(self.place.node(name)?.pod.name().to_owned());
        if gracefully {
            return agent.stop();
        }
        agent.kill();
        Ok(())
    }

    /// How many operations all agents have carried out.
    pub fn operations(&self) -> Result<f64> {
        self.agents.values().map(|agent| agent.operations(&[])).sum()
    }

    /// What `wg` tells about the devices of all nodes, apart from what moves by itself: endpoints and counters.
    pub fn devices(&self) -> Result<BTreeMap<String, String>> {
        let device = |node: &Node| {
            let parts = ["public-key", "listen-port", "allowed-ips", "persistent-keepalive"];
            let text = parts.map(|part| node.ns.run(&format!("wg show kilo0 {part}")));
            Ok((node.name.clone(), text.into_iter().collect::<Result<_>>()?))
        };
        self.place.nodes.iter().map(device).collect()
    }

    /// The plans of all agents.
    pub fn plans(&self) -> Result<BTreeMap<String, Value>> {
        self.agents.iter().map(|(name, agent)| Ok((name.clone(), agent.plan()?))).collect()
    }

    /// Where kernels are not as these plans say: `b2: route … is missing`.
    pub fn differences(&self, plans: &BTreeMap<String, Value>) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for (name, plan) in plans {
            let node = self.place.node(name)?;
            let answers = self.agents.get(name).is_some_and(|agent| !agent.is_frozen());
            found.extend(
                differences(&node.ns, plan, answers)?.into_iter().map(|what| format!("{name}: {what}")),
            );
        }
        Ok(found)
    }

    /// Compares until the kernels are as planned; an agent may be at work.
    pub fn kernels_as_planned(&self, limit: Duration) -> Result<()> {
        eventually(limit, "kernels are as planned", || {
            let found = self.differences(&self.plans()?)?;
            ensure!(found.is_empty(), "{}", found.join("\n"));
            Ok(())
        })
    }
}

fn needs(world: &World) -> Result<()> {
    for program in ["ip", "nft", "wg", "ping"] {
        world.need(program)?;
    }
    world.need_tun()
}
