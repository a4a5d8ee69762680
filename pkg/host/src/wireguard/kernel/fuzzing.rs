//! A door for the fuzz target to what reads the kernel's answers.

use netlink_packet_core::{DoneMessage, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::GenlMessage;

use super::answers::{Answers, DeviceMessage, FamilyMessage};
use super::message;
use crate::wireguard::status::{SetDevice, SetPeer};

/// Where a netlink header has its sequence number.
const SEQUENCE: std::ops::Range<usize> = 8..12;

/// Reads a datagram as an answer to the request for a device, and to that for the family. The peers that can be
/// read are the same when a device is told to have them and a dump says what it was told.
///
/// # Panics
/// When they are not.
pub fn wireguard(datagram: &[u8]) {
    let sequence =
        datagram.get(SEQUENCE).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let _family = Answers::<FamilyMessage>::to(sequence).read(datagram);
    let Some(peers) = peers(sequence, datagram) else { return };
    let change = SetDevice { peers: peers.iter().map(SetPeer::add).collect(), ..SetDevice::default() };
    let mut dump = Vec::new();
    for message in message::set("kilo0", &change) {
        let payload = NetlinkPayload::from(GenlMessage::from_payload(DeviceMessage(message)));
        dump.extend(serialized(NetlinkMessage::new(NetlinkHeader::default(), payload)));
    }
    let again = self::peers(0, &dump);
    assert_eq!(again.as_ref(), Some(&peers), "peers change on their way");
}

/// The peers of a dump of which this is all.
fn peers(sequence: u32, datagram: &[u8]) -> Option<Vec<kilo_state::DevicePeer>> {
    let mut answers = Answers::<DeviceMessage>::to(sequence);
    let messages = match answers.read(datagram).ok()? {
        Some(messages) => messages,
        None => {
            let mut header = NetlinkHeader::default();
            header.sequence_number = sequence;
            let done = NetlinkPayload::Done(DoneMessage::default());
            answers.read(&serialized(NetlinkMessage::new(header, done))).ok().flatten()?
        }
    };
    Some(message::fold(messages.into_iter().map(|message| message.0)).into_observed().0.peers)
}

fn serialized(mut message: NetlinkMessage<GenlMessage<DeviceMessage>>) -> Vec<u8> {
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
