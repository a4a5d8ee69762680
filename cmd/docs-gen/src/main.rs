//! Writes the files that are made from the code, and says whether they are fresh.
#![forbid(unsafe_code)]

mod crd;
mod markdown;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

/// Writes the files that are made from the code
#[derive(Parser)]
struct Cli {
    /// Write nothing; fail when a file is not as it would be written
    #[arg(long)]
    check: bool,

    /// Write man pages and completions here as well
    #[arg(long, value_name = "DIR", conflicts_with = "check")]
    package: Option<PathBuf>,

    /// The root of the project
    #[arg(default_value = ".")]
    root: PathBuf,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let crds = crd::manifest()?;
    let files = [
        ("docs/kgctl.md", markdown::page(kilo_kgctl::command())),
        ("manifests/crds.yaml", crds.clone()),
        // kustomize reads nothing outside of the folder it is in.
        ("manifests/base/crds.yaml", crds),
    ];
    let mut stale = Vec::new();
    for (name, text) in files {
        let path = cli.root.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
            continue;
        }
        if cli.check {
            stale.push(name);
        } else {
            write(&path, &text)?;
        }
    }
    if let Some(dir) = &cli.package {
        kilo_kgctl::write_man_pages(&dir.join("man1"))?;
        for (name, script) in kilo_kgctl::completions() {
            write(&dir.join("completions").join(name), &script)?;
        }
    }
    if stale.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("not fresh: {}; run `cargo run -p kilo-docs-gen`", stale.join(", "))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("making the folder {}", dir.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
