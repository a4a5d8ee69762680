//! `make demo`: a mesh of four nodes in two locations and two travellers, made here and now, and who reaches
//! whom in it.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a program that shows something")]

mod picture;
mod story;

use std::io::{BufRead as _, Write as _};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use kilo_e2e::World;
use kilo_testkit::netns::{Ns, Sandbox, die_with_parent, enter, helper};

/// Two locations, four nodes, a laptop: who reaches whom in a mesh of Kilo
#[derive(Clone, Debug, Parser)]
#[command(name = "demo")]
pub struct Options {
    /// Exit with an error when anything is wrong
    #[arg(long)]
    check: bool,
    /// Break something first: --check must then fail
    #[arg(long = "break", value_name = "WHAT")]
    broken: Option<Break>,
    /// Also kill a leader with SIGKILL: the others drop it after 60 seconds
    #[arg(long)]
    slow: bool,
    /// Leave everything running at the end, and tell how to look inside
    #[arg(long)]
    keep: bool,
    /// The inner half, in fresh namespaces
    #[arg(long, hide = true)]
    inside: bool,
}

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Break {
    /// One node loses its route to the pods of another, and its agent is stopped so that it cannot repair it.
    Route,
}

fn main() -> ExitCode {
    if let Some(code) = helper::main(own_helper) {
        return code;
    }
    let options = Options::parse();
    let done = if options.inside { inside(&options) } else { outside() };
    match done {
        Ok(code) => code,
        Err(error) => {
            let _nobody_reads = writeln!(std::io::stderr(), "demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Makes fresh namespaces and starts this program again in them.
fn outside() -> Result<ExitCode> {
    let sandbox = Sandbox::probe()?;
    let mut child = sandbox
        .command(helper::program()?)
        .arg("--inside")
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::piped())
        .spawn()
        .context("starting the demo in fresh namespaces")?;
    let outer = child.id();
    // Who looks inside needs the process as it is seen from out here: the child of unshare.
    let children = format!("/proc/{outer}/task/{outer}/children");
    let inner = kilo_e2e::eventually(Duration::from_secs(5), "the demo starts", || {
        let text = std::fs::read_to_string(&children).context("looking for the demo's process")?;
        text.trim().parse::<u32>().with_context(|| format!("{children} holds {text:?}"))
    })?;
    let mut stdin = child.stdin.take().context("a pipe to the demo")?;
    writeln!(stdin, "{inner}").context("telling the demo its process")?;
    let status = child.wait().context("waiting for the demo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn inside(options: &Options) -> Result<ExitCode> {
    let mut pid = String::new();
    std::io::stdin().lock().read_line(&mut pid).context("reading the process id")?;
    die_with_parent();
    enter()?;
    let world = World::new()?;
    let told = story::tell(&world, options, pid.trim());
    if told.is_err() {
        println!("{}", world.logs(20));
    }
    let fine = told?;
    Ok(if fine || !options.check { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `--helper in NAMESPACE COMMAND…`: how to look inside, and what the travellers need.
fn own_helper(words: &[&str]) -> Option<Result<()>> {
    match words {
        ["in", ns, command @ ..] if !command.is_empty() => Some(look_inside(ns, command)),
        other => kilo_e2e::mesh::helper(other),
    }
}

fn look_inside(ns: &str, command: &[&str]) -> Result<()> {
    let mut command: Command = Ns::existing(ns)?.command(command);
    let status = command.status().context("starting ip netns exec")?;
    anyhow::ensure!(status.success(), "the command ended with {status}");
    Ok(())
}
