//! What has changed in the cluster since the last plan, as far as a plan can follow it.

use std::collections::BTreeMap;

use kilo_mesh::Peer;
use kilo_wireguard::Endpoint;

/// Where so many Peers have changed, a whole plan is the cheaper way.
const MANY: usize = 32;

/// What has changed since the last plan.
#[derive(Debug)]
pub struct Changes {
    /// More than single Peers: only a whole plan will do.
    pub whole: bool,
    /// The Peers that may have changed, by name, as they were then.
    pub peers: BTreeMap<String, Option<Peer>>,
    /// Findings on single objects.
    pub findings: bool,
    /// Names that endpoints have.
    pub names: bool,
}

impl Default for Changes {
    /// Before the first plan everything is new.
    fn default() -> Self {
        Self { whole: true, peers: BTreeMap::new(), findings: true, names: true }
    }
}

impl Changes {
    /// Takes what there is; from now on nothing has changed.
    pub(crate) fn take(&mut self) -> Self {
        let nothing = Self { whole: false, peers: BTreeMap::new(), findings: false, names: false };
        std::mem::replace(self, nothing)
    }

    /// A Peer has changed that was like this before.
    pub(crate) fn peer(&mut self, name: &str, old: Option<Peer>) {
        if self.whole {
            return;
        }
        if !self.peers.contains_key(name) {
            self.peers.insert(name.to_owned(), old);
        }
        if self.peers.len() > MANY {
            self.whole();
        }
    }

    /// Something else has changed.
    pub(crate) fn whole(&mut self) {
        self.whole = true;
        self.peers.clear();
    }

    /// An endpoint has changed.
    pub(crate) fn endpoint(&mut self, old: Option<&Endpoint>, new: Option<&Endpoint>) {
        let name = |endpoint: Option<&Endpoint>| endpoint.and_then(Endpoint::dns).map(str::to_owned);
        self.names |= name(old) != name(new);
    }
}
