//! What the host has to know of the agent's settings.

use std::path::PathBuf;

use kilo_mesh::{Compatibility, TABLE_NAME};

use crate::wireguard::{Mode, SOCKET_DIR};

/// The settings of one host.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The name of the WireGuard link, `kilo0`.
    pub interface: String,
    /// `--wireguard`: the kernel's device or the built-in one.
    pub wireguard: Mode,
    /// `--create-interface`: a missing WireGuard link is made.
    pub create_interface: bool,
    /// `--data-dir`: the private key and learned endpoints.
    pub data_dir: PathBuf,
    /// Where configuration sockets of WireGuard devices are.
    pub socket_dir: PathBuf,
    /// The CNI file whose ranges are managed; `None` without `--cni`.
    pub cni_path: Option<String>,
    /// `--compatibility`: whose tunnel is used.
    pub compatibility: Compatibility,
    /// Whether a tunnel may be wanted at all. Only then is the kernel tried for IPIP, which loads its module.
    pub tunnels: bool,
    /// `--iptables-forward-rules`: rules of ours stand in the FORWARD chains of iptables-nft.
    pub forward_rules: bool,
    /// The name of our nftables table of family `inet`.
    pub table: String,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            interface: "kilo0".into(),
            wireguard: Mode::default(),
            create_interface: true,
            data_dir: "/var/lib/kilo".into(),
            socket_dir: SOCKET_DIR.into(),
            cni_path: None,
            compatibility: Compatibility::default(),
            tunnels: false,
            forward_rules: false,
            table: TABLE_NAME.into(),
        }
    }
}
