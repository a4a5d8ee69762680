//! Who else changed what is ours, as far as the kernel tells: the route protocol, the port of the netlink socket,
//! the process of an nftables transaction.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use ipnet::IpNet;

/// Things that are kept apart at most. There are more only where somebody changes everything.
const MAX: usize = 1024;
/// The inode of the first process namespace: the numbers that the kernel tells are of that one.
const FIRST_PROCESSES: &str = "pid:[4026531836]";

/// What somebody changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Thing {
    /// A route by table and destination.
    Route(u32, IpNet),
    /// Rules that look up Kilo's table.
    Rules,
    /// A link or its addresses, by name.
    Link(String),
    /// Our nftables table.
    Table,
    /// FORWARD of iptables-nft.
    Forward,
}

/// What is known of who did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The port of the netlink socket: the number of its process as a rule.
    Port(u32),
    /// A route of this protocol stands in the place of ours.
    Route { protocol: u8, port: u32 },
    /// The process of an nftables transaction.
    Process { id: u32, name: String },
}

/// Who changed what last.
#[derive(Debug, Default)]
pub(crate) struct Culprits(BTreeMap<Thing, Who>);

impl Culprits {
    /// Notes who it was. Of a kernel's own change there is nobody to name.
    pub(crate) fn note(&mut self, thing: Thing, who: Who) {
        if self.0.len() >= MAX {
            self.0.clear();
        }
        if who == Who::Port(0) {
            self.0.remove(&thing);
        } else {
            self.0.insert(thing, who);
        }
    }

    /// Who it was last.
    pub(crate) fn of(&self, thing: &Thing) -> Option<&Who> {
        self.0.get(thing)
    }
}

impl Display for Who {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write_port(f, *port),
            Self::Route { protocol, port } => {
                match protocol_name(*protocol) {
                    Some(name) => write!(f, "a route of protocol {name}")?,
                    None => write!(f, "a route of protocol {protocol}")?,
                }
                if *port == 0 {
                    return Ok(());
                }
                f.write_str(" by ")?;
                write_port(f, *port)
            }
            Self::Process { id, name } => write!(f, "process {id} ({name})"),
        }
    }
}

fn write_port(f: &mut Formatter<'_>, port: u32) -> fmt::Result {
    // Second and further sockets of a process have ports that are negative as numbers of processes.
    if i32::try_from(port).is_err() {
        return write!(f, "netlink port {port}");
    }
    match process_name(port) {
        Some(name) => write!(f, "process {port} ({name})"),
        None => write!(f, "process {port}"),
    }
}

/// The name of a process that still runs, where its number means the same here.
fn process_name(id: u32) -> Option<String> {
    let here = std::fs::read_link("/proc/self/ns/pid").ok()?;
    if here.to_str() != Some(FIRST_PROCESSES) {
        return None;
    }
    let name = std::fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// The names of `/etc/iproute2/rt_protos`.
fn protocol_name(protocol: u8) -> Option<&'static str> {
    Some(match protocol {
        2 => "kernel",
        3 => "boot",
        4 => "static",
        8 => "gated",
        9 => "ra",
        11 => "zebra",
        12 => "bird",
        14 => "xorp",
        15 => "ntk",
        16 => "dhcp",
        18 => "keepalived",
        42 => "babel",
        99 => "openr",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        192 => "eigrp",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_it_was_is_said_in_words() {
        let text = |who: Who| who.to_string();
        assert_eq!(text(Who::Process { id: 7, name: "nft".into() }), "process 7 (nft)");
        assert_eq!(text(Who::Route { protocol: 12, port: 0 }), "a route of protocol bird");
        assert_eq!(text(Who::Route { protocol: 77, port: 0 }), "a route of protocol 77");
        assert_eq!(text(Who::Port(u32::MAX)), "netlink port 4294967295");
        assert!(text(Who::Port(1)).starts_with("process 1"));
    }

    #[test]
    fn the_last_one_counts_and_there_is_an_end_to_them() {
        let mut culprits = Culprits::default();
        for index in 0..5000 {
            culprits.note(Thing::Link(index.to_string()), Who::Port(9));
        }
        assert!(culprits.0.len() <= MAX);
        culprits.note(Thing::Table, Who::Port(5));
        culprits.note(Thing::Table, Who::Port(6));
        assert_eq!(culprits.of(&Thing::Table), Some(&Who::Port(6)));
        culprits.note(Thing::Table, Who::Port(0));
        assert_eq!(culprits.of(&Thing::Table), None);
    }
}
