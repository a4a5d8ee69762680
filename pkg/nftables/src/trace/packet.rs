//! A packet as rules see it: its bytes from the network header on, its links and marks, and its connection.

use std::net::IpAddr;

use crate::{CtDirection, Direction, End, Family, Header, IfName, Load, ct_state};

/// One tuple of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// The address it comes from.
    pub source: IpAddr,
    /// The address it goes to, of the same family.
    pub destination: IpAddr,
    /// The port it comes from, or the identifier of an ICMP echo.
    pub source_port: u16,
    /// The port it goes to, or type and code of ICMP.
    pub destination_port: u16,
}

impl Tuple {
    /// The tuple of the answers, where nothing is translated.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// What connection tracking knows of a packet's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its protocol, IANA's number.
    pub protocol: u8,
    /// As the first packet was.
    pub original: Tuple,
    /// As its answers come in.
    pub reply: Tuple,
    /// Its mark.
    pub mark: u32,
}

impl Connection {
    /// A connection whose addresses nobody translates.
    pub fn plain(protocol: u8, original: Tuple) -> Self {
        Self { protocol, original, reply: original.reversed(), mark: 0 }
    }
}

/// A packet on its way past a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The link it came in by, if it came in.
    pub input: Option<IfName>,
    /// The link it leaves by, where that is known.
    pub output: Option<IfName>,
    /// Its mark.
    pub mark: u32,
    /// What it is, as Ethernet numbers it.
    pub ether_type: u16,
    /// The Ethernet address it came from, if it came by Ethernet.
    pub ether_source: Option<[u8; 6]>,
    /// Its bytes from the network header on.
    pub bytes: Vec<u8>,
    /// What it carries, extension headers skipped: IANA's number. `None` for what is not IP.
    pub protocol: Option<u8>,
    /// Where in the bytes that begins. `None` for later fragments, too.
    pub transport: Option<usize>,
    /// How it stands to its connection: one of [`ct_state`].
    pub state: u32,
    /// Its connection; `None` for invalid and untracked packets.
    pub connection: Option<Connection>,
    /// Whether the way to its source leads through the link it came in by.
    pub returns: bool,
}

impl Packet {
    /// A packet of this protocol with these bytes behind its IP header. Its connection is unknown: invalid.
    /// Addresses are of one family.
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Self {
        let mut bytes = match Family::of(source) {
            Family::V4 => {
                let mut header = vec![0; 20];
                header[0] = 0x45;
                header[9] = protocol;
                header
            }
            Family::V6 => {
                let mut header = vec![0; 40];
                header[0] = 0x60;
                header[6] = protocol;
                header
            }
        };
        let family = Family::of(source);
        for (end, ip) in [(End::Source, source), (End::Destination, destination)] {
            let octets = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let at = bytes.iter_mut().skip(family.offset(end).into());
            at.zip(octets).for_each(|(to, from)| *to = from);
        }
        let transport = Some(bytes.len());
        bytes.extend(payload);
        let ether_type = match family {
            Family::V4 => 0x0800,
            Family::V6 => 0x86dd,
        };
        Self {
            input: None,
            output: None,
            mark: 0,
            ether_type,
            ether_source: None,
            bytes,
            protocol: Some(protocol),
            transport,
            state: ct_state::INVALID,
            connection: None,
            returns: true,
        }
    }

    /// The first packet of a new connection that nobody translates: of TCP (6) a SYN, of UDP (17) and of SCTP
    /// (132) one that begins with the ports.
    pub fn opening(protocol: u8, tuple: Tuple) -> Self {
        let mut payload = [tuple.source_port.to_be_bytes(), tuple.destination_port.to_be_bytes()].concat();
        payload.resize(20, 0);
        if protocol == 6 {
            payload[12] = 0x50;
            payload[13] = 0x02;
        }
        let packet = Self::new(tuple.source, tuple.destination, protocol, &payload);
        let connection = Some(Connection::plain(protocol, tuple));
        Self { state: ct_state::NEW, connection, ..packet }
    }

    /// The packet with other TCP flags.
    #[must_use]
    pub fn with_tcp_flags(mut self, flags: u8) -> Self {
        let place = self.transport.and_then(|at| self.bytes.get_mut(at + 13));
        if let Some(place) = place {
            *place = flags;
        }
        self
    }

    /// Its family, if it is IP.
    pub fn family(&self) -> Option<Family> {
        match self.ether_type {
            0x0800 => Some(Family::V4),
            0x86dd => Some(Family::V6),
            _ => None,
        }
    }

    fn from(&self, at: usize, len: u8) -> Option<&[u8]> {
        self.bytes.get(at..)?.get(..len.into())
    }
}

/// Which tuple of a connection.
fn tuple(connection: &Connection, direction: CtDirection) -> &Tuple {
    match direction {
        CtDirection::Original => &connection.original,
        CtDirection::Reply => &connection.reply,
    }
}

/// What a chain sees of a packet, with the marks as they are at the moment.
pub(super) struct View<'p> {
    pub packet: &'p Packet,
    pub mark: u32,
    /// `None` where the chain comes before connection tracking, too.
    pub connection: Option<Connection>,
    pub state: u32,
}

impl View<'_> {
    /// Writes what is loaded to the end; `None` where there is nothing to load.
    pub fn load(&self, load: Load, to: &mut Vec<u8>) -> Option<()> {
        let connection = self.connection.as_ref();
        match load {
            Load::Link(direction) => {
                let link = match direction {
                    Direction::In => self.packet.input,
                    Direction::Out => self.packet.output,
                };
                // A link that is not there has an empty name.
                to.extend(link.as_ref().map_or(&[0; 16], IfName::padded));
            }
            Load::L4Proto => to.push(self.packet.protocol?),
            Load::CtAddress(direction, family, end) => {
                let tuple = tuple(connection?, direction);
                let ip = match end {
                    End::Source => tuple.source,
                    End::Destination => tuple.destination,
                };
                match (ip, family) {
                    (IpAddr::V4(ip), Family::V4) => to.extend(ip.octets()),
                    (IpAddr::V6(ip), Family::V6) => to.extend(ip.octets()),
                    (IpAddr::V4(_), Family::V6) | (IpAddr::V6(_), Family::V4) => return None,
                }
            }
            Load::CtPort(direction, End::Source) => {
                to.extend(tuple(connection?, direction).source_port.to_be_bytes());
            }
            Load::CtPort(direction, End::Destination) => {
                to.extend(tuple(connection?, direction).destination_port.to_be_bytes());
            }
            Load::CtProtocol => to.push(connection?.protocol),
            Load::Mark => to.extend(self.mark.to_ne_bytes()),
            Load::CtMark => to.extend(connection?.mark.to_ne_bytes()),
            Load::CtState => to.extend(self.state.to_ne_bytes()),
            Load::EtherSource => to.extend(self.packet.ether_source?),
            Load::Address(..) | Load::Port(_) | Load::TcpFlags | Load::IcmpType | Load::Raw { .. } => {
                let (header, offset) = load.payload()?;
                let start = match header {
                    // Of it only the source is known.
                    Header::Link => return None,
                    Header::Network => 0,
                    Header::Transport => self.packet.transport?,
                };
                to.extend(self.packet.from(start + usize::from(offset), load.width())?);
            }
        }
        Some(())
    }
}
