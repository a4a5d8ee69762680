//! A command line as a page of Markdown: its commands in order, each with its usage and flags.

use std::fmt::Write as _;

use clap::{Arg, Command};

/// The page of a program.
pub fn page(mut program: Command) -> String {
    program.build();
    let name = program.get_name().to_owned();
    let mut out =
        format!("# {name}\n\n<!-- Made by kilo-docs-gen from the program's own command line. -->\n");
    section(&mut out, &program, &name, 1);
    out
}

fn section(out: &mut String, command: &Command, path: &str, depth: usize) {
    if depth > 1 {
        // Writing to a String does not fail, here and below.
        let _ = write!(out, "\n{} {path}\n", "#".repeat(depth));
    }
    if let Some(about) = command.get_long_about().or_else(|| command.get_about()) {
        let _ = write!(out, "\n{about}.\n");
    }
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    let _ = write!(out, "\n```\n{usage}\n```\n");
    let (global, own): (Vec<&Arg>, Vec<&Arg>) = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version"))
        .partition(|arg| arg.is_global_set());
    table(out, "", &own);
    if depth == 1 {
        table(out, "These are taken by every command, before or after its name:\n\n", &global);
    }
    if let Some(after) = command.get_after_help() {
        let _ = write!(out, "\n```\n{after}\n```\n");
    }
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        section(out, sub, &format!("{path} {}", sub.get_name()), depth + 1);
    }
}

fn table(out: &mut String, lead: &str, args: &[&Arg]) {
    if args.is_empty() {
        return;
    }
    let _ = write!(out, "\n{lead}| flag | meaning |\n| --- | --- |\n");
    for arg in args {
        let values: Vec<String> = arg
            .get_possible_values()
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        let mut help =
            arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
        if values.len() > 2 || (!values.is_empty() && values[0] != "`true`") {
            let _ = write!(help, ": {}", values.join(", "));
        }
        let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        if !defaults.is_empty() && arg.get_action().takes_values() {
            let _ = write!(help, " [default: {}]", defaults.join(","));
        }
        let _ = writeln!(out, "| {} | {} |", flag(arg), help.replace('|', "\\|").replace('\n', " "));
    }
}

fn flag(arg: &Arg) -> String {
    let value: String = if arg.get_action().takes_values() {
        arg.get_value_names().unwrap_or_default().iter().map(|name| format!(" {name}")).collect()
    } else {
        String::new()
    };
    match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("`-{short}`, `--{long}{value}`"),
        (Some(short), None) => format!("`-{short}{value}`"),
        (None, Some(long)) => format!("`--{long}{value}`"),
        (None, None) => format!("`{}`", value.trim()),
    }
}
