//! The virtual machine: one command in it, as root on a Debian kernel.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use kilo_e2e::Skip;

/// What `vm-run` ends with when there is no virtual machine to be had.
const NO_MACHINE: i32 = 125;

/// The workspace, which is the current directory of the command.
pub fn workspace() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).context("the workspace")
}

/// What the command prints; a skip where there is no machine, and an error unless it ends with 0 within
/// `seconds`.
pub fn run(megabytes: u32, seconds: u32, command: impl IntoIterator<Item = OsString>) -> Result<String> {
    let root = workspace()?;
    let output = Command::new(root.join(".ci/vm-run"))
        .args(["--mem", &megabytes.to_string(), "--timeout", &seconds.to_string()])
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
    if output.status.code() == Some(NO_MACHINE) {
        let why = errors.lines().rev().find(|line| line.starts_with("vm-run:")).unwrap_or("vm-run failed");
        return Err(Skip::because(why.to_owned()));
    }
    ensure!(output.status.success(), "{}:\n{text}\n{errors}", output.status);
    Ok(text)
}
