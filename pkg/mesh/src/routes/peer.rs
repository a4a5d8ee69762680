//! What the host of a Peer routes: the whole mesh over its WireGuard link.

use ipnet::IpNet;
use kilo_state::Route;

use super::over_wireguard;
use crate::parse;
use crate::topology::Topology;

impl Topology {
    /// The routes on the host of the Peer of this name; `allowed_ips` are further ranges, reached through
    /// the first segment. Sorted and without duplicates.
    pub fn peer_routes(&self, name: &str, allowed_ips: &[IpNet]) -> Vec<Route> {
        let mut routes = Vec::with_capacity(self.members.len() * 2 + self.peer_ranges.len());
        for segment in &self.segments {
            let via = Some(segment.wireguard_ip);
            for node in self.members(segment) {
                let ranges = node.subnets().chain(node.private_ip.map(parse::one));
                routes.extend(ranges.map(|dst| over_wireguard(dst, via, None)));
            }
            let ranges = segment.allowed_location_ips.iter().map(IpNet::trunc);
            routes.extend(ranges.map(|dst| over_wireguard(dst, via, None)));
            routes.push(over_wireguard(parse::one(segment.wireguard_ip), None, None));
        }
        for peer in self.peers.iter().filter(|p| &*p.name != name) {
            routes.extend(self.allowed_ips(peer).iter().map(|&dst| over_wireguard(dst, None, None)));
        }
        let first = self.segments.first().map(|s| s.wireguard_ip);
        routes.extend(allowed_ips.iter().map(|net| over_wireguard(net.trunc(), first, None)));
        routes.sort_unstable();
        routes.dedup();
        routes
    }
}
