//! Whether an address answers: one ICMP echo on a socket of its own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tracing::{debug, warn};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(2);
/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
/// What comes back with the answer, and tells it from others.
const TOKEN: usize = 16;

static SEQUENCE: AtomicU16 = AtomicU16::new(1);
static TOLD: AtomicBool = AtomicBool::new(false);

/// Whether an address answers an ICMP echo within 2 s.
pub(crate) async fn answers(target: IpAddr) -> bool {
    match tokio::time::timeout(LIMIT, echo(target)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            if error.kind() == io::ErrorKind::PermissionDenied && !TOLD.swap(true, Ordering::Relaxed) {
                warn!(%error, "Other nodes cannot be asked whether they answer");
            }
            debug!(%target, %error, "No answer");
            false
        }
        Err(_) => false,
    }
}

async fn echo(target: IpAddr) -> io::Result<()> {
    let socket = open(target)?;
    let mut token = [0; TOKEN];
    getrandom(&mut token, GetRandomFlags::empty())?;
    let request = request(target, SEQUENCE.fetch_add(1, Ordering::Relaxed), &token);
    socket.send(&request).await?;
    let mut packet = [0; 256];
    loop {
        let length = socket.recv(&mut packet).await?;
        if is_answer(target, &packet[..length], &token) {
            return Ok(());
        }
    }
}

/// A socket that hears ICMP of this address only.
fn open(target: IpAddr) -> io::Result<UdpSocket> {
    let (domain, protocol) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let raw = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(protocol));
    // Without CAP_NET_RAW the kernel may still let this group send echoes and nothing else.
    let socket = raw.or_else(|_| Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(protocol)))?;
    socket.connect(&SocketAddr::new(target, 0).into())?;
    // Sending and receiving are the same for all sockets that are connected.
    UdpSocket::from_std(std::net::UdpSocket::from(OwnedFd::from(socket)))
}

/// An echo request. The kernel puts in the checksum of ICMPv6.
fn request(target: IpAddr, sequence: u16, token: &[u8; TOKEN]) -> [u8; HEADER + TOKEN] {
    let mut packet = [0; HEADER + TOKEN];
    packet[0] = if target.is_ipv4() { 8 } else { 128 };
    packet[4..6].copy_from_slice(&token[..2]);
    packet[6..HEADER].copy_from_slice(&sequence.to_be_bytes());
    packet[HEADER..].copy_from_slice(token);
    if target.is_ipv4() {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The Internet checksum of bytes whose number is even.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

/// Whether a packet is the reply that carries this token. A raw socket of IPv4 gives the IP header, too.
fn is_answer(target: IpAddr, packet: &[u8], token: &[u8; TOKEN]) -> bool {
    let (reply, start) = match (target, packet.first()) {
        (IpAddr::V4(_), Some(first)) if first >> 4 == 4 => (0, usize::from(first & 15) * 4),
        (IpAddr::V4(_), _) => (0, 0),
        (IpAddr::V6(_), _) => (129, 0),
    };
    let Some(message) = packet.get(start..) else { return false };
    message.first() == Some(&reply) && message.get(HEADER..) == Some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    #[test]
    fn a_request_adds_up_and_its_answer_is_known() {
        let token = [7; TOKEN];
        let asked = request(V4, 0x1234, &token);
        assert_eq!(checksum(&asked), 0, "with its sum it adds up to nothing");
        assert_eq!(&asked[..8], [8, 0, asked[2], asked[3], 7, 7, 0x12, 0x34]);
        let mut reply = asked;
        reply[0] = 0;
        let mut with_header = vec![0x45; 20];
        with_header.extend(reply);
        assert!(is_answer(V4, &with_header, &token) && is_answer(V4, &reply, &token));
        assert!(!is_answer(V4, &asked, &token), "our own question");
        assert!(!is_answer(V4, &reply, &[8; TOKEN]), "an answer to somebody else");
        let mut v6 = request(V6, 1, &token);
        assert_eq!((v6[0], v6[2], v6[3]), (128, 0, 0));
        v6[0] = 129;
        assert!(is_answer(V6, &v6, &token) && !is_answer(V4, &v6, &token));
        for cut in 0..with_header.len() {
            assert!(!is_answer(V4, &with_header[..cut], &token));
        }
        assert!(!is_answer(V4, &[0x4f], &token));
    }
}
