//! Runs tests, each in its own process, and counts them.
//!
//! `e2e [-j N] [--list] [WORD…]` runs the tests whose names contain one of the words, N at a time and one beside
//! that mostly waits; `--exact NAME` runs one.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::panic::AssertUnwindSafe;
use std::process::{Child, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kilo_testkit::netns::{self, Sandbox, Skip, World};

use crate::test::{Place, Test};

/// The exit status of a test that cannot run.
const SKIPPED: u8 = 77;
const REASON: &str = "skipped: ";
const FIGURE: &str = "figure: ";
/// So much of the output of a failed test is said again at the end: what it ended with.
const LAST_LINES: usize = 25;
const LONGEST_LINE: usize = 300;

/// The `main` of the test program.
pub fn main(tests: &[Test]) -> ExitCode {
    if let Some(code) = netns::helper::main(|words| {
        crate::crash::helper(words)
            .or_else(|| crate::mesh::helper(words))
            .or_else(|| crate::policy::helper(words))
    }) {
        return code;
    }
    let outcome = Options::parse(std::env::args().skip(1)).and_then(|options| match &options.inside {
        Some(name) => inside(tests, name),
        None => all(tests, &options),
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            say(&format!("e2e: {error:#}"));
            ExitCode::from(2)
        }
    }
}

#[derive(Default)]
struct Options {
    jobs: usize,
    list: bool,
    exact: bool,
    words: Vec<String>,
    inside: Option<String>,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self { jobs: 1, ..Self::default() };
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--list" => options.list = true,
                "--exact" => options.exact = true,
                "--inside" => options.inside = Some(args.next().context("--inside needs a test")?),
                "-j" => {
                    let jobs = args.next().context("-j needs a number")?;
                    options.jobs =
                        jobs.parse().ok().filter(|jobs| *jobs > 0).context("-j needs a number above 0")?;
                }
                other if other.starts_with('-') => {
                    bail!("unknown option {other}; known: -j N --list --exact WORD…")
                }
                _ => options.words.push(arg),
            }
        }
        Ok(options)
    }

    fn takes(&self, test: &Test) -> bool {
        let name = test.short_name();
        if test.hidden && !self.exact {
            return false;
        }
        self.words.is_empty()
            || self
                .words
                .iter()
                .any(|word| if self.exact { name == word } else { name.contains(word.as_str()) })
    }
}

enum Outcome {
    /// With what the test has found out, if that is worth telling.
    Passed(Vec<String>),
    Failed {
        why: String,
        output: String,
    },
    Skipped(String),
}

fn all(tests: &[Test], options: &Options) -> Result<ExitCode> {
    let chosen: Vec<&Test> = tests.iter().filter(|test| options.takes(test)).collect();
    if options.list {
        for test in &chosen {
            say(test.short_name());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let sandbox = Sandbox::probe().map_err(|error| format!("{error:#}"));
    // Those that mostly wait have a lane of their own.
    let (waiting, busy): (Vec<&Test>, Vec<&Test>) = chosen.iter().partition(|test| test.waits);
    let lanes = [(waiting, AtomicUsize::new(0)), (busy, AtomicUsize::new(0))];
    let results = Mutex::new(Vec::new());
    let work = |lane: usize| {
        let (tests, next) = &lanes[lane];
        while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let outcome = one(test, &sandbox);
            let seconds = start.elapsed().as_secs_f64();
            tell(test, &outcome, seconds);
            if let Ok(mut results) = results.lock() {
                results.push((*test, outcome, seconds));
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| work(0));
        for _ in 0..options.jobs.min(lanes[1].0.len()) {
            scope.spawn(|| work(1));
        }
    });
    let mut results = results.into_inner().map_err(|_| anyhow::anyhow!("a thread of the runner panicked"))?;
    results.sort_by_key(|(test, ..)| test.name);
    finish(&results)
}

/// Runs one test in a process of its own.
fn one(test: &Test, sandbox: &Result<Sandbox, String>) -> Outcome {
    let failed = |error: anyhow::Error| Outcome::Failed { why: format!("{error:#}"), output: String::new() };
    let exe = match netns::helper::program() {
        Ok(exe) => exe,
        Err(error) => return failed(error),
    };
    let mut command = match (test.place, sandbox) {
        (Place::Host, _) => std::process::Command::new(exe),
        (Place::Namespaces, Ok(sandbox)) => sandbox.command(exe),
        (Place::Namespaces, Err(reason)) => return Outcome::Skipped(reason.clone()),
    };
    command.args(["--inside", test.short_name()]);
    let mut run = || -> Result<Outcome> {
        let mut file = tempfile::tempfile().context("making a file for the output")?;
        let child = command
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file.try_clone()?)
            .spawn()
            .context("starting the test's process")?;
        let status = wait(child, Duration::from_secs(test.limit))?;
        let output = read(&mut file)?;
        Ok(match status {
            None => Outcome::Failed { why: format!("not done after {} s", test.limit), output },
            Some(0) => Outcome::Passed(
                output.lines().filter_map(|line| line.strip_prefix(FIGURE)).map(str::to_owned).collect(),
            ),
            Some(code) if code == i32::from(SKIPPED) => {
                let reason = output.lines().rev().find_map(|line| line.strip_prefix(REASON));
                Outcome::Skipped(reason.unwrap_or("no reason given").to_owned())
            }
            Some(code) => Outcome::Failed { why: format!("exit status {code}"), output },
        })
    };
    run().unwrap_or_else(failed)
}

/// Waits for the end; `None` when it had to be killed. A signal counts as -1.
fn wait(mut child: Child, limit: Duration) -> Result<Option<i32>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("waiting for the test's process")? {
            return Ok(Some(status.code().unwrap_or(-1)));
        }
        if start.elapsed() > limit {
            child.kill().context("killing the test's process")?;
            child.wait().context("waiting for the killed process")?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn read(file: &mut File) -> Result<String> {
    file.rewind().context("reading the output")?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(file, &mut bytes).context("reading the output")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The inside of a test's process.
fn inside(tests: &[Test], name: &str) -> Result<ExitCode> {
    let test = tests.iter().find(|test| test.short_name() == name).context("no such test")?;
    netns::die_with_parent();
    let world = match test.place {
        Place::Namespaces => {
            netns::enter()?;
            World::new()?
        }
        Place::Host => World::on_host()?,
    };
    match std::panic::catch_unwind(AssertUnwindSafe(|| (test.run)(&world))) {
        Ok(Ok(())) => Ok(ExitCode::SUCCESS),
        Ok(Err(error)) => match error.downcast_ref::<Skip>() {
            Some(Skip(reason)) => {
                say(&format!("{REASON}{}", reason.replace('\n', "; ")));
                Ok(ExitCode::from(SKIPPED))
            }
            None => {
                say(&format!("{}Error: {error:#}", world.logs(30)));
                Ok(ExitCode::FAILURE)
            }
        },
        Err(_panic_is_printed) => {
            say(&world.logs(30));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Tells a figure that a test has measured; the runner shows it when the test passes.
pub fn figure(text: &str) {
    say(&format!("{FIGURE}{text}"));
}

fn tell(test: &Test, outcome: &Outcome, seconds: f64) {
    let name = test.short_name();
    match outcome {
        Outcome::Passed(figures) => {
            let figures: String = figures.iter().map(|figure| format!("\n    {figure}")).collect();
            say(&format!("{name} ... ok ({seconds:.1} s){figures}"));
        }
        Outcome::Skipped(reason) => say(&format!("{name} ... {REASON}{reason}")),
        Outcome::Failed { why, output } => {
            let mut text = format!("{name} ... FAILED ({seconds:.1} s): {why}");
            for line in output.lines() {
                text.push_str("\n    ");
                text.push_str(line);
            }
            say(&text);
        }
    }
}

/// Says once more why a test failed, where the totals look for it: its output may stand a thousand lines above.
fn causes(name: &str, why: &str, output: &str) {
    say(&format!("cause {name}: {why}"));
    let from = output.lines().count().saturating_sub(LAST_LINES);
    for line in output.lines().skip(from) {
        say(&format!("cause {name}: {}", line.chars().take(LONGEST_LINE).collect::<String>()));
    }
}

/// Prints the totals and writes the summary that `E2E_SUMMARY` asks for.
fn finish(results: &[(&Test, Outcome, f64)]) -> Result<ExitCode> {
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let mut rows = Vec::new();
    for (test, outcome, seconds) in results {
        if let Outcome::Failed { why, output } = outcome {
            causes(test.short_name(), why, output);
        }
        let (count, word, reason) = match outcome {
            Outcome::Passed(_) => (&mut passed, "passed", None),
            Outcome::Failed { why, .. } => (&mut failed, "failed", Some(why)),
            Outcome::Skipped(reason) => (&mut skipped, "skipped", Some(reason)),
        };
        *count += 1;
        rows.push(serde_json::json!({
            "name": test.short_name(), "result": word, "reason": reason, "seconds": seconds,
        }));
    }
    if let Some(path) = std::env::var_os("E2E_SUMMARY") {
        let summary =
            serde_json::json!({"passed": passed, "failed": failed, "skipped": skipped, "tests": rows});
        std::fs::write(&path, format!("{summary:#}\n")).context("writing the file that E2E_SUMMARY names")?;
    }
    say(&format!("{passed} passed, {failed} failed, {skipped} skipped"));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One line, whole even when several threads print; a closed pipe is no error.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _closed = writeln!(out, "{text}").and_then(|()| out.flush());
}
