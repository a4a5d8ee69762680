//! Which addresses of this machine others reach it by. One pure function, with upstream Kilo's order of
//! preference: what the hostname resolves to, then the link of the default route, then any link.

use std::net::IpAddr;

use ipnet::IpNet;
use kilo_agent::DiscoverConfig;
use kilo_mesh::is_public;

use crate::netlink::address::LinkAddress;
use crate::netlink::link::LinkState;

/// What the addresses are chosen from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listing<'a> {
    /// All links, by index.
    pub links: &'a [LinkState],
    /// All addresses.
    pub addresses: &'a [LinkAddress],
    /// The link of the first default route.
    pub default_link: Option<u32>,
    /// What the hostname resolves to, in any order.
    pub hostname: &'a [IpAddr],
    /// Names of the links that carry the mesh or pods and tell nothing about the machine.
    pub ignored: &'a [&'a str],
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The private address.
    pub internal: Option<IpNet>,
    /// The address for the endpoint; `None` when there is no address at all.
    pub external: Option<IpNet>,
    /// The index of the link that holds the private address.
    pub private_link: Option<u32>,
}

/// Loopback and link-local addresses are nobody else's way to us.
fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.octets()[..3] == [224, 0, 0],
        // Multicast of interface or link scope: ff01::/16 and ff02::/16, whatever the flags.
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unicast_link_local()
                || (ip.segments()[0] & 0xff00 == 0xff00 && matches!(ip.segments()[0] & 0xf, 1 | 2))
        }
    }
}

/// Chooses the addresses.
pub(crate) fn discover(listing: &Listing<'_>, config: &DiscoverConfig) -> Found {
    let usable = || listing.addresses.iter().filter(|(_, net)| !is_local(net.addr()));
    let ignored: Vec<IpAddr> = usable()
        .filter(|(index, _)| {
            let mut links = listing.links.iter();
            links.any(|link| link.index == *index && listing.ignored.contains(&link.name.as_str()))
        })
        .map(|(_, net)| net.addr())
        .collect();

    // As text, so that 10.0.0.10 comes before 10.0.0.9, as it does upstream.
    let order = |net: &IpNet| (net.addr().is_ipv6(), net.to_string());
    let bucket = |nets: &mut dyn Iterator<Item = IpNet>| {
        let mut nets: Vec<IpNet> = nets.collect();
        nets.sort_by_cached_key(order);
        nets
    };
    // An address of several links has the prefix length of the link whose name is first.
    let name = |index: u32| listing.links.iter().find(|link| link.index == index).map(|link| &link.name);
    let mut by_name: Vec<LinkAddress> = usable().copied().collect();
    by_name.sort_by_cached_key(|(index, net)| (name(*index), net.to_string()));
    let mut of_hostname = listing
        .hostname
        .iter()
        .filter_map(|ip| by_name.iter().map(|(_, net)| *net).find(|net| net.addr() == *ip));
    let candidates = [
        bucket(&mut of_hostname),
        bucket(&mut usable().filter(|(index, _)| Some(*index) == listing.default_link).map(|(_, net)| *net)),
        bucket(&mut usable().map(|(_, net)| *net)),
    ]
    .concat();
    let candidates = || candidates.iter().copied().filter(|net| !ignored.contains(&net.addr()));

    let cidrs = &config.internal_cidrs;
    let internal = candidates()
        .filter(|net| !is_public(net.addr()))
        .find(|net| cidrs.is_empty() || cidrs.iter().any(|cidr| cidr.contains(&net.addr())));
    let public = candidates().find(|net| is_public(net.addr())).or(internal);
    let external = internal.filter(|_| config.prioritise_private_addresses).or(public);
    let private_link = internal.and_then(|internal| {
        listing
            .addresses
            .iter()
            .filter(|(_, net)| net.addr() == internal.addr())
            .map(|(index, _)| *index)
            .min()
    });
    Found { internal, external, private_link }
}

#[cfg(test)]
#[path = "discover_tests.rs"]
mod tests;
