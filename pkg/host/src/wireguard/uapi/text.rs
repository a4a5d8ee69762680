//! The text of requests and answers. Pure; the other side may send anything.

use std::fmt::Write as _;
use std::net::SocketAddr;

use ipnet::IpNet;
use kilo_state::DevicePeer;
use kilo_wireguard::{PresharedKey, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::wireguard::status::{PeerStatus, SetDevice, SetPeer, Status};

/// The error number of an answer, negative as wireguard-go sends it; 0 for success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// All is well.
    pub const OK: Self = Self(0);
    /// A value is wrong.
    pub const INVALID: Self = Self(-libc::EINVAL);
    /// The form is wrong.
    pub const PROTOCOL: Self = Self(-libc::EPROTO);
    /// Reading or writing failed.
    pub const IO: Self = Self(-libc::EIO);
    /// The UDP port is taken.
    pub const PORT_IN_USE: Self = Self(-libc::EADDRINUSE);
    /// The operation is unknown.
    pub const UNKNOWN: Self = Self(-libc::ENOANO);
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Tell everything.
    Get,
    /// Change something.
    Set(SetDevice),
}

/// What is wrong with an answer. It never holds a value: that may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A line is not `key=value`, or its value is malformed.
    #[error("line {line}: {key} is malformed")]
    Line {
        /// Counted from 1.
        line: usize,
        /// The key, where there is one.
        key: String,
    },
    /// The answer ends before its `errno`.
    #[error("the answer has no errno line")]
    Truncated,
}

/// Reads a request up to its blank line.
pub fn parse_request(text: &str) -> Result<Request, Errno> {
    let mut lines = text.lines();
    match lines.next() {
        Some("get=1") => match lines.next() {
            None | Some("") => Ok(Request::Get),
            Some(_) => Err(Errno::PROTOCOL),
        },
        Some("set=1") => parse_set(lines).map(Request::Set),
        Some(_) => Err(Errno::UNKNOWN),
        None => Err(Errno::PROTOCOL),
    }
}

fn parse_set<'a>(lines: impl Iterator<Item = &'a str>) -> Result<SetDevice, Errno> {
    let mut set = SetDevice::default();
    for line in lines {
        if line.is_empty() {
            break;
        }
        let (key, value) = line.split_once('=').ok_or(Errno::PROTOCOL)?;
        let ok = if key == "public_key" {
            public_key(value).map(|key| set.peers.push(SetPeer::new(key)))
        } else if let Some(peer) = set.peers.last_mut() {
            set_peer(peer, key, value)
        } else {
            set_device(&mut set, key, value)
        };
        ok.ok_or(Errno::INVALID)?;
    }
    Ok(set)
}

fn set_device(set: &mut SetDevice, key: &str, value: &str) -> Option<()> {
    match key {
        "private_key" => set.private_key = Some(secret(value)?.map(|b| PrivateKey::from_bytes(*b))),
        "listen_port" => set.listen_port = Some(value.parse().ok()?),
        "fwmark" => set.fwmark = Some(if value.is_empty() { 0 } else { number(value)? }),
        "replace_peers" => set.replace_peers = truth(value)?,
        _ => return None,
    }
    Some(())
}

fn set_peer(peer: &mut SetPeer, key: &str, value: &str) -> Option<()> {
    match key {
        "remove" => peer.remove = truth(value)?,
        "update_only" => peer.update_only = truth(value)?,
        "preshared_key" => {
            peer.preshared_key = Some(secret(value)?.map(|b| PresharedKey::from_bytes(*b)));
        }
        "endpoint" => peer.endpoint = Some(endpoint(value)?),
        "persistent_keepalive_interval" => peer.persistent_keepalive = Some(value.parse().ok()?),
        "replace_allowed_ips" => {
            peer.replace_allowed_ips = truth(value)?;
            peer.allowed_ips.clear();
            peer.remove_allowed_ips.clear();
        }
        "allowed_ip" => match value.strip_prefix('-') {
            Some(value) => peer.remove_allowed_ips.push(range(value)?),
            None => peer.allowed_ips.push(range(value.strip_prefix('+').unwrap_or(value))?),
        },
        "protocol_version" if value == "1" => {}
        _ => return None,
    }
    Some(())
}

/// Reads the answer to `get=1`. Keys that nobody here knows are skipped. `now`, in seconds since 1970, dates
/// handshakes for devices that tell their age instead of their time (BoringTun).
pub fn parse_status(text: &str, now: u64) -> Result<(Status, Errno), TextError> {
    let mut status = Status::default();
    for (n, line) in text.lines().enumerate() {
        let malformed = |key: &str| TextError::Line { line: n + 1, key: key.chars().take(64).collect() };
        if line.is_empty() {
            break;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| malformed("the line"))?;
        if key == "errno" {
            let errno: i32 = value.parse().map_err(|_| malformed(key))?;
            return Ok((status, Errno(errno)));
        }
        read_line(&mut status, key, value, now).ok_or_else(|| malformed(key))?;
    }
    Err(TextError::Truncated)
}

fn read_line(status: &mut Status, key: &str, value: &str, now: u64) -> Option<()> {
    if key == "public_key" {
        let public_key = public_key(value)?;
        let peer = DevicePeer {
            public_key,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: 0,
            allowed_ips: Vec::new(),
        };
        status.peers.push(PeerStatus { peer, latest_handshake: 0, rx_bytes: 0, tx_bytes: 0 });
        return Some(());
    }
    let Some(peer) = status.peers.last_mut() else {
        match key {
            "private_key" => status.private_key = secret(value)?.map(|b| PrivateKey::from_bytes(*b)),
            // BoringTun tells its own public key this way.
            "own_public_key" => status.public_key = Some(public_key(value)?),
            "listen_port" => status.listen_port = value.parse().ok()?,
            "fwmark" => status.fwmark = number(value)?,
            _ => {}
        }
        return Some(());
    };
    match key {
        "preshared_key" => peer.peer.preshared_key = secret(value)?.map(|b| PresharedKey::from_bytes(*b)),
        "endpoint" => peer.peer.endpoint = Some(endpoint(value)?),
        "persistent_keepalive_interval" => peer.peer.persistent_keepalive = value.parse().ok()?,
        "allowed_ip" => peer.peer.allowed_ips.push(range(value)?),
        "last_handshake_time_sec" => {
            peer.latest_handshake = match value.parse().ok()? {
                0 => 0,
                // No WireGuard is that old: it is an age.
                age if age < 1_000_000_000 => now.saturating_sub(age),
                time => time,
            };
        }
        "rx_bytes" => peer.rx_bytes = value.parse().ok()?,
        "tx_bytes" => peer.tx_bytes = value.parse().ok()?,
        _ => {}
    }
    Some(())
}

/// Writes the answer to `get=1`. It holds secrets, so it is wiped when dropped.
pub fn write_status(status: &Status) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(256 + status.peers.len() * 512));
    if let Some(key) = &status.private_key {
        hex_line(&mut out, "private_key", key.secret_bytes());
    }
    line(&mut out, "listen_port", status.listen_port);
    if status.fwmark != 0 {
        line(&mut out, "fwmark", status.fwmark);
    }
    for p in &status.peers {
        hex_line(&mut out, "public_key", p.peer.public_key.as_bytes());
        hex_line(
            &mut out,
            "preshared_key",
            p.peer.preshared_key.as_ref().map_or(&[0; 32], |k| k.secret_bytes()),
        );
        line(&mut out, "protocol_version", 1);
        if let Some(endpoint) = p.peer.endpoint {
            line(&mut out, "endpoint", endpoint);
        }
        line(&mut out, "last_handshake_time_sec", p.latest_handshake);
        line(&mut out, "last_handshake_time_nsec", 0);
        line(&mut out, "tx_bytes", p.tx_bytes);
        line(&mut out, "rx_bytes", p.rx_bytes);
        line(&mut out, "persistent_keepalive_interval", p.peer.persistent_keepalive);
        for range in &p.peer.allowed_ips {
            line(&mut out, "allowed_ip", range);
        }
    }
    line(&mut out, "errno", 0);
    out.push('\n');
    out
}

/// Writes a `set=1` request. It may hold secrets, so it is wiped when dropped.
pub fn write_set(set: &SetDevice) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(256 + set.peers.len() * 512));
    out.push_str("set=1\n");
    if let Some(key) = &set.private_key {
        hex_line(&mut out, "private_key", key.as_ref().map_or(&[0; 32], |k| k.secret_bytes()));
    }
    if let Some(port) = set.listen_port {
        line(&mut out, "listen_port", port);
    }
    if let Some(fwmark) = set.fwmark {
        line(&mut out, "fwmark", fwmark);
    }
    if set.replace_peers {
        line(&mut out, "replace_peers", true);
    }
    for peer in &set.peers {
        write_peer(&mut out, peer);
    }
    out.push('\n');
    out
}

fn write_peer(out: &mut String, peer: &SetPeer) {
    hex_line(out, "public_key", peer.public_key.as_bytes());
    if peer.remove {
        return line(out, "remove", true);
    }
    if peer.update_only {
        line(out, "update_only", true);
    }
    if let Some(key) = &peer.preshared_key {
        hex_line(out, "preshared_key", key.as_ref().map_or(&[0; 32], |k| k.secret_bytes()));
    }
    if let Some(endpoint) = peer.endpoint {
        line(out, "endpoint", endpoint);
    }
    if let Some(seconds) = peer.persistent_keepalive {
        line(out, "persistent_keepalive_interval", seconds);
    }
    if peer.replace_allowed_ips {
        line(out, "replace_allowed_ips", true);
    }
    for range in &peer.allowed_ips {
        line(out, "allowed_ip", range);
    }
    for range in &peer.remove_allowed_ips {
        line(out, "allowed_ip", format_args!("-{range}"));
    }
}

fn line(out: &mut String, key: &str, value: impl std::fmt::Display) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{key}={value}");
}

fn hex_line(out: &mut String, key: &str, bytes: &[u8; 32]) {
    out.push_str(key);
    out.push('=');
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out.push('\n');
}

fn hex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let text = text.as_bytes();
    if text.len() != 64 {
        return None;
    }
    let mut key = Zeroizing::new([0; 32]);
    for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(key)
}

/// A secret of 32 bytes; all zero stands for none.
fn secret(text: &str) -> Option<Option<Zeroizing<[u8; 32]>>> {
    hex(text).map(|key| (*key != [0; 32]).then_some(key))
}

fn public_key(text: &str) -> Option<PublicKey> {
    hex(text).map(|key| PublicKey::from_bytes(*key))
}

/// An address and a port; an IPv6 zone that is a number is kept.
fn endpoint(text: &str) -> Option<SocketAddr> {
    text.parse().ok().map(|addr: SocketAddr| match addr.ip().to_canonical() {
        ip if ip == addr.ip() => addr,
        ip => SocketAddr::new(ip, addr.port()),
    })
}

fn range(text: &str) -> Option<IpNet> {
    text.parse().ok()
}

fn truth(text: &str) -> Option<bool> {
    (text == "true").then_some(true)
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
