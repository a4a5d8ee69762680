//! `kg`, the agent of one node: reads flags, joins the parts, and turns how it ended into an exit code.
#![forbid(unsafe_code)]

mod args;
mod cni;
mod http;
mod install_cni;
mod logs;
mod metrics;
mod policy;
mod policy_metrics;
mod webhook;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use kilo_agent::{Agent, Settings};
use kilo_host::LinuxHost;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info};

use args::{AgentArgs, Backend, Cli, Command, VERSION};

/// How long a graceful stop may take, clean-up included.
const STOP: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    // Runtimes call plugins without arguments.
    if std::env::args_os().len() == 1 && std::env::var_os(cni::COMMAND).is_some() {
        return cni::main();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is to be done about a terminal that is gone.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let done = match cli.command {
        #[allow(clippy::print_stdout, reason = "the version is what the command prints")]
        Some(Command::Version) => {
            println!("{VERSION}");
            Ok(())
        }
        Some(Command::InstallCni(args)) => {
            logs::start(cli.agent.log_level, cli.agent.log_format);
            install_cni::run(&args)
        }
        Some(Command::Uninstall) => {
            logs::start(cli.agent.log_level, cli.agent.log_format);
            policy::uninstall()
        }
        Some(Command::Webhook(args)) => {
            logs::start(args.log_level, args.log_format);
            webhook::run(&args)
        }
        None => run(&cli.agent),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = %format!("{error:#}"), "Stopped");
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the agent until a signal or an error ends it.
fn run(args: &AgentArgs) -> anyhow::Result<()> {
    logs::start(args.log_level, args.log_format);
    // Two threads: one for the agent's loop and its packets, one for all else.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(start(args))
}

async fn start(args: &AgentArgs) -> anyhow::Result<()> {
    let of_system = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let hostname = args.node_name(of_system.map(|name| name.trim().to_owned()))?;
    let settings = args.settings(hostname);
    let listener = TcpListener::bind(args.listen_addr()?)
        .await
        .with_context(|| format!("listening on {}", args.listen))?;
    info!(version = VERSION, node = %settings.config.hostname, "Starting Kilo");
    match args.backend {
        Backend::Kubernetes => {
            anyhow::ensure!(args.state_dir.is_none(), "--state-dir is for --backend=file");
            let client = kilo_k8s::connect(&args.client_config()).await?;
            let label = settings.config.topology_label.clone();
            serve(kilo_k8s::KubernetesBackend::new(client, label), args, settings, listener).await
        }
        Backend::File => {
            let dir = args.state_dir.as_deref().context("--backend=file needs --state-dir=DIR")?;
            serve(kilo_file::FileBackend::new(dir), args, settings, listener).await
        }
    }
}

/// Joins the parts and waits for the end.
async fn serve<B: kilo_agent::Backend>(
    backend: B,
    args: &AgentArgs,
    settings: Settings,
    listener: TcpListener,
) -> anyhow::Result<()> {
    let host = LinuxHost::open(args.host_config())?;
    let config = settings.config.clone();
    let backend = Arc::new(backend);
    let (mut agent, handle) = Agent::new(backend.clone(), host, settings);
    let enforcer = policy::start(args, &config.hostname, &backend, &mut agent)?;
    let source = enforcer.as_ref().map(|enforcer| metrics::PolicySource {
        stats: enforcer.stats.clone(),
        enforces: enforcer.config.mode == kilo_policy::Mode::On,
        binds: enforcer.config.antispoof == kilo_policy::Antispoof::Enforce,
    });
    let (stop_tx, mut stop_rx) = watch::channel(false);
    let mut agent = tokio::spawn(agent.run(async move {
        // A sender that is gone ends the agent as well.
        let _ = stop_rx.wait_for(|stop| *stop).await;
    }));
    let mut http = tokio::spawn(http::serve(listener, handle, config, source));
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let http_error = tokio::select! {
        ended = &mut agent => return Ok(ended.context("the agent's loop died")??),
        ended = &mut http => Some(ended.context("the HTTP server died").and_then(|r| r)),
        _ = int.recv() => None,
        _ = term.recv() => None,
    };
    info!("Stopping");
    if let Some(enforcer) = enforcer {
        enforcer.end().await;
    }
    stop_tx.send_replace(true);
    tokio::time::timeout(STOP, agent)
        .await
        .context("the stop took too long")?
        .context("the agent's loop died")??;
    http_error.unwrap_or(Ok(()))
}
