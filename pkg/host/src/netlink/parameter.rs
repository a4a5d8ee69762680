//! Kernel parameters of the network that the kernel tells of when somebody writes them.

use kilo_nftables::Attributes;

use super::socket::Message;

pub(crate) const RTM_NEWNETCONF: u16 = 80;
/// `struct netconfmsg`, padded.
const HEADER: usize = 4;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_RP_FILTER: u16 = 3;
const IFINDEX_ALL: i32 = -1;
const IFINDEX_DEFAULT: i32 = -2;

/// Reads the parameters that a plan may name from `RTM_NEWNETCONF`: paths below `/proc/sys` and values. `name` knows
/// links by their index.
pub(crate) fn parse<'a>(
    message: &Message<'_>,
    name: impl Fn(u32) -> Option<&'a str>,
) -> Option<Vec<(String, String)>> {
    let family = *message.payload.first()?;
    let attributes = Attributes(message.payload.get(HEADER..)?);
    let number = |kind: u16| attributes.get(kind)?.try_into().ok().map(i32::from_ne_bytes);
    let index = number(NETCONFA_IFINDEX)?;
    let of = match index {
        IFINDEX_ALL => "all",
        IFINDEX_DEFAULT => "default",
        _ => name(u32::try_from(index).ok()?)?,
    };
    let mut found = Vec::new();
    match (family, index, number(NETCONFA_FORWARDING)) {
        (AF_INET, IFINDEX_ALL, Some(on)) => found.push(("net/ipv4/ip_forward".to_owned(), on.to_string())),
        (AF_INET6, IFINDEX_ALL, Some(on)) => {
            found.push(("net/ipv6/conf/all/forwarding".to_owned(), on.to_string()));
        }
        _ => {}
    }
    if let (AF_INET, Some(mode)) = (family, number(NETCONFA_RP_FILTER)) {
        found.push((format!("net/ipv4/conf/{of}/rp_filter"), mode.to_string()));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use kilo_nftables::Writer;

    use super::*;

    fn paths(family: u8, attributes: &[(u16, i32)]) -> Option<Vec<(String, String)>> {
        let mut payload = Writer(vec![family, 0, 0, 0]);
        for (kind, value) in attributes {
            payload.bytes(*kind, &value.to_ne_bytes());
        }
        let message = Message { kind: RTM_NEWNETCONF, flags: 0, sequence: 0, port: 0, payload: &payload.0 };
        parse(&message, |index| (index == 7).then_some("kilo0"))
    }

    #[test]
    fn parameters_have_the_paths_that_plans_name() {
        let one = |path: &str, value: &str| Some(vec![(path.to_owned(), value.to_owned())]);
        assert_eq!(paths(AF_INET, &[(1, -1), (2, 0)]), one("net/ipv4/ip_forward", "0"));
        assert_eq!(paths(AF_INET6, &[(1, -1), (2, 1)]), one("net/ipv6/conf/all/forwarding", "1"));
        assert_eq!(paths(AF_INET, &[(1, 7), (3, 1)]), one("net/ipv4/conf/kilo0/rp_filter", "1"));
        assert_eq!(paths(AF_INET, &[(1, 7), (2, 1)]), Some(Vec::new()), "forwarding of one link");
        assert_eq!(paths(AF_INET, &[(1, 8), (3, 1)]), None, "no link of that index");
        assert_eq!(paths(AF_INET, &[(3, 1)]), None);
        assert_eq!(paths(AF_INET, &[(1, -3), (3, 1)]), None);
    }
}
