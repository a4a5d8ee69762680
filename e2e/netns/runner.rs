//! The runner itself: a failure, a panic, a hanging test and a skip are told apart, and a killed test leaves no
//! process behind.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kilo_e2e::{Place, Skip, World, eventually, netns, tests};

tests![
    outcomes_are_told_apart(place = Place::Host),
    fails(hidden = true),
    panics(hidden = true),
    hangs(hidden = true, limit = 1),
    skips(hidden = true),
];

/// Nobody else's process sleeps for so long.
const SLEEP: &str = "86399.75";

fn outcomes_are_told_apart(world: &World) -> Result<()> {
    let summary = world.dir().join("summary.json");
    let output = Command::new(netns::helper::program()?)
        .args(["-j", "2", "--exact"])
        .args(["fails", "panics", "hangs", "skips"].map(|name| format!("netns::runner::{name}")))
        .env("E2E_SUMMARY", &summary)
        .output()
        .context("starting the runner")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "{text}");
    ensure!(text.lines().last() == Some("0 passed, 3 failed, 1 skipped"), "{text}");
    for line in ["Error: on purpose", "hangs ... FAILED", "skips ... skipped: no reason to run"] {
        ensure!(text.contains(line), "{line:?} is missing in:\n{text}");
    }
    let summary: serde_json::Value = serde_json::from_slice(&std::fs::read(&summary)?)?;
    ensure!(summary["failed"] == 3 && summary["tests"].as_array().is_some_and(|tests| tests.len() == 4));
    eventually(Duration::from_secs(5), "the killed test leaves nothing behind", || {
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            ensure!(!String::from_utf8_lossy(&command).contains(SLEEP), "{:?} still runs", entry.path());
        }
        Ok(())
    })
}

fn fails(_: &World) -> Result<()> {
    bail!("on purpose")
}

fn panics(_: &World) -> Result<()> {
    panic!("on purpose")
}

fn hangs(world: &World) -> Result<()> {
    let ns = world.ns("n")?;
    let _sleep = ns.spawn("sleep", &["sleep", SLEEP])?;
    ns.run(&format!("sleep {SLEEP}")).map(drop)
}

fn skips(_: &World) -> Result<()> {
    Err(Skip::because("no reason to run"))
}
