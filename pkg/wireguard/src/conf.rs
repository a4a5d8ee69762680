//! Configurations and their text form: what `wg showconf` prints and `wg setconf` reads.

use std::fmt::Write as _;
use std::net::SocketAddr;

use ipnet::IpNet;
use zeroize::Zeroizing;

use crate::{Endpoint, PresharedKey, PrivateKey, PublicKey};

/// A peer of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who the peer is.
    pub public_key: PublicKey,
    /// The secret shared with it, if any.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is reached, as written; none where it has to call first.
    pub endpoint: Option<Endpoint>,
    /// What the endpoint's name resolved to; none for an address, or for a name not resolved.
    pub endpoint_addr: Option<SocketAddr>,
    /// Seconds between keepalives, 0 for none; `None` where nothing is said.
    pub persistent_keepalive: Option<u16>,
    /// Ranges that the peer may use as source, in the order of the text; host bits are kept.
    pub allowed_ips: Vec<IpNet>,
}

impl Peer {
    /// A peer of which nothing but the key is known.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            preshared_key: None,
            endpoint: None,
            endpoint_addr: None,
            persistent_keepalive: None,
            allowed_ips: Vec::new(),
        }
    }
}

/// A device's configuration: its `[Interface]` section, where there is one, and its peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conf {
    /// The device's own key.
    pub private_key: Option<PrivateKey>,
    /// The UDP port that the device listens on.
    pub listen_port: Option<u16>,
    /// The peers, in the order of the text.
    pub peers: Vec<Peer>,
}

/// What is wrong with a configuration text. It never holds a value: that may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ConfError {
    /// Counted from 1.
    pub line: usize,
    /// The key or section and what is wrong with it.
    pub what: String,
}

impl Conf {
    /// Writes the text that `wg setconf` reads, in the order of Kilo's writer. It may hold secrets, so it
    /// is wiped when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut out = Zeroizing::new(String::with_capacity(64 + self.peers.len() * 192));
        if self.private_key.is_some() || self.listen_port.is_some() {
            out.push_str("[Interface]\n");
            if let Some(key) = &self.private_key {
                line(&mut out, "PrivateKey", &*key.secret_base64());
            }
            if let Some(port) = self.listen_port {
                line(&mut out, "ListenPort", port);
            }
        }
        for peer in &self.peers {
            if !out.is_empty() {
                out.push('\n');
            }
            peer_text(&mut out, peer);
        }
        out
    }

    /// Reads a text of `wg(8)`'s format: sections and keys in any case, `#` comments, repeated
    /// `AllowedIPs`. Keys that only `wg-quick(8)` knows (`Address`, `DNS`, `MTU`…) are skipped.
    pub fn parse(text: &str) -> Result<Self, ConfError> {
        let mut conf = Self::default();
        let mut section = Section::None;
        let mut draft: Option<(usize, Draft)> = None;
        for (n, raw) in text.lines().enumerate() {
            let n = n + 1;
            let content = raw.split('#').next().unwrap_or_default().trim();
            if content.is_empty() {
                continue;
            }
            if content.starts_with('[') {
                finish(&mut conf, draft.take())?;
                section = match content.to_ascii_lowercase().as_str() {
                    "[interface]" => Section::Interface,
                    "[peer]" => {
                        draft = Some((n, Draft::default()));
                        Section::Peer
                    }
                    _ => return Err(err(n, "unknown section; [Interface] and [Peer] are known")),
                };
                continue;
            }
            let (key, value) = content.split_once('=').ok_or_else(|| err(n, "not KEY = VALUE"))?;
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
            match (&section, &mut draft) {
                (Section::Interface, _) => conf.set(n, &key, value)?,
                (Section::Peer, Some((_, draft))) => draft.set(n, &key, value)?,
                (Section::None | Section::Peer, _) => return Err(err(n, "before the first section")),
            }
        }
        finish(&mut conf, draft)?;
        Ok(conf)
    }

    fn set(&mut self, n: usize, key: &str, value: &str) -> Result<(), ConfError> {
        match key {
            "privatekey" => self.private_key = Some(parse(n, "PrivateKey", value)?),
            "listenport" => self.listen_port = Some(parse(n, "ListenPort", value)?),
            "fwmark" | "address" | "dns" | "mtu" | "table" | "preup" | "postup" | "predown" | "postdown"
            | "saveconfig" => {}
            _ => return Err(err(n, "unknown key in [Interface]")),
        }
        Ok(())
    }
}

/// Which section the reader is in.
enum Section {
    None,
    Interface,
    Peer,
}

/// A peer while its section is read: the key may come last.
#[derive(Default)]
struct Draft {
    public_key: Option<PublicKey>,
    rest: Option<Peer>,
}

impl Draft {
    fn set(&mut self, n: usize, key: &str, value: &str) -> Result<(), ConfError> {
        let peer = self.rest.get_or_insert_with(|| Peer::new(PublicKey::from_bytes([0; 32])));
        match key {
            "publickey" => self.public_key = Some(parse(n, "PublicKey", value)?),
            "presharedkey" => peer.preshared_key = Some(parse(n, "PresharedKey", value)?),
            "endpoint" => peer.endpoint = Some(parse(n, "Endpoint", value)?),
            "persistentkeepalive" if value == "off" => peer.persistent_keepalive = Some(0),
            "persistentkeepalive" => {
                peer.persistent_keepalive = Some(parse(n, "PersistentKeepalive", value)?)
            }
            "allowedips" => {
                for item in value.split(',').map(str::trim).filter(|s| !s.is_empty()) {
                    let net = item.parse().or_else(|_| item.parse().map(|ip: std::net::IpAddr| ip.into()));
                    peer.allowed_ips.push(net.map_err(|_| err(n, "AllowedIPs: not a range of addresses"))?);
                }
            }
            _ => return Err(err(n, "unknown key in [Peer]")),
        }
        Ok(())
    }
}

fn finish(conf: &mut Conf, draft: Option<(usize, Draft)>) -> Result<(), ConfError> {
    if let Some((n, draft)) = draft {
        let public_key = draft.public_key.ok_or_else(|| err(n, "[Peer] without PublicKey"))?;
        conf.peers.push(Peer { public_key, ..draft.rest.unwrap_or_else(|| Peer::new(public_key)) });
    }
    Ok(())
}

fn err(line: usize, what: impl Into<String>) -> ConfError {
    ConfError { line, what: what.into() }
}

fn parse<T: std::str::FromStr>(n: usize, key: &str, value: &str) -> Result<T, ConfError>
where
    T::Err: std::fmt::Display,
{
    value.parse().map_err(|e: T::Err| err(n, format!("{key}: {e}")))
}

fn line(out: &mut String, key: &str, value: impl std::fmt::Display) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{key} = {value}");
}

fn peer_text(out: &mut String, peer: &Peer) {
    out.push_str("[Peer]\n");
    if !peer.allowed_ips.is_empty() {
        out.push_str("AllowedIPs = ");
        for (i, net) in peer.allowed_ips.iter().enumerate() {
            let _ = write!(out, "{}{net}", if i == 0 { "" } else { ", " });
        }
        out.push('\n');
    }
    if let Some(endpoint) = &peer.endpoint {
        line(out, "Endpoint", endpoint);
    }
    line(out, "PersistentKeepalive", peer.persistent_keepalive.unwrap_or(0));
    if let Some(psk) = &peer.preshared_key {
        line(out, "PresharedKey", &*psk.secret_base64());
    }
    line(out, "PublicKey", peer.public_key);
}
