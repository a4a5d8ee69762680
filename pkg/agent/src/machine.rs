//! This machine as far as it is known: read, made what a plan says, cleaned up in the end.
//!
//! Between two readings of the kernel it is known what was applied since, so that a change of the cluster costs a
//! difference and the operations, and no dump.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use kilo_mesh::{HostFacts, Plan};
use kilo_state::{Desired, Link, LinkKind, Names, Observed, Op};
use kilo_wireguard::PublicKey;
use tracing::{debug, warn};

use crate::apply::apply;
use crate::drift::{Drift, Verdict};
use crate::plans::Next;
use crate::report::Stats;
use crate::{DiscoverConfig, Host, HostError, HostEvent};

/// This machine and what is known of it.
#[derive(Debug)]
pub(crate) struct Machine<H> {
    host: H,
    /// What the kernel has, as last read and changed by us since; `None` when that is not known.
    observed: Option<Observed>,
    /// What it was taken to have before that was read again, to tell what others changed.
    believed: Option<Observed>,
    drift: Drift,
    /// The last round left the host as planned, but for repairs that wait.
    settled: bool,
    /// Whether there are any.
    repairs_wait: bool,
    /// The last round made a link.
    made_link: bool,
}

/// How a plan was carried out.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// What failed, reading included.
    pub errors: Vec<HostError>,
    /// How many repairs wait, since somebody undoes them.
    pub held: usize,
    /// Another round must follow at once.
    pub again: bool,
}

impl<H: Host> Machine<H> {
    pub(crate) fn new(host: H) -> Self {
        Self {
            host,
            observed: None,
            believed: None,
            drift: Drift::default(),
            settled: false,
            repairs_wait: false,
            made_link: false,
        }
    }

    /// Finds what a first plan needs.
    pub(crate) async fn discover(&mut self, config: &DiscoverConfig) -> Result<HostFacts, HostError> {
        self.host.discover(config).await
    }

    /// Waits until somebody else changed something; may be cancelled.
    pub(crate) async fn changed(&mut self) -> HostEvent {
        self.host.changed().await
    }

    /// Whether that is of interest.
    pub(crate) fn listens(&self) -> bool {
        self.drift.listens()
    }

    /// Notes that somebody else changed something.
    pub(crate) fn heard(&mut self, event: HostEvent) {
        debug!(?event, "Host changed");
        self.drift.heard(Instant::now());
    }

    /// When to go round for what was heard, or for a repair that waits.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.drift.next()
    }

    /// Whether it is time to go round for one of these; once.
    pub(crate) fn take_due(&mut self) -> bool {
        let now = Instant::now();
        let heard = self.drift.take_due(now);
        if heard {
            self.read_again();
        }
        heard | self.drift.take_retry(now)
    }

    /// Has everything read in the next round.
    pub(crate) fn read_again(&mut self) {
        self.believed = self.observed.take().or(self.believed.take());
    }

    /// Whether it is known what the kernel has.
    pub(crate) fn is_known(&self) -> bool {
        self.observed.is_some()
    }

    /// Whether there is a WireGuard device, if that is known.
    pub(crate) fn has_device(&self) -> Option<bool> {
        self.observed.as_ref().map(|observed| observed.device.is_some())
    }

    /// Resolves a name.
    pub(crate) fn resolve(&self, name: String) -> impl Future<Output = Option<Vec<IpAddr>>> + Send + 'static {
        self.host.resolve(name)
    }

    /// Asks an address whether it is there.
    pub(crate) fn probe(&self, address: IpAddr) -> impl Future<Output = bool> + Send + 'static {
        self.host.probe(address)
    }

    /// Reads everything. What fails leaves what it would have told unknown.
    pub(crate) async fn read(&mut self, facts: &mut HostFacts) -> Vec<HostError> {
        let started = Instant::now();
        let mut errors = Vec::new();
        match self.host.facts().await {
            Ok(host) => *facts = HostFacts { programmed: std::mem::take(&mut facts.programmed), ..host },
            Err(error) => errors.push(error),
        }
        match self.host.observe().await {
            Ok(observed) => self.observed = Some(observed),
            Err(error) => errors.push(error),
        }
        self.drift.read(Instant::now(), started.elapsed());
        errors
    }

    /// Makes the host what the plan says, where it is known what it has. `errors` are those of reading it.
    pub(crate) async fn carry_out(
        &mut self,
        next: &Next,
        programmed: &mut BTreeMap<PublicKey, SocketAddr>,
        stats: &Stats,
        errors: Vec<HostError>,
    ) -> Carried {
        let mut carried = Carried { errors, ..Carried::default() };
        if let Some(mesh) = &next.planner.plan().mesh
            && let Some(mut observed) = self.observed.take()
        {
            let names = kilo_state::names(&mesh.desired, &observed);
            let todo = self.todo(&mesh.desired, &observed, &names, next);
            let host = &mut self.host;
            let failed =
                apply(host, &todo.now, &todo.repairs, &names, &mut observed, programmed, stats).await;
            // A new link brings parameters that were not there to be compared.
            let made = failed.is_empty() && todo.now.iter().any(|op| matches!(op, Op::CreateLink { .. }));
            // Once only: a link that somebody removes as fast as it is made must not keep us busy.
            let before = std::mem::replace(&mut self.made_link, made);
            carried.again = made && !before;
            carried.held = todo.held;
            carried.errors.extend(failed);
            self.observed = Some(observed).filter(|_| !carried.again);
        }
        self.settled = carried.errors.is_empty();
        self.repairs_wait = carried.held > 0;
        if !self.settled {
            // What a failed operation left behind is not known either.
            self.observed = None;
        }
        carried
    }

    /// What of the difference is to be carried out now, and what of that is repair.
    fn todo(&mut self, desired: &Desired, observed: &Observed, names: &Names, next: &Next) -> Verdict {
        // Beside what is touched the host is as planned, or it would have been read again.
        let ops = match &next.touched {
            Some(touched) if !self.repairs_wait => kilo_state::diff_touched(desired, observed, touched),
            Some(_) | None => kilo_state::diff(desired, observed),
        };
        // A link that was just made brings what was not there to be compared.
        let comparable = self.settled && !self.made_link;
        let believed = self.believed.take().filter(|_| comparable);
        if ops.is_empty() || (believed.is_none() && !(comparable && next.same)) {
            self.drift.peace();
            return Verdict { now: ops, ..Verdict::default() };
        }
        // What would have been done anyway is nobody's fault.
        let ours = match &believed {
            Some(believed) if !next.same => kilo_state::diff(desired, believed),
            Some(_) | None => Vec::new(),
        };
        let verdict = self.drift.judge(ops, &ours, Instant::now());
        for op in &verdict.feuds {
            let by = self.host.culprit(op);
            warn!(change = %op.display(names), by, "Somebody undoes this again and again");
        }
        verdict
    }

    /// Removes what is ours; the WireGuard link only if `interface` says so.
    pub(crate) async fn clean_up(
        &mut self,
        plan: Option<&Plan>,
        interface: bool,
        stats: &Stats,
    ) -> Vec<HostError> {
        let mut observed = match self.host.observe().await {
            Ok(observed) => observed,
            Err(error) => return vec![error],
        };
        let desired = parting(plan, interface);
        let ops = kilo_state::diff(&desired, &observed);
        let names = kilo_state::names(&desired, &observed);
        apply(&mut self.host, &ops, &[], &names, &mut observed, &mut BTreeMap::new(), stats).await
    }

    /// Lets go of the host.
    pub(crate) async fn close(&mut self) {
        self.host.close().await;
    }
}

/// What a host should be after a graceful stop: nothing of ours, apart from links that others may use. The WireGuard
/// link is ours if `interface` says so.
fn parting(plan: Option<&Plan>, interface: bool) -> Desired {
    let links = plan.and_then(|plan| plan.mesh.as_ref()).map_or(&[][..], |mesh| &mesh.desired.links);
    let goes = |link: &&Link| match link.kind {
        LinkKind::WireGuard => interface,
        LinkKind::Ipip => link.create,
        LinkKind::Foreign => false,
    };
    let remove_links = links.iter().filter(goes).map(|link| (link.dev, link.name.clone())).collect();
    Desired { remove_links, ..Desired::default() }
}
