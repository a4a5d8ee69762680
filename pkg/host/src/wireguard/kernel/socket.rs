//! A generic netlink socket to the kernel's `wireguard` family. The kernel answers while it is asked, so
//! that nobody waits for long and a blocking socket will do.

use std::fmt::Debug;
use std::io;
use std::time::Duration;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_packet_wireguard::WireguardMessage;
use netlink_sys::{Socket as RawSocket, SocketAddr, protocols::NETLINK_GENERIC};
use rustix::net::sockopt;
use zeroize::Zeroize as _;

use super::answers::{Answers, DeviceMessage, FamilyMessage};

/// The kernel's messages of a dump are at most this long.
const RECEIVE: usize = 64 << 10;
/// The kernel answers while it is asked: this is only for a kernel that lost the answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often a dump is asked for at most.
const DUMPS: u32 = 5;

/// A socket and the family's number.
pub(super) struct Socket {
    socket: RawSocket,
    family: u16,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

impl Socket {
    /// Opens a socket in the caller's network namespace; `None` where the kernel has no WireGuard and no
    /// module for it.
    pub(super) fn open() -> io::Result<Option<Self>> {
        let mut socket = RawSocket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without it the kernel sends the whole request back with an error.
        socket.set_cap_ack(true)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(TIMEOUT))?;
        let mut this = Self { socket, family: 0, sequence: 0, buffer: vec![0; RECEIVE] };
        match this.resolve() {
            Ok(family) => {
                this.family = family;
                Ok(Some(this))
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn resolve(&mut self) -> io::Result<u16> {
        let request = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(WireguardMessage::family_name().to_owned())],
        };
        let answers = self.talk(FamilyMessage(request), NLM_F_REQUEST | NLM_F_ACK)?;
        answers
            .into_iter()
            .flat_map(|answer| answer.0.nlas)
            .find_map(|nla| if let GenlCtrlAttrs::FamilyId(id) = nla { Some(id) } else { None })
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Sends a request and takes its acknowledgement.
    pub(super) fn acknowledged(&mut self, message: WireguardMessage) -> io::Result<()> {
        self.talk(DeviceMessage(message), NLM_F_REQUEST | NLM_F_ACK).map(|_| ())
    }

    /// Asks for a dump, again when the device changed in the middle of it.
    pub(super) fn dump(&mut self, message: WireguardMessage) -> io::Result<Vec<WireguardMessage>> {
        let message = DeviceMessage(message);
        let mut answer = self.talk(message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
        for _ in 1..DUMPS {
            if !answer.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {
                break;
            }
            answer = self.talk(message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
        }
        Ok(answer?.into_iter().map(|message| message.0).collect())
    }

    fn talk<F>(&mut self, payload: F, flags: u16) -> io::Result<Vec<F>>
    where
        F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + Clone + Debug,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = GenlMessage::from_payload(payload);
        message.set_resolved_family_id(self.family);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let sent = self.socket.send(&bytes, 0);
        bytes.zeroize();
        sent?;
        self.answers()
    }

    /// Receives a datagram; its length.
    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match self.socket.recv(&mut &mut self.buffer[..], 0) {
                // Not that the dump was interrupted.
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                received => return received,
            }
        }
    }

    /// Collects the answers to the last request up to its acknowledgement or the end of its dump.
    fn answers<F>(&mut self) -> io::Result<Vec<F>>
    where
        F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + Clone + Debug,
        GenlMessage<F>: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut answers = Answers::to(self.sequence);
        loop {
            let received = self.receive()?;
            if let Some(messages) = answers.read(&self.buffer[..received])? {
                return Ok(messages);
            }
        }
    }
}
