//! The kernel's WireGuard: the host crate's own tests of it, run on a Debian kernel.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use kilo_e2e::{Place, Skip, World, tests};

tests![kernel_device(place = Place::Host, limit = 600)];

/// What `vm-run` ends with when there is no virtual machine to be had.
const NO_MACHINE: i32 = 125;

fn kernel_device(_world: &World) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let output = Command::new(root.join(".ci/vm-run"))
        .args(["--mem", "512", "--timeout", "500", "--"])
        .arg(test_program(root)?)
        .args(["kernel::", "--nocapture", "--test-threads=1"])
        .current_dir(root)
        .stdin(Stdio::null())
        .output()
        .context("starting vm-run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(NO_MACHINE) {
        let why = errors.lines().rev().find(|line| line.starts_with("vm-run:")).unwrap_or("vm-run failed");
        return Err(Skip::because(why.to_owned()));
    }
    ensure!(output.status.success(), "{}:\n{text}\n{errors}", output.status);
    ensure!(!text.contains("skipped: "), "there is no WireGuard in the virtual machine:\n{text}");
    let result = text.lines().find(|line| line.starts_with("test result: ok")).unwrap_or_default();
    ensure!(result.contains("ok. 3 passed; 0 failed"), "not all tests ran:\n{text}");
    Ok(())
}

/// The program is built by `cargo test --workspace`; cargo knows its name.
fn test_program(root: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["test", "-p", "kilo-host", "--test", "wireguard", "--no-run", "--message-format=json", "--quiet"])
        .current_dir(root)
        .output()
        .context("starting cargo")?;
    if !output.status.success() {
        bail!("cargo test --no-run: {}", String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "wireguard")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo names no program of the test")
}
