//! Services and EndpointSlices: which pods stand behind an address that is not a pod's. Policies mean those; this is
//! for packets that are seen before their destination was translated.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kilo_object::{Field, Notes, Unreadable};

use crate::intern::{Interner, Text};
use crate::pod::NamedPort;
use crate::policy::Protocol;
use crate::snapshot::Snapshot;

/// The label of an EndpointSlice that names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A `v1` Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its own addresses: `clusterIPs`, `externalIPs` and those of its load balancer.
    pub addresses: Box<[IpAddr]>,
    /// Its ports; the name is empty where there is only one without.
    pub ports: Box<[NamedPort]>,
}

/// A `discovery.k8s.io/v1` EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service of the same namespace that it belongs to; empty where it belongs to none.
    pub service: Text,
    /// Addresses to which connections may be sent.
    pub addresses: Box<[IpAddr]>,
    /// The ports there, by the names of the Service's.
    pub ports: Box<[NamedPort]>,
}

impl Service {
    pub(crate) fn read(root: &Field<'_, '_>, interner: &mut Interner, notes: &mut Notes) -> Self {
        notes.follows("it is left out");
        let (spec, status) = (root.get("spec"), root.get("status"));
        let mut addresses = Vec::new();
        for list in ["clusterIPs", "externalIPs"] {
            texts(&spec.get(list), &mut addresses, notes);
        }
        if addresses.is_empty() {
            text(&spec.get("clusterIP"), &mut addresses, notes);
        }
        let balancer = status.get("loadBalancer");
        if let Ok(entries) = balancer.get("ingress").items(notes) {
            for entry in entries {
                text(&entry.get("ip"), &mut addresses, notes);
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        Self { addresses: addresses.into(), ports: ports(&spec.get("ports"), interner, notes) }
    }
}

impl Slice {
    pub(crate) fn read(root: &Field<'_, '_>, interner: &mut Interner, notes: &mut Notes) -> Self {
        notes.follows("it is left out");
        let metadata = root.get("metadata");
        let service =
            metadata.get("labels").get(SERVICE_LABEL).text(notes).ok().flatten().unwrap_or_default();
        let mut addresses = Vec::new();
        if let Ok(endpoints) = root.get("endpoints").items(notes) {
            for endpoint in endpoints {
                let conditions = endpoint.get("conditions");
                let is = |condition| conditions.get(condition).value().as_bool();
                // A terminating endpoint still serves when no other one is left.
                if is("ready").unwrap_or(true) || is("serving").unwrap_or(false) {
                    texts(&endpoint.get("addresses"), &mut addresses, notes);
                }
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        Self {
            service: interner.text(service),
            addresses: addresses.into(),
            ports: ports(&root.get("ports"), interner, notes),
        }
    }
}

/// Services by their addresses, and slices by their Services.
#[derive(Debug)]
pub(crate) struct Backends<'s> {
    /// Of two Services with one address the first by namespace and name counts.
    services: BTreeMap<IpAddr, (&'s str, &'s str, &'s Service)>,
    slices: BTreeMap<(&'s str, &'s str), Vec<&'s Slice>>,
}

impl<'s> Backends<'s> {
    pub(crate) fn new(snapshot: &'s Snapshot) -> Self {
        let mut services: BTreeMap<IpAddr, (&str, &str, &Service)> = BTreeMap::new();
        for (namespace, name, service) in snapshot.services() {
            for address in &service.addresses {
                services.entry(*address).or_insert((namespace, name, service));
            }
        }
        let mut slices: BTreeMap<(&str, &str), Vec<&Slice>> = BTreeMap::new();
        for (namespace, _, slice) in snapshot.slices() {
            slices.entry((namespace, &slice.service)).or_default().push(slice);
        }
        Self { services, slices }
    }

    /// Addresses and ports behind a Service's, sorted; nothing where it has no such port, or is none.
    pub(crate) fn of(
        &self,
        address: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> Option<BTreeSet<(IpAddr, u16)>> {
        let (namespace, name, service) = self.services.get(&address)?;
        let called = service.ports.iter().find(|p| p.protocol == protocol && p.number == port)?;
        let mut found = BTreeSet::new();
        for slice in self.slices.get(&(*namespace, *name)).into_iter().flatten() {
            for port in slice.ports.iter().filter(|p| p.protocol == protocol && p.name == called.name) {
                let same_family = |a: &&IpAddr| a.is_ipv4() == address.is_ipv4();
                found.extend(
                    slice.addresses.iter().filter(same_family).map(|address| (*address, port.number)),
                );
            }
        }
        Some(found)
    }
}

fn texts(list: &Field<'_, '_>, addresses: &mut Vec<IpAddr>, notes: &mut Notes) {
    let Ok(items) = list.items(notes) else { return };
    for item in items {
        text(&item, addresses, notes);
    }
}

/// One address; a Service without any calls it `None`.
fn text(field: &Field<'_, '_>, addresses: &mut Vec<IpAddr>, notes: &mut Notes) {
    match field.text(notes) {
        Ok(None | Some("" | "None")) | Err(Unreadable) => {}
        Ok(Some(text)) => match text.parse::<IpAddr>() {
            Ok(address) => addresses.push(address.to_canonical()),
            Err(_) => _ = field.must_be("an address", notes),
        },
    }
}

fn ports(list: &Field<'_, '_>, interner: &mut Interner, notes: &mut Notes) -> Box<[NamedPort]> {
    let Ok(items) = list.items(notes) else { return Box::default() };
    let mut port = |field: Field<'_, '_>| -> Result<Option<NamedPort>, Unreadable> {
        let number = field.get("port");
        if number.is_missing() {
            return Ok(None);
        }
        let number = number.port(notes)?;
        let protocol = Protocol::read(&field.get("protocol"), notes)?;
        let name = field.get("name").text(notes)?.unwrap_or_default();
        Ok(Some(NamedPort { name: interner.text(name), protocol, number }))
    };
    let mut ports: Vec<_> = items.filter_map(|item| port(item).ok().flatten()).collect();
    ports.sort_unstable();
    ports.dedup();
    ports.into()
}
