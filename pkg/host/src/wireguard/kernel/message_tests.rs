//! Messages: their size, their flags, and that cutting and folding loses nothing.

use netlink_packet_core::{NlaBuffer, ParseableParametrized};
use netlink_packet_generic::GenlHeader;

use super::*;

fn peer(key: u8, n: u32) -> SetPeer {
    let nets = (0..n).map(|i| match i % 2 {
        0 => IpNet::from(IpAddr::from((0x0a00_0000 + i).to_be_bytes())),
        _ => IpNet::from(IpAddr::from(((0xfd00 << 112) + u128::from(i)).to_be_bytes())),
    });
    SetPeer {
        preshared_key: Some(Some(PresharedKey::from_bytes([9; 32]))),
        endpoint: Some("[fd00::1]:5".parse().expect("an endpoint")),
        persistent_keepalive: Some(25),
        replace_allowed_ips: true,
        allowed_ips: nets.collect(),
        ..SetPeer::new(PublicKey::from_bytes([key; 32]))
    }
}

fn flags(piece: &WireguardPeer) -> WireguardPeerFlags {
    piece
        .0
        .iter()
        .find_map(|a| if let Attr::Flags(flags) = a { Some(*flags) } else { None })
        .unwrap_or(WireguardPeerFlags::empty())
}

fn all_pieces(messages: &[WireguardMessage]) -> Vec<WireguardPeer> {
    messages
        .iter()
        .flat_map(|m| &m.attributes)
        .filter_map(|a| if let WireguardAttribute::Peers(peers) = a { Some(peers.clone()) } else { None })
        .flatten()
        .collect()
}

#[test]
fn no_message_is_too_long_and_none_is_lost() {
    let set_device = SetDevice {
        private_key: Some(Some(PrivateKey::from_bytes([3; 32]))),
        listen_port: Some(51820),
        peers: (1..=200).map(|k| peer(k, if k == 7 { 5000 } else { 3 })).collect(),
        ..SetDevice::default()
    };
    let messages = set("kilo0", &set_device);
    assert!(messages.len() > 10);
    for (n, message) in messages.iter().enumerate() {
        assert!(message.buffer_len() <= MAX_MESSAGE + 256, "{}", message.buffer_len());
        assert_eq!(message.attributes[0], WireguardAttribute::IfName("kilo0".into()));
        let has_key = message.attributes.iter().any(|a| matches!(a, WireguardAttribute::PrivateKey(_)));
        assert_eq!(has_key, n == 0, "the device's own settings are said once");
    }
    // What the kernel would dump of it, through the bytes.
    let read = messages.iter().map(|message| {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        WireguardMessage::parse_with_param(&bytes, GenlHeader { cmd: 1, version: 1 })
            .expect("our own message")
    });
    let status = fold(read);
    assert_eq!(status.peers.len(), 200);
    for (have, want) in status.peers.iter().zip(&set_device.peers) {
        assert_eq!(have.peer.public_key, want.public_key);
        assert_eq!(have.peer.allowed_ips, want.allowed_ips);
        assert_eq!(have.peer.preshared_key, want.preshared_key.clone().flatten());
        assert_eq!((have.peer.endpoint, have.peer.persistent_keepalive), (want.endpoint, 25));
    }
}

#[test]
fn only_the_first_piece_replaces_ranges() {
    let set_device = SetDevice { peers: vec![peer(1, 2000)], ..SetDevice::default() };
    let pieces = all_pieces(&set("kilo0", &set_device));
    assert!(pieces.len() > 2);
    assert_eq!(flags(&pieces[0]), WireguardPeerFlags::ReplaceAllowedIps);
    assert!(pieces[0].0.iter().any(|a| matches!(a, Attr::Endpoint(_))));
    for piece in &pieces[1..] {
        assert_eq!(flags(piece), WireguardPeerFlags::UpdateOnly);
        assert!(!piece.0.iter().any(|a| matches!(a, Attr::Endpoint(_) | Attr::PresharedKey(_))));
    }
}

#[test]
fn flags_say_what_is_meant() {
    let one = |peer: SetPeer| {
        flags(&all_pieces(&set("kilo0", &SetDevice { peers: vec![peer], ..SetDevice::default() }))[0])
    };
    let plain = SetPeer::new(PublicKey::from_bytes([1; 32]));
    assert_eq!(one(plain.clone()), WireguardPeerFlags::empty());
    assert_eq!(
        one(SetPeer { remove: true, replace_allowed_ips: true, ..plain.clone() }),
        WireguardPeerFlags::RemoveMe
    );
    let update = SetPeer { update_only: true, replace_allowed_ips: true, ..plain };
    assert_eq!(one(update), WireguardPeerFlags::UpdateOnly | WireguardPeerFlags::ReplaceAllowedIps);
}

/// `wg set kilo0 peer 0101… allowed-ips 192.0.2.0/24` in the order of our attributes.
#[test]
fn bytes() {
    let change = SetPeer {
        replace_allowed_ips: true,
        allowed_ips: vec!["192.0.2.1/24".parse().expect("a range")],
        ..SetPeer::new(PublicKey::from_bytes([1; 32]))
    };
    let message = &set("kilo0", &SetDevice { peers: vec![change], ..SetDevice::default() })[0];
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    let name = NlaBuffer::new(&bytes);
    assert_eq!((name.kind(), name.value()), (2, b"kilo0\0".as_slice()));
    let mut want = vec![84, 0, 8, 0x80, 80, 0, 0, 0x80, 36, 0, 1, 0];
    want.extend([1; 32]);
    want.extend([8, 0, 3, 0, 2, 0, 0, 0, 32, 0, 9, 0x80, 28, 0, 0, 0x80]);
    want.extend([6, 0, 1, 0, 2, 0, 0, 0, 8, 0, 2, 0, 192, 0, 2, 0, 5, 0, 3, 0, 24, 0, 0, 0]);
    assert_eq!(bytes[12..], want);
}
