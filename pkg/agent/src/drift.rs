//! What others change on this machine: how soon that is looked at, and how often the same thing is repaired
//! that they undo again.
//!
//! ```text
//! event ──▶ read at once; the next reading waits 10 ms, 20 ms … 500 ms while events keep coming
//! repair ──▶ undone ──▶ repair ──▶ undone ──▶ repair, told ──▶ undone ──▶ wait 250 ms … 30 s ──▶ repair …
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kilo_state::Op;

use crate::backoff::Backoff;

/// Pauses between two readings of the host that events ask for.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(500);
/// Reading takes a tenth of the time at most, as long as that is within [`LONGEST`].
const SHARE: u32 = 10;
/// After such a time without an event all is forgotten about the pauses.
const QUIET: Duration = Duration::from_secs(2);
/// Repairs of one thing in a row before the next ones wait, and it is told that somebody undoes them.
const FREE: u32 = 3;
/// A repair that lasts this long, or three times the last pause, was not undone.
const LASTING: Duration = Duration::from_secs(10);
/// Things that are told apart; more at once are one thing.
const THINGS: usize = 256;

/// When to read the host again, and which repairs to hold back.
#[derive(Debug, Default)]
pub(crate) struct Drift {
    read_at: Option<Instant>,
    pause: Duration,
    /// Somebody changed something, and the host is read then.
    due: Option<Instant>,
    feuds: BTreeMap<String, Feud>,
    /// What waits, and when the first of it may be tried.
    held: BTreeSet<String>,
    retry_at: Option<Instant>,
}

/// A thing that was repaired.
#[derive(Clone, Copy, Debug)]
struct Feud {
    repairs: u32,
    last: Instant,
    pause: Backoff,
}

/// What is to be done of a repair.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Verdict {
    /// To be carried out, in order.
    pub now: Vec<Op>,
    /// Which of them are repairs.
    pub repairs: Vec<bool>,
    /// How many operations wait.
    pub held: usize,
    /// Of those to be carried out, the ones that have been undone so often that somebody should know.
    pub feuds: Vec<Op>,
}

impl Drift {
    /// Somebody else changed something.
    pub(crate) fn heard(&mut self, now: Instant) {
        let earliest = self.read_at.map_or(now, |at| (at + self.pause).max(now));
        self.due.get_or_insert(earliest);
    }

    /// Whether events are of interest: not while the host will be read again anyway.
    pub(crate) fn listens(&self) -> bool {
        self.due.is_none()
    }

    /// Whether it is time to read the host because of what was heard; once.
    pub(crate) fn take_due(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }

    /// Whether it is time for a repair that waits; once.
    pub(crate) fn take_retry(&mut self, now: Instant) -> bool {
        self.retry_at.take_if(|at| *at <= now).is_some()
    }

    /// When to go round for what was heard, or for a repair that waits.
    pub(crate) fn next(&self) -> Option<Instant> {
        [self.due, self.retry_at].into_iter().flatten().min()
    }

    /// The host was read, which ended now.
    pub(crate) fn read(&mut self, now: Instant, took: Duration) {
        let quiet = self.read_at.is_none_or(|at| now.duration_since(at) > QUIET + took);
        let pause = if quiet { SHORTEST } else { (self.pause * 2).max(SHORTEST) };
        self.pause = pause.max(took * SHARE).min(LONGEST);
        self.read_at = Some(now);
        self.due = None;
    }

    /// Tells repairs that may be carried out from those that wait because somebody undid them before. What is
    /// among `ours` as well is no repair. Where a link or its addresses must wait, everything does: the rest
    /// depends on them. An upstream agent's chains stay until our table is there.
    pub(crate) fn judge(&mut self, ops: Vec<Op>, ours: &[Op], now: Instant) -> Verdict {
        self.feuds.retain(|_, feud| !feud.is_over(now));
        let ours: BTreeSet<String> =
            ours.iter().map(thing).filter(|thing| !self.held.contains(thing)).collect();
        let things = things(&ops);
        self.peace();
        for thing in things.iter().filter(|thing| !ours.contains(*thing)) {
            let until = self.feuds.get(thing).and_then(|feud| feud.pause.retry_at());
            if let Some(until) = until.filter(|at| *at > now) {
                self.held.insert(thing.clone());
                self.retry_at = Some(self.retry_at.map_or(until, |at| at.min(until)));
            }
        }
        let all = ops
            .iter()
            .zip(&things)
            .any(|(op, thing)| self.held.contains(thing) && matches!(op.kind(), "link" | "address"));
        let no_table =
            ops.iter().zip(&things).any(|(op, t)| matches!(op, Op::Nftables(_)) && self.held.contains(t));
        let count = ops.len();
        let mut verdict = Verdict::default();
        let mut counted = BTreeSet::new();
        for (op, thing) in ops.into_iter().zip(things) {
            let early = no_table && matches!(op, Op::RemoveChain { .. });
            if all || early || self.held.contains(&thing) {
                continue;
            }
            let repair = !ours.contains(&thing);
            if repair && counted.insert(thing.clone()) && self.repair(thing, now) == FREE {
                verdict.feuds.push(op.clone());
            }
            verdict.now.push(op);
            verdict.repairs.push(repair);
        }
        verdict.held = count - verdict.now.len();
        verdict
    }

    /// Nothing is to be repaired.
    pub(crate) fn peace(&mut self) {
        self.held.clear();
        self.retry_at = None;
    }

    /// Notes a repair. How many there have been in a row.
    fn repair(&mut self, thing: String, now: Instant) -> u32 {
        let feud =
            self.feuds.entry(thing).or_insert(Feud { repairs: 0, last: now, pause: Backoff::default() });
        feud.repairs += 1;
        feud.last = now;
        if feud.repairs >= FREE {
            feud.pause.step(now);
        }
        feud.repairs
    }
}

impl Feud {
    fn is_over(&self, now: Instant) -> bool {
        let pause = self.pause.pause().unwrap_or_default();
        now.duration_since(self.last) > LASTING.max(pause * 3)
    }
}

/// What each operation is about. All that follows from a link that is made anew is about this link, and routes and
/// rules that went with a link or an address are about that.
fn things(ops: &[Op]) -> Vec<String> {
    let made = ops.iter().find(|op| matches!(op, Op::CreateLink { .. }));
    if let Some(link) = made {
        return vec![thing(link); ops.len()];
    }
    if ops.len() > THINGS {
        return vec!["many".to_owned(); ops.len()];
    }
    let cause = ops.iter().find(|op| matches!(op, Op::SetUp(_) | Op::AddAddress(_))).map(thing);
    let about = |op: &Op| cause.clone().filter(|_| matches!(op.kind(), "route" | "rule"));
    ops.iter().map(|op| about(op).unwrap_or_else(|| thing(op))).collect()
}

/// The thing that an operation changes, whatever it makes of it.
fn thing(op: &Op) -> String {
    let kind = op.kind();
    match op {
        Op::SetSysctl { path, .. } => format!("{kind} {path}"),
        Op::CreateLink { dev, .. } | Op::DeleteLink { dev, .. } => format!("{kind} {dev:?}"),
        Op::SetMtu(dev, _) | Op::SetUp(dev) | Op::SetDown(dev) => format!("{kind} {dev:?}"),
        Op::AddAddress(address) | Op::DeleteAddress(address) => {
            format!("{kind} {:?} {}", address.dev, address.net)
        }
        Op::Nftables(transaction) => format!("{kind} {}", transaction.table),
        Op::AddForward(accept) | Op::DeleteForward(accept) => format!("{kind} {}", accept.0),
        Op::ConfigureDevice(_) => kind.to_owned(),
        Op::RemovePeer(key) => format!("{kind} {key}"),
        Op::UpdatePeer(change) => format!("{kind} {}", change.public_key),
        Op::AddPeer(peer) => format!("{kind} {}", peer.public_key),
        Op::AddRoute(route) | Op::ReplaceRoute(route) | Op::DeleteRoute(route) => {
            format!("{kind} {} {}", route.table, route.dst)
        }
        Op::AddRule(rule) | Op::DeleteRule(rule) => format!("{kind} {:?} {}", rule.src, rule.dst),
        Op::RemoveChain { ipv6, chain } => format!("{kind} {ipv6} {chain:?}"),
        Op::WriteCni(file) => format!("{kind} {}", file.path),
    }
}

#[cfg(test)]
mod tests {
    use kilo_state::{Dev, LinkKind, MAIN_TABLE, Route};

    use super::*;

    fn route(n: u8) -> Op {
        let dst = format!("10.2.{n}.0/24").parse().expect("a range");
        Op::AddRoute(Route {
            table: MAIN_TABLE,
            dst,
            dev: Dev::WireGuard,
            via: None,
            src: None,
            onlink: false,
        })
    }

    fn link() -> Op {
        Op::CreateLink { dev: Dev::WireGuard, name: "kilo0".into(), kind: LinkKind::WireGuard, mtu: None }
    }

    #[test]
    fn the_first_event_is_followed_at_once_and_a_stream_twice_a_second() {
        let mut drift = Drift::default();
        let start = Instant::now();
        let (mut now, mut reads) = (start, 0u32);
        while now < start + Duration::from_secs(60) {
            drift.heard(now);
            if drift.take_due(now) {
                reads += 1;
                drift.read(now, Duration::from_millis(1));
                assert!(reads > 1 || now == start, "the first one waited");
            }
            now += Duration::from_millis(1);
        }
        assert!((120..=130).contains(&reads), "{reads} readings in a minute of events");
        now += QUIET * 2;
        drift.heard(now);
        assert!(drift.take_due(now) && !drift.take_due(now), "after a quiet time it is at once again");
    }

    #[test]
    fn reading_that_takes_long_is_not_done_all_the_time() {
        let mut drift = Drift::default();
        let now = Instant::now();
        drift.heard(now);
        drift.read(now, Duration::from_millis(30));
        drift.heard(now);
        assert_eq!(drift.next(), Some(now + Duration::from_millis(300)));
        assert!(!drift.listens() && !drift.take_due(now));
    }

    /// Somebody undoes a repair a millisecond after it, for ten minutes.
    #[test]
    fn what_is_undone_again_and_again_is_repaired_ever_less_and_told_once() {
        let mut drift = Drift::default();
        let start = Instant::now();
        let (mut now, mut repairs, mut told) = (start, 0, 0);
        while now < start + Duration::from_secs(600) {
            let verdict = drift.judge(vec![route(1)], &[], now);
            repairs += verdict.now.len();
            told += verdict.feuds.len();
            assert_eq!(verdict.now.len() + verdict.held, 1);
            now =
                if verdict.held > 0 { drift.next().expect("a time") } else { now + Duration::from_millis(1) };
        }
        assert_eq!(told, 1);
        // Three at once, then after 1/4, 1/2, 1, 2, 4, 8, 16 s, and every 30 s.
        assert!((27..=31).contains(&repairs), "{repairs} repairs");
        let verdict = drift.judge(vec![route(1), route(2)], &[], now - Duration::from_secs(1));
        assert_eq!(verdict.now, [route(2)], "others do not wait for it");
        now += Duration::from_secs(100);
        assert_eq!(
            drift.judge(vec![route(1)], &[], now).held,
            0,
            "after a while it is as if nothing had been"
        );
    }

    #[test]
    fn what_depends_on_a_link_waits_with_it() {
        let mut drift = Drift::default();
        let now = Instant::now();
        for _ in 0..FREE {
            assert_eq!(drift.judge(vec![link(), route(1)], &[], now).now.len(), 2);
        }
        assert_eq!(drift.judge(vec![link(), route(1)], &[], now), Verdict { held: 2, ..Verdict::default() });
        assert_eq!(drift.judge(vec![route(1)], &[], now).held, 0, "the route itself was never undone");
    }

    #[test]
    fn routes_that_go_with_a_link_are_nobodys_fault() {
        let mut drift = Drift::default();
        let now = Instant::now();
        for number in 1..=FREE {
            let verdict = drift.judge(vec![Op::SetUp(Dev::WireGuard), route(1), route(2)], &[], now);
            assert_eq!((verdict.now.len(), verdict.feuds.len()), (3, usize::from(number == FREE)));
        }
        assert_eq!(
            drift.judge(vec![route(1)], &[], now),
            Verdict { now: vec![route(1)], repairs: vec![true], ..Verdict::default() }
        );
    }

    #[test]
    fn what_is_wanted_anew_is_no_repair() {
        let mut drift = Drift::default();
        let now = Instant::now();
        for _ in 0..10 {
            let verdict = drift.judge(vec![route(1), route(2)], &[route(2)], now);
            assert_eq!(verdict.now.last(), Some(&route(2)));
            assert_eq!(verdict.repairs.last(), Some(&false));
        }
        assert_eq!(
            drift.judge(vec![route(1)], &[route(1)], now).held,
            1,
            "what waits is not what is wanted anew"
        );
    }

    #[test]
    fn many_things_are_one() {
        let mut drift = Drift::default();
        let now = Instant::now();
        let many: Vec<Op> = (0..300u16).map(|n| route((n % 250) as u8)).collect();
        drift.judge(many, &[], now);
        assert_eq!(drift.feuds.len(), 1);
    }
}
