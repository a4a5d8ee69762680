//! Which nodes answer, and which are reported. A state machine: time is an argument, and so is every answer.
//!
//! ```text
//!            answer: every 2 s                       4 unanswered: report
//!   asked ───────────────────▶ answers ──────────────────────────────────▶ reported
//!     ▲ never answered: no evidence  ▲                                        │
//!     └──────────────────────────────┴── answers without a miss for the hold ─┘
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kilo_mesh::{REPORTS, Watch, Way};

/// How often a node that answers is asked.
const PERIOD: Duration = Duration::from_secs(2);
/// How soon it is asked again when it has not answered.
const RETRY: Duration = Duration::from_millis(500);
/// How many questions in a row without an answer make it unreachable.
const MISSES: u32 = 4;
/// How long a tunnel to a node that has just become a leader may take to come up.
const GRACE: Duration = Duration::from_secs(10);
/// How long a reported node must answer before its report is taken back.
const HOLD: Duration = Duration::from_secs(60);
/// A report that comes so soon after the last one holds twice as long, but no longer than this either.
const MEMORY: Duration = Duration::from_secs(600);

/// A node that is looked after.
#[derive(Clone, Debug)]
struct Target {
    way: Way,
    /// It has answered at this address.
    answered: bool,
    /// Questions in a row without an answer in time.
    unanswered: u32,
    /// When the question was sent that waits for its answer.
    asked: Option<Instant>,
    /// When it is asked next.
    next: Instant,
    /// Until when no answer is no evidence.
    grace: Option<Instant>,
    report: Option<Report>,
}

/// A report on a node.
#[derive(Clone, Copy, Debug)]
struct Report {
    hold: Duration,
    /// How often it was doubled.
    level: u32,
    /// Since when it has answered without a miss, or time alone works for it.
    good: Option<Instant>,
}

/// A report that was taken back.
#[derive(Clone, Copy, Debug)]
struct Past {
    level: u32,
    /// Until when it counts.
    until: Instant,
}

/// What came of looking after the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// A node does not answer any more; so long it must answer before its report is taken back.
    Unreachable(Arc<str>, Duration),
    /// Its report is taken back.
    Reachable(Arc<str>),
}

/// The nodes that this agent looks after.
#[derive(Debug, Default)]
pub(crate) struct Health {
    targets: BTreeMap<Arc<str>, Target>,
    past: BTreeMap<Arc<str>, Past>,
    restored: bool,
}

impl Health {
    /// Takes up the reports that an earlier run of this agent has left on its Node; only the first time.
    pub(crate) fn restore(&mut self, reports: &[Arc<str>], now: Instant) {
        if std::mem::replace(&mut self.restored, true) {
            return;
        }
        for name in reports.iter().take(REPORTS) {
            let report = Report { hold: HOLD, level: 0, good: None };
            let target = Target { report: Some(report), ..Target::new(Way::Keep, now) };
            self.targets.insert(name.clone(), target);
        }
    }

    /// Follows a new plan. A node that is reported is forgotten only when it is not `there` any more.
    pub(crate) fn follow(&mut self, watches: &[Watch], there: impl Fn(&str) -> bool, now: Instant) {
        let wanted: BTreeMap<&str, Way> = watches.iter().map(|watch| (&*watch.node, watch.way)).collect();
        self.targets.retain(|name, target| match wanted.get(&**name) {
            Some(way) => {
                target.turn(*way, self.past.contains_key(name), now);
                true
            }
            None => {
                target.turn(Way::Keep, false, now);
                target.report.is_some() && there(name)
            }
        });
        for watch in watches {
            let new = || {
                let known = self.past.contains_key(&watch.node);
                let grace = known.then(|| now + GRACE);
                Target { answered: known, grace, ..Target::new(watch.way, now) }
            };
            if !self.targets.contains_key(&watch.node) {
                let target = new();
                self.targets.insert(watch.node.clone(), target);
            }
        }
    }

    /// The questions to ask now, and what follows from those without an answer.
    pub(crate) fn due(&mut self, now: Instant) -> (Vec<(Arc<str>, IpAddr)>, Vec<News>) {
        let (mut questions, mut news) = (Vec::new(), Vec::new());
        self.past.retain(|_, past| past.until > now);
        let mut reports = self.targets.values().filter(|target| target.report.is_some()).count();
        for (name, target) in &mut self.targets {
            if target.lapses(now) {
                news.push(lift(&mut self.past, name, target, now));
                continue;
            }
            let Way::Probe(address) = target.way else { continue };
            if target.next > now {
                continue;
            }
            if target.asked.is_some() {
                target.unanswered = target.unanswered.saturating_add(1);
                if let Some(report) = &mut target.report {
                    report.good = None;
                }
            }
            if target.is_unreachable(now) && reports < REPORTS {
                let level = self.past.remove(name).map_or(0, |past| past.level + 1);
                let hold = HOLD.saturating_mul(1 << level.min(10)).min(MEMORY);
                target.report = Some(Report { hold, level, good: None });
                reports += 1;
                news.push(News::Unreachable(name.clone(), hold));
            }
            target.asked = Some(now);
            target.next = now + if target.unanswered < MISSES { RETRY } else { PERIOD };
            questions.push((name.clone(), address));
        }
        (questions, news)
    }

    /// Takes an answer of a node at an address.
    pub(crate) fn answered(&mut self, name: &str, address: IpAddr, now: Instant) -> Option<News> {
        let (name, target) = self.targets.iter_mut().find(|(other, _)| &***other == name)?;
        if target.way != Way::Probe(address) {
            return None;
        }
        target.answered = true;
        target.unanswered = 0;
        target.grace = None;
        if let Some(asked) = target.asked.take() {
            target.next = (asked + PERIOD).max(now);
        }
        let report = target.report.as_mut()?;
        let good = *report.good.get_or_insert(now);
        (now >= good + report.hold).then(|| lift(&mut self.past, name, target, now))
    }

    /// When there is something to ask or a report lapses.
    pub(crate) fn next(&self) -> Option<Instant> {
        let next = |target: &Target| match (target.way, target.report) {
            (Way::Probe(_), _) => Some(target.next),
            (Way::Wait, Some(Report { good: Some(good), hold, .. })) => Some(good + hold),
            (Way::Wait | Way::Keep, _) => None,
        };
        self.targets.values().filter_map(next).min()
    }

    /// The nodes that are reported, as the annotation has them.
    pub(crate) fn text(&self) -> String {
        let reported = self.targets.iter().filter(|(_, target)| target.report.is_some());
        reported.map(|(name, _)| &**name).collect::<Vec<_>>().join(",")
    }
}

impl Target {
    fn new(way: Way, now: Instant) -> Self {
        Self { way, answered: false, unanswered: 0, asked: None, next: now, grace: None, report: None }
    }

    /// Looks after the node in another way. What was reported, now or before, has answered once.
    fn turn(&mut self, way: Way, known: bool, now: Instant) {
        if self.way == way {
            return;
        }
        self.way = way;
        (self.unanswered, self.asked, self.next) = (0, None, now);
        self.answered = known || self.report.is_some();
        self.grace = Some(now + GRACE);
        if let Some(report) = &mut self.report {
            report.good = (way == Way::Wait).then_some(now);
        }
    }

    /// Whether time alone has ended its report.
    fn lapses(&self, now: Instant) -> bool {
        let report = self.report.filter(|_| self.way == Way::Wait);
        report.is_some_and(|report| report.good.is_some_and(|good| now >= good + report.hold))
    }

    /// Whether it is to be reported.
    fn is_unreachable(&self, now: Instant) -> bool {
        let counts = self.answered && self.grace.is_none_or(|until| until <= now);
        self.report.is_none() && counts && self.unanswered >= MISSES
    }
}

/// Takes a report back.
fn lift(past: &mut BTreeMap<Arc<str>, Past>, name: &Arc<str>, target: &mut Target, now: Instant) -> News {
    if let Some(report) = target.report.take() {
        past.insert(name.clone(), Past { level: report.level, until: now + MEMORY });
    }
    News::Reachable(name.clone())
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
