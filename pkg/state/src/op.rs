//! One change of the host's network.

use kilo_nftables::Transaction;
use kilo_wireguard::PublicKey;

use crate::{
    Address, CniFile, Dev, DevicePeer, ForwardAccept, LinkKind, PeerChange, Route, Rule, UpstreamChain,
};

/// What is to change about the device itself; `None` leaves a thing as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceChange {
    /// The private key whose public key this is; the host holds it.
    pub public_key: Option<PublicKey>,
    /// UDP port.
    pub listen_port: Option<u16>,
}

/// One change. A host carries it out as it is, or reports why it cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write a kernel parameter below `/proc/sys`.
    SetSysctl {
        /// Path below `/proc/sys`.
        path: Box<str>,
        /// The text to write.
        value: Box<str>,
    },
    /// Make a link.
    CreateLink {
        /// The part it plays.
        dev: Dev,
        /// Its name.
        name: Box<str>,
        /// What it is.
        kind: LinkKind,
        /// Bytes.
        mtu: Option<u32>,
    },
    /// Change a link's MTU, in bytes.
    SetMtu(Dev, u32),
    /// Give a link an address.
    AddAddress(Address),
    /// Take an address from a link.
    DeleteAddress(Address),
    /// Carry out one nftables transaction on our table.
    Nftables(Transaction),
    /// Accept a range in FORWARD.
    AddForward(ForwardAccept),
    /// No longer accept a range in FORWARD.
    DeleteForward(ForwardAccept),
    /// Change the device's own settings.
    ConfigureDevice(DeviceChange),
    /// Remove a peer.
    RemovePeer(PublicKey),
    /// Change a peer, sessions kept.
    UpdatePeer(PeerChange),
    /// Add a peer.
    AddPeer(DevicePeer),
    /// Bring a link up.
    SetUp(Dev),
    /// Bring a link down.
    SetDown(Dev),
    /// Add a route.
    AddRoute(Route),
    /// Put a route in the place of the one with the same table and destination.
    ReplaceRoute(Route),
    /// Remove a route.
    DeleteRoute(Route),
    /// Add a rule.
    AddRule(Rule),
    /// Remove a rule.
    DeleteRule(Rule),
    /// Remove a link.
    DeleteLink {
        /// The part it plays.
        dev: Dev,
        /// Its name.
        name: Box<str>,
    },
    /// Remove a chain that upstream Kilo left in a table of iptables-nft, and the rules that go with it. Not
    /// before ours are there: where [`Op::Nftables`] failed, this fails, too.
    RemoveChain {
        /// Of `ip6tables`.
        ipv6: bool,
        /// Which.
        chain: UpstreamChain,
    },
    /// Write the pod ranges into the CNI file.
    WriteCni(CniFile),
}

/// The order in which kinds of operation are carried out: what is referred to before what refers to it,
/// the other way for removals; the firewall before reachability.
///
/// Addresses come as late as they may, directly before the routes: the kernel drops routes together with an
/// address, so that a changed address leaves a gap until they are back, and a device with thousands of peers
/// must not be configured in that gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Kernel parameters.
    Sysctls,
    /// Rules that look up routes, then routes: nothing may be sent where something goes.
    RemoveRoutes,
    /// Links appear, with their MTU.
    Links,
    /// NAT, forwarding, who may send IPIP.
    Firewall,
    /// The WireGuard device and its peers.
    Device,
    /// Addresses of links.
    Addresses,
    /// Links go up or down.
    State,
    /// Routes, then rules that look them up.
    Routes,
    /// Links go.
    RemoveLinks,
    /// What upstream Kilo left behind goes, once ours is there.
    Leftovers,
    /// Files others read.
    Files,
}

impl Op {
    /// The kind of thing that changes: the `kind` label of the metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::SetSysctl { .. } => "sysctl",
            Self::CreateLink { .. }
            | Self::SetMtu(..)
            | Self::SetUp(_)
            | Self::SetDown(_)
            | Self::DeleteLink { .. } => "link",
            Self::AddAddress(_) | Self::DeleteAddress(_) => "address",
            Self::Nftables(_) => "nftables",
            Self::AddForward(_) | Self::DeleteForward(_) => "forward",
            Self::ConfigureDevice(_) => "device",
            Self::RemovePeer(_) | Self::UpdatePeer(_) | Self::AddPeer(_) => "peer",
            Self::AddRoute(_) | Self::ReplaceRoute(_) | Self::DeleteRoute(_) => "route",
            Self::AddRule(_) | Self::DeleteRule(_) => "rule",
            Self::RemoveChain { .. } => "leftover",
            Self::WriteCni(_) => "cni",
        }
    }

    /// When it is carried out.
    pub fn stage(&self) -> Stage {
        match self {
            Self::SetSysctl { .. } => Stage::Sysctls,
            Self::DeleteRoute(_) | Self::DeleteRule(_) => Stage::RemoveRoutes,
            Self::CreateLink { .. } | Self::SetMtu(..) => Stage::Links,
            Self::Nftables(_) | Self::AddForward(_) | Self::DeleteForward(_) => Stage::Firewall,
            Self::ConfigureDevice(_) | Self::RemovePeer(_) | Self::UpdatePeer(_) | Self::AddPeer(_) => {
                Stage::Device
            }
            Self::AddAddress(_) | Self::DeleteAddress(_) => Stage::Addresses,
            Self::SetUp(_) | Self::SetDown(_) => Stage::State,
            Self::AddRoute(_) | Self::ReplaceRoute(_) | Self::AddRule(_) => Stage::Routes,
            Self::DeleteLink { .. } => Stage::RemoveLinks,
            Self::RemoveChain { .. } => Stage::Leftovers,
            Self::WriteCni(_) => Stage::Files,
        }
    }
}
