//! The seam to the policy tables of this machine's kernel: read, commit, and hear what it has to say.

use std::future::Future;
use std::net::IpAddr;

use kilo_nftables::{Table, Transaction};

use crate::HostError;

/// What a commit took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Netlink messages.
    pub messages: usize,
    /// Their length in all.
    pub bytes: usize,
}

/// A hook as the kernel reports it with a logged packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoggedAt {
    /// Before routing.
    Prerouting,
    /// To this machine.
    Input,
    /// Through this machine.
    Forward,
    /// From this machine.
    Output,
    /// After routing.
    Postrouting,
}

impl LoggedAt {
    /// The hook of this number, as `NF_INET_*` counts them.
    pub fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Prerouting),
            1 => Some(Self::Input),
            2 => Some(Self::Forward),
            3 => Some(Self::Output),
            4 => Some(Self::Postrouting),
            _ => None,
        }
    }

    /// Its name, as nft writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// A packet that one of our rules logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The prefix of the rule, as it is in the table.
    pub prefix: String,
    /// Where it was.
    pub hook: Option<LoggedAt>,
    /// The name of the link it came in by.
    pub input: Option<String>,
    /// The name of the link it was to go out by.
    pub output: Option<String>,
    /// What it says about itself; `None` where its headers cannot be read.
    pub packet: Option<Packet>,
}

/// Ends, protocol and ports of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// From where.
    pub source: IpAddr,
    /// To where.
    pub destination: IpAddr,
    /// The number of its protocol; of IPv6 that behind the extension headers.
    pub protocol: u8,
    /// The ports from and to, of TCP, UDP and SCTP.
    pub ports: Option<(u16, u16)>,
}

/// The most extension headers that are followed.
const MOST_EXTENSIONS: usize = 8;

impl Packet {
    /// Reads what a packet begins with, from its IP header on. What it does not hold is left out.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::read_v4(bytes),
            6 => Self::read_v6(bytes),
            _ => None,
        }
    }

    fn read_v4(bytes: &[u8]) -> Option<Self> {
        let source: [u8; 4] = bytes.get(12..16)?.try_into().ok()?;
        let destination: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
        let header = usize::from(bytes[0] & 0xf) * 4;
        let is_first = u16::from_be_bytes([bytes[6], bytes[7]]) & 0x1fff == 0;
        let protocol = bytes[9];
        let payload = if is_first { bytes.get(header.max(20)..) } else { None };
        let ports = payload.and_then(|payload| ports(protocol, payload));
        Some(Self { source: source.into(), destination: destination.into(), protocol, ports })
    }

    fn read_v6(bytes: &[u8]) -> Option<Self> {
        let source: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
        let destination: [u8; 16] = bytes.get(24..40)?.try_into().ok()?;
        let (mut protocol, mut payload) = (bytes[6], bytes.get(40..));
        for _ in 0..MOST_EXTENSIONS {
            let Some([next, length, rest @ ..]) = payload else { break };
            let skip = match protocol {
                // Hop by hop, routing, destination options, mobility.
                0 | 43 | 60 | 135 => (usize::from(*length) + 1) * 8,
                44 => {
                    // Only the first fragment has ports.
                    if rest.get(..2).is_none_or(|o| u16::from_be_bytes([o[0], o[1]]) & 0xfff8 != 0) {
                        (protocol, payload) = (*next, None);
                        break;
                    }
                    8
                }
                51 => (usize::from(*length) + 2) * 4,
                _ => break,
            };
            (protocol, payload) = (*next, payload.and_then(|bytes| bytes.get(skip..)));
        }
        let ports = payload.and_then(|payload| ports(protocol, payload));
        Some(Self { source: source.into(), destination: destination.into(), protocol, ports })
    }

    /// The name of its protocol; its number where it has none here.
    pub fn protocol(&self) -> String {
        match self.protocol {
            1 | 58 => "icmp".to_owned(),
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            132 => "sctp".to_owned(),
            other => other.to_string(),
        }
    }
}

fn ports(protocol: u8, payload: &[u8]) -> Option<(u16, u16)> {
    match (protocol, payload) {
        (6 | 17 | 132, [a, b, c, d, ..]) => {
            Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])))
        }
        _ => None,
    }
}

/// What the kernel has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirewallEvent {
    /// Somebody else changed or removed one of our policy tables, or we may have missed that: read again.
    Changed {
        /// Who, in words, as far as the kernel tells.
        by: Option<String>,
    },
    /// A rule of ours logged a packet.
    Logged(Logged),
}

/// A named counter of one of our policy tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Its name.
    pub name: String,
    /// Packets.
    pub packets: u64,
    /// Their length in all.
    pub bytes: u64,
}

/// The policy tables of this machine's kernel. Only our own are read or written.
pub trait Firewall: Send + 'static {
    /// Reads our policy tables; those that are there.
    fn read(&mut self) -> impl Future<Output = Result<Vec<Table>, HostError>> + Send;

    /// Carries all of these out at once, or none: one batch, in this order.
    fn commit(
        &mut self,
        transactions: &[Transaction],
    ) -> impl Future<Output = Result<Committed, HostError>> + Send;

    /// Waits for the next thing the kernel has to say; may be cancelled at any time without losing one. Our own commits
    /// are none.
    fn next(&mut self) -> impl Future<Output = FirewallEvent> + Send;

    /// Reads the named counters.
    fn counters(&mut self) -> impl Future<Output = Result<Vec<Counted>, HostError>> + Send;

    /// Clears these bits of the marks of all tracked connections; how many had one.
    fn sweep(&mut self, mask: u32) -> impl Future<Output = Result<usize, HostError>> + Send;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ends_and_ports_of_both_families() {
        let mut v4 = vec![0x46, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 0, 0, 0];
        v4.extend([0x1f, 0x90, 0, 80]);
        let packet = Packet::read(&v4).expect("a packet");
        assert_eq!(
            (packet.source.to_string(), packet.destination.to_string()),
            ("10.0.0.1".into(), "10.0.0.2".into())
        );
        assert_eq!((packet.protocol().as_str(), packet.ports), ("tcp", Some((8080, 80))));
        v4[7] = 1;
        assert_eq!(Packet::read(&v4).and_then(|p| p.ports), None, "a later fragment has no ports");

        let mut v6 = vec![0x60, 0, 0, 0, 0, 28, 0, 64];
        v6.extend([0xfd; 16].into_iter().chain([0xfe; 16]));
        // Hop by hop, then a first fragment, then UDP.
        v6.extend([44, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 0, 0, 53, 0, 54]);
        let packet = Packet::read(&v6).expect("a packet");
        assert_eq!((packet.protocol, packet.ports), (17, Some((53, 54))));
        v6[51] = 9;
        assert_eq!(Packet::read(&v6).map(|p| (p.protocol, p.ports)), Some((17, None)));
    }

    #[test]
    fn whatever_comes_is_no_panic() {
        let mut state = 7_u32;
        for length in 0..2000_usize {
            let bytes: Vec<u8> = (0..length % 97)
                .map(|at| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    if at == 0 {
                        [0x45, 0x4f, 0x60][length % 3]
                    } else {
                        (state >> 24) as u8 & if length % 2 == 0 { 0x3f } else { 0xff }
                    }
                })
                .collect();
            let needed = if bytes.first().is_some_and(|b| b >> 4 == 6) { 40 } else { 20 };
            assert_eq!(Packet::read(&bytes).is_some(), bytes.len() >= needed);
        }
    }
}
