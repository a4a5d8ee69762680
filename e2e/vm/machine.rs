//! The virtual machine: one command in it, as root on a Debian kernel.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::{Skip, figure};

/// What `vm-run` ends with when there is no virtual machine to be had.
const NO_MACHINE: i32 = 125;
/// And when the command ran for longer than it may.
const TOO_LONG: i32 = 124;

/// The kernel that `KILO_VM_KERNEL` asks for, by the beginning of its version.
pub fn kernel() -> Option<String> {
    std::env::var("KILO_VM_KERNEL").ok().filter(|name| !name.is_empty())
}

/// Runs tests of this program, all of which must pass; what is printed, after a line with the kernel's version.
pub fn own_tests(megabytes: u32, seconds: u32, names: &[&str]) -> Result<String> {
    let exe = std::env::current_exe().context("finding this program")?;
    // /dev/net/tun comes with its module, and tunl0 with that of IPIP; the others are loaded when they are asked for.
    let words = ["sh", "-c", "modprobe -a tun ipip && uname -r && exec \"$@\"", "sh"].map(OsString::from);
    let exact = std::iter::once(&"--exact").chain(names).map(OsString::from);
    let text = run(megabytes, seconds, words.into_iter().chain([exe.into()]).chain(exact))?;
    let all = format!("{} passed, 0 failed, 0 skipped", names.len());
    ensure!(text.lines().any(|line| line == all), "not all tests ran:\n{text}");
    Ok(text.lines().filter(|line| *line != all).map(|line| format!("{line}\n")).collect())
}

/// The workspace, which is the current directory of the command.
pub fn workspace() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).context("the workspace")
}

/// What the command prints; a skip where there is no machine, and an error unless it ends with 0. A machine whose
/// command has not ended within `seconds` is stopped, and another one is tried once: emulation may stand still.
pub fn run(
    megabytes: u32,
    seconds: u32,
    command: impl IntoIterator<Item = OsString, IntoIter: Clone>,
) -> Result<String> {
    let command = command.into_iter();
    if let Some(text) = attempt(megabytes, seconds, command.clone())? {
        return Ok(text);
    }
    figure(&format!("the first virtual machine was not done after {seconds} s"));
    attempt(megabytes, seconds, command)?
        .with_context(|| format!("two virtual machines were not done after {seconds} s each"))
}

/// What the command prints, or nothing if it took too long.
fn attempt(megabytes: u32, seconds: u32, command: impl Iterator<Item = OsString>) -> Result<Option<String>> {
    let root = workspace()?;
    let output = Command::new(root.join(".ci/vm-run"))
        .args(["--mem", &megabytes.to_string(), "--timeout", &seconds.to_string()])
        .args(kernel().into_iter().flat_map(|name| ["--kernel".to_owned(), name]))
        // Under emulation the processor's counter is the machine's, which may jump where that is virtual, too.
        .args(["--append", "clocksource=hpet", "--"])
        .args(command)
        .env_remove("E2E_SUMMARY")
        .current_dir(&root)
        .stdin(Stdio::null())
        .output()
        .context("starting vm-run")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(NO_MACHINE) => {
            let why =
                errors.lines().rev().find(|line| line.starts_with("vm-run:")).unwrap_or("vm-run failed");
            Err(Skip::because(why.to_owned()))
        }
        Some(TOO_LONG) => {
            eprintln!("{text}\n{errors}");
            Ok(None)
        }
        _ => {
            ensure!(output.status.success(), "{}:\n{text}\n{errors}", output.status);
            Ok(Some(text))
        }
    }
}
