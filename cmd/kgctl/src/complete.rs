//! `kgctl completion`.

use clap_complete::{Shell, generate};

use crate::args::CompletionShell;
use crate::{command, out};

/// Prints the completion script of a shell.
///
/// # Errors
/// When it cannot be written.
pub fn run(shell: CompletionShell) -> anyhow::Result<()> {
    out::print(&script(match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    }))?;
    Ok(())
}

/// The completion scripts by the names of their files.
pub fn completions() -> [(&'static str, String); 3] {
    [("kgctl.bash", script(Shell::Bash)), ("_kgctl", script(Shell::Zsh)), ("kgctl.fish", script(Shell::Fish))]
}

fn script(shell: Shell) -> String {
    let mut text = Vec::new();
    generate(shell, &mut command(), "kgctl", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}
