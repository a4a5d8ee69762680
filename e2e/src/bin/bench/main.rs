//! `make bench`: how long, how much, how big; upstream's figure beside ours, and a file of thresholds that
//! makes it fail. Each measurement is a process of its own.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a program that shows something")]

mod failover;
mod figures;
mod idle;
mod one_peer;
mod policy;
mod process;
mod pure;
mod tunnel;

use std::io::Write as _;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use kilo_testkit::netns::{Sandbox, World, die_with_parent, enter, helper};

use figures::{Figure, Thresholds, table};

/// Measures what operators pay for, and fails when it is more than the thresholds say.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench")]
struct Options {
    /// Only measurements whose names contain one of these words
    words: Vec<String>,
    /// Seconds that an agent at rest is watched
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// One measurement, in this process
    #[arg(long, hide = true)]
    inside: Option<String>,
}

/// One measurement: its name, whether it needs fresh namespaces, and what it does.
struct Measurement {
    name: String,
    namespaces: bool,
    run: Box<dyn Fn() -> Result<Vec<Figure>>>,
}

/// `rest`: how long an agent at rest is watched.
fn measurements(rest: Duration) -> Vec<Measurement> {
    let mut all = Vec::new();
    for granularity in ["location", "full"] {
        for nodes in [100, 1000, 5000] {
            for peers in [0, 1000, 10_000] {
                all.push(Measurement {
                    name: format!("plan/{nodes}-nodes/{peers}-peers/{granularity}"),
                    namespaces: false,
                    run: Box::new(move || pure::measure(nodes, peers, granularity)),
                });
            }
        }
    }
    for present in [0, 300, 1000, 10_000] {
        all.push(Measurement {
            name: format!("one-peer/{present}-present"),
            namespaces: true,
            run: Box::new(move || one_peer::measure(present)),
        });
    }
    all.push(Measurement {
        name: "idle/alone".into(),
        namespaces: true,
        run: Box::new(move || idle::alone(rest)),
    });
    let run = Box::new(move || idle::built_in(rest));
    all.push(Measurement { name: "idle/built-in-wireguard".into(), namespaces: true, run });
    all.push(Measurement { name: "failover".into(), namespaces: true, run: Box::new(failover::measure) });
    all.push(Measurement { name: "size".into(), namespaces: false, run: Box::new(process::sizes) });
    for (name, size, changes) in [
        (
            "10000-pods-1000-policies",
            policy::Size { nodes: 100, pods: 10_000, local: 110, policies: 1000, peers: 0 },
            true,
        ),
        (
            "5000-pods-1000-peers",
            policy::Size { nodes: 100, pods: 5000, local: 110, policies: 1000, peers: 1000 },
            true,
        ),
        (
            "50000-pods-1000-nodes",
            policy::Size { nodes: 1000, pods: 50_000, local: 110, policies: 1000, peers: 0 },
            false,
        ),
    ] {
        all.push(Measurement {
            name: format!("policy/{name}"),
            namespaces: true,
            run: Box::new(move || policy::change(&format!("policy/{name}"), size, changes)),
        });
    }
    for policies in [0, 100, 1000, 10_000] {
        all.push(Measurement {
            name: format!("policy-flow/{policies}-policies"),
            namespaces: true,
            run: Box::new(move || policy::flow(policies)),
        });
    }
    all.push(Measurement { name: "tunnel".into(), namespaces: true, run: Box::new(tunnel::measure) });
    all
}

fn main() -> ExitCode {
    if let Some(code) = helper::main(|words| policy::helper(words).or_else(|| kilo_e2e::mesh::helper(words)))
    {
        return code;
    }
    let options = Options::parse();
    let done = match &options.inside {
        Some(name) => inside(name, Duration::from_secs(options.idle)),
        None => all(&options),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            let _nobody_reads = writeln!(std::io::stderr(), "bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn all(Options { words, idle, .. }: &Options) -> Result<ExitCode> {
    let thresholds = Thresholds::read()?;
    let sandbox = Sandbox::probe().ok();
    println!("{}", process::machine());
    let (mut figures, mut failed) = (Vec::new(), 0);
    let chosen = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    for measurement in measurements(Duration::from_secs(*idle)).iter().filter(|m| chosen(&m.name)) {
        let program = helper::program()?;
        let mut command = match (measurement.namespaces, sandbox) {
            (false, _) => std::process::Command::new(program),
            (true, Some(sandbox)) => sandbox.command(program),
            (true, None) => {
                println!("skipped: {}: no fresh namespaces here", measurement.name);
                continue;
            }
        };
        let output = command
            .args(["--inside", &measurement.name, "--idle", &idle.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .and_then(|mut child| {
                // While this end is held, the measurement's process knows that somebody waits for it.
                let held = child.stdin.take();
                let output = child.wait_with_output();
                drop(held);
                output
            })
            .with_context(|| format!("measuring {}", measurement.name))?;
        if !output.status.success() {
            println!("failed: {} ended with {}", measurement.name, output.status);
            failed += 1;
            continue;
        }
        let text = String::from_utf8(output.stdout).context("the figures")?;
        for line in text.lines() {
            match line.strip_prefix("figure ") {
                Some(json) => figures.push(Figure::read(json)?),
                None => println!("{line}"),
            }
        }
        let _ = writeln!(std::io::stderr(), "measured {}", measurement.name);
    }
    let (text, exceeded) = table(&figures, &thresholds);
    print!("{text}");
    println!("{}", process::machine());
    println!("{} figures, {exceeded} beyond their thresholds, {failed} measurements failed", figures.len());
    Ok(if exceeded + failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn inside(name: &str, rest: Duration) -> Result<ExitCode> {
    let all = measurements(rest);
    let measurement = all.iter().find(|m| m.name == name).context("no such measurement")?;
    let world = if measurement.namespaces {
        die_with_parent();
        enter()?;
        Some(World::new()?)
    } else {
        None
    };
    let figures = (measurement.run)();
    if let (Err(_), Some(world)) = (&figures, &world) {
        let _ = writeln!(std::io::stderr(), "{}", world.logs(20));
    }
    for figure in figures? {
        println!("figure {}", figure.write()?);
    }
    Ok(ExitCode::SUCCESS)
}
