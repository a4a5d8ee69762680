//! What a leader routes: everybody else over WireGuard, its own location directly or through the tunnel.

use super::{Builder, Encapsulator, over_wireguard};
use crate::{Encapsulate, parse};

impl Builder<'_> {
    pub(super) fn leader(&mut self) {
        let t = self.topology;
        self.out.routes.reserve(t.members.len() * 2 + t.peer_ranges.len());
        let src = self.private_addr();
        for (i, segment) in t.segments.iter().enumerate() {
            if i == t.local_segment {
                self.own_segment();
                continue;
            }
            let via = Some(segment.wireguard_ip);
            // A private address that is the endpoint itself must not be routed into the tunnel to it.
            let endpoint = t.segment_addr(segment).map(|a| a.ip());
            for node in t.members(segment) {
                let private = node.private_ip.filter(|ip| Some(*ip) != endpoint).map(parse::one);
                self.out
                    .routes
                    .extend(node.subnets().chain(private).map(|dst| over_wireguard(dst, via, src)));
            }
            let ranges = segment.allowed_location_ips.iter().map(|net| net.trunc());
            self.out.routes.extend(ranges.map(|dst| over_wireguard(dst, via, src)));
        }
        self.out.routes.extend(t.peer_ranges.iter().filter_map(|&dst| t.route_to_peer(self.inside, dst)));
    }

    fn own_segment(&mut self) {
        let t = self.topology;
        let Some(own) = self.private_addr() else { return };
        let enc = self.inside.encapsulator;
        for node in t.members(t.local_segment()) {
            let Some(private) = node.private_ip.filter(|ip| *ip != own) else { continue };
            if self.inside.local {
                if self.neighbour(node, private) {
                    self.rule_from_wireguard(private);
                }
            } else if matches!(enc, Encapsulator::Flannel | Encapsulator::Cilium)
                && self.inside.strategy != Encapsulate::Never
            {
                // Replies from the WireGuard side must find the way that the CNI's packets came.
                let gateway = enc.gateway(node).filter(|ip| *ip != private);
                if gateway.is_some() {
                    self.private_over_tunnel(private, gateway, None);
                    self.rule_from_wireguard(private);
                }
            }
        }
    }
}
