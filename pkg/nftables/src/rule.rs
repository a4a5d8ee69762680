//! Rules: what a packet is compared with and what becomes of it. An expression stands for one or more of
//! the kernel's and has exactly one text and one byte form.

use std::net::IpAddr;

use ipnet::IpNet;

/// The version of the Internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The highest address as a number.
    pub(crate) fn highest(self) -> u128 {
        match self {
            Self::V4 => u32::MAX.into(),
            Self::V6 => u128::MAX,
        }
    }
}

/// The name of a link: 1 to 15 bytes without blanks and slashes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IfName(Box<str>);

impl IfName {
    /// The name, if the kernel takes it for one.
    pub fn new(name: &str) -> Option<Self> {
        let fits = (1..16).contains(&name.len())
            && !name.contains(|c: char| c.is_whitespace() || c.is_control() || "/\"*".contains(c));
        fits.then(|| Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which of a packet's links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// The link it came in by (`iifname`).
    In,
    /// The link it leaves by (`oifname`).
    Out,
}

/// Which of a packet's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// `saddr`.
    Source,
    /// `daddr`.
    Destination,
}

/// What an address is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// A network.
    Net(IpNet),
    /// A set of this name, whose keys are addresses of this family.
    Set(Family, Box<str>),
}

impl Addresses {
    /// The family that a packet needs to be compared at all.
    pub fn family(&self) -> Family {
        match self {
            Self::Net(net) => Family::of(net.addr()),
            Self::Set(family, _) => *family,
        }
    }
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, past this base chain.
    Accept,
    /// It is lost.
    Drop,
    /// Back to the chain that jumped here, or to the policy.
    Return,
    /// Through the chain of this name and back.
    Jump(Box<str>),
    /// Into the chain of this name and not back.
    Goto(Box<str>),
}

/// One step of a rule: a match, which ends the rule when it does not hold, or a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// `meta nfproto`: the packet is of this family.
    NfProto(Family),
    /// `meta l4proto`: the packet carries this protocol, extension headers skipped.
    L4Proto(u8),
    /// `iifname`, `oifname`: the packet's link has this name.
    Link {
        /// The link it came by or leaves by.
        direction: Direction,
        /// The name in full.
        name: IfName,
        /// Holds for any other name.
        negated: bool,
    },
    /// `ip saddr`, `ip6 daddr` and so on: one of the packet's addresses. Packets of the other family do not
    /// match, negated or not.
    Address {
        /// Source or destination.
        end: End,
        /// A network or a set.
        among: Addresses,
        /// Holds for any other address.
        negated: bool,
    },
    /// Counts packets and bytes; the values are no part of the table.
    Counter,
    /// Translates the source address to that of the link.
    Masquerade,
    /// Ends the rule.
    Verdict(Verdict),
    /// An expression of the kernel's that we do not write, so that no desired table has it.
    Unknown {
        /// Its name in the kernel.
        name: Box<str>,
        /// Its attributes as they came.
        data: Box<[u8]>,
    },
}

impl Expr {
    /// Whether it only decides if the rule goes on, so that its place among its like does not matter.
    fn is_match(&self) -> bool {
        match self {
            Self::NfProto(_) | Self::L4Proto(_) | Self::Link { .. } | Self::Address { .. } => true,
            Self::Counter | Self::Masquerade | Self::Verdict(_) | Self::Unknown { .. } => false,
        }
    }
}

/// Expressions in the order they are evaluated, and a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    exprs: Vec<Expr>,
    comment: Option<Box<str>>,
}

/// `nft` takes comments of up to this many bytes.
const MAX_COMMENT: usize = 128;

impl Rule {
    /// A rule in its normal form: host bits cleared, a test of the family left out where a
    /// later match implies it, the comment without quotes and control characters and cut at 128 bytes.
    pub fn new(exprs: impl IntoIterator<Item = Expr>, comment: &str) -> Self {
        let mut normal: Vec<Expr> = Vec::new();
        for expr in exprs {
            let expr = match expr {
                Expr::Address { among: Addresses::Net(net), negated: false, .. } if net.prefix_len() == 0 => {
                    Expr::NfProto(Family::of(net.addr()))
                }
                Expr::Address { end, among: Addresses::Net(net), negated } => {
                    Expr::Address { end, among: Addresses::Net(net.trunc()), negated }
                }
                other @ (Expr::NfProto(_)
                | Expr::L4Proto(_)
                | Expr::Link { .. }
                | Expr::Address { .. }
                | Expr::Counter
                | Expr::Masquerade
                | Expr::Verdict(_)
                | Expr::Unknown { .. }) => other,
            };
            if let Expr::Address { among, .. } = &expr {
                let implied = Expr::NfProto(among.family());
                let matches = normal.iter().rposition(|e| !e.is_match()).map_or(0, |i| i + 1);
                let mut i = 0;
                normal.retain(|e| {
                    i += 1;
                    i <= matches || *e != implied
                });
            }
            normal.push(expr);
        }
        Self { exprs: normal, comment: clean(comment) }
    }

    /// What it does, in order.
    pub fn exprs(&self) -> &[Expr] {
        &self.exprs
    }

    /// What it is for.
    pub fn comment(&self) -> Option<&str> {
        self.comment.as_deref()
    }
}

/// A comment that `nft` prints and reads again; `None` where nothing is left of it.
fn clean(comment: &str) -> Option<Box<str>> {
    let mut text: String = comment.chars().filter(|c| !c.is_control() && *c != '"').collect();
    while text.len() > MAX_COMMENT {
        text.pop();
    }
    (!text.is_empty()).then(|| text.into())
}
