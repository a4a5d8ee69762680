//! The policy tables of the kernel: read, commit, and hear what it has to say. A firewall is of the network
//! namespace of the thread that opened it. Whom the tables let through is decided elsewhere.
//!
//! Where the kernel can (6.9), our tables belong to the socket that commits, and outlive it: nobody else changes
//! or flushes them, and the next process takes them over.

mod batch;
mod conntrack;
mod counters;
mod log;
mod monitor;

use kilo_agent::{Committed, Counted, Firewall, FirewallEvent, HostError};
use kilo_nftables::{Table, TableFamily, Transaction};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::error::{io, refused};
use crate::netlink::nftables;
use crate::netlink::socket::Socket;
use batch::{Flags, OWNER, PERSIST};
use log::Log;
use monitor::Monitor;

/// Our policy table of family `inet`.
pub const POLICY_TABLE: &str = "kilo_policy";

/// Our policy table of family `bridge`.
pub const BRIDGE_TABLE: &str = "kilo_bind";

/// What a policy firewall works on.
#[derive(Clone, Debug)]
pub struct FirewallConfig {
    /// Our policy tables.
    pub tables: Vec<(TableFamily, String)>,
    /// The group of our log rules; `None` where nothing is to be heard of them.
    pub log_group: Option<u16>,
    /// Whether tables get an owner where the kernel can. Without one `nft` can edit them.
    pub own: bool,
}

impl Default for FirewallConfig {
    fn default() -> Self {
        Self {
            tables: vec![
                (TableFamily::Inet, POLICY_TABLE.to_owned()),
                (TableFamily::Bridge, BRIDGE_TABLE.to_owned()),
            ],
            log_group: None,
            own: true,
        }
    }
}

/// The kernel's policy tables. The flags of ownership are this type's own business: transactions need not name
/// them, and the tables that it reads do not have them.
pub struct LinuxFirewall {
    config: FirewallConfig,
    /// Commits, and owns what it has made.
    socket: Socket,
    /// Reads, so that a broken exchange never touches the owner.
    reader: Socket,
    conntrack: Socket,
    monitor: Monitor,
    log: Option<Log>,
    flags: Flags,
}

impl LinuxFirewall {
    /// Opens the sockets and finds out what the kernel can do. Must be called within a Tokio runtime.
    pub fn open(config: FirewallConfig) -> Result<Self, HostError> {
        let open = || Socket::open(NETLINK_NETFILTER).map_err(io("opening a netfilter socket"));
        let mut socket = open()?;
        let monitor = Monitor::open(socket.port(), config.tables.clone())
            .map_err(io("listening for changes of nftables"))?;
        let log = match config.log_group {
            Some(group) => Some(Log::open(group).map_err(io(format!("listening to NFLOG group {group}")))?),
            None => None,
        };
        let mut flags = Flags::default();
        if config.own {
            flags = Flags::probe(&mut socket).map_err(refused("making an nftables table to try"))?;
        }
        Ok(Self { config, socket, reader: open()?, conntrack: open()?, monitor, log, flags })
    }

    /// Whether the kernel protects our tables from others, and keeps them when this process ends.
    pub fn protects(&self) -> bool {
        self.flags.known()
    }

    /// Removes our policy tables. While another process owns one of them, that one stays and is the error.
    pub fn remove(&mut self) -> Result<(), HostError> {
        for (family, name) in &self.config.tables {
            let action = || format!("removing nftables table {name}");
            match nftables::delete_table(&mut self.socket, family.number(), name) {
                Ok(()) => tracing::info!(table = %name, "Removed a policy table"),
                Err(why) if nftables::is_absent(&why) => {}
                Err(why) => return Err(refused(action())(why)),
            }
            self.flags.forget(*family, name);
        }
        Ok(())
    }

    /// Takes over what an earlier process left.
    fn adopt(&mut self, table: &mut Table) -> Result<(), HostError> {
        if !self.flags.known() {
            return Ok(());
        }
        if table.flags & (OWNER | PERSIST) == PERSIST {
            let action = format!("taking over nftables table {}", table.name);
            batch::own(&mut self.socket, table.family, &table.name).map_err(refused(action))?;
            self.flags.owned(table.family, &table.name);
            tracing::debug!(table = %table.name, "Took over a policy table");
            table.flags |= OWNER;
        }
        // A table without them cannot be given them: with other flags than are wanted it is written anew.
        table.flags ^= OWNER | PERSIST;
        Ok(())
    }
}

impl Firewall for LinuxFirewall {
    async fn read(&mut self) -> Result<Vec<Table>, HostError> {
        let mut found = Vec::new();
        for (family, name) in self.config.tables.clone() {
            let action = || format!("reading nftables table {name}");
            let table = nftables::read_table(&mut self.reader, family, &name).map_err(refused(action()))?;
            if let Some(mut table) = table {
                self.adopt(&mut table)?;
                found.push(table);
            }
        }
        Ok(found)
    }

    async fn commit(&mut self, transactions: &[Transaction]) -> Result<Committed, HostError> {
        batch::commit(&mut self.socket, &mut self.flags, transactions)
    }

    async fn next(&mut self) -> FirewallEvent {
        let Self { monitor, log, .. } = self;
        let logged = async {
            match log {
                Some(log) => log.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            by = monitor.changed() => FirewallEvent::Changed { by },
            logged = logged => FirewallEvent::Logged(logged),
        }
    }

    async fn counters(&mut self) -> Result<Vec<Counted>, HostError> {
        let mut found = Vec::new();
        for (family, name) in &self.config.tables {
            match counters::read(&mut self.reader, family.number(), name) {
                Ok(counted) => found.extend(counted),
                Err(why) if nftables::is_absent(&why) => {}
                Err(why) => {
                    return Err(refused(format!("reading the counters of nftables table {name}"))(why));
                }
            }
        }
        Ok(found)
    }

    async fn sweep(&mut self, mask: u32) -> Result<usize, HostError> {
        let action = || format!("clearing the bits {mask:#x} of the marks of connections");
        conntrack::sweep(&mut self.conntrack, mask).map_err(refused(action()))
    }
}
