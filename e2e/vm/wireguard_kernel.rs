//! The kernel's WireGuard: the host crate's own tests of it, run on a Debian kernel.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use kilo_e2e::{Place, World, tests};

use super::machine;

tests![kernel_device(place = Place::Host, limit = 900)];

fn kernel_device(_world: &World) -> Result<()> {
    let words = ["kernel::", "--nocapture", "--test-threads=1"].map(OsString::from);
    let program = test_program(&machine::workspace()?)?;
    let text = machine::run(512, 400, std::iter::once(program.into()).chain(words))?;
    ensure!(!text.contains("skipped: "), "there is no WireGuard in the virtual machine:\n{text}");
    let result = text.lines().find(|line| line.starts_with("test result: ok")).unwrap_or_default();
    ensure!(result.contains("ok. 3 passed; 0 failed"), "not all tests ran:\n{text}");
    Ok(())
}

/// The program is built by `cargo test --workspace`; cargo knows its name.
fn test_program(root: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // What cargo told us about this package makes build scripts run anew that ask for the like.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    let output = command
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
