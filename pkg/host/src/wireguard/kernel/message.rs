//! The kernel's generic netlink messages: changes cut to size, dumps put together again. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use kilo_state::DevicePeer;
use kilo_wireguard::{PresharedKey, PrivateKey, PublicKey};
use netlink_packet_core::Emitable as _;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAllowedIpFlags,
    WireguardAttribute, WireguardCmd, WireguardDeviceFlags, WireguardMessage, WireguardPeer,
    WireguardPeerAttribute as Attr, WireguardPeerFlags,
};

use crate::wireguard::status::{PeerStatus, SetDevice, SetPeer, Status};

/// Bytes of a message at most. The kernel takes more, but a nested attribute ends at 64 KiB, and a socket's
/// send buffer may be small.
const MAX_MESSAGE: usize = 16 << 10;
/// The head of a nested attribute.
const NESTED: usize = 4;

/// The messages that make a change, in this order.
pub fn set(interface: &str, set: &SetDevice) -> Vec<WireguardMessage> {
    let mut first = Vec::new();
    if let Some(key) = &set.private_key {
        first.push(WireguardAttribute::PrivateKey(key.as_ref().map_or([0; 32], |k| *k.secret_bytes())));
    }
    first.extend(set.listen_port.map(WireguardAttribute::ListenPort));
    first.extend(set.fwmark.map(WireguardAttribute::Fwmark));
    if set.replace_peers {
        first.push(WireguardAttribute::Flags(WireguardDeviceFlags::ReplacePeers));
    }
    let mut messages = Vec::new();
    let mut peers = Vec::new();
    let mut size = 0;
    let mut finish = |peers: &mut Vec<WireguardPeer>, messages: &mut Vec<WireguardMessage>| {
        let mut attributes = vec![WireguardAttribute::IfName(interface.to_owned())];
        attributes.append(&mut first);
        if !peers.is_empty() {
            attributes.push(WireguardAttribute::Peers(std::mem::take(peers)));
        }
        messages.push(WireguardMessage { cmd: WireguardCmd::SetDevice, attributes });
    };
    for piece in set.peers.iter().flat_map(pieces) {
        let len = piece.buffer_len();
        if size + len > MAX_MESSAGE && !peers.is_empty() {
            finish(&mut peers, &mut messages);
            size = 0;
        }
        size += len;
        peers.push(piece);
    }
    if !peers.is_empty() || messages.is_empty() {
        finish(&mut peers, &mut messages);
    }
    messages
}

/// One peer, in as many pieces as its ranges need: the first says all else, the others only add ranges.
fn pieces(set: &SetPeer) -> Vec<WireguardPeer> {
    let mut attributes = vec![Attr::PublicKey(*set.public_key.as_bytes())];
    if set.remove {
        attributes.push(Attr::Flags(WireguardPeerFlags::RemoveMe));
        return vec![WireguardPeer(attributes)];
    }
    let mut flags = WireguardPeerFlags::empty();
    flags.set(WireguardPeerFlags::UpdateOnly, set.update_only);
    flags.set(WireguardPeerFlags::ReplaceAllowedIps, set.replace_allowed_ips);
    if !flags.is_empty() {
        attributes.push(Attr::Flags(flags));
    }
    if let Some(key) = &set.preshared_key {
        attributes.push(Attr::PresharedKey(key.as_ref().map_or([0; 32], |k| *k.secret_bytes())));
    }
    attributes.extend(set.endpoint.map(Attr::Endpoint));
    attributes.extend(set.persistent_keepalive.map(Attr::PersistentKeepalive));

    let ranges = set.allowed_ips.iter().map(|r| range(r, false));
    let removed = set.remove_allowed_ips.iter().map(|r| range(r, true));
    let mut pieces = Vec::new();
    let mut size = attributes.as_slice().buffer_len() + 2 * NESTED;
    let mut ips = Vec::new();
    for ip in ranges.chain(removed) {
        let len = ip.buffer_len();
        if size + len > MAX_MESSAGE {
            attributes.push(Attr::AllowedIps(std::mem::take(&mut ips)));
            pieces.push(WireguardPeer(std::mem::take(&mut attributes)));
            attributes = vec![
                Attr::PublicKey(*set.public_key.as_bytes()),
                Attr::Flags(WireguardPeerFlags::UpdateOnly),
            ];
            size = attributes.as_slice().buffer_len() + 2 * NESTED;
        }
        size += len;
        ips.push(ip);
    }
    if !ips.is_empty() {
        attributes.push(Attr::AllowedIps(ips));
    }
    pieces.push(WireguardPeer(attributes));
    pieces
}

fn range(range: &IpNet, remove: bool) -> WireguardAllowedIp {
    let family = match range {
        IpNet::V4(_) => WireguardAddressFamily::Ipv4,
        IpNet::V6(_) => WireguardAddressFamily::Ipv6,
    };
    let mut attributes = vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(range.network()),
        WireguardAllowedIpAttr::Cidr(range.prefix_len()),
    ];
    if remove {
        attributes.push(WireguardAllowedIpAttr::Flags(WireguardAllowedIpFlags::RemoveMe));
    }
    WireguardAllowedIp(attributes)
}

/// The request for a dump.
pub fn get(interface: &str) -> WireguardMessage {
    WireguardMessage {
        cmd: WireguardCmd::GetDevice,
        attributes: vec![WireguardAttribute::IfName(interface.to_owned())],
    }
}

/// A device from the messages of a dump: a peer with many ranges comes in several pieces, of which only the
/// first says all else.
pub fn fold(messages: impl IntoIterator<Item = WireguardMessage>) -> Status {
    let mut status = Status::default();
    let mut peers: BTreeMap<PublicKey, PeerStatus> = BTreeMap::new();
    for attribute in messages.into_iter().flat_map(|m| m.attributes) {
        match attribute {
            WireguardAttribute::PrivateKey(key) if key != [0; 32] => {
                status.private_key = Some(PrivateKey::from_bytes(key));
            }
            WireguardAttribute::PublicKey(key) if key != [0; 32] => {
                status.public_key = Some(PublicKey::from_bytes(key));
            }
            WireguardAttribute::ListenPort(port) => status.listen_port = port,
            WireguardAttribute::Fwmark(mark) => status.fwmark = mark,
            WireguardAttribute::Peers(pieces) => {
                for piece in pieces.iter().filter_map(peer) {
                    peers
                        .entry(piece.peer.public_key)
                        .and_modify(|known| known.peer.allowed_ips.extend(&piece.peer.allowed_ips))
                        .or_insert(piece);
                }
            }
            WireguardAttribute::PrivateKey(_)
            | WireguardAttribute::PublicKey(_)
            | WireguardAttribute::IfIndex(_)
            | WireguardAttribute::IfName(_)
            | WireguardAttribute::Flags(_)
            | WireguardAttribute::Other(_)
            | _ => {}
        }
    }
    status.peers = peers.into_values().collect();
    status
}

fn peer(piece: &WireguardPeer) -> Option<PeerStatus> {
    let mut key = None;
    let mut status = PeerStatus {
        peer: DevicePeer {
            public_key: PublicKey::from_bytes([0; 32]),
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: 0,
            allowed_ips: Vec::new(),
        },
        latest_handshake: 0,
        rx_bytes: 0,
        tx_bytes: 0,
    };
    for attribute in &piece.0 {
        match attribute {
            Attr::PublicKey(bytes) => key = Some(PublicKey::from_bytes(*bytes)),
            Attr::PresharedKey(bytes) => {
                status.peer.preshared_key = (*bytes != [0; 32]).then(|| PresharedKey::from_bytes(*bytes));
            }
            Attr::Endpoint(endpoint) => status.peer.endpoint = Some(*endpoint),
            Attr::PersistentKeepalive(seconds) => status.peer.persistent_keepalive = *seconds,
            Attr::LastHandshake(time) => status.latest_handshake = u64::try_from(time.seconds).unwrap_or(0),
            Attr::RxBytes(bytes) => status.rx_bytes = *bytes,
            Attr::TxBytes(bytes) => status.tx_bytes = *bytes,
            Attr::AllowedIps(ips) => status.peer.allowed_ips = ips.iter().filter_map(net).collect(),
            Attr::ProtocolVersion(_) | Attr::Flags(_) | Attr::Other(_) | _ => {}
        }
    }
    status.peer.public_key = key?;
    Some(status)
}

fn net(ip: &WireguardAllowedIp) -> Option<IpNet> {
    let (mut addr, mut prefix) = (None::<IpAddr>, None);
    for attribute in &ip.0 {
        if let WireguardAllowedIpAttr::IpAddr(ip) = attribute {
            addr = Some(*ip);
        } else if let WireguardAllowedIpAttr::Cidr(len) = attribute {
            prefix = Some(*len);
        }
    }
    IpNet::new(addr?, prefix?).ok()
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
