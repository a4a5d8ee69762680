//! Own datagrams and others that look like them.

use std::collections::HashSet;
use std::net::SocketAddr;

use proptest::prelude::*;

use super::Own;

const V4: &str = "10.9.0.2:51820";
const V6: &str = "[fd99::2]:51820";

/// A device at port 51820 that sends to [`V4`] and [`V6`].
fn own() -> Own {
    let own = Own::new(7);
    own.set_port(51820);
    for to in [V4, V6] {
        own.sends(&[4, 0, 0, 0], to.parse().unwrap());
    }
    own
}

/// A packet; `offset` is that of a fragment, in bytes.
fn packet(from: u16, to: &str, message: &[u8], offset: Option<u16>) -> Vec<u8> {
    let to: SocketAddr = to.parse().unwrap();
    let mut packet = match to {
        SocketAddr::V4(to) => {
            let mut header = vec![0; 20];
            (header[0], header[9]) = (0x45, 17);
            // More fragments follow.
            let word = offset.map_or(0, |o| 0x2000 | (o / 8));
            header[6..8].copy_from_slice(&word.to_be_bytes());
            header[16..].copy_from_slice(&to.ip().octets());
            header
        }
        SocketAddr::V6(to) => {
            let mut header = vec![0; 40];
            (header[0], header[6]) = (0x60, 17);
            header[24..].copy_from_slice(&to.ip().octets());
            if let Some(offset) = offset {
                header[6] = 44;
                header.extend([17, 0]);
                header.extend((offset | 1).to_be_bytes());
                header.extend([0; 4]);
            }
            header
        }
    };
    packet.extend(from.to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(message);
    packet
}

#[test]
fn own_datagrams_are_known() {
    for to in [V4, V6] {
        for kind in 1..=4 {
            for offset in [None, Some(0)] {
                assert!(
                    own().is_own(&packet(51820, to, &[kind, 0, 0, 0, 9], offset)),
                    "{to} {kind} {offset:?}"
                );
            }
        }
    }
    let mut options = packet(51820, V4, &[4, 0, 0, 0], None);
    options[0] = 0x46;
    options.splice(20..20, [1; 4]);
    assert!(own().is_own(&options));
}

#[test]
fn others_are_left_alone() {
    let own = own();
    for to in [V4, V6] {
        assert!(!own.is_own(&packet(51821, to, &[4, 0, 0, 0], None)), "another port");
        assert!(!own.is_own(&packet(51820, to, &[0, 0, 0, 0], None)), "no message of WireGuard");
        assert!(!own.is_own(&packet(51820, to, &[5, 0, 0, 0], None)), "no message of WireGuard");
        assert!(!own.is_own(&packet(51820, to, &[4, 0, 1, 0], None)), "no message of WireGuard");
        assert!(!own.is_own(&packet(51820, to, &[4, 0, 0, 0], Some(8))), "no header in it");
    }
    for to in ["10.9.0.3:51820", "10.9.0.2:51821", "[fd99::3]:51820", "[fd99::2]:51821"] {
        assert!(!own.is_own(&packet(51820, to, &[4, 0, 0, 0], None)), "{to}");
    }
    let mut tcp = packet(51820, V4, &[4, 0, 0, 0], None);
    tcp[9] = 6;
    assert!(!own.is_own(&tcp));
}

#[test]
fn destinations_come_and_go() {
    let own = own();
    own.keep(&HashSet::from([V6.parse().unwrap(), "192.0.2.9:1".parse().unwrap()]));
    assert!(!own.is_own(&packet(51820, V4, &[4, 0, 0, 0], None)));
    assert!(own.is_own(&packet(51820, V6, &[4, 0, 0, 0], None)));
    assert!(!own.is_own(&packet(51820, "192.0.2.9:1", &[4, 0, 0, 0], None)), "never sent to");
    own.sends(&[3, 0, 0, 0], V4.parse().unwrap());
    assert!(!own.is_own(&packet(51820, V4, &[4, 0, 0, 0], None)), "a cookie goes to anybody");
    own.sends(&[1, 0, 0, 0], "[::ffff:10.9.0.2]:51820".parse().unwrap());
    assert!(own.is_own(&packet(51820, V4, &[4, 0, 0, 0], None)));
}

proptest! {
    #[test]
    fn any_bytes_will_do(mut bytes in prop::collection::vec(any::<u8>(), 0..64), version in 0u8..16, udp: bool) {
        if let Some(first) = bytes.first_mut() {
            *first = (version << 4) | (*first & 15);
        }
        for at in [6, 9, 40] {
            if let Some(byte) = bytes.get_mut(at).filter(|_| udp) {
                *byte = 17;
            }
        }
        own().is_own(&bytes);
    }
}
