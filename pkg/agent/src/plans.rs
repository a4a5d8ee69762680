//! One plan after the other: the last one carried on where single Peers have changed, a whole one otherwise.

use std::sync::atomic::Ordering;

use kilo_mesh::{Config, Facts, PeerChange, Planner};
use kilo_state::Touched;
use tracing::debug;

use crate::changes::Changes;
use crate::report::Stats;
use crate::store::Store;

/// A plan to carry out.
#[derive(Debug)]
pub(crate) struct Next {
    pub(crate) planner: Planner,
    /// What of the host differs from the plan before: after a whole plan anything may.
    pub(crate) touched: Option<Touched>,
    /// Nothing does.
    pub(crate) same: bool,
}

impl Next {
    /// Plans after these changes. With `new_facts`, names or the machine are others than they were for the last
    /// plan.
    pub(crate) fn plan(
        last: Option<Planner>,
        new_facts: bool,
        changes: &Changes,
        (config, store, facts): (&Config, &Store, &Facts),
        stats: &Stats,
    ) -> Self {
        let (followed, last) = match last {
            Some(planner) if !new_facts && !changes.whole && planner.can_follow(facts) => {
                let peers: Vec<PeerChange<'_>> = changes
                    .peers
                    .iter()
                    .map(|(name, old)| PeerChange { old: old.as_ref(), new: store.peer(name) })
                    .collect();
                let followed = planner
                    .change(config, facts, &peers)
                    .inspect_err(|reason| debug!(%reason, "Change cannot be followed"));
                (followed.ok(), None)
            }
            last => (None, last),
        };
        if let Some((planner, touched)) = followed {
            stats.followed.fetch_add(1, Ordering::Relaxed);
            return Self { same: touched.is_empty(), planner, touched: Some(touched) };
        }
        let planner = Planner::new(config, &store.nodes(), &store.peers(), facts);
        let same = last.is_some_and(|last| last.plan().wants_the_same(planner.plan()));
        Self { planner, touched: None, same }
    }
}
