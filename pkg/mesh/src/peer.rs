//! A Peer, translated: what its spec means and whether it may be used.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kilo_wireguard::{Endpoint, Host, PresharedKey, PublicKey, is_dns_name};

use crate::{Finding, PeerEndpoint, PeerObject, PeerSpec, parse};

/// A Peer as the mesh sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The Peer's name.
    pub name: Arc<str>,
    /// When it was made, as the API server writes it; absent in files.
    pub created: Option<Box<str>>,
    /// It passes upstream's rules. One that does not takes no part.
    pub valid: bool,
    /// Who it is.
    pub public_key: Option<PublicKey>,
    /// The secret it shares with the nodes.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is reached.
    pub endpoint: Option<Endpoint>,
    /// The endpoint of an invalid Peer whose port does not exist, as upstream shows it.
    pub odd_endpoint: Option<Box<str>>,
    /// Seconds, 0 for none.
    pub persistent_keepalive: u16,
    /// Ranges behind it, host bits kept.
    pub allowed_ips: Box<[IpNet]>,
}

/// Findings of one Peer, and whether one of them makes it invalid.
struct Checker<'a> {
    name: &'a str,
    findings: Vec<Finding>,
    valid: bool,
}

impl Checker<'_> {
    fn report(&mut self, field: impl Into<String>, value: &str, reason: impl Into<String>) {
        self.findings.push(Finding::new(format!("Peer/{}", self.name), field, value, reason));
    }

    fn invalid(&mut self, field: impl Into<String>, value: &str, reason: &str) {
        self.valid = false;
        self.report(field, value, format!("{reason}; the peer is left out"));
    }

    fn allowed_ips(&mut self, spec: &PeerSpec) -> Box<[IpNet]> {
        let mut nets = Vec::with_capacity(spec.allowed_ips.len());
        for (i, text) in spec.allowed_ips.iter().enumerate() {
            match parse::cidr(text) {
                Some(net) => nets.push(net),
                None => self.invalid(format!("spec.allowedIPs[{i}]"), text, "not a range ADDRESS/LENGTH"),
            }
        }
        nets.into()
    }

    fn endpoint(&mut self, endpoint: &PeerEndpoint) -> (Option<Endpoint>, Option<Box<str>>) {
        let (dns, ip) = (endpoint.dns_or_ip.dns.as_str(), endpoint.dns_or_ip.ip.as_str());
        if dns.is_empty() && ip.is_empty() {
            self.invalid("spec.endpoint.dnsOrIP", "", "there is neither a name nor an address");
        }
        if !dns.is_empty() && !is_dns_name(dns) {
            self.invalid("spec.endpoint.dnsOrIP.dns", dns, "not a lower-case DNS name");
        }
        if !ip.is_empty() && parse::ip(ip).is_none() {
            self.invalid("spec.endpoint.dnsOrIP.ip", ip, "not an address");
        }
        // A name wins over an address, as in upstream; one that is an address needs no resolving.
        let host = match (dns, parse::ip(if dns.is_empty() { ip } else { dns })) {
            (_, Some(ip)) => Some(Host::Ip(ip)),
            (dns, None) => is_dns_name(dns).then(|| Host::Dns(dns.into())),
        };
        match u16::try_from(endpoint.port) {
            Ok(port) if port != 0 => (host.map(|host| Endpoint { host, port }), None),
            Ok(_) | Err(_) => {
                let value = endpoint.port.to_string();
                self.invalid("spec.endpoint.port", &value, "not a port from 1 to 65535");
                let odd = host.filter(|_| endpoint.port > 0).map(|host| match host {
                    Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]:{value}"),
                    Host::Ip(IpAddr::V4(ip)) => format!("{ip}:{value}"),
                    Host::Dns(name) => format!("{name}:{value}"),
                });
                (None, odd.map(Into::into))
            }
        }
    }

    fn keepalive(&mut self, spec: &PeerSpec) -> u16 {
        let field = "spec.persistentKeepalive";
        let seconds = spec.persistent_keepalive.unwrap_or(0);
        if seconds < 0 {
            self.invalid(field, &seconds.to_string(), "less than 0");
        }
        u16::try_from(seconds.max(0)).unwrap_or_else(|_| {
            self.report(field, &seconds.to_string(), "more than 65535 seconds; it counts as 65535");
            u16::MAX
        })
    }

    fn public_key(&mut self, spec: &PeerSpec) -> Option<PublicKey> {
        match spec.public_key.parse() {
            Ok(key) => Some(key),
            Err(kilo_wireguard::KeyError::Zero) => {
                self.report("spec.publicKey", &spec.public_key, "all zero; the peer takes no part");
                None
            }
            Err(error) => {
                self.invalid("spec.publicKey", &spec.public_key, &error.to_string());
                None
            }
        }
    }

    fn preshared_key(&mut self, spec: &PeerSpec) -> Option<PresharedKey> {
        let text = spec.preshared_key.as_ref().map(|k| k.secret()).filter(|s| !s.is_empty())?;
        match text.parse() {
            Ok(key) => Some(key),
            Err(error) => {
                self.report("spec.presharedKey", "", format!("{error}; the peer goes without"));
                None
            }
        }
    }
}

impl Peer {
    /// Understands a Peer object. What upstream calls invalid makes the Peer invalid; anything else that is
    /// wrong counts as absent. All of it is reported.
    pub fn from_object(object: &PeerObject) -> (Self, Vec<Finding>) {
        let mut c = Checker { name: &object.metadata.name, findings: Vec::new(), valid: true };
        let (endpoint, odd_endpoint) =
            object.spec.endpoint.as_ref().map_or((None, None), |endpoint| c.endpoint(endpoint));
        let mut peer = Self {
            name: object.metadata.name.as_str().into(),
            created: object.metadata.creation_timestamp.as_deref().map(Into::into),
            valid: true,
            public_key: c.public_key(&object.spec),
            preshared_key: c.preshared_key(&object.spec),
            endpoint,
            odd_endpoint,
            persistent_keepalive: c.keepalive(&object.spec),
            allowed_ips: c.allowed_ips(&object.spec),
        };
        peer.valid = c.valid;
        if peer.valid && peer.allowed_ips.is_empty() {
            c.report("spec.allowedIPs", "", "empty; the peer takes no part");
        }
        (peer, c.findings)
    }

    /// The endpoint's text, also of one that cannot be used.
    pub fn endpoint_text(&self) -> Option<String> {
        let endpoint = self.endpoint.as_ref().map(ToString::to_string);
        endpoint.or_else(|| self.odd_endpoint.as_deref().map(str::to_owned))
    }

    /// Whether the Peer takes part: it is valid, has a key and at least one range.
    pub fn ready(&self) -> bool {
        self.valid && self.has_key_and_ranges()
    }

    /// What upstream's translation alone calls ready, valid or not.
    pub fn has_key_and_ranges(&self) -> bool {
        self.public_key.is_some() && !self.allowed_ips.is_empty()
    }
}
