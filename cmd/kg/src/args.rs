//! The command line of `kg`: what was typed, and what it means. Names, defaults and meaning are Kilo's.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use kilo_agent::{DiscoverConfig, Settings};
use kilo_host::HostConfig;
use kilo_host::wireguard::Mode;
use kilo_k8s::ClientConfig;
use kilo_mesh::{Compatibility, Config, Encapsulate, Granularity, LeaderFailover, Mtu};

/// The version that `--version`, the build metric and the start-up line show.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A WireGuard mesh for Kubernetes clusters, clouds, locations and laptops: the agent of one node.
#[derive(Debug, Parser)]
#[command(name = "kg", version = VERSION, disable_help_subcommand = true, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Another thing to do than to run the agent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of the agent.
    #[command(flatten)]
    pub agent: AgentArgs,
}

/// What `kg` can do beside running the agent.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the version and nothing else
    Version,
    /// Install the CNI plugins and the network configuration, as an init container
    InstallCni(crate::install_cni::Args),
    /// Answer the API server whether Peers are valid, over HTTPS
    Webhook(crate::webhook::Args),
    /// Remove the policy tables, which stay in force when an agent stops
    Uninstall,
}

/// Flags of the agent, as typed.
#[derive(Debug, ClapArgs)]
#[command(next_line_help = false)]
pub struct AgentArgs {
    /// Where Nodes and Peers come from
    #[arg(long, value_enum, default_value_t = Backend::Kubernetes)]
    pub backend: Backend,
    /// Directory of manifests; needed by, and only for, --backend=file
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory of the private key and of learned endpoints
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kilo")]
    pub data_dir: PathBuf,
    /// Undo routes, firewall rules and annotations on a graceful stop
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub clean_up: bool,
    /// Also remove the WireGuard interface on a graceful stop
    #[arg(long, value_name = "BOOL", default_value_t = false, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub clean_up_interface: bool,
    /// Manage the node's pod range in the CNI file, and masquerade what its pods send out of the mesh
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub cni: bool,
    /// The CNI file
    #[arg(long, value_name = "PATH", default_value = "/etc/cni/net.d/10-kilo.conflist")]
    pub cni_path: String,
    /// Another network plugin whose tunnel is used inside a location
    #[arg(long, value_enum, value_name = "PLUGIN")]
    pub compatibility: Option<CompatibilityArg>,
    /// Make the interface if it is not there
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub create_interface: bool,
    /// When packets inside a location are encapsulated
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = EncapsulateArg::Always)]
    pub encapsulate: EncapsulateArg,
    /// Name of this Node; that of the operating system if not given
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Name of the WireGuard interface
    #[arg(long, value_name = "NAME", default_value = "kilo0")]
    pub interface: String,
    /// Take private addresses only from these ranges (may be repeated, or a comma list)
    #[arg(long, value_name = "CIDR", value_delimiter = ',', action = clap::ArgAction::Append)]
    pub internal_cidr: Vec<IpNet>,
    /// Add ACCEPT rules to the FORWARD chains of iptables
    #[arg(long, value_name = "BOOL", default_value_t = false, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub iptables_forward_rules: bool,
    /// Path of a kubeconfig; without it and --master, the configuration of the pod
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<String>,
    /// What makes the leader of a location another one: that others do not reach it, or only the age of its last check-in
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = LeaderFailoverArg::DataPath)]
    pub leader_failover: LeaderFailoverArg,
    /// Address of the HTTP server for metrics, health, graph and plan
    #[arg(long, value_name = "ADDR", default_value = ":1107")]
    pub listen: String,
    /// Manage routes inside the location
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub local: bool,
    /// How logs are written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// What is logged
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,
    /// URL of the API server; wins over the kubeconfig's
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    /// How nodes are grouped: one WireGuard endpoint for each location, or for each node
    #[arg(long, value_enum, value_name = "GRANULARITY", default_value_t = GranularityArg::Location)]
    pub mesh_granularity: GranularityArg,
    /// MTU of the WireGuard interface in bytes, or auto: that of the link of the default route less 80
    #[arg(long, value_name = "MTU", default_value = "auto", value_parser = parse_mtu)]
    pub mtu: Mtu,
    /// Time after which a node that has not checked in is left out; 0 for never
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub node_expiry: Duration,
    /// UDP port of WireGuard, where the node's endpoint names no other
    #[arg(long, value_name = "PORT", default_value_t = kilo_wireguard::DEFAULT_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Take a private address for the endpoint when there is one
    #[arg(long, value_name = "BOOL", default_value_t = false, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub prioritise_private_addresses: bool,
    /// How often everything is compared with the kernel, whether anything was heard or not
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub resync_period: Duration,
    /// Ranges of Services, which are not masqueraded (may be repeated, or a comma list)
    #[arg(long, value_name = "CIDR", value_delimiter = ',', action = clap::ArgAction::Append)]
    pub service_cidr: Vec<IpNet>,
    /// Range that the addresses of WireGuard interfaces are taken from
    #[arg(long, value_name = "CIDR", default_value = "10.4.0.0/16")]
    pub subnet: IpNet,
    /// Node label that names the location
    #[arg(long, value_name = "LABEL", default_value = "topology.kubernetes.io/region")]
    pub topology_label: String,
    /// Which WireGuard carries the packets: the kernel's, the built-in one, or the kernel's if it is there
    #[arg(long, value_enum, value_name = "KIND", default_value_t = WireGuardArg::Auto)]
    pub wireguard: WireGuardArg,
    /// Flags of the policy engine.
    #[command(flatten)]
    pub policy: crate::policy::PolicyArgs,
}

/// Values of `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The API server.
    Kubernetes,
    /// A directory of manifests.
    File,
}

/// Values of `--compatibility`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompatibilityArg {
    /// flannel's VXLAN.
    Flannel,
    /// IPIP over Cilium.
    Cilium,
}

/// Values of `--encapsulate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum EncapsulateArg {
    /// Never.
    Never,
    /// To nodes outside our private network.
    CrossSubnet,
    /// To every node.
    Always,
}

/// Values of `--leader-failover`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LeaderFailoverArg {
    /// That others do not reach it, where all agents are ours.
    DataPath,
    /// The age of its last check-in; one node that wants it so is enough for all.
    Age,
}

/// Values of `--mesh-granularity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GranularityArg {
    /// One endpoint for each location.
    Location,
    /// One endpoint for each node.
    Full,
}

/// Values of `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object for each line.
    Json,
    /// For people.
    Text,
}

/// Values of `--log-level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Everything.
    All,
    /// Branches taken.
    Debug,
    /// Changes made.
    Info,
    /// What deserves a look.
    Warn,
    /// What does not work.
    Error,
    /// Nothing.
    None,
}

/// Values of `--wireguard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WireGuardArg {
    /// The kernel's if it is there, else the built-in one.
    Auto,
    /// The kernel's.
    Kernel,
    /// The built-in one.
    Userspace,
}

impl AgentArgs {
    /// The name of this Node.
    pub fn node_name(&self, of_system: Option<String>) -> anyhow::Result<String> {
        match self.hostname.clone().or(of_system).filter(|name| !name.is_empty()) {
            Some(name) => Ok(name),
            None => bail!("the operating system tells no host name: give --hostname"),
        }
    }

    /// The address to listen on.
    pub fn listen_addr(&self) -> anyhow::Result<SocketAddr> {
        listen_addr("--listen", &self.listen)
    }

    /// What the host has to know.
    pub fn host_config(&self) -> HostConfig {
        HostConfig {
            interface: self.interface.clone(),
            wireguard: match self.wireguard {
                WireGuardArg::Auto => Mode::Auto,
                WireGuardArg::Kernel => Mode::Kernel,
                WireGuardArg::Userspace => Mode::Userspace,
            },
            create_interface: self.create_interface,
            data_dir: self.data_dir.clone(),
            cni_path: self.cni.then(|| self.cni_path.clone()),
            compatibility: self.compatibility(),
            tunnels: self.local && self.encapsulate != EncapsulateArg::Never,
            forward_rules: self.iptables_forward_rules,
            ..HostConfig::default()
        }
    }

    /// Which API server.
    pub fn client_config(&self) -> ClientConfig {
        ClientConfig::for_agent(
            self.kubeconfig.as_deref().unwrap_or_default(),
            self.master.as_deref().unwrap_or_default(),
        )
    }

    fn compatibility(&self) -> Compatibility {
        match self.compatibility {
            None => Compatibility::None,
            Some(CompatibilityArg::Flannel) => Compatibility::Flannel,
            Some(CompatibilityArg::Cilium) => Compatibility::Cilium,
        }
    }

    /// What the agent is to do.
    pub fn settings(&self, hostname: String) -> Settings {
        let config = Config {
            hostname: hostname.clone(),
            granularity: match self.mesh_granularity {
                GranularityArg::Location => Granularity::Location,
                GranularityArg::Full => Granularity::Full,
            },
            encapsulate: match self.encapsulate {
                EncapsulateArg::Never => Encapsulate::Never,
                EncapsulateArg::CrossSubnet => Encapsulate::CrossSubnet,
                EncapsulateArg::Always => Encapsulate::Always,
            },
            compatibility: self.compatibility(),
            local: self.local,
            cni: self.cni,
            cni_path: self.cni_path.clone(),
            iptables_forward_rules: self.iptables_forward_rules,
            topology_label: self.topology_label.clone(),
            subnet: self.subnet.trunc(),
            port: self.port,
            service_cidrs: self.service_cidr.iter().map(IpNet::trunc).collect(),
            mtu: self.mtu,
            prioritise_private_addresses: self.prioritise_private_addresses,
            create_interface: self.create_interface,
            node_expiry: self.node_expiry.as_secs(),
            leader_failover: match self.leader_failover {
                LeaderFailoverArg::DataPath => LeaderFailover::DataPath,
                LeaderFailoverArg::Age => LeaderFailover::Age,
            },
        };
        Settings {
            config,
            discover: DiscoverConfig {
                hostname,
                internal_cidrs: self.internal_cidr.clone(),
                prioritise_private_addresses: self.prioritise_private_addresses,
            },
            resync: self.resync_period,
            clean_up: self.clean_up,
            clean_up_interface: self.clean_up_interface,
        }
    }
}

/// The value of a flag that names an address to listen on; `:1107` is every address of both families.
pub fn listen_addr(flag: &str, value: &str) -> anyhow::Result<SocketAddr> {
    let text = match value.strip_prefix(':') {
        Some(port) => format!("[::]:{port}"),
        None => value.to_owned(),
    };
    text.parse().with_context(|| format!("{flag}={value}: not of the form [ADDRESS]:PORT"))
}

fn parse_mtu(text: &str) -> Result<Mtu, String> {
    match text {
        "auto" => Ok(Mtu::Auto),
        _ => text.parse().map(Mtu::Fixed).map_err(|_| "neither \"auto\" nor a number of bytes".to_owned()),
    }
}

/// Reads a duration in Go's manner: numbers with the units h, m, s, ms, us and ns in a row, or 0.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "not a duration such as 30s, 1m30s or 500ms".to_owned();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit_end =
            rest[digits..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |n| digits + n);
        seconds += number
            * match &rest[digits..unit_end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(wrong()),
            };
        rest = &rest[unit_end..];
    }
    if text.is_empty() { Err(wrong()) } else { Duration::try_from_secs_f64(seconds).map_err(|_| wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> AgentArgs {
        Cli::try_parse_from(std::iter::once(&"kg").chain(args)).expect("valid flags").agent
    }

    #[test]
    fn definition_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_kilo() {
        let args = parse(&[]);
        let settings = args.settings("n".into());
        assert_eq!(settings.config, Config { hostname: "n".into(), ..Config::default() });
        assert!(args.clean_up && !args.clean_up_interface);
        assert_eq!((args.listen.as_str(), args.interface.as_str()), (":1107", "kilo0"));
        assert_eq!(args.resync_period, Duration::from_secs(30));
        assert_eq!(args.data_dir, PathBuf::from("/var/lib/kilo"));
    }

    #[test]
    fn flags_are_written_in_gos_manner() {
        let args = parse(&[
            "--local=false",
            "--cni",
            "--service-cidr=10.43.0.0/16,10.44.0.1/16",
            "--service-cidr",
            "fd00::/108",
            "--subnet=10.5.0.1/16",
            "--mtu=1300",
            "--encapsulate=crosssubnet",
            "--compatibility",
            "cilium",
        ]);
        let config = args.settings("n".into()).config;
        assert!(!config.local && config.cni);
        let services: Vec<_> = config.service_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(services, ["10.43.0.0/16", "10.44.0.0/16", "fd00::/108"]);
        assert_eq!(config.subnet.to_string(), "10.5.0.0/16");
        assert_eq!(config.mtu, Mtu::Fixed(1300));
        assert_eq!(config.encapsulate, Encapsulate::CrossSubnet);
        assert_eq!(config.compatibility, Compatibility::Cilium);
    }

    #[test]
    fn unknown_values_are_errors_that_list_the_valid_ones() {
        for (flag, valid) in [
            ("--encapsulate=sometimes", "never, crosssubnet, always"),
            ("--compatibility=calico", "flannel, cilium"),
            ("--mesh-granularity=cross", "location, full"),
            ("--log-level=loud", "all, debug, info, warn, error, none"),
            ("--backend=etcd", "kubernetes, file"),
        ] {
            let error = Cli::try_parse_from(["kg", flag]).expect_err(flag).to_string();
            assert!(error.contains(valid), "{error}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in
            [("30s", 30_000), ("1m30s", 90_000), ("500ms", 500), ("1.5h", 5_400_000), ("0", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "30", "s", "1y", "-1s", "1..5s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
