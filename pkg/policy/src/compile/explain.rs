//! What a denied packet is told about, in words.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Compiler;
use super::facts::{Mode, Owner};
use super::judge::dispatch;
use super::reason::Reason;
use super::rules::word;
use crate::policy::Direction;

/// What a logged packet was refused for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The direction as the pod sees it; nothing where the source was refused.
    pub direction: Option<Direction>,
    /// What was refused without a policy.
    pub reason: Option<Reason>,
    /// The policies that isolate the pod, `shop/web`, sorted.
    pub isolated_by: Vec<String>,
}

/// What there is to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Profiles of pods that are judged here.
    pub profiles: usize,
    /// Sets and maps.
    pub sets: usize,
    /// Their elements that are found by hash.
    pub hash_elements: usize,
    /// Their elements that are intervals.
    pub interval_elements: usize,
    /// Rules.
    pub rules: usize,
    /// Addresses of pods that are judged here.
    pub pods: usize,
    /// Addresses that CNI gave to pods of this node of which nothing else is known: they are closed.
    pub unprogrammed: usize,
}

impl Compiler {
    /// What the prefix of a logged packet means, with the packet's ends for the pod whose policies are told.
    pub fn explain(&self, id: u32, source: IpAddr, destination: IpAddr) -> Option<Explained> {
        if let Some(reason) = Reason::ALL.into_iter().find(|reason| reason.id() == id) {
            let direction = match reason {
                Reason::Unknown(direction) | Reason::Held(direction) => Some(direction),
                Reason::MeshSrcOnUnderlay
                | Reason::MeshSrcFromPod
                | Reason::PodSrcMismatch
                | Reason::UnboundPeer
                | Reason::NestedTunnel
                | Reason::OuterNotLeader
                | Reason::Weak => None,
            };
            return Some(Explained { direction, reason: Some(reason), isolated_by: Vec::new() });
        }
        let (direction, _) = self.cluster.programs().get(id)?;
        // A reply bears the ends the other way round.
        let subjects = match direction {
            Direction::Ingress => [destination, source],
            Direction::Egress => [source, destination],
        };
        let isolated_by =
            subjects.into_iter().map(|ip| self.isolating(ip, *direction)).find(|p| !p.is_empty());
        Some(Explained {
            direction: Some(*direction),
            reason: None,
            isolated_by: isolated_by.unwrap_or_default(),
        })
    }

    fn isolating(&self, ip: IpAddr, direction: Direction) -> Vec<String> {
        let Some(((namespace, _), pod)) = self.cluster.owner(ip) else { return Vec::new() };
        let policies = self.cluster.policies(namespace, &pod.labels);
        let isolating = policies.iter().filter(|named| named.policy.rules(direction).is_some());
        isolating.map(ToString::to_string).collect()
    }

    /// An address as an end: `pod/shop/web-0`, `peer/alice`, `node/n1`, `ip/198.51.100.7`.
    pub fn end(&self, ip: IpAddr) -> String {
        if let Some(((namespace, name), _)) = self.cluster.owner(ip) {
            return format!("pod/{namespace}/{name}");
        }
        if let Some(local) = self.cluster.local().get(&ip) {
            return format!("pod/{}/{}", local.namespace, local.name);
        }
        if self.facts.own.iter().any(|net| net.addr() == ip) {
            return format!("node/{}", self.config.node);
        }
        let containing = (0..=IpNet::from(ip).prefix_len()).rev().find_map(|length| {
            let net = IpNet::new(ip, length).ok()?.trunc();
            self.facts.bindings.get(&net)
        });
        match containing {
            Some(Owner::Peer(name)) => format!("peer/{name}"),
            Some(Owner::Node(name)) => format!("node/{name}"),
            None => format!("ip/{ip}"),
        }
    }

    /// Counts of what is in the tables. Walks the sets' and chains' headers, not their elements.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats { profiles: self.cluster.programs().len(), ..Stats::default() };
        for table in self.tables() {
            stats.sets += table.sets.len();
            stats.rules += table.chains.values().map(|chain| chain.rules.len()).sum::<usize>();
            for set in table.sets.values() {
                let elements = if set.ranges().is_some() {
                    &mut stats.interval_elements
                } else {
                    &mut stats.hash_elements
                };
                *elements += set.len();
            }
        }
        let judged = |ip: &IpAddr| {
            let set = dispatch(Direction::Ingress, kilo_nftables::Family::of(*ip));
            self.draft.at(&set, kilo_nftables::Place::Key(kilo_nftables::Key::Address(*ip))).is_some()
        };
        let families = super::rules::FAMILIES.map(|family| dispatch(Direction::Ingress, family));
        let table = self.draft.table();
        stats.pods = families.iter().filter_map(|name| table.sets.get(name)).map(|set| set.len()).sum();
        if self.config.mode != Mode::Off {
            stats.unprogrammed = self.cluster.local().keys().filter(|ip| !judged(ip)).count();
        }
        stats
    }

    /// The word of a direction as counters have it.
    pub fn counter(direction: Direction) -> String {
        format!("deny_{}", word(direction))
    }
}
