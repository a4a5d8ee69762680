//! `kgctl completion`.

use clap_complete::{Shell, generate};

use crate::args::CompletionShell;
use crate::{command, out};

/// Prints the completion script of a shell.
///
/// # Errors
/// When it cannot be written.
pub fn script(shell: CompletionShell) -> anyhow::Result<()> {
    let mut text = Vec::new();
    let shell = match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    };
    generate(shell, &mut command(), "kgctl", &mut text);
    out::print(&String::from_utf8_lossy(&text))?;
    Ok(())
}
