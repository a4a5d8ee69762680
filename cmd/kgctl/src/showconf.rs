//! `kgctl showconf`: WireGuard configurations of nodes and peers, and both as peers of others.

use ipnet::IpNet;
use kilo_mesh::Peer;
use kilo_wireguard::{Conf, Host};
use serde::Serialize;

use crate::args::{AgentArgs, ConfOutput, Global, ShowconfArgs};
use crate::error::message;
use crate::mesh::Mesh;
use crate::{form, out};

/// Prints the configuration of a node, or its location as a peer. Of a node that does not lead there is
/// neither, which is no error.
///
/// # Errors
/// When the input is bad or there is no such node.
pub fn node(global: &Global, args: &ShowconfArgs) -> anyhow::Result<()> {
    let mesh = Mesh::read(global, &args.source, &AgentArgs::default())?;
    mesh.tell();
    let (topology, _) = mesh.topology(mesh.ready_node(&args.name)?)?;
    if !topology.leader {
        out::note(&format!("Node {:?} is not a leader node", args.name));
        return Ok(());
    }
    if args.as_peer {
        return as_peer(args, topology.as_peer());
    }
    let mut conf = topology.conf();
    conf.listen_port = Some(mesh.config.port);
    out::print(&conf.to_text())?;
    Ok(())
}

/// Prints the configuration for a peer's own device, or the peer as others see it.
///
/// # Errors
/// When the input is bad or there is no such peer.
pub fn peer(global: &Global, args: &ShowconfArgs) -> anyhow::Result<()> {
    let mesh = Mesh::read(global, &args.source, &AgentArgs::default())?;
    mesh.tell();
    let peer = mesh.ready_peer(&args.name)?;
    if args.as_peer {
        return as_peer(args, wireguard_peer(peer)?);
    }
    let local = mesh.ready_nodes().last().ok_or_else(|| message("no node is ready"))?;
    let (topology, findings) = mesh.topology(local)?;
    if topology.peers.iter().all(|peer| *peer.name != *args.name) {
        let object = format!("Peer/{}", args.name);
        let why = findings.iter().find(|finding| finding.object == object);
        return Err(message(
            why.map_or_else(|| format!("peer {:?} is left out", args.name), ToString::to_string),
        ));
    }
    out::print(&topology.peer_conf(&args.name).to_text())?;
    Ok(())
}

/// The Peer as it is written, ranges that another one has as well included.
fn wireguard_peer(peer: &Peer) -> anyhow::Result<kilo_wireguard::Peer> {
    let key = peer.public_key.ok_or_else(|| message(format!("peer {:?} has no public key", peer.name)))?;
    Ok(kilo_wireguard::Peer {
        preshared_key: peer.preshared_key.clone(),
        endpoint: peer.endpoint.clone(),
        persistent_keepalive: Some(peer.persistent_keepalive),
        allowed_ips: peer.allowed_ips.to_vec(),
        ..kilo_wireguard::Peer::new(key)
    })
}

fn as_peer(args: &ShowconfArgs, mut peer: kilo_wireguard::Peer) -> anyhow::Result<()> {
    peer.allowed_ips.extend(&args.allowed_ips);
    let mut seen: Vec<IpNet> = Vec::with_capacity(peer.allowed_ips.len());
    peer.allowed_ips.retain(|net| {
        let new = !seen.contains(net);
        seen.push(*net);
        new
    });
    match args.output {
        ConfOutput::Wireguard => {
            let conf = Conf { private_key: None, listen_port: None, peers: vec![peer] };
            out::print(&conf.to_text())?;
        }
        ConfOutput::Json => out::print(&form::json(&Manifest::json(&args.name, &peer))?)?,
        ConfOutput::Yaml => out::print(&form::yaml(&Manifest::yaml(&args.name, &peer))?)?,
    }
    Ok(())
}

/// A Peer as `kubectl apply` takes it. Unlike the objects that are read it is written with its secret: that
/// is what the command is for.
#[derive(Serialize)]
#[serde(untagged)]
enum Manifest {
    #[serde(rename_all = "camelCase")]
    Json { kind: &'static str, api_version: &'static str, metadata: Metadata, spec: Box<Spec> },
    #[serde(rename_all = "camelCase")]
    Yaml { api_version: &'static str, kind: &'static str, metadata: Metadata, spec: Box<Spec> },
}

#[derive(Serialize)]
struct Metadata {
    name: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "allowedIPs")]
    allowed_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<Endpoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    persistent_keepalive: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preshared_key: Option<String>,
    public_key: String,
}

#[derive(Serialize)]
struct Endpoint {
    #[serde(rename = "dnsOrIP")]
    dns_or_ip: DnsOrIp,
    port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum DnsOrIp {
    Dns(String),
    Ip(String),
}

const API_VERSION: &str = "kilo.squat.ai/v1alpha1";

impl Manifest {
    fn json(name: &str, peer: &kilo_wireguard::Peer) -> Self {
        let (metadata, spec) = parts(name, peer);
        Self::Json { kind: "Peer", api_version: API_VERSION, metadata, spec }
    }

    fn yaml(name: &str, peer: &kilo_wireguard::Peer) -> Self {
        let (metadata, spec) = parts(name, peer);
        Self::Yaml { api_version: API_VERSION, kind: "Peer", metadata, spec }
    }
}

fn parts(name: &str, peer: &kilo_wireguard::Peer) -> (Metadata, Box<Spec>) {
    let endpoint = peer.endpoint.as_ref().map(|endpoint| Endpoint {
        dns_or_ip: match &endpoint.host {
            Host::Dns(name) => DnsOrIp::Dns(name.to_string()),
            Host::Ip(ip) => DnsOrIp::Ip(ip.to_string()),
        },
        port: endpoint.port,
    });
    let spec = Spec {
        allowed_ips: peer.allowed_ips.clone(),
        endpoint,
        persistent_keepalive: peer.persistent_keepalive.filter(|seconds| *seconds != 0),
        preshared_key: peer.preshared_key.as_ref().map(|key| key.secret_base64().to_string()),
        public_key: peer.public_key.to_string(),
    };
    (Metadata { name: name.to_owned() }, Box::new(spec))
}
