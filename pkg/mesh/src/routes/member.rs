//! What a node that does not lead routes: everybody outside its location by way of its leader.

use super::Builder;
use crate::parse;

impl Builder<'_> {
    pub(super) fn member(&mut self) {
        let t = self.topology;
        self.out.routes.reserve(t.members.len() * 2 + t.segments.len() + t.peer_ranges.len());
        let own = self.private_addr();
        let leader = t.gateway_to_leader(self.inside);
        for (i, segment) in t.segments.iter().enumerate() {
            self.inside_location(parse::one(segment.wireguard_ip), leader);
            if i == t.local_segment {
                if self.inside.local {
                    for node in t.members(segment) {
                        if let Some(private) = node.private_ip.filter(|ip| Some(*ip) != own) {
                            self.neighbour(node, private);
                        }
                    }
                }
                continue;
            }
            for node in t.members(segment) {
                for dst in node.subnets().chain(node.private_ip.map(parse::one)) {
                    self.inside_location(dst, leader);
                }
            }
            for dst in &segment.allowed_location_ips {
                self.inside_location(dst.trunc(), leader);
            }
        }
        self.out.routes.extend(t.peer_ranges.iter().filter_map(|&dst| t.route_to_peer(self.inside, dst)));
    }
}
