//! Folders of `../golden`: `desired.json` and `observed.json` in, `ops.txt` out. `UPDATE_GOLDEN=1` writes it
//! anew.
#![allow(clippy::disallowed_methods)] // a test may read files

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use kilo_nftables::{
    Addresses, Base, Chain, ChainType, End, Expr, Family, Hook, Policy, Rule as NftRule, Set, Table, Verdict,
};
use kilo_state::{
    CniFile, Desired, Dev, Device, DevicePeer, ForwardAccept, Leftover, Link, Observed, ObservedLink,
    ObservedRoute, Route, Rule, diff, names,
};
use serde::Deserialize;

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct DesiredFile {
    links: Vec<Link>,
    remove_links: Vec<(Dev, Box<str>)>,
    device: Option<DeviceFile>,
    routes: Vec<Route>,
    neighbours: Vec<IpAddr>,
    rules: Vec<Rule>,
    except: Option<Vec<IpNet>>,
    forward: Vec<ForwardAccept>,
    sysctls: BTreeMap<Box<str>, Box<str>>,
    cni: Option<CniFile>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct ObservedFile {
    links: Vec<ObservedLink>,
    device: Option<DeviceFile>,
    routes: Vec<ObservedRoute>,
    rules: Vec<Rule>,
    except: Option<Vec<IpNet>>,
    forward: Vec<ForwardAccept>,
    leftovers: Vec<Leftover>,
    sysctls: BTreeMap<Box<str>, Box<str>>,
    cni: Option<CniFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceFile {
    public_key: Option<kilo_wireguard::PublicKey>,
    listen_port: u16,
    peers: Vec<PeerFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerFile {
    public_key: kilo_wireguard::PublicKey,
    #[serde(default)]
    preshared_key: Option<String>,
    #[serde(default)]
    endpoint: Option<std::net::SocketAddr>,
    #[serde(default)]
    persistent_keepalive: u16,
    allowed_ips: Vec<IpNet>,
}

fn device(file: DeviceFile) -> Device {
    let peer = |peer: PeerFile| DevicePeer {
        public_key: peer.public_key,
        preshared_key: peer.preshared_key.map(|key| key.parse().unwrap()),
        endpoint: peer.endpoint,
        persistent_keepalive: peer.persistent_keepalive,
        allowed_ips: peer.allowed_ips,
    };
    let mut peers: Vec<_> = file.peers.into_iter().map(peer).collect();
    peers.sort_by_key(|peer| peer.public_key);
    Device { public_key: file.public_key, listen_port: file.listen_port, peers }
}

/// A table that masquerades what goes elsewhere than to these.
fn table(except: &[IpNet]) -> Table {
    let addresses = Addresses::Set(Family::V4, "except4".into());
    let known = Expr::Address { end: End::Destination, among: addresses, negated: false };
    let rules = vec![
        NftRule::new(
            [known, Expr::Verdict(Verdict::Return)],
            "Kilo: do not NAT packets destined for known IPs",
        ),
        NftRule::new(
            [Expr::NfProto(Family::V4), Expr::Counter, Expr::Masquerade],
            "Kilo: NAT remaining packets",
        ),
    ];
    let base =
        Base { chain_type: ChainType::Nat, hook: Hook::Postrouting, priority: 100, policy: Policy::Accept };
    Table {
        name: "kilo".into(),
        sets: [("except4".into(), Set::of_nets(Family::V4, except))].into(),
        chains: [("postrouting".into(), Chain { base: Some(base), rules })].into(),
        ..Table::default()
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort();
    list
}

#[test]
fn operations_of_every_folder() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut folders: Vec<_> = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 8, "{folders:?}");
    for folder in folders {
        let d: DesiredFile = read(&folder.join("desired.json"));
        let o: ObservedFile = read(&folder.join("observed.json"));
        let desired = Desired {
            links: d.links,
            remove_links: d.remove_links,
            device: d.device.map(device),
            routes: sorted(d.routes),
            neighbours: sorted(d.neighbours),
            rules: sorted(d.rules),
            table: d.except.as_deref().map(table),
            forward: sorted(d.forward),
            sysctls: d.sysctls,
            cni: d.cni,
        };
        let observed = Observed {
            links: o.links,
            device: o.device.map(device),
            routes: sorted(o.routes),
            rules: sorted(o.rules),
            table: o.except.as_deref().map(table),
            forward: sorted(o.forward),
            leftovers: sorted(o.leftovers),
            sysctls: o.sysctls,
            cni: o.cni,
        };
        let names = names(&desired, &observed);
        let text: String =
            diff(&desired, &observed).iter().map(|op| format!("{}\n", op.display(&names))).collect();
        let golden = folder.join("ops.txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&golden).unwrap_or_default(), "{}", folder.display());
    }
}
