//! Rules in their normal form, and the words that their expressions are made of.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::Expr;

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

    /// Bytes of an address.
    pub(crate) fn width(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// Where an address stands in the header of the packet.
    pub(crate) fn offset(self, end: End) -> u8 {
        match (self, end) {
            (Self::V4, End::Source) => 12,
            (Self::V4, End::Destination) => 16,
            (Self::V6, End::Source) => 8,
            (Self::V6, End::Destination) => 24,
        }
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
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct IfName(
    /// The name and zeros behind it, as the kernel compares it.
    [u8; 16],
);

impl IfName {
    /// The name, if the kernel takes it for one.
    pub fn new(name: &str) -> Option<Self> {
        let fits = (1..16).contains(&name.len())
            && !name.contains(|c: char| c.is_whitespace() || c.is_control() || "/\"*".contains(c));
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        fits.then_some(Self(bytes))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(16);
        // Only whole texts come in.
        std::str::from_utf8(self.0.get(..len).unwrap_or_default()).unwrap_or_default()
    }

    /// The name and zeros behind it.
    pub(crate) fn padded(&self) -> &[u8; 16] {
        &self.0
    }

    /// The name that the kernel has in these bytes.
    pub(crate) fn from_padded(bytes: &[u8]) -> Option<Self> {
        Self::new(std::str::from_utf8(bytes).ok()?.trim_end_matches('\0'))
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
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

impl Verdict {
    /// The chain that it leads to.
    pub fn chain(&self) -> Option<&str> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop | Self::Return => None,
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
        let mut fixed = None;
        for expr in exprs {
            let expr = expr.normal(fixed);
            if let Some(implied) = expr.family().map(Expr::NfProto) {
                let matches = normal.iter().rposition(|e| !e.is_match()).map_or(0, |i| i + 1);
                let mut i = 0;
                normal.retain(|e| {
                    i += 1;
                    i <= matches || *e != implied
                });
            }
            fixed = expr.fixes().or(fixed);
            normal.push(expr);
        }
        Self { exprs: normal, comment: clean(comment, MAX_COMMENT) }
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

/// A text that `nft` prints and reads again, of so many bytes; `None` where nothing is left of it.
pub(crate) fn clean(text: &str, most: usize) -> Option<Box<str>> {
    let mut text: String = text.chars().filter(|c| !c.is_control() && *c != '"').collect();
    while text.len() > most {
        text.pop();
    }
    (!text.is_empty()).then(|| text.into())
}
