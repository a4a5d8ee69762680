//! The text as `wg(8)` and wireguard-go write it, and as nobody should.

use proptest::prelude::*;

use super::*;

const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
const PSK: &str = "188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52";

fn public(byte: u8) -> PublicKey {
    PublicKey::from_bytes([byte; 32])
}

#[test]
fn an_answer_of_wireguard_go_is_read() {
    let text = format!(
        "private_key={PSK}\nlisten_port=12912\nfwmark=51\npublic_key={KEY}\npreshared_key={PSK}\n\
         protocol_version=1\nendpoint=[abcd:23::33%2]:51820\nlast_handshake_time_sec=1700000000\n\
         last_handshake_time_nsec=5\ntx_bytes=38333\nrx_bytes=2224\npersistent_keepalive_interval=111\n\
         allowed_ip=192.168.4.4/32\nallowed_ip=fd00::/64\nsomething_new=1\nerrno=0\n\n"
    );
    let (status, errno) = parse_status(&text, 9).expect("an answer");
    assert_eq!(errno, Errno::OK);
    assert_eq!((status.listen_port, status.fwmark), (12912, 51));
    let peer = &status.peers[0];
    assert_eq!(peer.peer.endpoint.expect("an endpoint").to_string(), "[abcd:23::33%2]:51820");
    assert_eq!((peer.latest_handshake, peer.rx_bytes, peer.tx_bytes), (1_700_000_000, 2224, 38333));
    assert_eq!((peer.peer.persistent_keepalive, peer.peer.allowed_ips.len()), (111, 2));
    assert!(peer.peer.preshared_key.is_some());
}

#[test]
fn an_age_becomes_a_time_and_never_stays_never() {
    let answer = |sec: u64| format!("public_key={KEY}\nlast_handshake_time_sec={sec}\nerrno=0\n\n");
    let handshake =
        |sec| parse_status(&answer(sec), 1_800_000_000).expect("an answer").0.peers[0].latest_handshake;
    assert_eq!([handshake(0), handshake(30), handshake(1_700_000_000)], [0, 1_799_999_970, 1_700_000_000]);
}

#[test]
fn a_request_of_wg_is_read() {
    let text = format!(
        "set=1\nprivate_key={PSK}\nlisten_port=7\nfwmark=\nreplace_peers=true\npublic_key={KEY}\nremove=true\n\
         public_key={KEY}\nupdate_only=true\npreshared_key={}\nendpoint=10.0.0.1:5\n\
         persistent_keepalive_interval=0\nreplace_allowed_ips=true\nallowed_ip=10.0.0.0/8\nallowed_ip=-fd00::/8\n\n",
        "0".repeat(64)
    );
    let Ok(Request::Set(set)) = parse_request(&text) else { panic!("not read") };
    assert_eq!((set.listen_port, set.fwmark, set.replace_peers), (Some(7), Some(0), true));
    assert!(set.private_key.is_some_and(|k| k.is_some()));
    assert!(set.peers[0].remove && !set.peers[1].remove);
    let peer = &set.peers[1];
    assert!(peer.update_only && peer.replace_allowed_ips && peer.preshared_key == Some(None));
    assert_eq!(
        (peer.allowed_ips.len(), peer.remove_allowed_ips.len(), peer.persistent_keepalive),
        (1, 1, Some(0))
    );
}

#[test]
fn wrong_requests_have_the_error_numbers_of_wireguard_go() {
    let check = |text: &str, want| assert_eq!(parse_request(text), Err(want), "{text:?}");
    check("", Errno::PROTOCOL);
    check("quit=1\n\n", Errno::UNKNOWN);
    check("get=1\nlisten_port=1\n\n", Errno::PROTOCOL);
    check("set=1\nlisten_port\n\n", Errno::PROTOCOL);
    for line in [
        "listen_port=65536",
        "listen_port=-1",
        "fwmark=x",
        "replace_peers=false",
        "private_key=00",
        "allowed_ip=10.0.0.0/8",
    ] {
        check(&format!("set=1\n{line}\n\n"), Errno::INVALID);
    }
    for line in [
        "allowed_ip=10.0.0.0/33",
        "endpoint=example.com:1",
        "persistent_keepalive_interval=70000",
        "remove=1",
        "protocol_version=2",
    ] {
        check(&format!("set=1\npublic_key={KEY}\n{line}\n\n"), Errno::INVALID);
    }
    assert_eq!(parse_request("get=1\n\n"), Ok(Request::Get));
}

#[test]
fn errors_of_answers_hold_no_values() {
    let error = parse_status(&format!("private_key={PSK}00\n"), 0).expect_err("too long");
    assert_eq!(error.to_string(), "line 1: private_key is malformed");
    assert_eq!(parse_status("listen_port=1\n", 0), Err(TextError::Truncated));
    assert_eq!(parse_status("errno=-98\n\n", 0).expect("an answer").1, Errno::PORT_IN_USE);
}

fn ranges() -> impl Strategy<Value = Vec<IpNet>> {
    let v4 = (any::<u32>(), 0..=32u8).prop_map(|(a, p)| IpNet::new(std::net::Ipv4Addr::from(a).into(), p));
    let v6 = (any::<u128>(), 0..=128u8).prop_map(|(a, p)| IpNet::new(std::net::Ipv6Addr::from(a).into(), p));
    prop::collection::vec(prop_oneof![v4, v6].prop_map(|n| n.expect("a fitting length")), 0..4)
}

fn endpoint_strategy() -> impl Strategy<Value = Option<SocketAddr>> {
    prop_oneof![
        Just(None),
        (any::<u32>(), any::<u16>()).prop_map(|(a, p)| Some((std::net::Ipv4Addr::from(a), p).into())),
        // Not an IPv4 address in disguise, which would come back undisguised.
        (1u128 << 64.., any::<u16>()).prop_map(|(a, p)| Some((std::net::Ipv6Addr::from(a), p).into())),
    ]
}

prop_compose! {
    fn set_peer_strategy()(
        key in any::<u8>(),
        remove in any::<bool>(),
        update_only in any::<bool>(),
        psk in prop::option::of(prop::option::of(1..=255u8)),
        endpoint in endpoint_strategy(),
        persistent_keepalive in prop::option::of(any::<u16>()),
        replace_allowed_ips in any::<bool>(),
        allowed_ips in ranges(),
        remove_allowed_ips in ranges(),
    ) -> SetPeer {
        if remove {
            return SetPeer { remove, ..SetPeer::new(public(key)) };
        }
        SetPeer {
            public_key: public(key), remove, update_only,
            preshared_key: psk.map(|p| p.map(|b| PresharedKey::from_bytes([b; 32]))),
            endpoint, persistent_keepalive, replace_allowed_ips, allowed_ips, remove_allowed_ips,
        }
    }
}

prop_compose! {
    fn set_strategy()(
        key in prop::option::of(prop::option::of(1..=255u8)),
        listen_port in prop::option::of(any::<u16>()),
        fwmark in prop::option::of(any::<u32>()),
        replace_peers in any::<bool>(),
        peers in prop::collection::vec(set_peer_strategy(), 0..4),
    ) -> SetDevice {
        let private_key = key.map(|k| k.map(|b| PrivateKey::from_bytes([b; 32])));
        SetDevice { private_key, listen_port, fwmark, replace_peers, peers }
    }
}

prop_compose! {
    fn status_strategy()(
        key in prop::option::of(1..=255u8),
        listen_port in any::<u16>(),
        fwmark in any::<u32>(),
        peers in prop::collection::vec((set_peer_strategy(), 1_000_000_000..u64::MAX, any::<u64>(), any::<u64>()), 0..4),
    ) -> Status {
        let peers = peers.into_iter().map(|(p, latest_handshake, rx_bytes, tx_bytes)| PeerStatus {
            peer: DevicePeer {
                public_key: p.public_key,
                preshared_key: p.preshared_key.flatten(),
                endpoint: p.endpoint,
                persistent_keepalive: p.persistent_keepalive.unwrap_or(0),
                allowed_ips: p.allowed_ips,
            },
            latest_handshake, rx_bytes, tx_bytes,
        }).collect();
        let private_key = key.map(|b| PrivateKey::from_bytes([b; 32]));
        Status { private_key, public_key: None, listen_port, fwmark, peers }
    }
}

proptest! {
    #[test]
    fn a_request_round_trips(set in set_strategy()) {
        prop_assert_eq!(parse_request(&write_set(&set)), Ok(Request::Set(set)));
    }

    #[test]
    fn an_answer_round_trips(status in status_strategy()) {
        prop_assert_eq!(parse_status(&write_status(&status), 0), Ok((status, Errno::OK)));
    }

    #[test]
    fn nothing_makes_it_panic(text in "(get|set|[a-z_]{1,30})=?[ -~é\\n=0-9a-f/:.-]{0,200}") {
        let _ = parse_request(&text);
        let _ = parse_status(&text, 0);
    }

    #[test]
    fn no_cut_or_flipped_byte_makes_it_panic(set in set_strategy(), at in any::<prop::sample::Index>(), byte in 32..127u8) {
        let text = write_set(&set);
        let mut bytes = text.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        for text in [String::from_utf8(bytes.clone()), String::from_utf8(bytes[..at].to_vec())].into_iter().flatten() {
            let _ = parse_request(&text);
            let _ = parse_status(&text, 0);
        }
    }
}
