//! A plan that follows single Peers: what one of them changes is worked into the plan at the cost of that
//! Peer. [`plan`](crate::plan) stays the definition; whatever is not plainly equal to it is refused here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kilo_nftables::{IpRange, Ranges, Set};
use kilo_state::Touched;
use kilo_wireguard::PublicKey;

use crate::claims::Claim;
use crate::device::{Unsettled, device_peer};
use crate::endpoint::resolve;
use crate::plan::{Memory, with_memory};
use crate::topology::{MeshPeer, Topology};
use crate::{Config, Facts, Mesh, Node, PREFIX, Peer, Plan, annotations, desired, table};

/// A Peer with more ranges than these is left to a whole plan, which is then the cheaper way.
const MANY_RANGES: usize = 64;

/// One Peer as it was and as it is; both have the same name, and one of them may be missing.
#[derive(Clone, Copy, Debug)]
pub struct PeerChange<'a> {
    /// As it was when it was last planned for.
    pub old: Option<&'a Peer>,
    /// As it is now.
    pub new: Option<&'a Peer>,
}

/// Why a change needs a whole plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotSimple(&'static str);

/// A plan and what it takes to carry it on.
#[derive(Clone, Debug)]
pub struct Planner {
    plan: Plan,
    memory: Option<Memory>,
}

impl Planner {
    /// The whole plan of [`plan`](crate::plan).
    pub fn new(config: &Config, nodes: &[&Node], peers: &[&Peer], facts: &Facts) -> Self {
        let (plan, memory) = with_memory(config, nodes, peers, facts);
        Self { plan, memory }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The plan alone.
    pub fn into_plan(self) -> Plan {
        self.plan
    }

    /// Whether changes of single Peers can be followed at all with these facts; otherwise a whole plan must be
    /// made.
    pub fn can_follow(&self, facts: &Facts) -> bool {
        let same_decisions = |memory: &Memory| !memory.key_twice && facts.now >= memory.now;
        self.plan.mesh.is_some() && self.memory.as_ref().is_some_and(same_decisions)
    }

    /// The plan after these changes, equal to a whole plan of all nodes and Peers as they are now, and the
    /// parts of the desired state in which it differs.
    ///
    /// Settings and nodes must be those of the last whole plan, and the same nodes must be ready; Peers must
    /// have names of their own; the facts may differ in the time and in what was programmed.
    ///
    /// # Errors
    /// The change is not a simple one, and a whole plan must be made.
    pub fn change(
        mut self,
        config: &Config,
        facts: &Facts,
        changes: &[PeerChange<'_>],
    ) -> Result<(Self, Touched), NotSimple> {
        if !self.can_follow(facts) {
            return Err(NotSimple("there is no mesh, two nodes have one key, or the clock went back"));
        }
        let plan = &mut self.plan;
        let (Some(memory), Some(mesh)) = (&mut self.memory, &mut plan.mesh) else {
            return Err(NotSimple("there is no mesh"));
        };
        memory.now = facts.now;
        let nat_endpoints = &mut plan.nat_endpoints;
        let mut work =
            Work { config, facts, memory, mesh, nat_endpoints, published: true, touched: Touched::default() };
        // What goes frees keys and ranges for what comes.
        let (go, come): (Vec<PeerChange<'_>>, Vec<_>) = changes.iter().partition(|c| c.new.is_none());
        for change in go.into_iter().chain(come) {
            work.one(change)?;
        }
        work.settle_endpoints();
        let Work { touched, published, .. } = work;
        if !published {
            let text = annotations::discovered_text(&plan.nat_endpoints);
            plan.annotations.insert(format!("{PREFIX}discovered-endpoints"), text);
        }
        plan.annotations.insert(format!("{PREFIX}last-seen"), facts.now.cast_signed().to_string());
        Ok((self, touched))
    }
}

/// A Peer that takes part, what it claims, and what its endpoint resolves to.
type Wish<'p> = (&'p Peer, Claim, Option<SocketAddr>);

/// The plan under change.
struct Work<'a> {
    config: &'a Config,
    facts: &'a Facts,
    memory: &'a mut Memory,
    mesh: &'a mut Mesh,
    nat_endpoints: &'a mut BTreeMap<PublicKey, SocketAddr>,
    /// The annotation says what the device has seen.
    published: bool,
    touched: Touched,
}

impl Work<'_> {
    fn one(&mut self, PeerChange { old, new }: PeerChange<'_>) -> Result<(), NotSimple> {
        let (old, new) = (self.claim(old)?, self.claim(new)?);
        let named = |wish: &Wish<'_>| wish.0.name.clone();
        let Some(name) = old.as_ref().or(new.as_ref()).map(named) else { return Ok(()) };
        if new.as_ref().is_some_and(|(peer, ..)| peer.name != name) {
            return Err(NotSimple("these are two Peers"));
        }
        let (before, after) = (old.as_ref().map(|wish| &wish.1), new.as_ref().map(|wish| &wish.1));
        let keys = (before.map(|claim| claim.key), after.map(|claim| claim.key));
        let others = NotSimple("others claim a key or range of the Peer");
        before.map_or(Some(()), |claim| self.memory.claims.remove(claim)).ok_or(others)?;
        after.map_or(Some(()), |claim| self.memory.claims.add(claim)).ok_or(others)?;

        let (had, has) = (ranges(before), ranges(after));
        let gone: Vec<IpNet> = had.iter().filter(|net| !has.contains(net)).copied().collect();
        let come: Vec<IpNet> = has.iter().filter(|net| !had.contains(net)).copied().collect();
        self.route(&gone, &come)?;
        gone.iter().try_for_each(|net| self.close(*net))?;
        come.iter().try_for_each(|net| self.open(*net))?;
        self.mesh
            .topology
            .replace(&name, old.is_some(), new)
            .ok_or(NotSimple("the Peer is not as it was"))?;
        if keys.0 != keys.1 {
            keys.0.into_iter().for_each(|key| self.forget(&key));
            keys.1.into_iter().for_each(|key| self.discover(key));
        }
        self.device(&name, keys);
        Ok(())
    }

    /// The endpoint that the device has seen of a Peer is no longer published; what other nodes have seen counts.
    fn forget(&mut self, key: &PublicKey) {
        if self.nat_endpoints.remove(key).is_some() {
            self.published = false;
            let discovered = &mut self.mesh.topology.discovered_endpoints;
            match self.memory.claims.seen_by_others.get(key) {
                Some(addr) => drop(discovered.insert(*key, *addr)),
                None => drop(discovered.remove(key)),
            }
        }
    }

    /// The endpoint that the device has seen of a Peer is published, and counts.
    fn discover(&mut self, key: PublicKey) {
        if let Some(addr) = self.memory.known.seen(self.facts, &key) {
            self.published = false;
            self.nat_endpoints.insert(key, addr);
            self.mesh.topology.discovered_endpoints.insert(key, addr);
        }
    }

    /// What a Peer claims, if it takes part and is a simple one.
    fn claim<'p>(&self, peer: Option<&'p Peer>) -> Result<Option<Wish<'p>>, NotSimple> {
        let Some(peer) = peer.filter(|peer| peer.ready()) else { return Ok(None) };
        if peer.allowed_ips.len() > MANY_RANGES {
            return Err(NotSimple("the Peer has many ranges"));
        }
        let addr = peer.endpoint.as_ref().and_then(|endpoint| resolve(endpoint, self.facts));
        if peer.endpoint.is_some() && addr.is_none() {
            return Err(NotSimple("the name of the endpoint does not resolve"));
        }
        Ok(Claim::of(peer).map(|claim| (peer, claim, addr)))
    }

    fn route(&mut self, gone: &[IpNet], come: &[IpNet]) -> Result<(), NotSimple> {
        let host = &self.facts.host;
        let ipv6 = gone.iter().chain(come).any(|net| net.addr().is_ipv6());
        let Mesh { topology, desired, inside, .. } = &mut *self.mesh;
        // Routes that are left out are counted in a finding.
        if (ipv6 && host.ipv6 == Some(false)) || desired::lacks_tunnel(self.facts, *inside) {
            return Err(NotSimple("routes may be left out"));
        }
        for (nets, comes) in [(gone, false), (come, true)] {
            for route in nets.iter().filter_map(|&net| topology.route_to_peer(*inside, net)) {
                put(&mut desired.routes, route, comes);
                self.touched.routes.insert((route.table, route.dst));
            }
        }
        if ipv6 {
            desired::forward_ipv6(&mut desired.sysctls, &desired.routes);
        }
        Ok(())
    }

    /// Takes a range out of the firewall.
    fn close(&mut self, net: IpNet) -> Result<(), NotSimple> {
        let masquerade = &mut self.mesh.firewall.masquerade;
        put(&mut masquerade.sources, net, false);
        if !self.config.service_cidrs.iter().any(|cidr| cidr.trunc() == net) {
            put(&mut masquerade.except_destinations, net, false);
        }
        self.elements(net, |ranges, nets| {
            let held = (0..=net.prefix_len()).any(|len| {
                let wider = IpNet::new(net.addr(), len).map(|wider| wider.trunc());
                wider.is_ok_and(|wider| nets.binary_search(&wider).is_ok())
            });
            if held {
                return Ok(());
            }
            // What lies in it and is there on its own account stays.
            let start = nets.partition_point(|other| *other < net);
            let len = nets.iter().skip(start).take_while(|other| net.contains(*other)).count();
            if len > MANY_RANGES {
                return Err(NotSimple("the range holds many others"));
            }
            ranges.subtract(net.into());
            nets.iter().skip(start).take(len).for_each(|other| ranges.add((*other).into()));
            Ok(())
        })
    }

    /// Puts a range into the firewall.
    fn open(&mut self, net: IpNet) -> Result<(), NotSimple> {
        let masquerade = &mut self.mesh.firewall.masquerade;
        put(&mut masquerade.sources, net, true);
        put(&mut masquerade.except_destinations, net, true);
        self.elements(net, |ranges, _| {
            ranges.add(net.into());
            Ok(())
        })
    }

    /// Changes the sets that are made from the lists in which Peers are.
    fn elements(
        &mut self,
        net: IpNet,
        change: impl Fn(&mut Ranges, &[IpNet]) -> Result<(), NotSimple>,
    ) -> Result<(), NotSimple> {
        let Mesh { firewall, desired, .. } = &mut *self.mesh;
        let Some(table) = &mut desired.table else { return Ok(()) };
        let lists = [
            (table::EXCEPT, &firewall.masquerade.except_destinations),
            (table::MASQ_SRC, &firewall.masquerade.sources),
        ];
        for (name, nets) in lists {
            let name = table::set_for(name, net);
            let Some(ranges) = table.sets.get_mut(&name).and_then(Set::ranges_mut) else { continue };
            change(ranges, nets)?;
            // A range may have become one with its neighbours, or have been cut off from them.
            self.touched.elements.entry(name).or_default().add(IpRange::from(net).widened());
        }
        Ok(())
    }

    /// Brings the device's peers of these keys, before and after, into line with the topology.
    fn device(&mut self, name: &Arc<str>, (old, new): (Option<PublicKey>, Option<PublicKey>)) {
        let Mesh { topology, desired, .. } = &mut *self.mesh;
        let Some(device) = desired.device.as_mut().filter(|_| topology.leader) else { return };
        self.memory.unsettled.retain(|who| !matches!(who, Unsettled::Peer(peer) if peer == name));
        if let Some(key) = old.filter(|_| old != new)
            && let Ok(at) = device.peers.binary_search_by_key(&key, |peer| peer.public_key)
        {
            device.peers.remove(at);
        }
        if let Some(peer) = new.and_then(|_| topology.peer(name)) {
            let (peer, open) = device_peer(topology, self.facts, &self.memory.known, peer);
            match device.peers.binary_search_by_key(&peer.public_key, |peer| peer.public_key) {
                Ok(at) => device.peers[at] = peer,
                Err(at) => device.peers.insert(at, peer),
            }
            self.memory.unsettled.extend(open.then(|| Unsettled::Peer(name.clone())));
        }
        self.touched.peers.extend(old.into_iter().chain(new));
    }

    /// Decides again on the endpoints that depend on more than the mesh.
    fn settle_endpoints(&mut self) {
        let Mesh { topology, desired, .. } = &mut *self.mesh;
        let Some(device) = &mut desired.device else { return };
        for who in &self.memory.unsettled {
            let (key, wanted) = match who {
                Unsettled::Segment(place) => match topology.segments.get(*place) {
                    Some(segment) => (segment.key, topology.segment_addr(segment)),
                    None => continue,
                },
                Unsettled::Peer(name) => match topology.peer(name) {
                    Some(peer) => (peer.public_key, topology.peer_addr(peer)),
                    None => continue,
                },
            };
            let (endpoint, _) = self.memory.known.endpoint(self.facts, &key, wanted);
            let at = device.peers.binary_search_by_key(&key, |peer| peer.public_key);
            if let Some(peer) = at.ok().and_then(|at| device.peers.get_mut(at))
                && peer.endpoint != endpoint
            {
                peer.endpoint = endpoint;
                self.touched.peers.insert(key);
            }
        }
    }
}

fn ranges(claim: Option<&Claim>) -> &[IpNet] {
    claim.map_or(&[], |claim| &claim.ranges)
}

/// Puts an item into a sorted list without duplicates, or takes it out.
fn put<T: Ord>(list: &mut Vec<T>, item: T, in_it: bool) {
    match (list.binary_search(&item), in_it) {
        (Err(at), true) => list.insert(at, item),
        (Ok(at), false) => drop(list.remove(at)),
        (Ok(_), true) | (Err(_), false) => {}
    }
}

impl Topology {
    fn place(&self, name: &str) -> Result<usize, usize> {
        self.peers.binary_search_by(|peer| (*peer.name).cmp(name))
    }

    /// The Peer of this name, if it takes part.
    fn peer(&self, name: &str) -> Option<&MeshPeer> {
        self.place(name).ok().and_then(|at| self.peers.get(at))
    }

    /// Puts a Peer with its ranges in the place of the one of that name, which is there or not as `there`
    /// says; with `None` it goes.
    fn replace(&mut self, name: &str, there: bool, new: Option<Wish<'_>>) -> Option<()> {
        let (at, rest, start, end) = match (self.place(name), there) {
            (Ok(at), true) => {
                let std::ops::Range { start, end } = self.peers.get(at)?.ranges;
                (at, at + 1, start, end)
            }
            (Err(at), false) => {
                let start = at.checked_sub(1).and_then(|i| self.peers.get(i)).map_or(0, |p| p.ranges.end);
                (at, at, start, start)
            }
            (Ok(_), false) | (Err(_), true) => return None,
        };
        let (peer, ranges) = match new {
            Some((peer, claim, addr)) => {
                let end = start + u32::try_from(claim.ranges.len()).ok()?;
                (Some(MeshPeer::new(peer, addr, start..end)?), claim.ranges)
            }
            None => (None, Vec::new()),
        };
        let (before, now) = (end - start, ranges.len() as u32);
        if now != before {
            for peer in self.peers.get_mut(rest..)? {
                // What comes after has at least the ranges that go before it.
                peer.ranges.start = peer.ranges.start - before + now;
                peer.ranges.end = peer.ranges.end - before + now;
            }
        }
        self.peer_ranges.splice(start as usize..end as usize, ranges);
        self.peers.splice(at..rest, peer);
        Some(())
    }
}
