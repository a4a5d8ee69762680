//! WireGuard configurations of a topology: of the local node, of a Peer, and of the local segment as a peer.

use std::collections::BTreeSet;

use ipnet::IpNet;
use kilo_wireguard as wg;
use kilo_wireguard::Endpoint;

use crate::topology::{MeshPeer, Segment, Topology};

impl Topology {
    /// The configuration of the local device without its private key: the other segments in order, then the
    /// Peers. Upstream agents apply it on leaders only.
    pub fn conf(&self) -> wg::Conf {
        let keepalive = Some(self.persistent_keepalive);
        let others = self.segments.iter().enumerate().filter(|(i, _)| *i != self.local_segment);
        let mut peers = Vec::with_capacity(self.segments.len() + self.peers.len());
        peers.extend(others.map(|(_, s)| self.segment_peer(s, keepalive)));
        for peer in &self.peers {
            peers.push(wg::Peer {
                preshared_key: peer.preshared_key.clone(),
                ..self.peer_peer(peer, keepalive)
            });
        }
        wg::Conf { private_key: None, listen_port: Some(self.listen_port), peers }
    }

    /// The configuration for a Peer: all segments, then the other Peers. For a name that no Peer has, it is
    /// that of somebody without keepalive and preshared key.
    pub fn peer_conf(&self, name: &str) -> wg::Conf {
        let own = self.peers.iter().find(|p| &*p.name == name);
        let keepalive = own.map(|p| p.persistent_keepalive);
        let mut peers = Vec::with_capacity(self.segments.len() + self.peers.len());
        for segment in &self.segments {
            peers.push(wg::Peer {
                preshared_key: own.and_then(|p| p.preshared_key.clone()),
                ..self.segment_peer(segment, keepalive)
            });
        }
        peers.extend(self.peers.iter().filter(|p| &*p.name != name).map(|p| self.peer_peer(p, keepalive)));
        wg::Conf { private_key: None, listen_port: None, peers }
    }

    /// The local segment as a peer of somebody outside the mesh, without allowed-location-ips.
    pub fn as_peer(&self) -> wg::Peer {
        let segment = self.local_segment();
        wg::Peer {
            endpoint: segment.endpoint.clone(),
            endpoint_addr: segment.endpoint.as_ref().and_then(|e| e.dns()).and(segment.endpoint_addr),
            allowed_ips: self.segment_ranges(segment).collect(),
            ..wg::Peer::new(segment.key)
        }
    }

    /// What the device of another node or Peer may take from a segment: its ranges, then its
    /// allowed-location-ips, all without host bits.
    pub(crate) fn segment_allowed_ips(&self, segment: &Segment) -> Vec<IpNet> {
        let members = self.members(segment).len();
        let mut nets = Vec::with_capacity(members * 2 + segment.allowed_location_ips.len() + 1);
        nets.extend(self.segment_ranges(segment));
        // Written with different host bits, one range may stand there several times.
        let mut seen = BTreeSet::new();
        nets.extend(segment.allowed_location_ips.iter().map(IpNet::trunc).filter(|net| seen.insert(*net)));
        nets
    }

    fn segment_peer(&self, segment: &Segment, keepalive: Option<u16>) -> wg::Peer {
        let discovered = self.discovered(&segment.key, segment.behind_nat);
        let dns = segment.endpoint.as_ref().and_then(Endpoint::dns);
        wg::Peer {
            endpoint: discovered.map(Endpoint::from_addr).or_else(|| segment.endpoint.clone()),
            endpoint_addr: if discovered.is_some() { None } else { dns.and(segment.endpoint_addr) },
            persistent_keepalive: keepalive,
            allowed_ips: self.segment_allowed_ips(segment),
            ..wg::Peer::new(segment.key)
        }
    }

    fn peer_peer(&self, peer: &MeshPeer, keepalive: Option<u16>) -> wg::Peer {
        let discovered = self.discovered(&peer.public_key, peer.persistent_keepalive != 0);
        let dns = peer.endpoint.as_ref().and_then(Endpoint::dns);
        wg::Peer {
            endpoint: discovered.map(Endpoint::from_addr).or_else(|| peer.endpoint.clone()),
            endpoint_addr: if discovered.is_some() { None } else { dns.and(peer.endpoint_addr) },
            persistent_keepalive: keepalive,
            allowed_ips: self.allowed_ips(peer).to_vec(),
            ..wg::Peer::new(peer.public_key)
        }
    }
}
