//! What others do to our policy tables. The kernel leaves our own commits out before they reach us: with them a
//! big one would fill the buffer.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use kilo_nftables::TableFamily;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, SocketAddr, TokioSocket};
use socket2::{SockFilter, SockRef};

use crate::netlink::monitor::{NFTABLES_GROUP, Received, received_as};
use crate::netlink::nftables;
use crate::netlink::socket::{enlarge, messages};

const RECEIVE: usize = 64 << 10;
/// How long to wait before the tables are read again when nothing can be heard.
const BROKEN: Duration = Duration::from_secs(5);
/// Where the port of its originator is in a message.
const PORT: u32 = 12;

const LOAD_WORD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// The listener.
pub(super) struct Monitor {
    socket: TokioSocket,
    tables: Vec<(TableFamily, String)>,
    buffer: Vec<u8>,
    /// The transaction that is being told touched one of our tables; the port it came from.
    touched: Option<u32>,
    /// What nobody was told of yet, with who it was.
    pending: Option<Option<String>>,
}

impl Monitor {
    /// Listens to all but the owner of this port.
    pub(super) fn open(own_port: u32, tables: Vec<(TableFamily, String)>) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        enlarge(socket.socket_ref());
        // A filter reads words in network order. One datagram tells of one transaction.
        let port = u32::from_be_bytes(own_port.to_ne_bytes());
        SockRef::from(socket.socket_ref()).attach_filter(&[
            SockFilter::new(LOAD_WORD, 0, 0, PORT),
            SockFilter::new(JUMP_EQUAL, 0, 1, port),
            SockFilter::new(RETURN, 0, 0, 0),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
        ])?;
        socket.socket_ref().add_membership(NFTABLES_GROUP)?;
        Ok(Self { socket, tables, buffer: Vec::with_capacity(RECEIVE), touched: None, pending: None })
    }

    /// Waits for a change by somebody else; who it was, if the kernel says. May be cancelled at any time.
    pub(super) async fn changed(&mut self) -> Option<String> {
        loop {
            self.drain();
            if let Some(by) = self.pending.take() {
                return by;
            }
            let Self { socket, buffer, .. } = self;
            buffer.clear();
            let received =
                received_as(poll_fn(|context| socket.poll_recv(context, buffer)).await.map(|_| ()));
            if let Received::Broken = received {
                tracing::warn!("Changes of nftables by others cannot be heard of");
                tokio::time::sleep(BROKEN).await;
                return None;
            }
            // From here to the next turn nothing waits, so that what was received cannot be lost.
            self.note(&received);
        }
    }

    /// Takes note of all that has been told so far.
    fn drain(&mut self) {
        loop {
            self.buffer.clear();
            let received = received_as(self.socket.socket_ref().recv(&mut self.buffer, 0).map(|_| ()));
            if let Received::Nothing | Received::Broken = received {
                break;
            }
            self.note(&received);
        }
        // The end of the transaction, with the name of the process, comes in the same breath.
        if self.touched.take().is_some() {
            self.pending.get_or_insert(None);
        }
    }

    fn note(&mut self, received: &Received) {
        match received {
            Received::Datagram => {}
            Received::Lost => {
                self.pending.get_or_insert(None);
                return;
            }
            Received::Again | Received::Nothing | Received::Broken => return,
        }
        let buffer = std::mem::take(&mut self.buffer);
        for message in messages(&buffer) {
            if let Some((id, name)) = nftables::parse_end(&message) {
                if self.touched.take() == Some(message.port) {
                    self.pending = Some(Some(format!("process {id} ({name})")));
                }
            } else if let Some(event) = nftables::parse_event(&message)
                && self
                    .tables
                    .iter()
                    .any(|(family, name)| family.number() == event.family && name == event.table)
            {
                self.touched = Some(message.port);
            }
        }
        self.buffer = buffer;
    }
}
