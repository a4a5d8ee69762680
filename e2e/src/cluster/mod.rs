//! A cluster as far as agents see one: a real API server, the objects of `manifests/`, Nodes, and the pods of the
//! DaemonSet, each an agent in the namespace of its node with what a kubelet would mount and tell.

mod audit;
mod control_plane;
mod daemon_set;
mod upstream;
mod watchers;
mod whole;

pub use audit::Request;
pub use control_plane::ControlPlane;
pub use upstream::Upstream;
pub use watchers::Seen;
pub use whole::{Cluster, node_object, peer_object};
