//! The kernel's answers to one request, read datagram by datagram. Pure.

use std::fmt::Debug;
use std::io;

use netlink_packet_core::{
    DecodeError, Emitable, NetlinkBuffer, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, NlasIterator, ParseableParametrized, parse_u16,
};
use netlink_packet_generic::ctrl::GenlCtrl;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_packet_wireguard::WireguardMessage;

/// `WGDEVICE_A_PEERS`, `WGPEER_A_ALLOWEDIPS` and `WGALLOWEDIP_A_CIDR_MASK`.
const PEERS: u16 = 8;
const ALLOWED_IPS: u16 = 9;
const CIDR_MASK: u16 = 3;
/// `CTRL_ATTR_FAMILY_ID`.
const FAMILY_ID: u16 = 1;

/// A message of the `wireguard` family.
#[derive(Clone, Debug)]
pub struct DeviceMessage(pub WireguardMessage);

impl GenlFamily for DeviceMessage {
    fn family_name() -> &'static str {
        WireguardMessage::family_name()
    }

    fn version(&self) -> u8 {
        self.0.version()
    }

    fn command(&self) -> u8 {
        self.0.command()
    }
}

impl Emitable for DeviceMessage {
    fn emit(&self, buffer: &mut [u8]) {
        self.0.emit(buffer);
    }

    fn buffer_len(&self) -> usize {
        self.0.buffer_len()
    }
}

impl ParseableParametrized<[u8], GenlHeader> for DeviceMessage {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        masks_have_a_length(bytes, &[PEERS, 0, ALLOWED_IPS, 0])?;
        WireguardMessage::parse_with_param(bytes, header).map(Self)
    }
}

/// The question for a family's number, and of the answer that number alone: the library does not expect others to be
/// cut short.
#[derive(Clone, Debug)]
pub struct FamilyMessage(pub GenlCtrl);

impl GenlFamily for FamilyMessage {
    fn family_name() -> &'static str {
        GenlCtrl::family_name()
    }

    fn family_id(&self) -> u16 {
        self.0.family_id()
    }

    fn version(&self) -> u8 {
        self.0.version()
    }

    fn command(&self) -> u8 {
        self.0.command()
    }
}

impl Emitable for FamilyMessage {
    fn emit(&self, buffer: &mut [u8]) {
        self.0.emit(buffer);
    }

    fn buffer_len(&self) -> usize {
        self.0.buffer_len()
    }
}

impl ParseableParametrized<[u8], GenlHeader> for FamilyMessage {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let mut nlas = Vec::new();
        for attribute in NlasIterator::new(bytes) {
            let attribute = attribute?;
            if attribute.kind() == FAMILY_ID {
                nlas.push(GenlCtrlAttrs::FamilyId(parse_u16(attribute.value())?));
            }
        }
        Ok(Self(GenlCtrl { cmd: header.cmd.try_into()?, nlas }))
    }
}

/// An error when a range below the attributes of this path says nothing as its mask: the library takes the first byte
/// of it unseen. A path of 0 is of any number.
fn masks_have_a_length(bytes: &[u8], path: &[u16]) -> Result<(), DecodeError> {
    for attribute in NlasIterator::new(bytes) {
        let attribute = attribute?;
        match path {
            [] if attribute.kind() == CIDR_MASK && attribute.value().is_empty() => {
                return Err("a range without the length of its mask".into());
            }
            [first, rest @ ..] if *first == 0 || attribute.kind() == *first => {
                masks_have_a_length(attribute.value(), rest)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// What has come so far.
pub struct Answers<F> {
    sequence: u32,
    messages: Vec<F>,
    interrupted: bool,
}

impl<F> Answers<F>
where
    F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + Clone + Debug,
    GenlMessage<F>: NetlinkSerializable + NetlinkDeserializable,
{
    /// Those to the request of this number.
    pub fn to(sequence: u32) -> Self {
        Self { sequence, messages: Vec::new(), interrupted: false }
    }

    /// Reads a datagram; all messages once the request is acknowledged or the dump has ended, and
    /// `ErrorKind::Interrupted` when the device changed in the middle of the dump.
    pub fn read(&mut self, datagram: &[u8]) -> io::Result<Option<Vec<F>>> {
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        let mut rest = datagram;
        while !rest.is_empty() {
            let length = NetlinkBuffer::new_checked(rest).map_err(|_| malformed())?.length() as usize;
            let message = NetlinkMessage::<GenlMessage<F>>::deserialize(rest).map_err(|_| malformed())?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if message.header.sequence_number != self.sequence {
                // The end of an answer that was given up on.
                continue;
            }
            self.interrupted |= i32::from(message.header.flags) & libc::NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::Error(answer) => {
                    return match answer.code {
                        None => Ok(Some(std::mem::take(&mut self.messages))),
                        Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
                    };
                }
                NetlinkPayload::Done(_) if self.interrupted => return Err(io::ErrorKind::Interrupted.into()),
                NetlinkPayload::Done(_) => return Ok(Some(std::mem::take(&mut self.messages))),
                NetlinkPayload::InnerMessage(inner) => self.messages.push(inner.into_parts().1),
                NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => {}
            }
        }
        Ok(None)
    }
}
