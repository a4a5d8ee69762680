//! What is asked of the kernel's WireGuard devices, as a link of type nlmon shows it.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kilo_testkit::netns::{Ns, Process, eventually, helper as program_helper};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType, recv, socket};

const LINK: &str = "nlmon0";
/// `ETH_P_ALL`: what goes out by an nlmon link is shown to those who listen to everything, and to nobody else.
const EVERYTHING: u16 = 3;
/// The length of netlink's header, and of that of generic netlink.
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
/// Families of generic netlink but the one that tells about them: `GENL_MIN_ID + 1..=GENL_MAX_ID`.
const FAMILIES: std::ops::RangeInclusive<u16> = 17..=1023;
/// `WG_CMD_SET_DEVICE`, version 1 of the family, and what is reserved.
const SET_DEVICE: [u8; GENERIC_HEADER] = [1, 1, 0, 0];

/// Counts the requests that change a WireGuard device of one namespace, no matter who makes them. There must
/// be nothing else in it that uses generic netlink.
#[derive(Debug)]
pub struct Messages(Process);

impl Messages {
    /// Counts from now on.
    pub fn count(ns: &Ns) -> Result<Self> {
        ns.run(&format!("ip link add {LINK} type nlmon")).context("making a link that shows netlink")?;
        ns.run(&format!("ip link set {LINK} up"))?;
        let exe = program_helper::program()?;
        let process =
            ns.spawn("wg-messages", &[exe.as_os_str(), "--helper".as_ref(), "wg-messages".as_ref()])?;
        eventually(Duration::from_secs(10), "netlink messages are counted", || {
            if process.log().contains("listening") { Ok(()) } else { bail!("{}", process.log()) }
        })?;
        Ok(Self(process))
    }

    /// How many there were so far.
    pub fn so_far(&self) -> usize {
        self.0.log().lines().filter(|line| *line == "set").count()
    }
}

/// Prints a line for each request that changes a device.
pub(super) fn tell() -> Result<()> {
    let protocol = rustix::net::RawProtocol::new(u32::from(EVERYTHING.to_be()));
    let protocol = protocol.map(Protocol::from_raw).context("a protocol")?;
    let socket = socket(AddressFamily::PACKET, SocketType::DGRAM, Some(protocol))
        .context("opening a socket that sees all packets")?;
    let mut out = std::io::stdout();
    writeln!(out, "listening")?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (length, _) = recv(&socket, buffer.as_mut_slice(), RecvFlags::empty()).context("listening")?;
        for _ in 0..requests(&buffer[..length]) {
            writeln!(out, "set")?;
        }
    }
}

/// How many requests that change a device are in a datagram. Packets of other links are seen, too: they do not
/// begin with their own length.
fn requests(mut bytes: &[u8]) -> usize {
    let mut found = 0;
    while let Some((header, rest)) = bytes.split_at_checked(HEADER) {
        let size = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if size < HEADER || size > bytes.len() {
            break;
        }
        found += usize::from(FAMILIES.contains(&kind) && rest.starts_with(&SET_DEVICE));
        bytes = bytes.get(size.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}
