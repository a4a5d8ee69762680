//! Where a peer is reached: an address or a DNS name, and a port. Names are never resolved here.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The host part of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An address; IPv4-mapped IPv6 is kept as IPv4.
    Ip(IpAddr),
    /// A lower-case RFC 1123 subdomain.
    Dns(Box<str>),
}

/// A host and a UDP port of 1 to 65535. Its text forms are `10.0.0.1:51820`, `[fd00::1]:51820` and
/// `vpn.example.com:51820`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    /// An address or a name.
    pub host: Host,
    /// 1 to 65535.
    pub port: u16,
}

/// Why a text is not an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// There is no `:port`, or there are too many colons for an address without brackets.
    #[error("not of the form HOST:PORT")]
    Form,
    /// The port is not a decimal number of 1 to 65535.
    #[error("the port is not a number of 1 to 65535")]
    Port,
    /// The host is neither an address nor a lower-case RFC 1123 subdomain.
    #[error("the host is neither an IP address nor a lower-case DNS name")]
    Host,
}

impl Endpoint {
    /// The endpoint at this address; IPv4-mapped IPv6 becomes IPv4.
    pub fn from_addr(addr: SocketAddr) -> Self {
        Self { host: Host::Ip(addr.ip().to_canonical()), port: addr.port() }
    }

    /// The address, if the host is one.
    pub fn addr(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Dns(_) => None,
        }
    }

    /// The name, if the host is one.
    pub fn dns(&self) -> Option<&str> {
        match &self.host {
            Host::Ip(_) => None,
            Host::Dns(name) => Some(name),
        }
    }
}

/// Whether a text is a lower-case RFC 1123 subdomain of at most 253 characters (Kubernetes'
/// `IsDNS1123Subdomain`, which sets no limit to a label).
pub fn is_dns_name(name: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            let b = label.as_bytes();
            matches!((b.first(), b.last()), (Some(&first), Some(&last)) if alnum(first) && alnum(last))
                && b.iter().all(|&c| alnum(c) || c == b'-')
        })
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// Kilo's rules (`wireguard/conf.go`): plain decimal port, address without zone, or DNS name.
    fn from_str(s: &str) -> Result<Self, EndpointError> {
        let (host, port) = match s.strip_prefix('[') {
            Some(rest) => rest.split_once("]:").ok_or(EndpointError::Form)?,
            None => s.rsplit_once(':').ok_or(EndpointError::Form)?,
        };
        if host.contains(['[', ']']) || (!s.starts_with('[') && host.contains(':')) {
            return Err(EndpointError::Form);
        }
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(EndpointError::Port);
        }
        let port = port.parse().ok().filter(|&p| p != 0).ok_or(EndpointError::Port)?;
        let host = match host.parse::<IpAddr>() {
            Ok(ip) => Host::Ip(ip.to_canonical()),
            Err(_) if is_dns_name(host) => Host::Dns(host.into()),
            Err(_) => return Err(EndpointError::Host),
        };
        Ok(Self { host, port })
    }
}

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;
    fn try_from(s: String) -> Result<Self, EndpointError> {
        s.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Dns(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, want: Result<&str, EndpointError>) {
        let got = text.parse::<Endpoint>().map(|e| e.to_string());
        assert_eq!(got.as_deref().map_err(|e| *e), want, "{text}");
    }

    #[test]
    fn texts() {
        check("10.0.0.1:51820", Ok("10.0.0.1:51820"));
        check("10.0.0.1:05", Ok("10.0.0.1:5"));
        check("[fd00::1]:51820", Ok("[fd00::1]:51820"));
        check("[FD00:0::1]:51820", Ok("[fd00::1]:51820"));
        check("[::ffff:10.0.0.1]:51820", Ok("10.0.0.1:51820"));
        check("vpn.example.com:51820", Ok("vpn.example.com:51820"));
        check("1.2.3:51820", Ok("1.2.3:51820"));
        check("10.0.0.1", Err(EndpointError::Form));
        check("fd00::1:51820", Err(EndpointError::Form));
        check("[fe80::1%eth0]:51820", Err(EndpointError::Host));
        check("10.0.0.1:+5", Err(EndpointError::Port));
        check("10.0.0.1:0", Err(EndpointError::Port));
        check("10.0.0.1:65536", Err(EndpointError::Port));
        check("Example.com:1", Err(EndpointError::Host));
        check("a_b:1", Err(EndpointError::Host));
        check("example.com.:1", Err(EndpointError::Host));
        check(":1", Err(EndpointError::Host));
    }

    #[test]
    fn names_may_have_253_characters() {
        assert!(is_dns_name(&"a".repeat(253)));
        assert!(!is_dns_name(&"a".repeat(254)));
        assert!(!is_dns_name("-a.b") && !is_dns_name("a-.b") && !is_dns_name("a..b"));
    }
}
