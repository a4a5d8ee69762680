//! Where the programs under test are.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// The path of `kg` or `kgctl`: `KG_BIN` or `KGCTL_BIN` if set, else what cargo has built beside this program.
pub fn program(name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(format!("{}_BIN", name.to_uppercase())) {
        return Ok(path.into());
    }
    let exe = std::env::current_exe().context("finding this program")?;
    // target/debug/demo, or target/debug/deps/e2e-0123456789abcdef
    for dir in exe.ancestors().skip(1).take(2) {
        let path = dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!("{name} is not built: cargo build --bin {name}")
}
