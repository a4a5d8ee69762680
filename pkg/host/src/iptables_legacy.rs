//! The tables of iptables-legacy, and what an upstream agent left in them. These are read, never written: a change means
//! to replace a whole table, which only iptables itself may do under its lock.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use kilo_mesh::LegacyTable;
use socket2::{Domain, Protocol, Socket, Type};

/// Tables of this namespace that are in use, one a line. To ask for another would make it.
const TABLE_NAMES: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
/// Where upstream has rules.
const TABLES: [&str; 2] = ["filter", "nat"];
const COMMENT: &[u8] = b"Kilo: ";
const CHAIN: &[u8] = b"KILO-";
/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`, the same for IPv6.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// Bytes of `struct ipt_getinfo`, and where the size of the table stands in it.
const INFO: usize = 84;
const INFO_SIZE: usize = 80;
/// Bytes before the entries in `struct ipt_get_entries`, and where their size stands.
const ENTRIES: usize = 40;
const ENTRIES_SIZE: usize = 32;
/// Bytes of a table's name.
const NAME: usize = 32;
/// Bytes before the data of a match or a target: size, name, revision.
const PART: usize = 32;
/// The table may grow between the two questions.
const TRIES: usize = 4;
/// More than a million rules.
const MOST: usize = 512 << 20;

/// Where things stand in `struct ipt_entry` and `struct ip6t_entry`.
#[derive(Clone, Copy)]
struct Layout {
    target_offset: usize,
    next_offset: usize,
    matches: usize,
}

const LAYOUTS: [Layout; 2] = [
    Layout { target_offset: 88, next_offset: 90, matches: 112 },
    Layout { target_offset: 140, next_offset: 142, matches: 168 },
];

/// Whether there is a filter table.
pub(crate) fn has_filter(ipv6: bool) -> bool {
    is_in_use(&names(ipv6), "filter")
}

fn names(ipv6: bool) -> String {
    std::fs::read_to_string(TABLE_NAMES[usize::from(ipv6)]).unwrap_or_default()
}

fn is_in_use(names: &str, table: &str) -> bool {
    names.lines().any(|line| line.trim() == table)
}

/// The tables in which there is something of Kilo's. What cannot be read counts as empty.
pub(crate) fn leftovers() -> Vec<LegacyTable> {
    let mut found = Vec::new();
    for ipv6 in [false, true] {
        let names = names(ipv6);
        for table in TABLES.into_iter().filter(|table| is_in_use(&names, table)) {
            match entries(ipv6, table) {
                Ok(bytes) => {
                    let (rules, chains) = kilos(&bytes, LAYOUTS[usize::from(ipv6)]);
                    if rules > 0 || !chains.is_empty() {
                        found.push(LegacyTable { ipv6, table: table.to_owned(), rules, chains });
                    }
                }
                Err(error) => tracing::debug!(table, ipv6, %error, "Table of iptables-legacy cannot be read"),
            }
        }
    }
    found
}

/// How many rules have a comment of Kilo's, and the chains of its names.
fn kilos(mut bytes: &[u8], layout: Layout) -> (u32, Vec<String>) {
    let (mut rules, mut chains) = (0, Vec::new());
    let u16_at = |bytes: &[u8], at: usize| {
        let two = bytes.get(at..at + 2)?;
        Some(usize::from(u16::from_ne_bytes([two[0], two[1]])))
    };
    while let (Some(target), Some(next)) =
        (u16_at(bytes, layout.target_offset), u16_at(bytes, layout.next_offset))
    {
        let Some((entry, rest)) = bytes.split_at_checked(next) else { break };
        if next == 0 {
            break;
        }
        bytes = rest;
        let mut matches = entry.get(layout.matches..target).unwrap_or_default();
        while let Some(size) = u16_at(matches, 0).filter(|size| *size >= PART) {
            let Some((part, rest)) = matches.split_at_checked(size) else { break };
            matches = rest;
            if name(part) == b"comment" && part[PART..].starts_with(COMMENT) {
                rules += 1;
                break;
            }
        }
        let target = entry.get(target..).unwrap_or_default();
        // The head of a chain of somebody's is an entry with this target, whose data is the chain's name.
        if target.len() > PART && name(target) == b"ERROR" && target[PART..].starts_with(CHAIN) {
            let end = target[PART..].iter().position(|byte| *byte == 0).unwrap_or(target.len() - PART);
            chains.push(String::from_utf8_lossy(&target[PART..PART + end]).into_owned());
        }
    }
    // It becomes part of a command.
    chains.retain(|chain| chain.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
    (rules, chains)
}

/// The name of a match or a target.
fn name(part: &[u8]) -> &[u8] {
    let name = part.get(2..PART - 1).unwrap_or_default();
    name.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The entries of a table.
fn entries(ipv6: bool, table: &str) -> io::Result<Vec<u8>> {
    let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket: OwnedFd = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?.into();
    let level = if ipv6 { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
    let mut named = [0; NAME];
    named[..table.len()].copy_from_slice(table.as_bytes());
    let mut last = io::Error::from(io::ErrorKind::InvalidData);
    for _ in 0..TRIES {
        let mut info = vec![0; INFO];
        info[..NAME].copy_from_slice(&named);
        option(&socket, level, GET_INFO, &mut info)?;
        let size = info.get(INFO_SIZE..INFO).map_or([0; 4], |b| [b[0], b[1], b[2], b[3]]);
        let length = usize::try_from(u32::from_ne_bytes(size)).unwrap_or(usize::MAX);
        if length > MOST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut answer = vec![0; ENTRIES + length];
        answer[..NAME].copy_from_slice(&named);
        answer[ENTRIES_SIZE..ENTRIES_SIZE + 4].copy_from_slice(&size);
        match option(&socket, level, GET_ENTRIES, &mut answer) {
            Ok(()) => {
                answer.drain(..ENTRIES.min(answer.len()));
                return Ok(answer);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Asks for an option whose value is also the question.
#[allow(unsafe_code, reason = "no library has these options")]
fn option(socket: &OwnedFd, level: i32, name: i32, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `buffer` is valid for `length` bytes, and the kernel writes no more than these.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    buffer.truncate(usize::try_from(length).unwrap_or(0));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of an IPv4 table with these matches and this target.
    fn entry(matches: &[(&str, &[u8])], target: (&str, &[u8])) -> Vec<u8> {
        let part = |(name, data): &(&str, &[u8])| {
            let size = PART + data.len().next_multiple_of(8);
            let mut part = vec![0; size];
            part[..2].copy_from_slice(&u16::try_from(size).unwrap().to_ne_bytes());
            part[2..2 + name.len()].copy_from_slice(name.as_bytes());
            part[PART..PART + data.len()].copy_from_slice(data);
            part
        };
        let mut entry = vec![0; 112];
        entry.extend(matches.iter().flat_map(part));
        let at = u16::try_from(entry.len()).unwrap();
        entry.extend(part(&target));
        let next = u16::try_from(entry.len()).unwrap();
        entry[88..90].copy_from_slice(&at.to_ne_bytes());
        entry[90..92].copy_from_slice(&next.to_ne_bytes());
        entry
    }

    fn table() -> Vec<u8> {
        [
            entry(&[("tcp", &[0; 12]), ("comment", b"Kilo: jump to NAT chain\0")], ("", &[0; 8])),
            entry(&[("comment", b"somebody's Kilo: \0")], ("", &[0; 8])),
            entry(&[], ("ERROR", b"KUBE-SERVICES\0")),
            entry(&[], ("ERROR", b"KILO-NAT\0")),
            entry(&[("comment", b"Kilo: NAT remaining packets\0")], ("MASQUERADE", &[0; 8])),
            entry(&[], ("ERROR", b"KILO-; reboot\0")),
            entry(&[], ("ERROR", b"ERROR\0")),
        ]
        .concat()
    }

    #[test]
    fn rules_and_chains_of_kilo_are_counted() {
        assert_eq!(kilos(&table(), LAYOUTS[0]), (2, vec!["KILO-NAT".to_owned()]));
    }

    #[test]
    fn a_broken_table_does_no_harm() {
        let table = table();
        for cut in 0..table.len() {
            kilos(&table[..cut], LAYOUTS[0]);
            let mut broken = table.clone();
            broken[cut] = 0xff;
            kilos(&broken, LAYOUTS[0]);
            kilos(&broken, LAYOUTS[1]);
        }
    }
}
