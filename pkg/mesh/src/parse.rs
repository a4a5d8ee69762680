//! Texts of annotations and specs, read the way Go's standard library reads them: agents of both kinds must
//! understand the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A range of addresses, host bits kept. An IPv4-mapped IPv6 range of at least 96 bits is the IPv4 range.
pub(crate) fn cidr(text: &str) -> Option<IpNet> {
    let (ip, len) = text.split_once('/')?;
    if len.is_empty() || len.len() > 4 || !len.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let len: u16 = len.parse().ok()?;
    match ip.parse().ok()? {
        IpAddr::V4(ip) => Ipv4Net::new(ip, u8::try_from(len).ok()?).ok().map(IpNet::V4),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, u8::try_from(len.checked_sub(96)?).ok()?).ok().map(IpNet::V4),
            None => Ipv6Net::new(ip, u8::try_from(len).ok()?).ok().map(IpNet::V6),
        },
    }
}

/// An address; IPv4-mapped IPv6 becomes IPv4.
pub(crate) fn ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// A decimal number of 64 bits with an optional sign.
pub(crate) fn integer(text: &str) -> Option<i64> {
    text.parse().ok()
}

/// The range of this one address.
pub(crate) fn one(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}

/// Whether an address counts as public in the election of leaders. This is upstream's test to the bit (only
/// `fd00::/16` of `fd00::/8`, no `100.64.0.0/10`): every agent of a mesh must elect the same leader.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            !(a == 10 || (a == 172 && (16..32).contains(&b)) || (a == 192 && b == 168))
        }
        IpAddr::V6(ip) => ip.octets()[..2] != [0xfd, 0],
    }
}

/// An address as a number beside its family, the form in which ranges are compared.
pub(crate) fn number(ip: IpAddr) -> (bool, u128) {
    match ip {
        IpAddr::V4(ip) => (false, u128::from(u32::from(ip))),
        IpAddr::V6(ip) => (true, u128::from(ip)),
    }
}

/// The address of this number.
pub(crate) fn address(v6: bool, n: u128) -> Option<IpAddr> {
    if v6 {
        Some(IpAddr::V6(Ipv6Addr::from(n)))
    } else {
        u32::try_from(n).ok().map(|n| IpAddr::V4(Ipv4Addr::from(n)))
    }
}

/// Whether two values are of one address family.
pub(crate) fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_go_reads_them() {
        let text = |s: &str| cidr(s).map(|n| n.to_string());
        assert_eq!(text("10.5.0.1/24").as_deref(), Some("10.5.0.1/24"));
        assert_eq!(text("10.5.0.1/024").as_deref(), Some("10.5.0.1/24"));
        assert_eq!(text("::ffff:10.5.0.1/120").as_deref(), Some("10.5.0.1/24"));
        for bad in [
            "10.5.0.1",
            "10.5.0.1/",
            "10.5.0.1/33",
            "10.5.0.1/+8",
            " 10.5.0.1/8",
            "010.5.0.1/8",
            "fe80::1%e/64",
        ] {
            assert_eq!(text(bad), None, "{bad}");
        }
    }

    #[test]
    fn public_is_what_upstream_calls_public() {
        let public = |s: &str| is_public(s.parse().expect("an address"));
        for yes in
            ["100.64.0.1", "169.254.0.1", "172.15.255.255", "172.32.0.1", "fd12::1", "fe80::1", "fd01::"]
        {
            assert!(public(yes), "{yes}");
        }
        for no in ["10.0.0.1", "172.16.0.0", "172.31.255.255", "192.168.1.1", "fd00::1", "fd00:ffff::"] {
            assert!(!public(no), "{no}");
        }
    }
}
