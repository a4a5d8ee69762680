//! A process that drives one [`WireGuard`] by lines on its standard input and answers each with one line.

use std::hash::{DefaultHasher, Hasher as _};
use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use ipnet::IpNet;
use kilo_host::wireguard::{SOCKET_DIR, WireGuard, WireGuardConfig};
use kilo_state::{DeviceChange, DevicePeer, Op, PeerChange};
use kilo_wireguard::{PrivateKey, PublicKey};

/// Set for processes that are nodes; its value is the directory of learned endpoints.
pub const DATA_DIR: &str = "KILO_TEST_NODE_DATA";

/// Not a test by itself: what [`crate::world::Node`] starts.
#[test]
fn node_process() {
    let Some(data_dir) = std::env::var_os(DATA_DIR) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut wireguard: Option<WireGuard> = None;
        let mut sink = None;
        for line in std::io::stdin().lock().lines() {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            let answer = match words[..] {
                ["open", mode, create] => WireGuard::open(WireGuardConfig {
                    mode: mode.parse().unwrap(),
                    interface: "kilo0".into(),
                    data_dir: data_dir.clone().into(),
                    create: create == "true",
                    socket_dir: SOCKET_DIR.into(),
                })
                .map(|w| wireguard = Some(w))
                .map_or_else(|e| error(&e), |()| "ok".into()),
                ["sink", address] => {
                    let listener = TcpListener::bind(address).unwrap();
                    sink = Some(std::thread::spawn(move || drain(&listener)));
                    "ok".into()
                }
                ["sunk"] => sink.take().unwrap().join().unwrap(),
                ["pour", address, megabytes] => pour(address, megabytes.parse().unwrap()),
                _ => command(wireguard.as_mut().unwrap(), &words).await,
            };
            println!("\nanswer {answer}");
            std::io::stdout().flush().unwrap();
        }
    });
}

async fn command(wireguard: &mut WireGuard, words: &[&str]) -> String {
    let done =
        |result: Result<(), kilo_agent::HostError>| result.map_or_else(|e| error(&e), |()| "ok".into());
    match words {
        ["create"] => done(wireguard.create("kilo0", Some(1420)).await),
        ["configure", key, port] => {
            let key: PrivateKey = key.parse().unwrap();
            let change = DeviceChange { public_key: Some(key.public_key()), listen_port: port.parse().ok() };
            done(wireguard.configure(&change, &key).await)
        }
        ["add", key, endpoint, keepalive, ranges] => {
            let op = Op::AddPeer(peer(key, endpoint, keepalive, ranges));
            done(wireguard.apply_peers(&[op]).await.remove(0))
        }
        ["update", key, endpoint, ranges] => {
            let op = Op::UpdatePeer(PeerChange {
                public_key: key.parse().unwrap(),
                preshared_key: None,
                endpoint: endpoint.parse().ok(),
                persistent_keepalive: None,
                allowed_ips: (*ranges != "-").then(|| nets(ranges)),
            });
            done(wireguard.apply_peers(&[op]).await.remove(0))
        }
        ["remove", key] => {
            done(wireguard.apply_peers(&[Op::RemovePeer(key.parse().unwrap())]).await.remove(0))
        }
        ["crowd", from, n] => crowd(wireguard, from.parse().unwrap(), n.parse().unwrap()).await,
        ["read"] => match wireguard.read().await {
            Ok(None) => "none".into(),
            Ok(Some((device, facts))) => format!(
                "{} port {} peers {} handshakes {}",
                wireguard.kind().unwrap(),
                device.listen_port,
                device.peers.len(),
                facts.iter().filter(|f| f.latest_handshake != 0).count()
            ),
            Err(e) => error(&e),
        },
        ["ranges", key] => {
            let (device, _) = wireguard.read().await.unwrap().unwrap();
            let key: PublicKey = key.parse().unwrap();
            let peer = device.peers.iter().find(|p| p.public_key == key).unwrap();
            format!(
                "{} first {:?}",
                peer.allowed_ips.len(),
                peer.allowed_ips.first().map(ToString::to_string)
            )
        }
        ["ops"] => format!("{} {}", wireguard.ops().operations, wireguard.ops().messages),
        ["delete"] => done(wireguard.delete().await),
        ["close"] => {
            wireguard.close().await;
            "ok".into()
        }
        other => panic!("unknown command {other:?}"),
    }
}

/// Takes one connection to its end: length and hash of what came.
fn drain(listener: &TcpListener) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let (mut buffer, mut length, mut hash) = (vec![0; 1 << 16], 0, DefaultHasher::new());
    loop {
        let n = stream.read(&mut buffer).unwrap();
        if n == 0 {
            return format!("{length} {:x}", hash.finish());
        }
        length += n;
        // In bytes: reads end anywhere.
        buffer[..n].iter().for_each(|b| hash.write_u8(*b));
    }
}

/// Sends that much that does not repeat itself: length and hash of it.
fn pour(address: &str, megabytes: usize) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let (mut state, mut hash) = (1u64, DefaultHasher::new());
    for _ in 0..megabytes {
        let block: Vec<u8> = (0..1 << 20)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        block.iter().for_each(|b| hash.write_u8(*b));
        stream.write_all(&block).unwrap();
    }
    format!("{} {:x}", megabytes << 20, hash.finish())
}

/// Adds that many peers that nobody is behind, with two ranges each; answers with milliseconds.
async fn crowd(wireguard: &mut WireGuard, from: u32, n: u32) -> String {
    let ops: Vec<Op> = (from..from + n)
        .map(|i| {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&i.to_be_bytes());
            let v4 = IpNet::new(std::net::Ipv4Addr::from(0x6440_0000 + i).into(), 32).unwrap();
            let v6 =
                IpNet::new(std::net::Ipv6Addr::from((0xfd77 << 112) + (u128::from(i) << 16)).into(), 112)
                    .unwrap();
            Op::AddPeer(DevicePeer {
                public_key: PublicKey::from_bytes(key),
                preshared_key: None,
                endpoint: None,
                persistent_keepalive: 0,
                allowed_ips: vec![v4, v6],
            })
        })
        .collect();
    let start = std::time::Instant::now();
    let results = wireguard.apply_peers(&ops).await;
    let took = start.elapsed();
    match results.into_iter().find_map(Result::err) {
        Some(e) => error(&e),
        None => took.as_millis().to_string(),
    }
}

fn peer(key: &str, endpoint: &str, keepalive: &str, ranges: &str) -> DevicePeer {
    DevicePeer {
        public_key: key.parse().unwrap(),
        preshared_key: None,
        endpoint: endpoint.parse::<SocketAddr>().ok(),
        persistent_keepalive: keepalive.parse().unwrap(),
        allowed_ips: nets(ranges),
    }
}

/// Ranges with commas between them; `A*N` stands for N host addresses from A on.
fn nets(ranges: &str) -> Vec<IpNet> {
    let mut nets = Vec::new();
    for range in ranges.split(',').filter(|r| !r.is_empty()) {
        if let Some((first, n)) = range.split_once('*') {
            let first = u32::from(first.parse::<std::net::Ipv4Addr>().unwrap());
            let n: u32 = n.parse().unwrap();
            nets.extend((first..first + n).map(|i| IpNet::from(std::net::IpAddr::from(i.to_be_bytes()))));
        } else {
            nets.push(range.parse().unwrap());
        }
    }
    nets
}

fn error(e: &kilo_agent::HostError) -> String {
    let mut text = format!("error {e}");
    let mut source = std::error::Error::source(e);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
