//! The flags of the policy engine, and joining it to the agent.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use kilo_agent::{Agent, Backend, Enforcer, EnforcerSettings, EnforcerStats, Host, Policies};
use kilo_host::firewall::{FirewallConfig, LinuxFirewall};
use kilo_host::pods::{LinuxPods, PodsConfig};
use kilo_policy::{Antispoof, CompilerConfig, Mode};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::error;

use crate::args::AgentArgs;

/// Flags of the policy engine, as typed.
#[derive(Clone, Debug, Args)]
pub struct PolicyArgs {
    /// What happens to packets by NetworkPolicies: kept, only evaluated, logged and counted, or left to others
    #[arg(long, value_enum, value_name = "MODE", default_value_t = NetworkPolicyArg::Off)]
    pub network_policy: NetworkPolicyArg,
    #[arg(
        long,
        value_enum,
        value_name = "MODE",
        help = "What happens to a mesh or pod source that comes by a way on which it was not proved; if not given, off \
                where network policy is off, enforce where it is on and pods are on our own bridge, else audit"
    )]
    pub mesh_antispoof: Option<AntispoofArg>,
    /// Socket on which our CNI plugin tells of pods
    #[arg(long, value_name = "PATH", default_value_os_t = PodsConfig::default().socket)]
    pub cni_socket: PathBuf,
    /// Directory of the records of the container runtime's CNI library
    #[arg(long, value_name = "DIR", default_value_os_t = PodsConfig::default().records)]
    pub cni_records: PathBuf,
    /// Whether echo requests need a rule that allows them
    #[arg(long, value_enum, value_name = "MODE", default_value_t = EchoArg::Evaluate)]
    pub policy_icmp_echo: EchoArg,
    /// Bits of the connection mark for the policy epoch: contiguous, at least two; the highest bit is taken as well
    #[arg(long, value_name = "MASK", default_value = "0x7f000000", value_parser = parse_epoch)]
    pub policy_ct_mark: u32,
    /// Bit of the packet mark for tunnels that a leader has sent
    #[arg(long, value_name = "BIT", default_value = "0x200", value_parser = parse_bit)]
    pub policy_mark: u32,
    /// NFLOG group of denied packets
    #[arg(long, value_name = "GROUP", default_value_t = CompilerConfig::default().log_group)]
    pub policy_nflog_group: u16,
    /// Denied packets logged in a second, by each profile of pods and each reason; 0 for none
    #[arg(long, value_name = "NUMBER", default_value_t = CompilerConfig::default().log_rate)]
    pub policy_log_rate: u32,
}

/// Values of `--network-policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NetworkPolicyArg {
    /// They are kept.
    On,
    /// They are evaluated, logged and counted, and nothing is dropped.
    Audit,
    /// They are left to others.
    Off,
}

/// Values of `--mesh-antispoof`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AntispoofArg {
    /// It is dropped.
    Enforce,
    /// It is logged and counted.
    Audit,
    /// Nobody looks.
    Off,
}

/// Values of `--policy-icmp-echo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EchoArg {
    /// They do: a rule without ports.
    Evaluate,
    /// They are let through.
    Allow,
}

/// The bit of the connection mark beside the epoch.
const LOOSE: u32 = 0x8000_0000;

impl PolicyArgs {
    /// How tables are made on this node; `None` where nothing is asked for.
    pub fn compiler(&self, node: &str, own_cni: bool) -> Option<CompilerConfig> {
        let mode = match self.network_policy {
            NetworkPolicyArg::On => Mode::On,
            NetworkPolicyArg::Audit => Mode::Audit,
            NetworkPolicyArg::Off => Mode::Off,
        };
        let antispoof = match self.mesh_antispoof {
            Some(AntispoofArg::Enforce) => Antispoof::Enforce,
            Some(AntispoofArg::Audit) => Antispoof::Audit,
            Some(AntispoofArg::Off) => Antispoof::Off,
            None => match mode {
                Mode::On if own_cni => Antispoof::Enforce,
                Mode::On | Mode::Audit => Antispoof::Audit,
                Mode::Off => Antispoof::Off,
            },
        };
        (mode != Mode::Off || antispoof != Antispoof::Off).then(|| CompilerConfig {
            node: node.to_owned(),
            mode,
            antispoof,
            own_cni,
            allow_icmp_echo: self.policy_icmp_echo == EchoArg::Allow,
            epoch_mask: self.policy_ct_mark,
            loose_bit: LOOSE,
            leader_bit: self.policy_mark,
            log_group: self.policy_nflog_group,
            log_rate: self.policy_log_rate,
            ..CompilerConfig::default()
        })
    }
}

/// A running enforcer.
pub struct Running {
    /// What it tells about itself.
    pub stats: Arc<EnforcerStats>,
    /// What it was started with.
    pub config: CompilerConfig,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    /// Waits for its end. What is in force stays so.
    pub async fn end(self) {
        self.stop.send_replace(true);
        // Its death was logged.
        let _dead = self.task.await;
    }
}

/// Starts the enforcer beside an agent, if the flags ask for one; otherwise removes what an earlier one left in force.
///
/// # Errors
/// When the kernel's tables cannot be spoken to although that is asked for.
pub fn start<B: Backend, H: Host>(
    args: &AgentArgs,
    node: &str,
    backend: &Arc<B>,
    agent: &mut Agent<B, H>,
) -> anyhow::Result<Option<Running>> {
    let Some(config) = args.policy.compiler(node, args.cni) else {
        remove().unwrap_or_else(
            |error| tracing::debug!(error = %format!("{error:#}"), "No policy table was removed"),
        );
        return Ok(None);
    };
    let log_group = (config.log_rate > 0).then_some(config.log_group);
    let firewall = LinuxFirewall::open(FirewallConfig { log_group, ..FirewallConfig::default() })
        .context("opening the kernel's policy tables")?;
    let (news, mesh) = watch::channel(None);
    agent.tell_mesh(news);
    let settings = EnforcerSettings::new(node);
    let pods = LinuxPods::open(pods_config(args)).context("hearing of the pods of this node")?;
    let policies = Policies::new(config.clone());
    let (enforcer, stats) = Enforcer::new(backend.clone(), firewall, policies, Some(pods), mesh, settings);
    let (stop, mut stopped) = watch::channel(false);
    let running = tokio::spawn(enforcer.run(async move {
        // A sender that is gone ends it as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    }));
    let task = tokio::spawn(async move {
        let error = match running.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("{:#}", anyhow::Error::from(error)),
            Err(error) => error.to_string(),
        };
        error!(%error, "The policy engine ended, and what it has programmed stays in force");
    });
    Ok(Some(Running { stats, config, stop, task }))
}

/// Where the pods of this node are heard of, and what is done about what they send each other.
fn pods_config(args: &AgentArgs) -> PodsConfig {
    let policy = &args.policy;
    // Other plugins' bridges are theirs.
    let routes = args.cni && policy.network_policy != NetworkPolicyArg::Off;
    PodsConfig {
        socket: policy.cni_socket.clone(),
        records: policy.cni_records.clone(),
        bridge: routes.then(|| kilo_agent::BRIDGE.to_owned()),
        links: vec![args.interface.clone()],
    }
}

/// Removes the policy tables.
///
/// # Errors
/// When the kernel refuses, or a living agent owns them.
pub fn remove() -> anyhow::Result<()> {
    let config = FirewallConfig { own: false, ..FirewallConfig::default() };
    Ok(LinuxFirewall::open(config)?.remove()?)
}

/// `kg uninstall`.
///
/// # Errors
/// See [`remove`].
pub fn uninstall() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { remove() }).context(
        "removing the policy tables: while an agent of this node lives they are its own, so end it first",
    )?;
    Ok(kilo_host::pods::undo_routing(kilo_agent::BRIDGE)?)
}

fn number(text: &str) -> Result<u32, String> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    u32::from_str_radix(digits, radix).map_err(|_| "not a number such as 0x200".to_owned())
}

fn parse_bit(text: &str) -> Result<u32, String> {
    let bit = number(text)?;
    if bit.is_power_of_two() { Ok(bit) } else { Err("not one single bit".to_owned()) }
}

fn parse_epoch(text: &str) -> Result<u32, String> {
    let mask = number(text)?;
    let bits = mask.checked_shr(mask.trailing_zeros()).unwrap_or(0);
    let contiguous = bits.count_ones() >= 2 && (u64::from(bits) + 1).is_power_of_two();
    if contiguous && mask & LOOSE == 0 {
        Ok(mask)
    } else {
        Err("not at least two bits in a row, without the highest one".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_checked() {
        for (text, mask) in [("0x7f000000", Ok(0x7f00_0000)), ("0x3", Ok(3)), ("12", Ok(12))] {
            assert_eq!(parse_epoch(text), mask, "{text}");
        }
        for text in ["0", "1", "0x5", "0x80000000", "0xc0000000", "0xffffffff", "x", "-1", ""] {
            assert!(parse_epoch(text).is_err(), "{text}");
        }
        assert_eq!(parse_bit("0x200"), Ok(0x200));
        assert!(parse_bit("0").is_err() && parse_bit("3").is_err());
    }
}
