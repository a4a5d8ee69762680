//! Who reaches whom: a ping and a TCP connection that shows its true source, for every pair.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use kilo_testkit::netns::{Ns, Process};

const PORT: u16 = 7;

/// One end of a connection: a pod or somebody on the road. It listens on TCP port 7.
#[derive(Debug)]
pub struct Host {
    /// Where it is.
    pub ns: Ns,
    /// Its address in the mesh.
    pub address: IpAddr,
    _server: Process,
}

impl Host {
    /// Starts to listen.
    pub fn listen(ns: Ns, address: IpAddr) -> Result<Self> {
        let server = ns.tcp_server(PORT)?;
        Ok(Self { ns, address, _server: server })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.ns.name()
    }

    /// The way to another, as [`Pingers`](crate::Pingers) take it.
    pub fn to(&self, other: &Self) -> (&Ns, IpAddr) {
        (&self.ns, other.address)
    }

    /// A ping, in milliseconds, and a TCP connection of which the other side must see our own address.
    pub fn reaches(&self, other: &Self) -> Result<f64> {
        let time = self.ns.ping(other.address).context("ping")?;
        let seen = self.ns.tcp_source((other.address, PORT).into()).context("TCP")?;
        ensure!(seen == self.address, "TCP: {} saw the source {seen}, not {}", other.name(), self.address);
        Ok(time)
    }
}

/// One pair.
#[derive(Clone, Debug)]
pub enum Cell {
    /// Nothing is expected of it, such as a host with itself.
    Unasked,
    /// One of the two is stopped.
    Stopped,
    /// Ping and TCP are right; milliseconds of the ping.
    Reached(f64),
    /// They are not.
    Failed(String),
}

/// All pairs; rows are those who call.
#[derive(Clone, Debug)]
pub struct Reach {
    names: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

impl Reach {
    /// Tries all pairs of pods, and of pods with travellers both ways. Those named in `stopped` are not tried.
    pub fn of(pods: &[&Host], travellers: &[&Host], stopped: &BTreeSet<String>) -> Self {
        let hosts: Vec<&Host> = pods.iter().chain(travellers).copied().collect();
        let cell = |from: usize, to: usize| {
            let (a, b) = (hosts[from], hosts[to]);
            if from == to || (from >= pods.len() && to >= pods.len()) {
                return Cell::Unasked;
            }
            if stopped.contains(a.name()) || stopped.contains(b.name()) {
                return Cell::Stopped;
            }
            match a.reaches(b) {
                Ok(time) => Cell::Reached(time),
                Err(error) => Cell::Failed(format!("{error:#}")),
            }
        };
        let row = |from: usize| (0..hosts.len()).map(|to| cell(from, to)).collect::<Vec<_>>();
        let rows = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..hosts.len()).map(|from| scope.spawn(move || row(from))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
        });
        Self { names: hosts.iter().map(|host| host.name().to_owned()).collect(), rows }
    }

    /// The pairs that failed, as `pod-a1 → laptop: reason`.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for (from, row) in self.names.iter().zip(&self.rows) {
            if row.len() != self.names.len() {
                failures.push(format!("{from}: not tried"));
            }
            for (to, cell) in self.names.iter().zip(row) {
                if let Cell::Failed(reason) = cell {
                    failures.push(format!("{from} → {to}: {reason}"));
                }
            }
        }
        failures
    }

    /// How many pairs were tried and reached each other.
    pub fn reached(&self) -> usize {
        self.rows.iter().flatten().filter(|cell| matches!(cell, Cell::Reached(_))).count()
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.names.iter().map(String::len).max().unwrap_or_default().max(7);
        write!(f, "  {:width$}", "from\\to")?;
        for name in &self.names {
            write!(f, "  {name:>width$}")?;
        }
        for (from, row) in self.names.iter().zip(&self.rows) {
            write!(f, "\n  {from:width$}")?;
            for cell in row {
                let text = match cell {
                    Cell::Unasked => String::new(),
                    Cell::Stopped => "-".into(),
                    Cell::Reached(time) => format!("{time:.1} ms"),
                    Cell::Failed(_) => "FAILED".into(),
                };
                write!(f, "  {text:>width$}")?;
            }
        }
        Ok(())
    }
}
