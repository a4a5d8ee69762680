//! DNS names of endpoints: resolved off the loop, again every half minute, and kept while nobody answers. A name
//! that nobody answers for holds back neither those that are known nor those that are new.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

/// How often a name is looked up.
const PERIOD: Duration = Duration::from_secs(30);
/// How many look-ups are under way at the most, by the standing of their names.
const AT_ONCE: [usize; 3] = [32, 24, 16];

/// How long the first plan may wait for names. Whoever answers does so in much less.
const FIRST: Duration = Duration::from_secs(6);

/// What one look-up found: the name, and its addresses or nothing.
type Found = (String, Option<Vec<IpAddr>>);

/// What is to be expected of a name; those that are better come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Known,
    New,
    Failing,
}

/// A name that is wanted.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    standing: Standing,
    /// When it was last begun with; its next look-up is a period later.
    begun: Option<Instant>,
    /// When that is, unless a look-up is under way.
    due: Option<Instant>,
}

/// The names that are wanted and when each is looked up next.
#[derive(Debug, Default)]
pub(crate) struct Names {
    wanted: BTreeMap<String, Wanted>,
    /// Names by their next look-up, for each standing.
    queues: [BTreeSet<(Instant, String)>; 3],
    running: JoinSet<Option<Vec<IpAddr>>>,
    busy: HashMap<Id, String>,
    /// Until when the first plan waits, once it does.
    first: Option<Instant>,
}

impl Names {
    /// Whether a first plan may be made: these names, which an election looks at, were looked up, or took too long.
    /// After a restart it would be a wrong one otherwise, and be carried out.
    pub(crate) fn ready<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a str>,
        dns: &mut BTreeMap<String, Vec<IpAddr>>,
    ) -> bool {
        let until = *self.first.get_or_insert_with(|| Instant::now() + FIRST);
        if Instant::now() >= until {
            return true;
        }
        self.want(names, dns);
        let ready = self.wanted.values().all(|wanted| wanted.standing != Standing::New);
        if ready {
            self.first = Some(Instant::now());
        }
        ready
    }

    /// Until when the first plan waits, if it does.
    pub(crate) fn waits(&self) -> Option<std::time::Instant> {
        self.first.filter(|until| *until > Instant::now()).map(Instant::into_std)
    }

    /// Sets the names that are wanted: new ones are looked up at once, others forgotten.
    pub(crate) fn want<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a str>,
        dns: &mut BTreeMap<String, Vec<IpAddr>>,
    ) {
        let names: BTreeSet<&str> = names.into_iter().collect();
        let queues = &mut self.queues;
        self.wanted.retain(|name, wanted| {
            let stays = names.contains(name.as_str());
            if let Some(due) = wanted.due.filter(|_| !stays) {
                queues[wanted.standing as usize].remove(&(due, name.clone()));
            }
            stays
        });
        dns.retain(|name, _| names.contains(name.as_str()));
        for name in names {
            if !self.wanted.contains_key(name) {
                let now = Instant::now();
                let wanted = Wanted { standing: Standing::New, begun: None, due: Some(now) };
                self.wanted.insert(name.to_owned(), wanted);
                self.queues[Standing::New as usize].insert((now, name.to_owned()));
            }
        }
    }

    /// Waits until some look-ups have answered or others are due, which answers nothing; for ever when no
    /// name is wanted. May be cancelled.
    pub(crate) async fn found(&mut self) -> Vec<Found> {
        let room = self.room();
        let next = room.iter().filter_map(|&queue| self.queues[queue].first()).map(|(at, _)| *at).min();
        tokio::select! {
            Some(done) = self.running.join_next_with_id() => {
                let mut all = Vec::from_iter(self.done(done));
                while let Some(done) = self.running.try_join_next_with_id() {
                    all.extend(self.done(done));
                }
                all
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => Vec::new(),
            else => std::future::pending().await,
        }
    }

    /// The queues of which more may be looked up now.
    fn room(&self) -> Vec<usize> {
        (0..AT_ONCE.len()).filter(|&queue| self.running.len() < AT_ONCE[queue]).collect()
    }

    /// Takes the end of a look-up, and puts its name into a queue again. One that died has found nothing.
    fn done(&mut self, done: Result<(Id, Option<Vec<IpAddr>>), tokio::task::JoinError>) -> Option<Found> {
        let (id, addresses) = done.unwrap_or_else(|error| (error.id(), None));
        let name = self.busy.remove(&id)?;
        if let Some(wanted) = self.wanted.get_mut(&name)
            && wanted.due.is_none()
        {
            wanted.standing = if addresses.is_some() { Standing::Known } else { Standing::Failing };
            let due = wanted.begun.unwrap_or_else(Instant::now) + PERIOD;
            wanted.due = Some(due);
            self.queues[wanted.standing as usize].insert((due, name.clone()));
        }
        Some((name, addresses))
    }

    /// Starts the look-ups that are due.
    pub(crate) fn start<F>(&mut self, resolve: impl Fn(String) -> F)
    where
        F: Future<Output = Option<Vec<IpAddr>>> + Send + 'static,
    {
        let now = Instant::now();
        for (queue, at_once) in self.queues.iter_mut().zip(AT_ONCE) {
            while self.running.len() < at_once
                && queue.first().is_some_and(|(at, _)| *at <= now)
                && let Some((_, name)) = queue.pop_first()
            {
                if let Some(wanted) = self.wanted.get_mut(&name) {
                    (wanted.begun, wanted.due) = (Some(now), None);
                }
                let lookup = self.running.spawn(resolve(name.clone()));
                self.busy.insert(lookup.id(), name);
            }
        }
    }

    /// Keeps an answer. An answer that fails leaves the last one that did not. Tells whether a plan may
    /// come out differently.
    pub(crate) fn learn(
        &self,
        dns: &mut BTreeMap<String, Vec<IpAddr>>,
        name: String,
        addresses: Option<Vec<IpAddr>>,
    ) -> bool {
        match addresses {
            Some(addresses) if self.wanted.contains_key(&name) && dns.get(&name) != Some(&addresses) => {
                dns.insert(name, addresses);
                true
            }
            Some(_) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    /// How long nobody answers for a bad name.
    const SILENCE: Duration = Duration::from_millis(50);

    /// `bad…` has no answer, anything else has at once.
    async fn resolve(name: String) -> Option<Vec<IpAddr>> {
        if name.starts_with("bad") {
            tokio::time::sleep(SILENCE).await;
            return None;
        }
        Some(vec![ADDRESS])
    }

    #[tokio::test]
    async fn bad_names_hold_back_no_good_one() {
        let mut names = Names::default();
        let mut dns = BTreeMap::new();
        let bad: Vec<String> = (0..2000).map(|n| format!("bad-{n:04}")).collect();
        let wanted = |good: &'static [&str]| {
            bad.iter().map(String::as_str).chain(good.iter().copied()).collect::<Vec<_>>()
        };
        names.want(wanted(&["z.good"]), &mut dns);
        let most = Arc::new(AtomicUsize::new(0));
        let start = Instant::now();
        // All bad ones once: 2000 look-ups of 50 ms, 24 at once.
        let mut failed = 0;
        while failed < bad.len() {
            names.start(resolve);
            most.fetch_max(names.running.len(), Ordering::Relaxed);
            for (name, addresses) in names.found().await {
                failed += usize::from(addresses.is_none());
                names.learn(&mut dns, name, addresses);
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{failed}");
        }
        assert_eq!(dns.len(), 1);
        assert_eq!(most.load(Ordering::Relaxed), AT_ONCE[Standing::New as usize]);
        // All bad ones are due again, and one comes that is new: it is the first.
        let failing = &mut names.queues[Standing::Failing as usize];
        *failing = std::mem::take(failing).into_iter().map(|(_, name)| (start, name)).collect();
        names.start(resolve);
        names.want(wanted(&["z.good", "z.new"]), &mut dns);
        let asked = Instant::now();
        while !dns.contains_key("z.new") {
            names.start(resolve);
            for (name, addresses) in names.found().await {
                names.learn(&mut dns, name, addresses);
            }
        }
        assert!(asked.elapsed() < SILENCE / 2, "{:?}", asked.elapsed());
    }

    #[tokio::test]
    async fn an_answer_that_fails_leaves_the_last_and_a_forgotten_name_none() {
        let mut names = Names::default();
        let mut dns = BTreeMap::new();
        names.want(["a"], &mut dns);
        assert!(names.learn(&mut dns, "a".into(), Some(vec![ADDRESS])));
        assert!(!names.learn(&mut dns, "a".into(), Some(vec![ADDRESS])), "the same");
        assert!(!names.learn(&mut dns, "a".into(), None));
        assert_eq!(dns.len(), 1);
        names.want([], &mut dns);
        assert!(dns.is_empty());
        assert!(!names.learn(&mut dns, "a".into(), Some(vec![ADDRESS])));
        assert!(names.queues.iter().all(BTreeSet::is_empty));
    }

    #[tokio::test]
    async fn a_look_up_that_dies_is_tried_again() {
        let mut names = Names::default();
        names.want(["a"], &mut BTreeMap::new());
        names.start(|_| async { panic!("as told") });
        assert_eq!(names.found().await, [("a".to_owned(), None)]);
        assert!(names.queues[Standing::Failing as usize].len() == 1 && names.busy.is_empty());
    }
}
