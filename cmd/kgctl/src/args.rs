//! The command line: commands, flags and their texts. Nothing is decided here.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use kilo_mesh::Config;
use kilo_policy::Probe;

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 bad input or another error, 2 wrong usage.
`kgctl diff`: 0 nothing would change, 1 something would, 2 an error.
NO_COLOR turns colours off.";

/// Shows what a Kilo mesh is and what it would become.
#[derive(Debug, Parser)]
#[command(
    name = "kgctl",
    disable_version_flag = true,
    arg_required_else_help = true,
    subcommand_precedence_over_arg = true,
    max_term_width = 100,
    after_help = EXIT_CODES
)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Flags that every command takes, before or after its name.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Where objects come from when there is no --filename
    #[arg(long, global = true, value_enum, default_value = "kubernetes", value_name = "NAME")]
    pub backend: Backend,

    /// The kubeconfig file; empty for the cluster this runs in [default: $KUBECONFIG, ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<String>,

    /// How nodes are grouped; auto takes what most ready nodes say
    #[arg(long, global = true, value_enum, default_value = "auto", value_name = "GRANULARITY")]
    pub mesh_granularity: MeshGranularity,

    /// The UDP port of WireGuard [default: 51820]
    #[arg(long, global = true, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,

    /// The node label that names locations [default: topology.kubernetes.io/region]
    #[arg(long, global = true, value_name = "LABEL")]
    pub topology_label: Option<String>,

    /// Print the version
    #[arg(short = 'v', long, global = true, action = ArgAction::SetTrue)]
    pub version: bool,
}

/// Where objects come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The API server
    Kubernetes,
}

/// `--mesh-granularity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MeshGranularity {
    /// What most ready nodes say
    Auto,
    /// One segment for each location
    Location,
    /// One segment for each node
    Full,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the plan of a node: its topology, WireGuard peers, routes, rules and firewall, and why
    Plan(PlanArgs),
    /// Show what changed objects would change on every node
    Diff(DiffArgs),
    /// Print the mesh as a graph in Graphviz's DOT language
    Graph(GraphArgs),
    /// Print the WireGuard configuration of a node or a peer
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Showconf {
        /// Whose.
        #[command(subcommand)]
        of: ShowconfOf,
    },
    /// Ask what network policies say; nothing enforces them yet
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Policy {
        /// What to ask.
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Join this machine to the mesh as a peer, for as long as this runs (Linux only)
    Connect(ConnectArgs),
    /// Print a completion script
    #[command(after_help = COMPLETION_HELP)]
    Completion {
        /// The shell that will read the script
        #[arg(value_enum)]
        shell: CompletionShell,
    },
    /// Print the version
    Version,
    /// Write man pages
    #[command(hide = true)]
    Man {
        /// The folder that takes them; made when missing
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
}

const COMPLETION_HELP: &str = "\
Examples:
  kgctl completion bash > /etc/bash_completion.d/kgctl
  kgctl completion zsh > \"${fpath[1]}/_kgctl\"
  kgctl completion fish > ~/.config/fish/completions/kgctl.fish";

/// A shell that completion scripts exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompletionShell {
    /// GNU Bash
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
}

const FILENAME_HELP: &str = "\
Read Nodes and Peers from these files instead of the cluster: YAML or JSON, single objects, Lists, several \
documents in one file, what `kubectl get nodes,peers -o yaml` prints, or a plan that holds its input. `-` is \
the standard input";

const FACTS_HELP: &str = "\
Time, resolved names and hosts as JSON or YAML: {now, dns: {NAME: [IP]}, held: [NODE], hosts: {NODE: {…}}}, what an agent's \
/facts prints. Without it `now` is, for files, the newest last-seen of the input, and no name resolves";

/// Where objects come from.
#[derive(Args, Clone, Debug)]
pub struct Source {
    #[doc = "Files to read"]
    #[arg(short, long = "filename", value_name = "FILE", num_args = 1.., help = FILENAME_HELP)]
    pub filename: Vec<PathBuf>,

    #[doc = "The facts file"]
    #[arg(long, value_name = "FILE", help = FACTS_HELP)]
    pub facts: Option<PathBuf>,
}

/// `kgctl plan`.
#[derive(Args, Debug)]
#[command(after_help = PLAN_HELP)]
pub struct PlanArgs {
    /// Where objects come from.
    #[command(flatten)]
    pub source: Source,

    /// The node whose plan to show; without it only the objects as they are understood
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,

    /// The form of the answer
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub output: PlanOutput,

    /// The agent's flags.
    #[command(flatten)]
    pub agent: AgentArgs,
}

const PLAN_HELP: &str = "\
Examples:
  kgctl plan --node n1
  kubectl get nodes,peers -o yaml | kgctl plan -f - --node n1
  kgctl plan -f plan.json --facts facts.json     # replay what an agent's /plan and /facts printed";

/// The flags of `kg` that a plan depends on.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "The agent's options")]
pub struct AgentArgs {
    /// When packets inside a location are encapsulated [default: always]
    #[arg(long, value_enum, value_name = "STRATEGY")]
    pub encapsulate: Option<Encapsulate>,

    /// The network that is there already [default: none]
    #[arg(long, value_enum, value_name = "NETWORK")]
    pub compatibility: Option<Compatibility>,

    /// Manage routes inside the location [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub local: Option<bool>,

    /// Masquerade what pods send out of the mesh [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub cni: Option<bool>,

    /// Accept forwarded packets of pods [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub iptables_forward_rules: Option<bool>,

    /// The range that WireGuard IPs are taken from [default: that of the nodes' wireguard-ip, 10.4.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub subnet: Option<IpNet>,

    /// Destinations that are not masqueraded; may be repeated
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub service_cidr: Vec<IpNet>,

    /// The MTU of the WireGuard link in bytes, or auto [default: auto]
    #[arg(long, value_name = "BYTES", value_parser = parse_mtu)]
    pub mtu: Option<kilo_mesh::Mtu>,

    /// Prefer the private address as endpoint [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub prioritise_private_addresses: Option<bool>,

    /// Seconds after which a node that has not checked in is left out; 0 for never [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub node_expiry: Option<u64>,
}

/// `--encapsulate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Encapsulate {
    /// Never
    Never,
    /// When the other node is in another subnet
    #[value(name = "crosssubnet")]
    CrossSubnet,
    /// Always
    Always,
}

/// `--compatibility`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compatibility {
    /// Kilo's own IPIP tunnel
    #[value(alias = "")]
    None,
    /// flannel's VXLAN
    Flannel,
    /// IPIP over Cilium
    Cilium,
}

/// The form of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlanOutput {
    /// A page for people
    Text,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// `kgctl diff`.
#[derive(Args, Debug)]
#[command(after_help = DIFF_HELP)]
pub struct DiffArgs {
    /// The objects as they are: files, folders, or - for the standard input; without it the cluster's
    #[arg(short, long = "filename", value_name = "OLD", num_args = 1..)]
    pub filename: Vec<PathBuf>,

    /// The objects as they would be
    #[arg(long, value_name = "NEW", num_args = 1.., required = true)]
    pub to: Vec<PathBuf>,

    #[doc = "The facts file"]
    #[arg(long, value_name = "FILE", help = FACTS_HELP)]
    pub facts: Option<PathBuf>,

    /// The agent's flags.
    #[command(flatten)]
    pub agent: AgentArgs,
}

const DIFF_HELP: &str = "\
Examples:
  kubectl get nodes,peers -o yaml > now.yaml
  kgctl diff -f now.yaml --to changed.yaml
  kgctl diff --to changed.yaml                   # against the cluster";

/// `kgctl graph`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kgctl graph | circo -Tsvg > mesh.svg")]
pub struct GraphArgs {
    /// Where objects come from.
    #[command(flatten)]
    pub source: Source,
}

/// Whose configuration.
#[derive(Debug, Subcommand)]
pub enum ShowconfOf {
    /// The configuration of a node, or of its location as a peer
    Node(ShowconfArgs),
    /// The configuration of a peer, or the peer as others see it
    Peer(ShowconfArgs),
}

/// `kgctl showconf node` and `kgctl showconf peer`.
#[derive(Args, Debug)]
pub struct ShowconfArgs {
    /// The name of the node or peer
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Where objects come from.
    #[command(flatten)]
    pub source: Source,

    /// Print it as a peer of others
    #[arg(long)]
    pub as_peer: bool,

    /// The form of a peer; used with --as-peer
    #[arg(short, long, value_enum, default_value = "wireguard", value_name = "FORMAT")]
    pub output: ConfOutput,

    /// Ranges to add to those of the peer; may be repeated, used with --as-peer
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub allowed_ips: Vec<IpNet>,
}

/// The form of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConfOutput {
    /// What wg setconf reads
    Wireguard,
    /// A Peer as JSON
    Json,
    /// A Peer as YAML
    Yaml,
}

/// Questions about policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print who may connect to whom, and which rules say so
    Table(TableArgs),
}

/// `kgctl policy table`.
#[derive(Args, Debug)]
#[command(after_help = TABLE_HELP)]
pub struct TableArgs {
    /// Pods, Namespaces and NetworkPolicies: YAML or JSON, files, folders, or - for the standard input
    #[arg(short, long = "filename", value_name = "FILE", num_args = 1.., required = true)]
    pub filename: Vec<PathBuf>,

    /// What to ask about: ports as pods see them, behind every Service, and icmp for an echo request
    #[arg(long, value_name = "PORT/PROTOCOL", value_delimiter = ',', default_value = "80/tcp")]
    pub ports: Vec<Probe>,

    /// Addresses outside the cluster that take part
    #[arg(long, value_name = "IP", value_delimiter = ',', value_parser = parse_external)]
    pub external: Vec<External>,

    /// Whether echo requests to and from isolated pods need a rule, one without ports
    #[arg(long, value_enum, default_value = "evaluate", value_name = "MODE")]
    pub policy_icmp_echo: IcmpEcho,

    /// The form of the answer
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub output: TableOutput,
}

const TABLE_HELP: &str = "\
Examples:
  kgctl policy table -f manifests/ --ports 80/tcp,53/udp,icmp --external 198.51.100.7
  kubectl get pods,namespaces,networkpolicies -A -o yaml | kgctl policy table -f - -o json";

/// `--policy-icmp-echo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IcmpEcho {
    /// A rule without ports must allow them
    Evaluate,
    /// They are always allowed
    Allow,
}

/// The form of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableOutput {
    /// A line for each row, with its reasons
    Text,
    /// JSON, a row a line
    Json,
}

/// `kgctl connect`.
#[derive(Args, Clone, Debug)]
#[command(after_help = CONNECT_HELP)]
pub struct ConnectArgs {
    /// The name of the Peer; that of the operating system if not given
    #[arg(value_name = "NAME")]
    pub name: Option<String>,

    /// The address of this machine in the mesh, with the length of its range
    #[arg(short, long, value_name = "CIDR", default_value = "10.10.10.10/32")]
    pub allowed_ip: IpNet,

    /// Further ranges of the cluster to reach, such as that of Services; may be repeated
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub allowed_ips: Vec<IpNet>,

    /// Undo everything at the end: link, routes, and the Peer if it was made
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub clean_up: bool,

    /// The name of the WireGuard link; made when missing
    #[arg(short, long, value_name = "NAME", default_value = "kilo0")]
    pub interface: String,

    /// How logs are written
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "json")]
    pub log_format: LogFormat,

    /// What is logged
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,

    /// The MTU of a link that is made, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1420)]
    pub mtu: u32,

    /// Seconds between two packets that keep the way open, for a Peer that is made; 0 for none
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub persistent_keepalive: u16,

    /// The file of this machine's private key in base64, which only its owner may read; a new key without it
    #[arg(long, value_name = "FILE")]
    pub private_key: Option<PathBuf>,

    /// How often everything is compared with the kernel, whether anything was heard or not
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub resync_period: Duration,

    /// Which WireGuard carries the packets: the kernel's, the built-in one, or the kernel's if it is there
    #[arg(long, value_enum, value_name = "KIND", default_value = "auto")]
    pub wireguard: WireGuard,
}

const CONNECT_HELP: &str = "\
Needs the rights to change the network of this machine, and those to list Nodes and Peers and to create and delete \
Peers. Runs until SIGINT or SIGTERM.

Examples:
  kgctl connect laptop --allowed-ip 10.10.10.11/32 --allowed-ips 10.96.0.0/12
  (umask 077; wg genkey > key); kgctl connect laptop --private-key key";

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object for each line
    Json,
    /// For people
    Text,
}

/// `--log-level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Everything
    All,
    /// Branches taken
    Debug,
    /// Changes made
    Info,
    /// What deserves a look
    Warn,
    /// What does not work
    Error,
    /// Nothing
    None,
}

/// `--wireguard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WireGuard {
    /// The kernel's if it is there, else the built-in one
    Auto,
    /// The kernel's
    Kernel,
    /// The built-in one
    Userspace,
}

/// A value of `--external`: an address, or nothing for an empty text, so that scripts may pass an empty list.
pub type External = Option<IpAddr>;

fn parse_external(text: &str) -> Result<External, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "must be an address".to_owned())
}

/// Reads a duration in Go's manner: numbers with the units h, m, s and ms in a row, `1m30s`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a duration such as 30s, 1m30s or 500ms".to_owned();
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let unit = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..unit].parse().map_err(|_| wrong())?;
        let after = &rest[unit..];
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        seconds += number
            * match &after[..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                _ => return Err(wrong()),
            };
        rest = &after[end..];
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) | Err(_) => Err(wrong()),
    }
}

fn parse_mtu(text: &str) -> Result<kilo_mesh::Mtu, String> {
    if text == "auto" {
        return Ok(kilo_mesh::Mtu::Auto);
    }
    text.parse().map(kilo_mesh::Mtu::Fixed).map_err(|_| "must be auto or a number of bytes".to_owned())
}

impl AgentArgs {
    /// Puts the flags that were given into a configuration.
    pub fn apply(&self, config: &mut Config) {
        if let Some(strategy) = self.encapsulate {
            config.encapsulate = match strategy {
                Encapsulate::Never => kilo_mesh::Encapsulate::Never,
                Encapsulate::CrossSubnet => kilo_mesh::Encapsulate::CrossSubnet,
                Encapsulate::Always => kilo_mesh::Encapsulate::Always,
            };
        }
        if let Some(network) = self.compatibility {
            config.compatibility = match network {
                Compatibility::None => kilo_mesh::Compatibility::None,
                Compatibility::Flannel => kilo_mesh::Compatibility::Flannel,
                Compatibility::Cilium => kilo_mesh::Compatibility::Cilium,
            };
        }
        config.local = self.local.unwrap_or(config.local);
        config.cni = self.cni.unwrap_or(config.cni);
        config.iptables_forward_rules = self.iptables_forward_rules.unwrap_or(config.iptables_forward_rules);
        if let Some(subnet) = self.subnet {
            config.subnet = subnet.trunc();
        }
        if !self.service_cidr.is_empty() {
            config.service_cidrs = self.service_cidr.iter().map(IpNet::trunc).collect();
        }
        config.mtu = self.mtu.unwrap_or(config.mtu);
        config.prioritise_private_addresses =
            self.prioritise_private_addresses.unwrap_or(config.prioritise_private_addresses);
        config.node_expiry = self.node_expiry.unwrap_or(config.node_expiry);
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_flag_that_is_not_given_changes_nothing() {
        let config = Config { local: false, node_expiry: 0, ..Config::default() };
        let mut changed = config.clone();
        AgentArgs::default().apply(&mut changed);
        assert_eq!(changed, config);
    }

    #[test]
    fn durations_are_those_of_go() {
        assert_eq!(parse_duration("1m30.5s"), Ok(Duration::from_millis(90_500)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "0s", "30", "s", "-1s", "1d", "1e3s", "..s", "9999999999999999999999h", "1\u{b5}"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn host_bits_of_ranges_are_dropped() {
        let mut config = Config::default();
        let args = AgentArgs { subnet: "10.4.3.2/16".parse().ok(), ..AgentArgs::default() };
        args.apply(&mut config);
        assert_eq!(config.subnet.to_string(), "10.4.0.0/16");
    }
}
