//! Man pages: one for the program and one for each command that is shown.

use std::path::Path;

use anyhow::Context as _;

use crate::command;

/// Writes the pages into a folder, which is made when missing.
///
/// # Errors
/// When a file cannot be written.
pub fn write(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making the folder {}", dir.display()))?;
    let command = command().version(env!("CARGO_PKG_VERSION"));
    clap_mangen::generate_to(command, dir)
        .with_context(|| format!("writing man pages to {}", dir.display()))?;
    Ok(())
}
