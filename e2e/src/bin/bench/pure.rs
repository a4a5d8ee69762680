//! The plan and the difference: time and memory by the size of the cluster.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kilo_mesh::{Config, Granularity, Node, Outcome, Peer, plan};
use kilo_state::{Desired, Observed, apply, diff};
use kilo_testkit::{cluster, peer};

use crate::figures::Figure;
use crate::process::{cpu, forget_peak, memory_of};

/// At most this long, and at least so many rounds.
const LIMIT: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;

/// Wall and CPU time of the middle round, in milliseconds.
fn median(mut work: impl FnMut()) -> (f64, f64) {
    let (mut walls, mut cpus) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    while walls.len() < ROUNDS || (begin.elapsed() < LIMIT && walls.len() < 200) {
        let (wall, before) = (Instant::now(), cpu());
        work();
        walls.push(wall.elapsed().as_secs_f64() * 1e3);
        cpus.push((cpu() - before).as_secs_f64() * 1e3);
    }
    walls.sort_by(f64::total_cmp);
    cpus.sort_by(f64::total_cmp);
    (walls[walls.len() / 2], cpus[cpus.len() / 2])
}

/// The kernel after everything that is wanted was done.
fn carried_out(desired: &Desired) -> Observed {
    let mut observed = Observed::default();
    for op in diff(desired, &observed) {
        apply(&mut observed, &op);
    }
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
    let mut read_peers: Vec<Peer> = objects.peers.iter().map(|object| Peer::from_object(object).0).collect();
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
        read_peers[peers / 2] = Peer::from_object(&changed).0;
        let mut ops = 0;
        let (wall, cpu) = median(|| {
            let plan = plan(&config, &nodes_by_ref, &read_peers.iter().collect::<Vec<_>>(), &facts);
            ops = plan.mesh.map_or(0, |mesh| diff(&mesh.desired, &observed).len());
        });
        figures.push(Figure::new(format!("{name}/one-peer-changed/wall-ms"), wall));
        figures.push(Figure::new(format!("{name}/one-peer-changed/cpu-ms"), cpu));
        figures.push(Figure::new(format!("{name}/one-peer-changed/operations"), ops as f64));
    }
    Ok(figures)
}
