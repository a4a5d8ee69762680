//! Pods and namespaces, as much of them as policies ask for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use kilo_object::{Field, Notes, Unreadable};

use crate::intern::{Interner, Text};
use crate::labels::Labels;
use crate::policy::Protocol;

/// The label of every namespace that holds its name.
pub(crate) const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A port of a container that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    /// Its name.
    pub name: Text,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
}

/// A Pod, trimmed to what policies ask for: less than 500 bytes with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// The digits of `metadata.creationTimestamp`, which the API server writes in UTC: 20260131235959. The greater the
    /// newer; 0 where there is none.
    pub created: u64,
    /// `metadata.labels`.
    pub labels: Arc<Labels>,
    /// `spec.nodeName`, empty where there is none.
    pub node: Text,
    /// The named ports of its containers and sidecars, sorted; of one name and protocol the first.
    pub ports: Arc<[NamedPort]>,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// It uses the network of its node.
    pub host_network: bool,
    /// It has succeeded or failed: it is no pod for policies any more, and its address may be another's.
    pub finished: bool,
    /// Its labels or its network could not be read: nothing selects it as a peer, and nothing is let through to
    /// or from it.
    pub held: bool,
}

impl Pod {
    /// The addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }

    /// The number of the port of this name and protocol.
    pub fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let at = self.ports.binary_search_by(|p| (&*p.name, p.protocol).cmp(&(name, protocol))).ok()?;
        Some(self.ports[at].number)
    }

    pub(crate) fn read(root: &Field<'_, '_>, interner: &mut Interner, notes: &mut Notes) -> Self {
        let (metadata, spec, status) = (root.get("metadata"), root.get("spec"), root.get("status"));
        notes.follows("nothing is let through to or from this pod");
        let labels = Labels::read(&metadata.get("labels"), None, interner, notes);
        let host_network = spec.get("hostNetwork").flag(notes);
        let mut held = labels.is_err() || host_network.is_err();
        for part in [&spec, &status] {
            held |= part.fields(notes).is_err();
        }
        notes.follows("it is left out");
        let mut text = |field: Field<'_, '_>| field.text(notes).ok().flatten().unwrap_or_default().to_owned();
        let uid = text(metadata.get("uid")).into();
        let created = digits(&text(metadata.get("creationTimestamp")));
        let node = interner.text(&text(spec.get("nodeName")));
        let phase = text(status.get("phase"));
        let (v4, v6) = addresses(&status, notes);
        Self {
            uid,
            created,
            labels: labels.unwrap_or_default(),
            node,
            ports: ports(&spec, interner, notes),
            v4,
            v6,
            host_network: host_network.unwrap_or(false),
            finished: phase == "Succeeded" || phase == "Failed",
            held,
        }
    }
}

/// The digits of a time in UTC to the second, as one number; 0 if it is in another form.
fn digits(time: &str) -> u64 {
    let digits: String = time.chars().filter(char::is_ascii_digit).collect();
    if time.len() == 20 && time.ends_with('Z') && digits.len() == 14 {
        digits.parse().unwrap_or(0)
    } else {
        0
    }
}

/// The first address of each family of `podIPs`; `podIP` where there are none.
fn addresses(status: &Field<'_, '_>, notes: &mut Notes) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let (mut v4, mut v6) = (None, None);
    let mut take = |field: &Field<'_, '_>, notes: &mut Notes| {
        let Ok(Some(text)) = field.text(notes) else { return };
        match text.parse().map(|address: IpAddr| address.to_canonical()) {
            Ok(IpAddr::V4(address)) => _ = v4.get_or_insert(address),
            Ok(IpAddr::V6(address)) => _ = v6.get_or_insert(address),
            Err(_) if text.is_empty() => {}
            Err(_) => _ = field.must_be("an address", notes),
        }
    };
    let all = status.get("podIPs");
    if let Ok(items) = all.items(notes) {
        for item in items {
            take(&item.get("ip"), notes);
        }
    }
    if all.value().as_array().is_none_or(Vec::is_empty) {
        take(&status.get("podIP"), notes);
    }
    (v4, v6)
}

/// The ports of containers, and of init containers that go on running.
fn ports(spec: &Field<'_, '_>, interner: &mut Interner, notes: &mut Notes) -> Arc<[NamedPort]> {
    let mut found = Vec::new();
    for (list, sidecars) in [("containers", false), ("initContainers", true)] {
        let list = spec.get(list);
        let Ok(containers) = list.items(notes) else { continue };
        for container in containers {
            if sidecars && container.get("restartPolicy").value().as_str() != Some("Always") {
                continue;
            }
            let ports = container.get("ports");
            let Ok(ports) = ports.items(notes) else { continue };
            found.extend(ports.filter_map(|port| named_port(&port, interner, notes).ok().flatten()));
        }
    }
    // Stable: of two with one name the first counts.
    found.sort_by(|a: &NamedPort, b| (&a.name, a.protocol).cmp(&(&b.name, b.protocol)));
    found.dedup_by(|b, a| (&a.name, a.protocol) == (&b.name, b.protocol));
    interner.ports(found)
}

fn named_port(
    port: &Field<'_, '_>,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Result<Option<NamedPort>, Unreadable> {
    let Some(name) = port.get("name").text(notes)?.filter(|name| !name.is_empty()) else { return Ok(None) };
    let number = port.get("containerPort").port(notes)?;
    let protocol = Protocol::read(&port.get("protocol"), notes)?;
    Ok(Some(NamedPort { name: interner.text(name), protocol, number }))
}

/// Reads a Namespace: its labels. Its name is a label that cannot be forged.
pub(crate) fn read_namespace(
    root: &Field<'_, '_>,
    name: &str,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Option<Arc<Labels>> {
    notes.follows("no selector of namespaces finds it but by its name");
    Labels::read(&root.get("metadata").get("labels"), Some((NAME_LABEL, name)), interner, notes).ok()
}
