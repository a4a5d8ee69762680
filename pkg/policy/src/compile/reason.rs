//! Why a packet is refused where no policy does, by counter and by the number that its log bears.

use crate::policy::Direction;

/// Why a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A source of the mesh, or a pod's, came by a link to the outside.
    MeshSrcOnUnderlay,
    /// A pod sent with a source of the mesh.
    MeshSrcFromPod,
    /// A pod sent with a source that is not its own.
    PodSrcMismatch,
    /// Something came by WireGuard with a source that is bound to nobody.
    UnboundPeer,
    /// A Peer or a pod sent a tunnel to a node.
    NestedTunnel,
    /// A source of the mesh came by a tunnel from somebody who is no leader.
    OuterNotLeader,
    /// Not refused: a source that comes plain by the strategy, so that anybody on the link can forge it.
    Weak,
    /// The address is one of this node's pods, and nobody knows of which.
    Unknown(Direction),
    /// The pod could not be read.
    Held(Direction),
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::MeshSrcOnUnderlay,
        Self::MeshSrcFromPod,
        Self::PodSrcMismatch,
        Self::UnboundPeer,
        Self::NestedTunnel,
        Self::OuterNotLeader,
        Self::Weak,
        Self::Unknown(Direction::Ingress),
        Self::Unknown(Direction::Egress),
        Self::Held(Direction::Ingress),
        Self::Held(Direction::Egress),
    ];

    /// The number in the prefix of its log.
    pub fn id(self) -> u32 {
        match self {
            Self::MeshSrcOnUnderlay => 16,
            Self::MeshSrcFromPod => 17,
            Self::PodSrcMismatch => 18,
            Self::UnboundPeer => 19,
            Self::NestedTunnel => 20,
            Self::OuterNotLeader => 21,
            Self::Weak => 22,
            Self::Unknown(Direction::Ingress) => 32,
            Self::Unknown(Direction::Egress) => 33,
            Self::Held(Direction::Ingress) => 34,
            Self::Held(Direction::Egress) => 35,
        }
    }

    /// As metrics have it, `mesh_src_on_underlay`; also the name of its chain.
    pub fn name(self) -> &'static str {
        match self {
            Self::MeshSrcOnUnderlay => "mesh_src_on_underlay",
            Self::MeshSrcFromPod => "mesh_src_from_pod",
            Self::PodSrcMismatch => "pod_src_mismatch",
            Self::UnboundPeer => "unbound_peer",
            Self::NestedTunnel => "nested_tunnel",
            Self::OuterNotLeader => "outer_not_leader",
            Self::Weak => "weak",
            Self::Unknown(Direction::Ingress) => "unknown_ingress",
            Self::Unknown(Direction::Egress) => "unknown_egress",
            Self::Held(Direction::Ingress) => "held_ingress",
            Self::Held(Direction::Egress) => "held_egress",
        }
    }

    /// Whether it is about where a source comes from, and not about policies.
    pub fn is_spoof(self) -> bool {
        !matches!(self, Self::Unknown(_) | Self::Held(_))
    }

    /// The counter of its packets: `spoof_weak`, `deny_unknown_ingress`.
    pub fn counter(self) -> String {
        format!("{}_{}", if self.is_spoof() { "spoof" } else { "deny" }, self.name())
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::MeshSrcOnUnderlay => "a source of the mesh or of a pod came by a link to the outside",
            Self::MeshSrcFromPod => "a pod sent with a source of the mesh",
            Self::PodSrcMismatch => "a pod sent with a source that is not its own",
            Self::UnboundPeer => "the source is bound to no peer and no node",
            Self::NestedTunnel => "a peer or a pod sent a tunnel to a node",
            Self::OuterNotLeader => "the tunnel was not sent by a leader",
            Self::Weak => "the source came plain",
            Self::Unknown(_) => "nobody knows which pod of this node the address belongs to",
            Self::Held(_) => "the pod could not be read",
        }
    }
}
