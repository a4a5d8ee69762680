//! NFLOG: the packets that our rules logged. How many there are is limited by the rules.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::time::Duration;

use kilo_agent::{Logged, LoggedAt, Packet};
use kilo_nftables::{Attributes, Writer};
use netlink_packet_core::NLM_F_ACK;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, SocketAddr, TokioSocket};
use rustix::net::netdevice::index_to_name;

use crate::netlink::monitor::{Received, received_as};
use crate::netlink::socket::{Message, NLMSG_ERROR, Request, enlarge, messages, outcome};

const RECEIVE: usize = 64 << 10;
/// How long to wait where nothing can be heard.
const BROKEN: Duration = Duration::from_secs(5);
/// As much of a packet as headers can be long; what is behind is nobody's business.
const COPY: u32 = 256;
/// Hundredths of a second after which the kernel tells, full or not.
const DELAY: u32 = 10;

const NFNL_SUBSYS_ULOG: u16 = 4;
const NFULNL_MSG_PACKET: u16 = NFNL_SUBSYS_ULOG << 8;
const NFULNL_MSG_CONFIG: u16 = NFNL_SUBSYS_ULOG << 8 | 1;
const NFULA_CFG_CMD: u16 = 1;
const NFULA_CFG_MODE: u16 = 2;
const NFULA_CFG_TIMEOUT: u16 = 4;
const NFULNL_CFG_CMD_BIND: u8 = 1;
const NFULNL_COPY_PACKET: u8 = 2;
const NFULA_PACKET_HDR: u16 = 1;
const NFULA_IFINDEX_INDEV: u16 = 4;
const NFULA_IFINDEX_OUTDEV: u16 = 5;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;
/// `struct nfgenmsg`.
const HEADER: usize = 4;

/// The listener of one group.
pub(super) struct Log {
    socket: TokioSocket,
    buffer: Vec<u8>,
    pending: VecDeque<Logged>,
}

impl Log {
    /// Takes a group for this process; there can be only one listener.
    pub(super) fn open(group: u16) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        enlarge(socket.socket_ref());
        let mut payload = Writer(vec![0, 0]);
        payload.0.extend(group.to_be_bytes());
        payload.bytes(NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND]);
        let [a, b, c, d] = COPY.to_be_bytes();
        payload.bytes(NFULA_CFG_MODE, &[a, b, c, d, NFULNL_COPY_PACKET, 0]);
        payload.number(NFULA_CFG_TIMEOUT, DELAY);
        let bind = Request { kind: NFULNL_MSG_CONFIG, flags: 0, payload: payload.0 };
        let mut bytes = Vec::new();
        bind.append(&mut bytes, NLM_F_ACK, 1);
        socket.socket_ref().send(&bytes, 0)?;
        // The answer is there when the request has been sent.
        let mut answer = Vec::with_capacity(RECEIVE);
        socket.socket_ref().recv(&mut answer, 0)?;
        for message in messages(&answer).filter(|message| message.kind == NLMSG_ERROR) {
            outcome(&message).map_err(|refused| io::Error::from(refused.errno))?;
        }
        Ok(Self { socket, buffer: Vec::with_capacity(RECEIVE), pending: VecDeque::new() })
    }

    /// Waits for the next packet. May be cancelled at any time.
    pub(super) async fn next(&mut self) -> Logged {
        loop {
            if let Some(logged) = self.pending.pop_front() {
                return logged;
            }
            let Self { socket, buffer, .. } = self;
            buffer.clear();
            let received =
                received_as(poll_fn(|context| socket.poll_recv(context, buffer)).await.map(|_| ()));
            match received {
                Received::Datagram => {
                    for message in messages(&self.buffer) {
                        self.pending.extend(self.read(&message));
                    }
                }
                Received::Again | Received::Nothing => {}
                Received::Lost => tracing::debug!("Some logged packets were lost"),
                Received::Broken => {
                    tracing::warn!("Logged packets cannot be heard of");
                    tokio::time::sleep(BROKEN).await;
                }
            }
        }
    }

    fn read(&self, message: &Message<'_>) -> Option<Logged> {
        if message.kind != NFULNL_MSG_PACKET {
            return None;
        }
        let told = Attributes(message.payload.get(HEADER..)?);
        let link = |number| index_to_name(self.socket.socket_ref(), told.number(number)?).ok();
        // `struct nfulnl_msg_packet_hdr`: protocol, hook.
        let hook = told.get(NFULA_PACKET_HDR).and_then(|header| LoggedAt::of(*header.get(2)?));
        Some(Logged {
            prefix: told.text(NFULA_PREFIX).unwrap_or_default().to_owned(),
            hook,
            input: link(NFULA_IFINDEX_INDEV),
            output: link(NFULA_IFINDEX_OUTDEV),
            packet: told.get(NFULA_PAYLOAD).and_then(Packet::read),
        })
    }
}
