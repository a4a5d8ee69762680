//! A verdict with what decided it, in the words and the form that are printed and logged.

use std::fmt;

use serde::ser::{Serialize, SerializeMap as _, Serializer};

use crate::evaluate::PodEnd;
use crate::index::Named;
use crate::policy::Direction;

/// Whether one end allows a connection, and why.
#[derive(Clone, Debug)]
pub struct Verdict<'e, 's> {
    /// It does.
    pub allowed: bool,
    /// What decided.
    pub because: Because<'e, 's>,
}

/// What decides a verdict.
#[derive(Clone, Debug)]
pub enum Because<'e, 's> {
    /// No policy isolates the pod in this direction.
    NotIsolated,
    /// A rule allows it.
    Rule {
        /// Of this policy.
        policy: Named<'s>,
        /// The number of the rule, from 0.
        rule: usize,
        /// The number of the entry of `from` or `to`; nothing where the rule has none.
        peer: Option<usize>,
        /// The number of the entry of `ports`; nothing where the rule has none.
        port: Option<usize>,
    },
    /// Policies isolate the pod, and no rule of theirs allows it.
    Isolated {
        /// The pod.
        subject: &'e PodEnd<'s>,
        /// In this direction.
        direction: Direction,
    },
    /// It comes from the pod's own node.
    OwnNode,
    /// The pod speaks with itself.
    Itself,
    /// Neighbour discovery.
    Link,
    /// Echo requests are allowed by an option.
    Echo,
    /// The pod could not be read, so that nobody knows which policies it is subject to.
    Held,
}

/// The verdicts of both ends on a connection; nothing for an end that no policy applies to.
#[derive(Clone, Debug)]
pub struct Connection<'e, 's> {
    /// Of the end that is connected to.
    pub ingress: Option<Verdict<'e, 's>>,
    /// Of the end that connects.
    pub egress: Option<Verdict<'e, 's>>,
}

impl Connection<'_, '_> {
    /// Whether both ends allow it.
    pub fn is_allowed(&self) -> bool {
        [&self.ingress, &self.egress].into_iter().flatten().all(|verdict| verdict.allowed)
    }
}

/// The one pair of words for verdicts.
pub fn word(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}

impl<'e, 's> Because<'e, 's> {
    /// The policies that isolate the pod where no rule allows the connection; sorted by name.
    pub fn isolated_by(&self) -> impl Iterator<Item = &'e Named<'s>> {
        let subject = match self {
            Self::Isolated { subject, direction } => Some((*subject, *direction)),
            Self::NotIsolated
            | Self::Rule { .. }
            | Self::OwnNode
            | Self::Itself
            | Self::Link
            | Self::Echo
            | Self::Held => None,
        };
        subject
            .into_iter()
            .flat_map(|(subject, direction)| subject.isolating(direction).map(|(named, _)| named))
    }

    /// What decides in one word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotIsolated => "notIsolated",
            Self::Rule { .. } => "rule",
            Self::Isolated { .. } => "isolated",
            Self::OwnNode => "ownNode",
            Self::Itself => "itself",
            Self::Link => "link",
            Self::Echo => "echo",
            Self::Held => "held",
        }
    }
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Because<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotIsolated => f.write_str("not isolated"),
            Self::Rule { policy, rule, peer, port } => {
                write!(f, "{policy} rule {rule}")?;
                peer.map_or(Ok(()), |peer| write!(f, " peer {peer}"))?;
                port.map_or(Ok(()), |port| write!(f, " port {port}"))
            }
            Self::Isolated { .. } => {
                f.write_str("isolated by ")?;
                for (n, policy) in self.isolated_by().enumerate() {
                    write!(f, "{}{policy}", if n == 0 { "" } else { ", " })?;
                }
                f.write_str("; no rule allows it")
            }
            Self::OwnNode => f.write_str("from its own node"),
            Self::Itself => f.write_str("to itself"),
            Self::Link => f.write_str("neighbour discovery"),
            Self::Echo => f.write_str("echo is always allowed"),
            Self::Held => f.write_str("the pod could not be read"),
        }
    }
}

/// `{"because":"rule","policy":"shop/web","rule":0,"peer":1,"port":null}`, or
/// `{"because":"isolated","isolatedBy":["shop/web"],"rule":null}`.
impl Serialize for Because<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("because", self.name())?;
        if let Self::Rule { policy, rule, peer, port } = self {
            map.serialize_entry("policy", &policy.to_string())?;
            map.serialize_entry("rule", rule)?;
            map.serialize_entry("peer", peer)?;
            map.serialize_entry("port", port)?;
        } else if matches!(self, Self::Isolated { .. }) {
            let policies: Vec<_> = self.isolated_by().map(ToString::to_string).collect();
            map.serialize_entry("isolatedBy", &policies)?;
            map.serialize_entry("rule", &None::<usize>)?;
        }
        map.end()
    }
}
