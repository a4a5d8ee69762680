//! The UDP socket of the built-in device: bound again without a gap, with room for bursts, and with an eye
//! on where packets come from.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gotatun::packet::{Packet, PacketBufPool};
use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams};
use rustix::net::sockopt;
use tokio::sync::Notify;

use super::own::Own;

/// Bytes; what a burst of a few milliseconds at 10 Gbit/s takes.
const BUFFER: usize = 7 << 20;
/// gotatun lets go of its old socket a moment after it asks for the new one.
const RETRIES: u32 = 200;
const RETRY_EVERY: Duration = Duration::from_millis(5);

/// Addresses that peers are known to be at, and the news that a packet came from another one.
#[derive(Clone, Default)]
pub(super) struct Sources(Arc<Inner>);

#[derive(Default)]
struct Inner {
    known: Mutex<HashSet<SocketAddr>>,
    news: Notify,
}

impl Sources {
    /// Waits for a packet from an address that is not known.
    pub(super) async fn unknown(&self) {
        self.0.news.notified().await;
    }

    /// From now on these are known.
    pub(super) fn set_known(&self, known: HashSet<SocketAddr>) {
        *self.0.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }

    fn saw(&self, source: SocketAddr) {
        if !self.0.known.lock().unwrap_or_else(PoisonError::into_inner).contains(&source) {
            self.0.news.notify_one();
        }
    }
}

/// Makes the sockets of the device.
pub(super) struct Factory {
    sources: Sources,
    own: Own,
    inner: UdpSocketFactory,
}

impl Factory {
    pub(super) fn new(sources: Sources, own: Own) -> Self {
        Self { sources, own, inner: UdpSocketFactory::default() }
    }
}

impl UdpTransportFactory for Factory {
    type Send = Send;
    type Recv = Recv;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(Send, Recv)> {
        let mut tries = 0;
        let (send, recv) = loop {
            match self.inner.bind(params).await {
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && tries < RETRIES => {
                    tries += 1;
                    tokio::time::sleep(RETRY_EVERY).await;
                }
                bound => break bound?,
            }
        };
        enlarge(&send);
        self.own.set_port(send.local_addr()?.port());
        if let Err(error) = self.own.deafen(&send) {
            tracing::debug!(%error, "Datagrams out of the tunnel are heard");
        }
        Ok((
            Send { inner: send, own: self.own.clone() },
            Recv { inner: recv, sources: self.sources.clone(), last: None },
        ))
    }
}

/// Best effort: the plain options stop at `net.core.rmem_max`, the forced ones need `CAP_NET_ADMIN` in the
/// first user namespace.
fn enlarge(socket: &UdpSocket) {
    let set = sockopt::set_socket_recv_buffer_size_force(socket, BUFFER)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, BUFFER))
        .and_then(|()| {
            sockopt::set_socket_send_buffer_size_force(socket, BUFFER)
                .or_else(|_| sockopt::set_socket_send_buffer_size(socket, BUFFER))
        });
    if let Err(error) = set {
        tracing::debug!(%error, "UDP buffers stay small");
    }
}

/// The sending end.
#[derive(Clone)]
pub(super) struct Send {
    inner: UdpSocket,
    own: Own,
}

impl UdpSend for Send {
    type SendManyBuf = <UdpSocket as UdpSend>::SendManyBuf;

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        self.own.sends(&packet, destination);
        self.inner.send_to(packet, destination).await
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        self.inner.max_number_of_packets_to_send()
    }

    async fn send_many_to(
        &self,
        buffer: &mut Self::SendManyBuf,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        for (packet, destination) in packets.iter() {
            self.own.sends(packet, *destination);
        }
        self.inner.send_many_to(buffer, packets).await
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        UdpSend::local_addr(&self.inner)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        self.inner.set_fwmark(mark)
    }
}

/// The receiving end.
pub(super) struct Recv {
    inner: UdpSocket,
    sources: Sources,
    /// The source of the packet before, most often that of the next, too.
    last: Option<SocketAddr>,
}

impl Recv {
    fn saw(&mut self, source: SocketAddr) {
        if self.last.replace(source) != Some(source) {
            self.sources.saw(source);
        }
    }
}

impl UdpRecv for Recv {
    type RecvManyBuf = <UdpSocket as UdpRecv>::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        let (packet, source) = self.inner.recv_from(pool).await?;
        self.saw(source);
        Ok((packet, source))
    }

    async fn recv_many_from(
        &mut self,
        buffer: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        let before = packets.len();
        self.inner.recv_many_from(buffer, pool, packets).await?;
        for (_, source) in &packets[before..] {
            self.saw(*source);
        }
        Ok(())
    }

    fn enable_udp_gro(&self) -> io::Result<()> {
        self.inner.enable_udp_gro()
    }
}
