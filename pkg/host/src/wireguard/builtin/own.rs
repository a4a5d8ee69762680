//! Keeps the device's own datagrams out of its tunnel when the host routes a peer's endpoint into the link:
//! each would be put into another one without end.
//!
//! The kernel's WireGuard sees the route of each datagram and refuses its own link. A socket of a process
//! cannot say "any link but this one": `SO_BINDTODEVICE` and `IP_UNICAST_IF` name the one link to use,
//! whereas peers are reached over several, and a mark needs policy rules in the routing of the whole host.
//! So the datagrams are told from others where they come back.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use socket2::{SockFilter, SockRef};

const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
/// Answers to unproven senders, who could be anybody and as many as they like.
const COOKIE: u8 = 3;

/// What tells the device's own datagrams from others.
#[derive(Clone)]
pub(super) struct Own(Arc<Inner>);

struct Inner {
    /// Index of the TUN link.
    link: u32,
    /// 0 before a socket is bound.
    port: AtomicU16,
    /// Where the device sends to, and whether it was said that this leads back into the link.
    destinations: RwLock<HashMap<SocketAddr, AtomicBool>>,
}

impl Own {
    pub(super) fn new(link: u32) -> Self {
        Self(Arc::new(Inner { link, port: AtomicU16::new(0), destinations: RwLock::default() }))
    }

    /// The socket has this port from now on.
    pub(super) fn set_port(&self, port: u16) {
        self.0.port.store(port, Ordering::Relaxed);
    }

    /// Notes where a datagram is about to be sent.
    pub(super) fn sends(&self, message: &[u8], to: SocketAddr) {
        let to = canonical(to.ip(), to.port());
        let read = self.0.destinations.read().unwrap_or_else(PoisonError::into_inner);
        if read.contains_key(&to) || message.first() == Some(&COOKIE) {
            return;
        }
        drop(read);
        self.0.destinations.write().unwrap_or_else(PoisonError::into_inner).entry(to).or_default();
    }

    /// Forgets all destinations but these. One that is still used is noted again before the next datagram
    /// leaves, so nothing goes around more than once.
    pub(super) fn keep(&self, endpoints: &HashSet<SocketAddr>) {
        let endpoints: HashSet<_> = endpoints.iter().map(|e| canonical(e.ip(), e.port())).collect();
        let mut destinations = self.0.destinations.write().unwrap_or_else(PoisonError::into_inner);
        destinations.retain(|to, _| endpoints.contains(to));
    }

    /// Whether a packet from the link is a datagram that the device sent itself.
    pub(super) fn is_own(&self, packet: &[u8]) -> bool {
        let Some(udp) = udp(packet) else { return false };
        let &[s0, s1, d0, d1, _, _, _, _, kind, 0, 0, 0, ..] = udp else { return false };
        if u16::from_be_bytes([s0, s1]) != self.0.port.load(Ordering::Relaxed) || !(1..=4).contains(&kind) {
            return false;
        }
        let Some(to) = destination(packet) else { return false };
        let to = canonical(to, u16::from_be_bytes([d0, d1]));
        let destinations = self.0.destinations.read().unwrap_or_else(PoisonError::into_inner);
        let Some(said) = destinations.get(&to) else { return false };
        if !said.swap(true, Ordering::Relaxed) {
            tracing::warn!(endpoint = %to, "The way to a peer leads into the tunnel");
        }
        true
    }

    /// Lets the socket hear nothing that came out of the link: whoever calls from in there would be answered
    /// into the link, and its address in there would replace the endpoint that works.
    pub(super) fn deafen(&self, socket: &impl AsFd) -> io::Result<()> {
        // Where the filter finds the index of the link that a packet came in by; 32 bits in two's complement.
        let index = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX).cast_unsigned();
        SockRef::from(socket).attach_filter(&[
            SockFilter::new(code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), 0, 0, index),
            SockFilter::new(code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K), 0, 1, self.0.link),
            SockFilter::new(code(libc::BPF_RET | libc::BPF_K), 0, 0, 0),
            SockFilter::new(code(libc::BPF_RET | libc::BPF_K), 0, 0, u32::MAX),
        ])
    }
}

/// An instruction's code; all of them have 8 bits.
fn code(bits: u32) -> u16 {
    u16::from(bits.to_le_bytes()[0])
}

fn canonical(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_canonical(), port)
}

/// The UDP header and what follows it. The host cuts up datagrams that do not fit; only the first piece has
/// the header, the others are small enough for their datagrams to come back whole.
fn udp(packet: &[u8]) -> Option<&[u8]> {
    match packet.first()? >> 4 {
        4 if *packet.get(9)? == UDP => {
            let first = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff == 0;
            first.then(|| packet.get(usize::from(packet[0] & 15) * 4..)).flatten()
        }
        6 => match *packet.get(6)? {
            UDP => packet.get(40..),
            FRAGMENT if *packet.get(40)? == UDP => {
                let first = u16::from_be_bytes([*packet.get(42)?, *packet.get(43)?]) & 0xfff8 == 0;
                first.then(|| packet.get(48..)).flatten()
            }
            _ => None,
        },
        _ => None,
    }
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    Some(match packet.first()? >> 4 {
        4 => IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?),
    })
}

#[cfg(test)]
#[path = "own_tests.rs"]
mod tests;
