//! `kgctl`: shows what a mesh is, what a node of it should be, and what a change would do. It reads objects from
//! files or a cluster, lets `kilo-mesh` plan, and prints. Only `connect` changes anything: this machine's network, and the
//! Peer that stands for it.
#![forbid(unsafe_code)]

mod args;
#[cfg(feature = "cluster")]
mod cluster;
mod complete;
#[cfg(all(feature = "connect", target_os = "linux"))]
mod connect;
mod diff;
mod error;
mod form;
mod graph;
mod input;
mod man;
mod mesh;
mod out;
mod plan;
mod policy;
mod showconf;
mod words;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use crate::args::{Cli, Command, PolicyCommand, ShowconfOf};

pub use complete::completions;
pub use man::write as write_man_pages;

/// Nothing was wrong.
const OK: u8 = 0;
/// Bad input, or another error.
const ERROR: u8 = 1;
/// The command line is wrong; also any error of `diff`, whose 1 says that something differs.
const USAGE: u8 = 2;

/// The command line, for reference pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(usage(&error)),
    };
    let failed = if matches!(cli.command, Some(Command::Diff(_))) { USAGE } else { ERROR };
    match run(&cli) {
        Ok(code) => ExitCode::from(code),
        // Whoever read our output has seen enough.
        Err(error) if out::is_broken_pipe(&error) => ExitCode::from(OK),
        Err(error) => {
            out::error(&error);
            ExitCode::from(failed)
        }
    }
}

/// Prints help and errors of the command line. A command that only has commands shows its help, which is no
/// error.
fn usage(error: &clap::Error) -> u8 {
    let asked =
        matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // clap would send this to the standard error.
        let _ = out::print(&error.render().to_string());
    } else {
        // Nobody is left to tell when this fails.
        let _ = error.print();
    }
    if asked { OK } else { USAGE }
}

fn run(cli: &Cli) -> anyhow::Result<u8> {
    let command = match &cli.command {
        _ if cli.global.version => &Command::Version,
        Some(command) => command,
        None => {
            out::print(&command().render_help().to_string())?;
            return Ok(OK);
        }
    };
    match command {
        Command::Connect(args) => connect(&cli.global, args).map(|()| OK),
        Command::Completion { shell } => complete::run(*shell).map(|()| OK),
        Command::Version => {
            out::print(&format!("kgctl version {}\n", env!("CARGO_PKG_VERSION")))?;
            Ok(OK)
        }
        Command::Man { dir } => man::write(dir).map(|()| OK),
        Command::Plan(args) => plan::run(&cli.global, args).map(|()| OK),
        Command::Diff(args) => diff::run(&cli.global, args),
        Command::Policy { command: PolicyCommand::Table(args) } => policy::table(args).map(|()| OK),
        Command::Graph(args) => graph::run(&cli.global, args).map(|()| OK),
        Command::Showconf { of: ShowconfOf::Node(args) } => showconf::node(&cli.global, args).map(|()| OK),
        Command::Showconf { of: ShowconfOf::Peer(args) } => showconf::peer(&cli.global, args).map(|()| OK),
    }
}

#[cfg(all(feature = "connect", target_os = "linux"))]
use connect::run as connect;

#[cfg(not(all(feature = "connect", target_os = "linux")))]
fn connect(_global: &args::Global, _args: &args::ConnectArgs) -> anyhow::Result<()> {
    Err(error::message(
        "this kgctl cannot connect a machine: make a Peer, and use `kgctl showconf peer NAME` for its configuration",
    ))
}
