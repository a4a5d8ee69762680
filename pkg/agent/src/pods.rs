//! The seam to the pods of this node as CNI set them up: their addresses are known before their containers start,
//! and before the API server tells them.

use std::future::Future;
use std::net::IpAddr;

use tokio::sync::oneshot;

/// A pod that CNI has set up on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedPod {
    /// The container runtime's name for its sandbox.
    pub container: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID; empty where the runtime did not say.
    pub uid: String,
    /// The end of its link on this node; empty where CNI did not say.
    pub link: String,
    /// Its addresses, which no other pod of a list has.
    pub addresses: Vec<IpAddr>,
}

/// The pods have changed, or what is seen of them.
#[derive(Debug)]
pub struct PodsChanged {
    /// All there are now, by sandbox.
    pub pods: Vec<AttachedPod>,
    /// Whether the kernel shows us what they send each other.
    pub sight: BridgeSight,
    /// CNI waits for this.
    pub programmed: PodCalls,
}

/// CNI calls that wait until what they brought is in force. Dropped, they wait no longer, and the pod is held.
#[derive(Debug, Default)]
pub struct PodCalls(Vec<PodCall>);

/// One that waits for these addresses to have their policies.
#[derive(Debug)]
struct PodCall {
    addresses: Vec<IpAddr>,
    done: oneshot::Sender<()>,
}

impl PodCalls {
    /// One more that waits; a call that ends a pod has no addresses.
    pub fn wait(&mut self, addresses: Vec<IpAddr>, done: oneshot::Sender<()>) {
        self.0.push(PodCall { addresses, done });
    }

    /// Lets others wait here, too.
    pub fn join(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets them go on: the kernel has it.
    pub fn tell(self) {
        for call in self.0 {
            // One that has waited too long is gone.
            let _ = call.done.send(());
        }
    }

    /// Lets those go on of whose addresses this is true, and forgets those that wait no longer.
    pub fn tell_those(&mut self, ready: impl Fn(IpAddr) -> bool) {
        let (ready, waiting) = std::mem::take(&mut self.0)
            .into_iter()
            .filter(|call| !call.done.is_closed())
            .partition(|call| call.addresses.iter().all(|address| ready(*address)));
        self.0 = waiting;
        Self(ready).tell();
    }
}

/// Whether the kernel shows us what pods of this node send each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BridgeSight {
    /// It passes FORWARD.
    Seen,
    /// It passes by on a bridge: policy between pods of this node is not in force.
    Unseen {
        /// The links of pods whose traffic that is.
        links: Vec<String>,
        /// What would help.
        reason: String,
    },
}

/// The pods of this node.
pub trait Pods: Send + 'static {
    /// Waits for a change and tells all pods; the first time at once. May be cancelled at any time. Where the network is
    /// our own, what pods of this node send each other is made to pass FORWARD.
    fn changed(&mut self) -> impl Future<Output = PodsChanged> + Send;
}
