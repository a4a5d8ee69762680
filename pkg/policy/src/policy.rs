//! `networking.k8s.io/v1` NetworkPolicies as they are evaluated.

use std::fmt;

use kilo_object::{Field, Notes, Unreadable};
use serde::Serialize;

use crate::block::Block;
use crate::intern::Text;
use crate::labels::Selector;

/// The direction of a connection as its subject sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Others open connections to the subject.
    Ingress,
    /// The subject opens connections to others.
    Egress,
}

/// A protocol with ports that policies know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// The protocol of this name as objects write it.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// TCP where there is none.
    pub(crate) fn read(field: &Field<'_, '_>, notes: &mut Notes) -> Result<Self, Unreadable> {
        match field.text(notes)? {
            None => Ok(Self::Tcp),
            Some(name) => Self::from_name(name).ok_or_else(|| notes.wrong(field, "must be TCP, UDP or SCTP")),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which pods of its namespace it isolates. What could not be understood of it is left out, so that it isolates
    /// no less; its rules then allow nothing.
    pub subjects: Selector,
    /// The rules for connections to these pods; nothing if it does not isolate them in this direction.
    pub ingress: Option<Box<[Rule]>>,
    /// The rules for connections from these pods.
    pub egress: Option<Box<[Rule]>>,
}

impl Policy {
    /// The rules of a direction; nothing if it does not isolate in this one.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// What a rule allows: any of its ports from or to any of its peers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// The entries of `from` or `to`; nothing for everybody.
    pub peers: Option<Box<[Peer]>>,
    /// The entries of `ports`; nothing for every protocol and port.
    pub ports: Option<Box<[Port]>>,
}

/// An entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods by labels.
    Pods {
        /// Of these namespaces; nothing for the namespace of the policy.
        namespaces: Option<Selector>,
        /// These of them.
        pods: Selector,
    },
    /// Addresses, those of pods included.
    Block(Block),
    /// It could not be understood, and matches nothing.
    Nothing,
}

/// An entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// Every port of a protocol.
    All(Protocol),
    /// From the first to the last port.
    Numbers(Protocol, u16, u16),
    /// The port that the destination pod calls so.
    Name(Protocol, Text),
    /// It could not be understood, and matches nothing.
    Nothing,
}
