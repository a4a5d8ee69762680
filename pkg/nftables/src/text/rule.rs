//! The text of rules and of their expressions.

use std::fmt::{self, Display, Formatter};

use crate::{
    Addresses, CtDirection, Direction, End, Expr, Family, Header, Load, Mark, Rule, Verdict, ct_state,
};

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, expr) in self.exprs().iter().enumerate() {
            let gap = if i == 0 { "" } else { " " };
            write!(f, "{gap}{expr}")?;
        }
        match self.comment() {
            Some(comment) if self.exprs().is_empty() => write!(f, "comment \"{comment}\""),
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let not = |negated: bool| if negated { "!= " } else { "" };
        match self {
            Self::NfProto(Family::V4) => f.write_str("meta nfproto ipv4"),
            Self::NfProto(Family::V6) => f.write_str("meta nfproto ipv6"),
            Self::L4Proto(number) => match protocol_name(*number) {
                Some(name) => write!(f, "meta l4proto {name}"),
                None => write!(f, "meta l4proto {number}"),
            },
            Self::Link { direction, name, negated } => {
                write!(f, "{} {}\"{}\"", Load::Link(*direction), not(*negated), name.as_str())
            }
            Self::Address { end, among, negated } => {
                write!(f, "{} {}{among}", Load::Address(among.family(), *end), not(*negated))
            }
            Self::EtherType(0x0806) => f.write_str("meta protocol arp"),
            Self::EtherType(number) => write!(f, "meta protocol {number:#06x}"),
            Self::Net { of, net, negated } => {
                let net = Addresses::Net(*net);
                write!(f, "{of} {}{net}", not(*negated))
            }
            Self::EtherSource { address: [a, b, c, d, e, g], negated } => {
                let not = not(*negated);
                write!(f, "ether saddr {not}{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
            Self::Number { of, first, last, negated } if first == last => {
                write!(f, "{of} {}{first}", not(*negated))
            }
            Self::Number { of, first, last, negated } => {
                write!(f, "{of} {}{first}-{last}", not(*negated))
            }
            Self::Bits { of: Load::CtState, mask, value: 0, negated } if *mask != 0 => {
                let not = if *negated { "" } else { "! " };
                write!(f, "ct state {not}{}", states(*mask))
            }
            Self::Bits { of: of @ Load::TcpFlags, mask, value, negated } => {
                let op = if *negated { "!=" } else { "==" };
                write!(f, "{of} & {mask:#04x} {op} {value:#04x}")
            }
            Self::Bits { of, mask: u32::MAX, value, negated } => {
                write!(f, "{of} {}{value:#010x}", not(*negated))
            }
            Self::Bits { of, mask, value, negated } => {
                let op = if *negated { "!=" } else { "==" };
                write!(f, "{of} & {mask:#010x} {op} {value:#010x}")
            }
            Self::NoReturnPath => f.write_str("fib saddr . iif oif missing"),
            Self::Lookup { keys, set, negated } => write!(f, "{} {}@{set}", Key(keys), not(*negated)),
            Self::Vmap { keys, map } => write!(f, "{} vmap @{map}", Key(keys)),
            Self::Dispatch { keys, ids, chains } => {
                write!(f, "{} map @{ids} vmap @{chains}", Key(keys))
            }
            Self::SetMark { mark, mask: u32::MAX, value } => write!(f, "{mark} set {value:#010x}"),
            Self::SetMark { mark, mask, value } => {
                write!(f, "{mark} set {mark} & {:#010x} | {value:#010x}", !mask)
            }
            Self::Counter => f.write_str("counter"),
            Self::CountIn(name) => write!(f, "counter name \"{name}\""),
            Self::Limit { packets, seconds, burst } => {
                write!(f, "limit rate {packets}/")?;
                match seconds {
                    1 => f.write_str("second")?,
                    60 => f.write_str("minute")?,
                    3600 => f.write_str("hour")?,
                    86400 => f.write_str("day")?,
                    604_800 => f.write_str("week")?,
                    other => write!(f, "{other} seconds")?,
                }
                write!(f, " burst {burst} packets")
            }
            Self::Log { group, prefix, snaplen } => {
                f.write_str("log")?;
                if !prefix.is_empty() {
                    write!(f, " prefix \"{prefix}\"")?;
                }
                write!(f, " group {group}")?;
                snaplen.map_or(Ok(()), |snaplen| write!(f, " snaplen {snaplen}"))
            }
            Self::Reject => f.write_str("reject with icmpx admin-prohibited"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Verdict(verdict) => verdict.fmt(f),
            Self::Unknown { name, .. } => write!(f, "[unknown {name}]"),
        }
    }
}

impl Display for Addresses {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Self::Net(net) => net.fmt(f),
            Self::Set(_, name) => write!(f, "@{name}"),
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// The name of a protocol in Debian's `/etc/protocols`, from where `nft` takes it.
pub(super) fn protocol_name(number: u8) -> Option<&'static str> {
    Some(match number {
        1 => "icmp",
        2 => "igmp",
        4 => "ipencap",
        6 => "tcp",
        17 => "udp",
        41 => "ipv6",
        47 => "gre",
        50 => "esp",
        58 => "ipv6-icmp",
        132 => "sctp",
        _ => return None,
    })
}

/// The parts of a key.
struct Key<'a>(&'a [Load]);

impl Display for Key<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, load) in self.0.iter().enumerate() {
            let gap = if i == 0 { "" } else { " . " };
            write!(f, "{gap}{load}")?;
        }
        Ok(())
    }
}

/// States of connections by their names, in the order in which `nft` lists them.
fn states(mask: u32) -> String {
    let named = [
        (ct_state::INVALID, "invalid"),
        (ct_state::ESTABLISHED, "established"),
        (ct_state::RELATED, "related"),
        (ct_state::NEW, "new"),
        (ct_state::UNTRACKED, "untracked"),
    ];
    let known: u32 = named.iter().map(|(bit, _)| bit).sum();
    let mut words: Vec<String> =
        named.iter().filter(|(bit, _)| mask & bit != 0).map(|(_, name)| (*name).to_owned()).collect();
    if mask & !known != 0 {
        words.push(format!("{:#x}", mask & !known));
    }
    words.join(",")
}

impl Display for Mark {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Packet => "meta mark",
            Self::Connection => "ct mark",
        })
    }
}

impl Display for CtDirection {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Original => "original",
            Self::Reply => "reply",
        })
    }
}

fn header(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The word for an end.
fn field(end: End, source: &'static str, destination: &'static str) -> &'static str {
    match end {
        End::Source => source,
        End::Destination => destination,
    }
}

impl Display for Load {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(Direction::In) => f.write_str("iifname"),
            Self::Link(Direction::Out) => f.write_str("oifname"),
            Self::L4Proto => f.write_str("meta l4proto"),
            Self::Address(family, end) => {
                write!(f, "{} {}", header(*family), field(*end, "saddr", "daddr"))
            }
            Self::Port(end) => write!(f, "th {}", field(*end, "sport", "dport")),
            Self::CtAddress(direction, family, end) => {
                write!(f, "ct {direction} {} {}", header(*family), field(*end, "saddr", "daddr"))
            }
            Self::CtPort(direction, end) => {
                write!(f, "ct {direction} {}", field(*end, "proto-src", "proto-dst"))
            }
            Self::CtProtocol => f.write_str("ct protocol"),
            Self::Mark => f.write_str("meta mark"),
            Self::CtMark => f.write_str("ct mark"),
            Self::CtState => f.write_str("ct state"),
            Self::TcpFlags => f.write_str("tcp flags"),
            Self::IcmpType => f.write_str("@th,0,8"),
            Self::EtherSource => f.write_str("ether saddr"),
            Self::Raw { header, offset, len } => {
                let base = match header {
                    Header::Link => "ll",
                    Header::Network => "nh",
                    Header::Transport => "th",
                };
                write!(f, "@{base},{},{}", u32::from(*offset) * 8, u32::from(*len) * 8)
            }
        }
    }
}
