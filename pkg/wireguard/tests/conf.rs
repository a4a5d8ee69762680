//! The configuration text: golden, round trip, and what is refused.

use kilo_wireguard::{Conf, Endpoint, Host, Peer, PresharedKey, PrivateKey, PublicKey};
use proptest::prelude::*;

const GOLDEN: &str = "\
[Interface]
PrivateKey = a2V5MQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
ListenPort = 51820

[Peer]
AllowedIPs = 10.2.0.0/24, fd00::1/128
Endpoint = [fd00::2]:51820
PersistentKeepalive = 25
PresharedKey = a2V5MwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
PublicKey = a2V5MgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=

[Peer]
PersistentKeepalive = 0
PublicKey = a2V5NAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
";

#[test]
fn golden_text_is_read_and_written_back() {
    let conf = Conf::parse(GOLDEN).expect("valid");
    assert_eq!(conf.peers.len(), 2);
    assert_eq!(conf.peers[0].allowed_ips[1].to_string(), "fd00::1/128");
    assert_eq!(conf.to_text().as_str(), GOLDEN);
}

#[test]
fn reads_what_people_write() {
    let text = "# mine\n[interface]\nprivatekey=a2V5MQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\nAddress = 10.0.0.2/24\n\
                [PEER]\nPublicKey=a2V5MgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= # you\nAllowedIPs = 10.0.0.1\nAllowedIPs=\nAllowedIPs=10.3.0.0/16,10.4.0.0/16\nPersistentKeepalive = off\n";
    let conf = Conf::parse(text).expect("valid");
    let ips: Vec<_> = conf.peers[0].allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.0.0.1/32", "10.3.0.0/16", "10.4.0.0/16"]);
    assert_eq!(conf.peers[0].persistent_keepalive, Some(0));
}

#[test]
fn errors_name_line_and_key_and_never_the_value() {
    for (text, want) in [
        ("[Interface]\nPrivateKey = secret\n", "line 2: PrivateKey: not base64"),
        ("[Peer]\nAllowedIPs = 10.0.0.0/33\n", "line 2: AllowedIPs: not a range of addresses"),
        ("[Peer]\n\n[Peer]\n", "line 1: [Peer] without PublicKey"),
        ("ListenPort = 1\n", "line 1: before the first section"),
        ("[Interface]\nListenPort = 65536\n", "line 2: ListenPort: number too large to fit in target type"),
        ("[Router]\n", "line 1: unknown section; [Interface] and [Peer] are known"),
        ("[Peer]\nColour = red\n", "line 2: unknown key in [Peer]"),
    ] {
        assert_eq!(Conf::parse(text).expect_err(text).to_string(), want);
    }
}

prop_compose! {
    fn key()(mut bytes: [u8; 32]) -> [u8; 32] { bytes[0] |= 1; bytes }
}

prop_compose! {
    fn peer()(
        public in key(),
        psk in proptest::option::of(key()),
        endpoint in proptest::option::of((any::<std::net::IpAddr>(), 1u16..)),
        keepalive: u16,
        ips in proptest::collection::vec((any::<std::net::IpAddr>(), 0u8..=32), 0..4),
    ) -> Peer {
        Peer {
            preshared_key: psk.map(PresharedKey::from_bytes),
            endpoint: endpoint.map(|(ip, port)| Endpoint { host: Host::Ip(ip.to_canonical()), port }),
            persistent_keepalive: Some(keepalive),
            allowed_ips: ips.into_iter().map(|(ip, len)| ipnet::IpNet::new_assert(ip, len)).collect(),
            ..Peer::new(PublicKey::from_bytes(public))
        }
    }
}

proptest! {
    #[test]
    fn round_trip(private in proptest::option::of(key()), port: Option<u16>, peers in proptest::collection::vec(peer(), 0..5)) {
        let conf = Conf { private_key: private.map(PrivateKey::from_bytes), listen_port: port, peers };
        prop_assert_eq!(Conf::parse(&conf.to_text()).expect("own text"), conf);
    }

    #[test]
    fn no_text_panics(text: String) {
        let _ = Conf::parse(&text);
    }
}
