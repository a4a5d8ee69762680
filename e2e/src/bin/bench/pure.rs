//! The plan and the difference: time and memory by the size of the cluster.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kilo_mesh::{Config, Facts, Granularity, Node, Outcome, Peer, PeerChange, PeerObject, Planner, plan};
use kilo_state::{Desired, Observed, apply_all, diff, diff_touched};
use kilo_testkit::{cluster, peer};

use crate::figures::Figure;
use crate::process::{cpu, forget_peak, memory_of};

/// At most this long, and at least so many rounds.
const LIMIT: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;

/// Wall and CPU times of several rounds, in milliseconds.
#[derive(Default)]
struct Times {
    walls: Vec<f64>,
    cpus: Vec<f64>,
}

impl Times {
    /// One more round.
    fn of<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.walls.push(0.0);
        self.cpus.push(0.0);
        self.and(work)
    }

    /// More work of the last round.
    fn and<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (wall, before) = (Instant::now(), cpu());
        let result = work();
        let (wall, cpu) = (wall.elapsed(), cpu() - before);
        if let (Some(walls), Some(cpus)) = (self.walls.last_mut(), self.cpus.last_mut()) {
            *walls += wall.as_secs_f64() * 1e3;
            *cpus += cpu.as_secs_f64() * 1e3;
        }
        result
    }

    /// Those of the middle round.
    fn middle(mut self) -> (f64, f64) {
        self.walls.sort_by(f64::total_cmp);
        self.cpus.sort_by(f64::total_cmp);
        (self.walls[self.walls.len() / 2], self.cpus[self.cpus.len() / 2])
    }
}

/// Wall and CPU time of the middle round, in milliseconds.
fn median(mut work: impl FnMut()) -> (f64, f64) {
    let mut times = Times::default();
    let begin = Instant::now();
    while times.walls.len() < ROUNDS || (begin.elapsed() < LIMIT && times.walls.len() < 200) {
        times.of(&mut work);
    }
    times.middle()
}

/// The kernel after everything that is wanted was done.
fn carried_out(desired: &Desired) -> Observed {
    let mut observed = Observed::default();
    let ops = diff(desired, &observed);
    apply_all(&mut observed, &ops.iter().collect::<Vec<_>>());
    observed
}

pub fn measure(nodes: usize, peers: usize, granularity: &str) -> Result<Vec<Figure>> {
    let objects = cluster(nodes, peers);
    let config = Config {
        granularity: if granularity == "full" { Granularity::Full } else { Granularity::Location },
        ..objects.config()
    };
    let facts = objects.facts();
    let label = config.topology_label.clone();
    let read: Vec<Node> = objects.nodes.iter().map(|object| Node::from_object(object, &label).0).collect();
    let read_peers: Vec<Peer> = objects.peers.iter().map(|object| Peer::from_object(object).0).collect();
    let nodes_by_ref: Vec<&Node> = read.iter().collect();

    forget_peak()?;
    let before = memory_of("self", "VmRSS")?;
    let first = plan(&config, &nodes_by_ref, &read_peers.iter().collect::<Vec<_>>(), &facts);
    ensure!(first.outcome == Outcome::Ok, "the plan came out {:?}: {:?}", first.outcome, first.error);
    let Some(mesh) = &first.mesh else { anyhow::bail!("a plan without mesh") };
    let peak = memory_of("self", "VmHWM")?.saturating_sub(before);
    let ops = diff(&mesh.desired, &Observed::default()).len();
    let start_peak = memory_of("self", "VmHWM")?.saturating_sub(before);
    let observed = carried_out(&mesh.desired);
    ensure!(diff(&mesh.desired, &observed).is_empty(), "a difference where there is none");

    let name = format!("plan/{nodes}-nodes/{peers}-peers/{granularity}");
    let (wall, cpu) = median(|| {
        let plan = plan(&config, &nodes_by_ref, &read_peers.iter().collect::<Vec<_>>(), &facts);
        let ops = plan.mesh.map(|mesh| diff(&mesh.desired, &observed).len());
        assert_eq!(ops, Some(0));
    });
    // What upstream needs for topology, configuration, routes and rules alone, without firewall or difference.
    let upstream = match (nodes, peers, granularity) {
        (5000, 10_000, "location") => Some("20 (without firewall and difference)"),
        (5000, 10_000, _) => Some("28 (without firewall and difference)"),
        (1000, 1000, "location") => Some("2.3 (without firewall and difference)"),
        (1000, 1000, _) => Some("4.5 (without firewall and difference)"),
        _ => None,
    };
    let beside =
        |figure: Figure, text: Option<&str>| text.map_or(figure.clone(), |text| figure.upstream(text));
    let mut figures = vec![
        beside(Figure::new(format!("{name}/wall-ms"), wall), upstream),
        Figure::new(format!("{name}/cpu-ms"), cpu),
        beside(
            Figure::new(format!("{name}/peak-mib"), peak as f64 / 1024.0),
            (nodes == 5000 && peers == 10_000).then_some("30–35"),
        ),
        Figure::new(format!("{name}/with-operations-of-a-start/peak-mib"), start_peak as f64 / 1024.0),
        Figure::new(format!("{name}/operations-of-a-start"), ops as f64),
    ];
    if (nodes, peers) == (5000, 10_000) {
        let mut changed = peer(peers / 2);
        changed.spec.persistent_keepalive = Some(25);
        changed.spec.allowed_ips = vec!["10.99.0.1/32".to_owned()];
        let follower = Follower { config, nodes: nodes_by_ref, facts, peers: &read_peers };
        let objects = [peer(peers / 2), changed];
        let at = &format!("{name}/one-peer-changed");
        figures.extend(follower.measure(at, [Some(&objects[0]), Some(&objects[1])])?);
        let at = &format!("{name}/one-peer-added-or-removed");
        figures.extend(follower.measure(at, [None, Some(&peer(peers))])?);
    }
    Ok(figures)
}

/// A cluster in which one Peer changes to and fro.
struct Follower<'a> {
    config: Config,
    nodes: Vec<&'a Node>,
    facts: Facts,
    peers: &'a [Peer],
}

impl Follower<'_> {
    /// From the object of an event to the operations, and these worked into what is known of the kernel: by a whole plan, and by following this one Peer.
    fn measure(&self, name: &str, objects: [Option<&PeerObject>; 2]) -> Result<Vec<Figure>> {
        let Some(of_name) = objects.iter().flatten().next().map(|object| object.metadata.name.as_str())
        else {
            anyhow::bail!("a change of nothing");
        };
        let read = |turn: usize| objects[turn % 2].map(|object| Peer::from_object(object).0);
        let others: Vec<&Peer> = self.peers.iter().filter(|peer| *peer.name != *of_name).collect();
        let with = |peer: Option<&Peer>| {
            let mut all = others.clone();
            all.extend(peer);
            Planner::new(&self.config, &self.nodes, &all, &self.facts)
        };
        let of =
            |plan: &Planner| plan.plan().mesh.as_ref().map(|mesh| mesh.desired.clone()).context("a mesh");

        let mut now = read(0);
        let mut planner = with(now.as_ref());
        let mut observed = carried_out(&of(&planner)?);
        let (mut whole, mut followed) = (Times::default(), Times::default());
        let mut count = 0;
        let begin = Instant::now();
        for turn in 1.. {
            if begin.elapsed() > LIMIT && turn > ROUNDS {
                break;
            }
            let (next, made) = whole.of(|| {
                let next = read(turn);
                let made = with(next.as_ref());
                let ops = made.plan().mesh.as_ref().map(|mesh| diff(&mesh.desired, &observed));
                (next, (made, ops.unwrap_or_default()))
            });
            let change = PeerChange { old: now.as_ref(), new: next.as_ref() };
            let (after, ops) = followed.of(|| {
                read(turn);
                let (after, touched) = planner.change(&self.config, &self.facts, &[change])?;
                let desired = after.plan().mesh.as_ref().map(|mesh| &mesh.desired).context("a mesh")?;
                let ops = diff_touched(desired, &observed, &touched);
                anyhow::Ok((after, ops))
            })?;
            ensure!(ops == made.1, "{name}: other operations than of a whole plan");
            ensure!(after.plan() == made.0.plan(), "{name}: another plan than the whole one");
            count = ops.len();
            followed.and(|| apply_all(&mut observed, &ops.iter().collect::<Vec<_>>()));
            (planner, now) = (after, next);
        }
        let (wall, cpu) = followed.middle();
        Ok(vec![
            Figure::new(format!("{name}/wall-ms"), wall),
            Figure::new(format!("{name}/cpu-ms"), cpu),
            Figure::new(format!("{name}/operations"), count as f64),
            Figure::new(format!("{name}/whole-plan/cpu-ms"), whole.middle().1),
        ])
    }
}
