//! The edge to the terminal: standard output, errors as kubectl prints them, and whether colours are wanted.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

/// Writes a text to the standard output.
///
/// # Errors
/// When it cannot be written.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes one line to the standard error.
pub fn note(line: &str) {
    // Nobody is left to tell when this fails.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes an error with its causes to the standard error, in one line that begins as kubectl's do.
pub fn error(error: &anyhow::Error) {
    let mut line = String::from("error");
    for cause in error.chain().map(ToString::to_string) {
        // Some libraries repeat their cause in their own words.
        if !line.ends_with(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    note(&line);
}

/// Whether a reader of the standard output went away.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// Whether the standard output shows colours: a terminal, unless `NO_COLOR` or `TERM=dumb` says otherwise.
pub fn colours() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// Makes headings, which begin at the margin, bold.
pub fn headings(text: &str) -> String {
    paint(text, |line| (!line.is_empty() && !line.starts_with(' ')).then_some("1"))
}

/// Makes headings bold, and what comes green, what goes red, what changes yellow.
pub fn changes(text: &str) -> String {
    paint(text, |line| match line.trim_start().chars().next() {
        Some('+') => Some("32"),
        Some('-') => Some("31"),
        Some('~') => Some("33"),
        Some(_) if !line.starts_with(' ') => Some("1"),
        Some(_) | None => None,
    })
}

fn paint(text: &str, code: impl Fn(&str) -> Option<&'static str>) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for line in text.lines() {
        // Writing to a String does not fail.
        let _ = match code(line) {
            Some(code) => writeln!(out, "\u{1b}[{code}m{line}\u{1b}[0m"),
            None => writeln!(out, "{line}"),
        };
    }
    out
}
