//! The whole truth table of a cluster: every pair of ends, every port, and what is said about it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::ser::{Serialize, SerializeStruct as _, Serializer};

use crate::evaluate::{End, Evaluator, Traffic};
use crate::policy::Protocol;
use crate::verdict::{Connection, Verdict, word};

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `IPv4` or `IPv6`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// What is asked about each pair; ordered as rows are, by the name of the protocol, then by port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// An echo request.
    Icmp,
    /// A connection to a port.
    Port(Protocol, u16),
}

impl Probe {
    /// `ICMP`, `TCP`, …
    pub fn protocol(self) -> String {
        match self {
            Self::Icmp => "ICMP".to_owned(),
            Self::Port(protocol, _) => protocol.to_string(),
        }
    }

    /// The port; none for ICMP.
    pub fn port(self) -> Option<u16> {
        match self {
            Self::Icmp => None,
            Self::Port(_, port) => Some(port),
        }
    }

    fn traffic(self, family: Family) -> Traffic {
        match (self, family) {
            (Self::Icmp, Family::V4) => Traffic::Icmp(8),
            (Self::Icmp, Family::V6) => Traffic::Icmpv6(128),
            (Self::Port(protocol, port), _) => Traffic::Port(protocol, port),
        }
    }
}

impl FromStr for Probe {
    type Err = String;

    /// Reads `80/tcp`, `53/udp`, `9000/sctp`, `80` (TCP) or `icmp`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("icmp") {
            return Ok(Self::Icmp);
        }
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let port = port.parse().ok().filter(|port| *port > 0);
        let protocol = Protocol::from_name(&protocol.to_ascii_uppercase());
        let (Some(port), Some(protocol)) = (port, protocol) else {
            return Err("must be a port from 1 to 65535 and a protocol as in 80/tcp, or icmp".to_owned());
        };
        Ok(Self::Port(protocol, port))
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Icmp => f.write_str("ICMP"),
            Self::Port(protocol, port) => write!(f, "{port}/{protocol}"),
        }
    }
}

/// An end by the name that a table shows, in each family.
#[derive(Debug)]
struct Participant<'s> {
    name: String,
    external: bool,
    ends: [Option<End<'s>>; 2],
}

/// A truth table, of which rows are made as they are asked for.
#[derive(Debug)]
pub struct Table<'t, 's> {
    evaluator: &'t Evaluator<'s>,
    participants: Vec<Participant<'s>>,
    probes: Vec<Probe>,
}

/// One row of a table.
#[derive(Debug)]
pub struct Row<'t, 's> {
    /// Who connects: `pod/NAMESPACE/NAME` or `ip/ADDRESS`.
    pub from: &'t str,
    /// To whom.
    pub to: &'t str,
    /// By addresses of this family.
    pub family: Family,
    /// By what.
    pub probe: Probe,
    /// What is said about it.
    pub connection: Connection<'t, 's>,
}

impl<'t, 's> Table<'t, 's> {
    /// The table of all pods that live and have an address, and of some addresses outside the cluster.
    pub fn new(evaluator: &'t Evaluator<'s>, probes: &[Probe], externals: &[IpAddr]) -> Self {
        let mut participants: Vec<_> = evaluator
            .ends()
            .map(|(namespace, name, ends)| participant(format!("pod/{namespace}/{name}"), false, ends))
            .collect();
        participants.extend(externals.iter().map(|address| {
            let address = address.to_canonical();
            participant(format!("ip/{address}"), true, vec![evaluator.at(address)])
        }));
        participants.sort_by(|a, b| a.name.cmp(&b.name));
        participants.dedup_by(|a, b| a.name == b.name);
        let mut probes = probes.to_vec();
        probes.sort_by_key(|probe| (probe.protocol(), probe.port()));
        probes.dedup();
        Self { evaluator, participants, probes }
    }

    /// The names of all ends, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.participants.iter().map(|participant| &*participant.name)
    }

    /// The rows: all ordered pairs of different ends of one family, but for two addresses outside the cluster;
    /// sorted by from, to, family, protocol and port.
    pub fn rows(&'t self) -> impl Iterator<Item = Row<'t, 's>> {
        let all = &self.participants;
        let pairs = all.iter().flat_map(move |from| all.iter().map(move |to| (from, to)));
        pairs.filter(|(from, to)| !(std::ptr::eq(*from, *to) || from.external && to.external)).flat_map(
            move |(from, to)| {
                from.ends.iter().zip(&to.ends).filter_map(|(a, b)| a.as_ref().zip(b.as_ref())).flat_map(
                    move |(a, b)| self.probes.iter().map(move |probe| self.row((from, a), (to, b), *probe)),
                )
            },
        )
    }

    fn row(
        &'t self,
        (from, a): (&'t Participant<'s>, &'t End<'s>),
        (to, b): (&'t Participant<'s>, &'t End<'s>),
        probe: Probe,
    ) -> Row<'t, 's> {
        let family = Family::of(a.address);
        let connection = self.evaluator.connection(a, b, probe.traffic(family));
        Row { from: &from.name, to: &to.name, family, probe, connection }
    }
}

fn participant(name: String, external: bool, ends: Vec<End<'_>>) -> Participant<'_> {
    let mut participant = Participant { name, external, ends: [None, None] };
    for end in ends {
        let at = usize::from(end.address.is_ipv6());
        participant.ends[at] = Some(end);
    }
    participant
}

/// `allow`, `deny`, or `n/a` for an end that no policy applies to.
fn said(verdict: Option<&Verdict<'_, '_>>) -> &'static str {
    verdict.map_or("n/a", |verdict| word(verdict.allowed))
}

impl Row<'_, '_> {
    /// What the policies of the destination say: `allow`, `deny` or `n/a`.
    pub fn ingress(&self) -> &'static str {
        said(self.connection.ingress.as_ref())
    }

    /// What the policies of the source say.
    pub fn egress(&self) -> &'static str {
        said(self.connection.egress.as_ref())
    }

    /// What both together say: `allow` or `deny`.
    pub fn verdict(&self) -> &'static str {
        word(self.connection.is_allowed())
    }
}

impl Serialize for Row<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_struct("Row", 10)?;
        row.serialize_field("from", self.from)?;
        row.serialize_field("to", self.to)?;
        row.serialize_field("family", self.family.name())?;
        row.serialize_field("port", &self.probe.port())?;
        row.serialize_field("protocol", &self.probe.protocol())?;
        row.serialize_field("ingress", self.ingress())?;
        row.serialize_field("egress", self.egress())?;
        row.serialize_field("verdict", self.verdict())?;
        row.serialize_field("ingressBy", &self.connection.ingress.as_ref().map(|v| &v.because))?;
        row.serialize_field("egressBy", &self.connection.egress.as_ref().map(|v| &v.because))?;
        row.end()
    }
}
