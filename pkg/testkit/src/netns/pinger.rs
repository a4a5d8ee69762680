//! Twenty pings a second, and how many of them were lost.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::{Ns, Process, eventually};

const INTERVAL: Duration = Duration::from_millis(50);
/// So many answers show that a way is open.
const OPEN: usize = 5;
/// How long they may take.
const SOON: Duration = Duration::from_secs(40);

/// A running `ping`.
#[derive(Debug)]
pub struct Pinger {
    process: Process,
    start: Instant,
}

/// What came of the pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingReport {
    /// How many were sent.
    pub sent: usize,
    /// How many had no answer.
    pub lost: usize,
    /// The longest time without an answer that came of lost pings.
    pub longest_gap: Duration,
    /// How long it ran.
    pub ran: Duration,
}

impl Pinger {
    pub(super) fn start(ns: &Ns, to: IpAddr) -> Result<Self> {
        let interval = INTERVAL.as_secs_f64().to_string();
        let to_text = to.to_string();
        let name = format!("ping-{}-{:x}", to_text.replace(':', "_"), unique());
        let process = ns.spawn(&name, &["ping", "-n", "-O", "-i", &interval, "-W", "1", &to_text])?;
        Ok(Self { process, start: Instant::now() })
    }

    /// How many answers there are so far.
    pub fn answered(&self) -> usize {
        answers(&self.process.log()).len()
    }

    /// Waits until so many more are answered.
    pub fn wait(&self, more: usize) -> Result<()> {
        let wanted = self.answered() + more;
        eventually(SOON, "pings are answered", || {
            ensure!(self.answered() >= wanted, "{} of {wanted}", self.answered());
            Ok(())
        })
    }

    /// Stops and counts. Answers that take up to half a second are waited for.
    pub fn stop(mut self) -> Result<PingReport> {
        // SIGINT makes ping print its totals at once; what is still on its way would count as lost.
        let ran = self.start.elapsed();
        let sent_at_stop = highest_sequence(&self.process.log());
        std::thread::sleep(Duration::from_millis(500));
        self.process.signal(Signal::INT)?;
        let start = Instant::now();
        while self.process.ended().is_none() && start.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let log = self.process.log();
        report(&log, sent_at_stop, ran).with_context(|| format!("reading ping's output:\n{log}"))
    }
}

/// Pings on several ways at once.
#[derive(Debug)]
pub struct Pingers(Vec<Pinger>);

impl Pingers {
    /// Starts a `ping` from each of these namespaces to the address beside it, and waits until all are answered.
    pub fn start<'n>(ways: impl IntoIterator<Item = (&'n Ns, IpAddr)>) -> Result<Self> {
        let pingers = ways.into_iter().map(|(ns, to)| Pinger::start(ns, to)).collect::<Result<Vec<_>>>()?;
        pingers.iter().try_for_each(|pinger| pinger.wait(OPEN))?;
        Ok(Self(pingers))
    }

    /// Stops and counts: all that was sent and lost together, and the longest gap and time of any.
    pub fn stop(self) -> Result<PingReport> {
        let none = PingReport { sent: 0, lost: 0, longest_gap: Duration::ZERO, ran: Duration::ZERO };
        self.0.into_iter().map(Pinger::stop).try_fold(none, |sum, report| {
            let PingReport { sent, lost, longest_gap, ran } = report?;
            Ok(PingReport {
                sent: sum.sent + sent,
                lost: sum.lost + lost,
                longest_gap: sum.longest_gap.max(longest_gap),
                ran: sum.ran.max(ran),
            })
        })
    }
}

fn unique() -> u128 {
    std::time::UNIX_EPOCH.elapsed().map(|elapsed| elapsed.as_nanos()).unwrap_or_default()
}

fn sequence(line: &str) -> Option<usize> {
    line.split_once("icmp_seq=")?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn answers(log: &str) -> BTreeSet<usize> {
    log.lines().filter(|line| line.contains(" bytes from ")).filter_map(sequence).collect()
}

/// `ping -O` names each sequence number: answered, or not answered yet.
fn highest_sequence(log: &str) -> usize {
    log.lines().filter_map(sequence).max().unwrap_or_default()
}

/// Sequence numbers up to `upto` that have no answer, and the longest run of them as time.
fn report(log: &str, upto: usize, ran: Duration) -> Option<PingReport> {
    if upto == 0 {
        // Nothing was answered at all, and without `-O` lines nothing is known: count by time.
        let sent = usize::try_from(ran.as_millis() / INTERVAL.as_millis()).ok()?;
        return Some(PingReport { sent, lost: sent, longest_gap: ran, ran });
    }
    let answered = answers(log);
    let (mut lost, mut run, mut longest) = (0, 0u32, 0u32);
    for sequence in 1..=upto {
        if answered.contains(&sequence) {
            run = 0;
        } else {
            lost += 1;
            run += 1;
            longest = longest.max(run);
        }
    }
    Some(PingReport { sent: upto, lost, longest_gap: INTERVAL * longest, ran })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_has_no_answer() {
        let log = "64 bytes from 10.0.0.1: icmp_seq=1 ttl=64 time=0.1 ms\n\
                   no answer yet for icmp_seq=2\nno answer yet for icmp_seq=3\n\
                   64 bytes from 10.0.0.1: icmp_seq=4 ttl=64 time=0.1 ms\n\
                   From 10.0.0.9 icmp_seq=5 Destination Host Unreachable\n\
                   64 bytes from 10.0.0.1: icmp_seq=6 ttl=64 time=0.1 ms\n";
        let found = report(log, 6, Duration::from_secs(1));
        let found = found.map(|found| (found.sent, found.lost, found.longest_gap));
        assert_eq!(found, Some((6, 3, Duration::from_millis(100))));
    }

    #[test]
    fn nothing_sent_is_all_lost() {
        let found = report("connect: Network is unreachable\n", 0, Duration::from_secs(1));
        assert_eq!(found.map(|found| (found.sent, found.lost)), Some((20, 20)));
    }
}
