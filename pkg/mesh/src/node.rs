//! A Node, translated: what its labels, annotations and pod ranges mean, whatever the time is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kilo_wireguard::{Endpoint, PublicKey};

use crate::annotations::{MARKER, REPORTS, UNREACHABLE};
use crate::{Finding, Granularity, LeaderFailover, NodeObject, PREFIX, annotations, parse};

/// The annotation of Kilo's forks up to 0.8 for the address inside Cilium, without the prefix.
pub(crate) const OLD_CNI: &str = "cilium-internal-ip";

/// A Node as the mesh sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The Node's name.
    pub name: Arc<str>,
    /// Where its location is reached if it leads.
    pub endpoint: Option<Endpoint>,
    /// Its WireGuard key.
    pub key: Option<PublicKey>,
    /// Its private address with the prefix length of its private network.
    pub internal_ip: Option<IpNet>,
    /// It is said to have no private address, so that none is looked for either.
    pub no_internal_ip: bool,
    /// The address by which the CNI's own network reaches it.
    pub cni_compatibility_ip: Option<IpNet>,
    /// It tells that address only by the annotation of Kilo's forks up to 0.8, whose agents know no other.
    pub old_cni_annotation: bool,
    /// When it last checked in, in seconds since 1970 (UTC); 0 for never.
    pub last_seen: i64,
    /// It runs an agent of ours, whose last check-in carries our marker, and this is what its agent is told
    /// about leaders; `None` with an agent of upstream.
    pub ours: Option<LeaderFailover>,
    /// The nodes that it finds unreachable, sorted.
    pub unreachable: Box<[Arc<str>]>,
    /// It takes part whatever `last_seen` says, because nobody could have heard of a later check-in. No object
    /// says this: it is up to the agent.
    pub held: bool,
    /// It asks to lead its location.
    pub leader: bool,
    /// The name of its location.
    pub location: Arc<str>,
    /// Seconds, 0 for none.
    pub persistent_keepalive: u16,
    /// It is behind NAT: the endpoint others have discovered counts. True for each keepalive but 0, even one
    /// that WireGuard cannot have.
    pub behind_nat: bool,
    /// Its first pod range, without host bits.
    pub subnet: Option<IpNet>,
    /// The pod ranges after the first, without host bits. Upstream agents do not see these.
    pub further_subnets: Box<[IpNet]>,
    /// The WireGuard address it announces.
    pub wireguard_ip: Option<IpNet>,
    /// Endpoints of peers behind NAT that it has seen.
    pub discovered_endpoints: BTreeMap<PublicKey, SocketAddr>,
    /// Ranges that are reached through its location, host bits kept.
    pub allowed_location_ips: Box<[IpNet]>,
    /// The granularity it announces.
    pub granularity: Option<Granularity>,
    /// Kilo's annotations that an agent does not write itself, by full name.
    pub foreign_annotations: Box<[(Box<str>, Box<str>)]>,
}

/// The annotations of a Node, and what is found wrong with them.
struct Reader<'a> {
    object: &'a NodeObject,
    findings: Vec<Finding>,
}

impl<'a> Reader<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.object.metadata.annotations.get(&format!("{PREFIX}{name}")).map(String::as_str)
    }

    fn report(&mut self, name: &str, value: &str, reason: impl Into<String>) {
        let object = format!("Node/{}", self.object.metadata.name);
        self.findings.push(Finding::new(object, format!("{PREFIX}{name}"), value, reason));
    }

    /// The annotation, if it is there, not empty, and parses.
    fn parsed<T>(&mut self, name: &str, what: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.get(name).filter(|s| !s.is_empty())?;
        let value = parse(text);
        if value.is_none() {
            self.report(name, text, format!("not {what}; it counts as absent"));
        }
        value
    }

    fn endpoint(&mut self, name: &str) -> Option<Endpoint> {
        let text = self.get(name).filter(|s| !s.is_empty())?;
        match text.parse() {
            Ok(endpoint) => Some(endpoint),
            Err(error) => {
                self.report(name, text, format!("{error}; it counts as absent"));
                None
            }
        }
    }

    fn keepalive(&mut self) -> (u16, bool) {
        let name = "persistent-keepalive";
        let Some(text) = self.get(name).filter(|s| !s.is_empty()) else { return (0, false) };
        let nat = match parse::integer(text) {
            Some(seconds) => seconds != 0,
            // Upstream's number for what does not fit is not 0 either.
            None => {
                let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
                !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
            }
        };
        match parse::integer(text).map(u16::try_from) {
            Some(Ok(seconds)) => (seconds, nat),
            Some(Err(_)) | None => {
                self.report(name, text, "not a number of seconds from 0 to 65535; it counts as 0");
                (0, nat)
            }
        }
    }

    fn allowed_location_ips(&mut self) -> Box<[IpNet]> {
        let name = "allowed-location-ips";
        let Some(text) = self.get(name).filter(|s| !s.is_empty()) else { return Box::default() };
        let mut nets = Vec::new();
        for item in text.split(',') {
            match parse::cidr(item) {
                Some(net) => nets.push(net),
                None => self.report(name, item, "not a range ADDRESS/LENGTH without blanks; it is left out"),
            }
        }
        nets.into()
    }

    fn unreachable(&mut self) -> Box<[Arc<str>]> {
        let Some(text) = self.get(UNREACHABLE) else { return Box::default() };
        let names = || text.split(',').filter(|name| !name.is_empty());
        if names().nth(REPORTS).is_some() {
            self.report(UNREACHABLE, text, format!("more than {REPORTS} nodes; the rest is left out"));
        }
        let names: BTreeSet<&str> = names().take(REPORTS).collect();
        names.into_iter().map(Arc::from).collect()
    }

    fn discovered(&mut self) -> BTreeMap<PublicKey, SocketAddr> {
        let name = "discovered-endpoints";
        let Some(text) = self.get(name).filter(|s| !s.is_empty()) else { return BTreeMap::new() };
        annotations::parse_discovered(text).unwrap_or_else(|reason| {
            self.report(name, text, reason);
            BTreeMap::new()
        })
    }

    /// `force-internal-ip`, then `internal-ip`; and whether there is said to be none.
    fn internal_ip(&mut self) -> (Option<IpNet>, bool) {
        if let Some("" | "-") = self.get("force-internal-ip") {
            return (None, true);
        }
        let what = "a range ADDRESS/LENGTH";
        let forced = self.parsed("force-internal-ip", what, parse::cidr);
        (forced.or_else(|| self.parsed("internal-ip", what, parse::cidr)), false)
    }

    fn cni_compatibility_ip(&mut self) -> Option<IpNet> {
        let plain_or_range = |s: &str| parse::cidr(s).or_else(|| parse::ip(s).map(parse::one));
        self.parsed("cni-compatibility-ip", "a range ADDRESS/LENGTH", parse::cidr)
            .or_else(|| self.parsed(OLD_CNI, "an address", plain_or_range))
    }

    fn subnets(&mut self) -> (Option<IpNet>, Box<[IpNet]>) {
        let spec = &self.object.spec;
        let first = parse::cidr(&spec.pod_cidr).map(|n| n.trunc());
        if first.is_none() {
            let reason = "not a range ADDRESS/LENGTH; the node takes no part";
            let object = format!("Node/{}", self.object.metadata.name);
            self.findings.push(Finding::new(object, "spec.podCIDR", &*spec.pod_cidr, reason));
        }
        let further = spec.pod_cidrs.iter().filter_map(|s| parse::cidr(s)).map(|n| n.trunc());
        (first, further.filter(|n| Some(*n) != first).collect())
    }
}

impl Node {
    /// Understands a Node object; `topology_label` names the label that holds its location. What cannot be
    /// understood counts as absent and is reported.
    pub fn from_object(object: &NodeObject, topology_label: &str) -> (Self, Vec<Finding>) {
        let mut r = Reader { object, findings: Vec::new() };
        let (internal_ip, no_internal_ip) = r.internal_ip();
        let (persistent_keepalive, behind_nat) = r.keepalive();
        let (subnet, further_subnets) = r.subnets();
        let label = object.metadata.labels.get(topology_label).map(String::as_str);
        let last_seen = r.parsed("last-seen", "a number of seconds", parse::integer).unwrap_or(0);
        let node = Self {
            name: object.metadata.name.as_str().into(),
            endpoint: r.endpoint("force-endpoint").or_else(|| r.endpoint("endpoint")),
            key: r.parsed("key", "a WireGuard key", |s| s.parse().ok()),
            internal_ip,
            no_internal_ip,
            cni_compatibility_ip: r.cni_compatibility_ip(),
            old_cni_annotation: r.get(OLD_CNI).is_some() && r.get("cni-compatibility-ip").is_none(),
            last_seen,
            ours: r.get(MARKER).and_then(|text| annotations::read_marker(text, last_seen)),
            unreachable: r.unreachable(),
            held: false,
            leader: r.get("leader").is_some(),
            location: r.get("location").or(label).unwrap_or_default().into(),
            persistent_keepalive,
            behind_nat,
            subnet,
            further_subnets,
            wireguard_ip: r.parsed("wireguard-ip", "a range ADDRESS/LENGTH", parse::cidr),
            discovered_endpoints: r.discovered(),
            allowed_location_ips: r.allowed_location_ips(),
            granularity: r.parsed("granularity", "location or full", |s| match s {
                "location" => Some(Granularity::Location),
                "full" => Some(Granularity::Full),
                _ => None,
            }),
            foreign_annotations: annotations::foreign(&object.metadata.annotations),
        };
        (node, r.findings)
    }

    /// Whether the node takes part at this time, in seconds since 1970; `expiry` is how long after its last
    /// check-in it still does, 0 for ever.
    pub fn ready(&self, now: u64, expiry: u64) -> bool {
        self.is_complete() && (self.held || self.fresh(now, expiry))
    }

    /// The same by its last check-in alone.
    pub fn ready_by_clock(&self, now: u64, expiry: u64) -> bool {
        self.is_complete() && self.fresh(now, expiry)
    }

    /// Whether it has all that a node needs to take part.
    pub fn is_complete(&self) -> bool {
        self.endpoint.is_some() && self.key.is_some() && self.subnet.is_some()
    }

    fn fresh(&self, now: u64, expiry: u64) -> bool {
        // Upstream's subtraction wraps; a `last-seen` of the far past must mean the same everywhere.
        expiry == 0 || now.cast_signed().wrapping_sub(self.last_seen) < expiry.cast_signed()
    }

    /// All pod ranges, the first one first.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.subnet.into_iter().chain(self.further_subnets.iter().copied())
    }
}
