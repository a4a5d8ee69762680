//! A netlink socket for requests: many in one datagram, each with its own answer, and whole dumps. The kernel
//! works while it is spoken to, so that an answer is there when the request has been sent; nothing here waits
//! for another process.

use std::io;
use std::time::Duration;

use kilo_nftables::Attributes;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLM_F_REQUEST};
use netlink_sys::SocketAddr;
use rustix::io::Errno;
use rustix::net::sockopt;

/// Large enough for the answers to a batch, and for one nftables transaction of a big mesh.
const BUFFER: usize = 8 << 20;
/// One datagram of requests: their answers fit into the smallest receive buffer there is.
const BATCH_BYTES: usize = 32 << 10;
/// Requests in one datagram.
const BATCH_REQUESTS: usize = 64;
/// What is received at once; the kernel writes dumps in pieces of at most 32 KiB.
const RECEIVE: usize = 64 << 10;
/// The kernel answers while it is asked: this is only for a kernel that lost the answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often a dump is begun again that others changed under our hands.
const DUMP_TRIES: u32 = 8;

const HEADER: usize = 16;
pub(crate) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Message of the extended acknowledgement, and the flag that says there is one.
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLM_F_ACK_TLVS: u16 = 0x200;
/// No error number of the kernel's is further from zero.
const MAX_ERRNO: i32 = -4095;

/// What the kernel answered when it refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}{}", errno_text(.errno), .text.as_ref().map_or(String::new(), |t| format!(" ({t})")))]
pub(crate) struct Refused {
    /// The error number.
    pub errno: Errno,
    /// The kernel's own words, where it has any.
    pub text: Option<String>,
}

fn errno_text(errno: &Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.raw_os_error())
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self { errno, text: None }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Errno::from_raw_os_error(number).into(),
            None => Self { errno: Errno::IO, text: Some(error.to_string()) },
        }
    }
}

/// One request without its header.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The kind of message.
    pub kind: u16,
    /// Flags further to "request" and "acknowledge".
    pub flags: u16,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Request {
    /// Puts the request behind others, numbered, with these flags and its own.
    pub(crate) fn append(&self, to: &mut Vec<u8>, flags: u16, sequence: u32) {
        let length = HEADER + self.payload.len();
        to.extend((length as u32).to_ne_bytes());
        to.extend(self.kind.to_ne_bytes());
        to.extend((self.flags | flags | NLM_F_REQUEST).to_ne_bytes());
        to.extend(sequence.to_ne_bytes());
        to.extend(0u32.to_ne_bytes());
        to.extend(&self.payload);
        to.resize(to.len().next_multiple_of(4), 0);
    }
}

/// A message that the kernel sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// The port of the socket whose request this is about.
    pub port: u32,
    pub payload: &'a [u8],
}

/// The messages in a datagram. What cannot be one ends it.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER)?;
        let u32_at =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let u16_at = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = u32_at(0) as usize;
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind: u16_at(4), flags: u16_at(6), sequence: u32_at(8), port: u32_at(12), payload })
    })
}

/// A socket of the namespace of the thread that opened it.
pub(crate) struct Socket {
    socket: netlink_sys::Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket that speaks to the kernel alone.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        // A connected socket takes messages from the kernel only.
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        enlarge(&socket);
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(TIMEOUT))?;
        Ok(Self { socket, port, sequence: 0, buffer: Vec::with_capacity(RECEIVE) })
    }

    /// Lets dumps be filtered by the kernel, where it can: before 4.20 the whole comes, and is filtered here.
    pub(crate) fn strict_dumps(&self) {
        if let Err(error) = self.socket.set_netlink_get_strict_chk(true) {
            tracing::debug!(%error, "The kernel does not filter dumps");
        }
    }

    /// The port by which notifications tell that a change was ours.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// A number for a message that is composed elsewhere; as many as asked for belong to the caller.
    pub(crate) fn reserve(&mut self, count: u32) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    /// Sends bytes that are whole messages.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(_) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next datagram. The buffer is the socket's own and given back by the caller.
    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        loop {
            buffer.clear();
            match self.socket.recv(buffer, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Errno::TIMEDOUT.into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Throws away what an earlier, broken exchange left.
    fn discard(&self) {
        let mut buffer = Vec::with_capacity(RECEIVE);
        while self.socket.recv(&mut buffer, rustix::net::RecvFlags::DONTWAIT.bits() as i32).is_ok() {
            buffer.clear();
        }
    }

    /// Carries out requests in this order, each on its own. `pause` is called between datagrams.
    pub(crate) fn transact(
        &mut self,
        requests: &[Request],
        mut pause: impl FnMut(),
    ) -> Vec<Result<(), Refused>> {
        let mut answers: Vec<Result<(), Refused>> = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let mut datagram = Vec::with_capacity(BATCH_BYTES);
            let first = self.sequence.wrapping_add(1);
            let mut count = 0;
            for request in rest.iter().take(BATCH_REQUESTS) {
                if count > 0 && datagram.len() + request.payload.len() > BATCH_BYTES {
                    break;
                }
                self.sequence = self.sequence.wrapping_add(1);
                request.append(&mut datagram, NLM_F_ACK, self.sequence);
                count += 1;
            }
            answers.extend(self.exchange(&datagram, first, count));
            rest = &rest[count..];
            pause();
        }
        answers
    }

    /// Sends one datagram and collects the answers to so many requests, numbered from `first`.
    pub(crate) fn exchange(&mut self, datagram: &[u8], first: u32, count: usize) -> Vec<Result<(), Refused>> {
        let mut answers: Vec<Option<Result<(), Refused>>> = vec![None; count];
        let mut missing = count;
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.send(datagram).and_then(|()| {
            while missing > 0 {
                self.receive(&mut buffer)?;
                for message in messages(&buffer) {
                    let place = message.sequence.wrapping_sub(first) as usize;
                    if message.kind == NLMSG_ERROR
                        && let Some(answer @ None) = answers.get_mut(place)
                    {
                        *answer = Some(outcome(&message));
                        missing -= 1;
                    }
                }
            }
            Ok(())
        });
        self.buffer = buffer;
        let lost = match result {
            Ok(()) => Refused::from(Errno::TIMEDOUT),
            Err(error) => {
                self.discard();
                error.into()
            }
        };
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(lost.clone()))).collect()
    }

    /// Asks for all there is and gives each message to `each`; begins again when the list
    /// changed meanwhile.
    pub(crate) fn dump<T>(
        &mut self,
        request: &Request,
        mut each: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Refused> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.dump_once(request, &mut each) {
                Ok((_, true)) if tries < DUMP_TRIES => {}
                Ok((list, false)) => return Ok(list),
                Ok((_, true)) => return Err(Errno::INTR.into()),
                Err(refused) if matches!(refused.errno, Errno::BUSY | Errno::INTR) && tries < DUMP_TRIES => {
                    self.discard();
                }
                Err(refused) => return Err(refused),
            }
        }
    }

    /// What one dump gave, and whether it was interrupted by a change.
    fn dump_once<T>(
        &mut self,
        request: &Request,
        each: &mut impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<(Vec<T>, bool), Refused> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut datagram = Vec::new();
        request.append(&mut datagram, NLM_F_DUMP, sequence);
        let mut list = Vec::new();
        let mut interrupted = false;
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.send(&datagram).map_err(Refused::from).and_then(|()| {
            loop {
                self.receive(&mut buffer)?;
                for message in messages(&buffer).filter(|m| m.sequence == sequence) {
                    interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                    match message.kind {
                        NLMSG_ERROR => return outcome(&message),
                        NLMSG_DONE => return done(&message),
                        _ => list.extend(each(&message)),
                    }
                    if message.flags & NLM_F_MULTIPART == 0 {
                        return Ok(());
                    }
                }
            }
        });
        self.buffer = buffer;
        if result.is_err() {
            self.discard();
        }
        result.map(|()| (list, interrupted))
    }

    /// Sends a request that was composed elsewhere with this number, and gives each datagram of the answer to
    /// `each`, until the kernel ends it.
    pub(crate) fn query(
        &mut self,
        request: &[u8],
        sequence: u32,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Refused> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.send(request).map_err(Refused::from).and_then(|()| {
            loop {
                self.receive(&mut buffer)?;
                each(&buffer);
                for message in messages(&buffer).filter(|m| m.sequence == sequence) {
                    match message.kind {
                        NLMSG_ERROR => return outcome(&message),
                        NLMSG_DONE => return done(&message),
                        _ => {}
                    }
                }
            }
        });
        self.buffer = buffer;
        if result.is_err() {
            self.discard();
        }
        result
    }

    /// Sends a batch whose messages are numbered from `first`; the one numbered `last` is acknowledged. The
    /// first refusal is the answer to the whole, with the number of the refused message.
    pub(crate) fn commit(&mut self, batch: &[u8], first: u32, last: u32) -> Result<(), (u32, Refused)> {
        let count = last.wrapping_sub(first);
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.send(batch).map_err(|why| (first, why.into())).and_then(|()| {
            loop {
                self.receive(&mut buffer).map_err(|why| (first, Refused::from(why)))?;
                for message in messages(&buffer) {
                    let place = message.sequence.wrapping_sub(first);
                    if message.kind == NLMSG_ERROR && place <= count {
                        let outcome = outcome(&message);
                        if outcome.is_err() || place == count {
                            return outcome.map_err(|why| (message.sequence, why));
                        }
                    }
                }
            }
        });
        self.buffer = buffer;
        if result.is_err() {
            self.discard();
        }
        result
    }

    /// Asks for one thing that is answered by one message.
    pub(crate) fn get<T>(
        &mut self,
        request: &Request,
        each: impl FnOnce(&Message<'_>) -> T,
    ) -> Result<T, Refused> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut datagram = Vec::new();
        request.append(&mut datagram, 0, sequence);
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.send(&datagram).map_err(Refused::from).and_then(|()| {
            loop {
                self.receive(&mut buffer)?;
                if let Some(message) = messages(&buffer).find(|m| m.sequence == sequence) {
                    return if message.kind == NLMSG_ERROR {
                        outcome(&message).and(Err(Errno::NODATA.into()))
                    } else {
                        Ok(each(&message))
                    };
                }
            }
        });
        self.buffer = buffer;
        if result.is_err() {
            self.discard();
        }
        result
    }
}

/// Makes room for much at once. Without the right to exceed the system's limit, up to that.
pub(crate) fn enlarge(socket: &netlink_sys::Socket) {
    let forced = sockopt::set_socket_recv_buffer_size_force(socket, BUFFER)
        .and_then(|()| sockopt::set_socket_send_buffer_size_force(socket, BUFFER));
    let result = forced.or_else(|_| {
        sockopt::set_socket_recv_buffer_size(socket, BUFFER)
            .and_then(|()| sockopt::set_socket_send_buffer_size(socket, BUFFER))
    });
    if let Err(error) = result {
        tracing::debug!(%error, "Netlink socket keeps its small buffers");
    }
}

/// What an acknowledgement says.
pub(crate) fn outcome(message: &Message<'_>) -> Result<(), Refused> {
    let Some(Ok(code)) = message.payload.get(..4).map(<[u8; 4]>::try_from) else {
        return Err(Errno::PROTO.into());
    };
    let Some(errno) = errno(i32::from_ne_bytes(code))? else { return Ok(()) };
    let text = (message.flags & NLM_F_ACK_TLVS != 0)
        .then(|| message.payload.get(4 + HEADER..))
        .flatten()
        .and_then(message_text);
    Err(Refused { errno, text })
}

/// The number of an error as the kernel writes it, negative; `None` for success.
fn errno(code: i32) -> Result<Option<Errno>, Refused> {
    match code {
        0 => Ok(None),
        MAX_ERRNO..0 => Ok(Some(Errno::from_raw_os_error(-code))),
        _ => Err(Errno::PROTO.into()),
    }
}

/// What the end of a dump says; kernels since 6.9 put the error number there.
fn done(message: &Message<'_>) -> Result<(), Refused> {
    match message.payload.get(..4).map(<[u8; 4]>::try_from) {
        Some(Ok(code)) => match errno(i32::from_ne_bytes(code))? {
            None => Ok(()),
            Some(errno) => Err(Refused { errno, text: message.payload.get(4..).and_then(message_text) }),
        },
        _ => Ok(()),
    }
}

fn message_text(bytes: &[u8]) -> Option<String> {
    let value = Attributes(bytes).get(NLMSGERR_ATTR_MSG)?;
    Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_datagrams_end_early() {
        assert_eq!(messages(&[0; 15]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0, "a length of zero is no message");
        let mut whole = Vec::new();
        let request = Request { kind: 7, flags: 0, payload: vec![1, 2, 3] };
        request.append(&mut whole, 0, 9);
        request.append(&mut whole, 0, 10);
        let numbers: Vec<u32> = messages(&whole).map(|m| m.sequence).collect();
        assert_eq!(numbers, [9, 10]);
        assert_eq!(messages(&whole[..whole.len() - 2]).count(), 1, "the second is cut off");
    }
}
