//! Our own Node's annotations: what is to be written, and one write at a time, off the loop.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use kilo_mesh::{LeaderFailover, MARKER, PREFIX, UNREACHABLE};
use tokio::task::JoinHandle;

use crate::backoff::Backoff;
use crate::report::ErrorEvent;
use crate::{BackendError, NodePatch};

/// How often our own Node's `last-seen` is renewed: upstream drops a node after 60 s.
pub const CHECK_IN: Duration = Duration::from_secs(30);
/// How soon it is renewed when somebody waits for its echo.
const HURRIED: Duration = Duration::from_secs(5);
/// The annotations that a graceful stop removes: upstream's, and those that upstream does not know.
const REMOVED: [&str; 9] = [
    "endpoint",
    "internal-ip",
    "key",
    "last-seen",
    "wireguard-ip",
    "discovered-endpoints",
    "granularity",
    MARKER,
    UNREACHABLE,
];

/// What of `wanted` differs from what is there, time included, what of `withdrawn` is there, and the event it is
/// written for: `None` when only the time differs. `{}` and an empty text both say that there is nothing. With
/// the time goes the marker of our check-ins; `reports` are the nodes that are found unreachable.
pub(crate) fn patch(
    have: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
    withdrawn: &[String],
    (failover, reports): (LeaderFailover, &str),
) -> (NodePatch, Option<ErrorEvent>) {
    let none = |text: Option<&String>| text.is_none_or(|t| t.is_empty() || t == "{}");
    let changed = |key: &String, value: &String| match have.get(key) {
        Some(old) => old != value && !(none(Some(old)) && none(Some(value))),
        None => true,
    };
    let mut patch: NodePatch = wanted
        .iter()
        .filter(|(key, value)| key.starts_with(PREFIX) && changed(key, value))
        .map(|(key, value)| (key.clone(), Some(value.clone())))
        .collect();
    patch.extend(withdrawn.iter().filter(|key| have.contains_key(*key)).map(|key| (key.clone(), None)));
    let unreachable = format!("{PREFIX}{UNREACHABLE}");
    if reports != have.get(&unreachable).map_or("", String::as_str) {
        patch.insert(unreachable, (!reports.is_empty()).then(|| reports.to_owned()));
    }
    let event = patch.keys().any(|key| *key != last_seen()).then_some(ErrorEvent::Local);
    if let Some(Some(time)) = patch.get(&last_seen()) {
        let marker = kilo_mesh::marker(time, failover);
        patch.insert(format!("{PREFIX}{MARKER}"), Some(marker));
    }
    (patch, event)
}

fn last_seen() -> String {
    format!("{PREFIX}last-seen")
}

/// The patch of a graceful stop: every annotation there that is to be removed.
pub(crate) fn removal(have: &BTreeMap<String, String>) -> NodePatch {
    let names = REMOVED.iter().map(|name| format!("{PREFIX}{name}"));
    names.filter(|name| have.contains_key(name)).map(|name| (name, None)).collect()
}

/// The one write that may be under way. A hung API server holds back the next write, and nothing else.
#[derive(Default)]
pub(crate) struct Write {
    running: Option<(JoinHandle<Result<(), BackendError>>, ErrorEvent)>,
    /// What is or was written last, without the time.
    patch: NodePatch,
    /// How long somebody else's changes are left alone who undoes ours again and again.
    undone: Backoff,
    /// When a write is due that waits for this reason.
    waiting: Option<Instant>,
    last: Option<Instant>,
    failed: bool,
    hurried: bool,
    /// Something was to be written while a write was under way.
    held_back: bool,
}

impl Write {
    /// Starts a write of this patch, or notes that one is due once the present one is done, or later. Tells how
    /// long that of something that somebody has undone just now has to wait.
    pub(crate) fn start(
        &mut self,
        event: ErrorEvent,
        patch: &NodePatch,
        write: impl Future<Output = Result<(), BackendError>> + Send + 'static,
    ) -> Option<Duration> {
        if self.running.is_some() {
            self.held_back = true;
            return None;
        }
        let mut lasting = patch.clone();
        lasting.remove(&last_seen());
        lasting.remove(&format!("{PREFIX}{MARKER}"));
        let mut wait = None;
        if event != ErrorEvent::Local {
            // Our Node was as it should be for a while.
            self.undone.reset();
        } else if lasting != self.patch || self.failed {
            self.undone.reset();
            self.patch = lasting;
        } else if let Some(at) = self.undone.retry_at().filter(|at| *at > Instant::now()) {
            self.waiting = Some(at);
            return None;
        } else {
            wait = Some(self.undone.step(Instant::now()));
        }
        (self.held_back, self.hurried, self.waiting) = (false, false, None);
        self.last = Some(Instant::now());
        self.running = Some((tokio::spawn(write), event));
        wait
    }

    /// Waits for the write under way; for ever when there is none.
    pub(crate) async fn finished(&mut self) -> (Result<(), BackendError>, ErrorEvent) {
        let Some((task, event)) = &mut self.running else { return std::future::pending().await };
        let event = *event;
        let result = task.await.unwrap_or_else(|join| {
            Err(BackendError::Failed { action: "writing our own node".into(), source: Box::new(join) })
        });
        self.running = None;
        self.failed = result.is_err();
        (result, event)
    }

    /// Whether the loop should look at once for what to write.
    pub(crate) fn again(&mut self) -> bool {
        std::mem::take(&mut self.held_back) && !self.failed
    }

    /// When `last-seen` is to be renewed; after a failed write in a tenth of the time, and when something waits
    /// that somebody had undone. `None` while a write is under way.
    pub(crate) fn next_check_in(&self) -> Option<Instant> {
        let wait = match (self.failed, self.hurried) {
            (true, _) => CHECK_IN / 10,
            (false, true) => HURRIED,
            (false, false) => CHECK_IN,
        };
        let next = self.last.map_or_else(Instant::now, |last| last + wait);
        self.running.is_none().then(|| self.waiting.map_or(next, |at| at.min(next)))
    }

    /// Lets the next check-in come soon.
    pub(crate) fn hurry(&mut self) {
        self.hurried = true;
    }

    /// Whether that time has come.
    pub(crate) fn check_in_due(&self) -> bool {
        self.next_check_in().is_some_and(|next| next <= Instant::now())
    }

    /// Gives up the write under way.
    pub(crate) fn cancel(&mut self) {
        if let Some((task, _)) = self.running.take() {
            task.abort();
        }
    }
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Write").field("running", &self.running.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA_PATH: (LeaderFailover, &str) = (LeaderFailover::DataPath, "");

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (format!("{PREFIX}{k}"), (*v).to_owned())).collect()
    }

    #[test]
    fn time_alone_is_no_reason_to_write() {
        let (patch, event) = patch(
            &map(&[("key", "k"), ("last-seen", "1")]),
            &map(&[("key", "k"), ("last-seen", "2")]),
            &[],
            DATA_PATH,
        );
        let keys: Vec<_> = patch.keys().map(|k| k.trim_start_matches(PREFIX)).collect();
        assert_eq!(keys, ["agent", "last-seen"], "the marker comes along");
        assert_eq!(event, None);
    }

    #[test]
    fn what_differs_is_written_with_the_time() {
        let (patch, event) = patch(
            &map(&[("wireguard-ip", ""), ("discovered-endpoints", ""), ("last-seen", "1")]),
            &map(&[("wireguard-ip", "10.4.0.1/16"), ("discovered-endpoints", "{}"), ("last-seen", "2")]),
            &[],
            DATA_PATH,
        );
        let keys: Vec<_> = patch.keys().map(|k| k.trim_start_matches(PREFIX)).collect();
        assert_eq!(keys, ["agent", "last-seen", "wireguard-ip"]);
        assert_eq!(patch["kilo.squat.ai/agent"], Some(kilo_mesh::marker("2", DATA_PATH.0)));
        assert_eq!(event, Some(ErrorEvent::Local));
    }

    #[test]
    fn reports_are_written_at_once_and_removed_when_there_are_none() {
        let reports = |have: &[(&str, &str)], reports| {
            let (patch, event) =
                patch(&map(have), &map(&[("last-seen", "2")]), &[], (LeaderFailover::DataPath, reports));
            (patch.get("kilo.squat.ai/unreachable").cloned(), event)
        };
        let local = Some(ErrorEvent::Local);
        assert_eq!(reports(&[], "a,b"), (Some(Some("a,b".to_owned())), local));
        assert_eq!(reports(&[("unreachable", "a,b")], "a,b"), (None, None));
        assert_eq!(reports(&[("unreachable", "a,b")], ""), (Some(None), local));
        assert_eq!(reports(&[], ""), (None, None));
    }

    #[test]
    fn an_absent_annotation_is_written_even_when_empty() {
        assert_eq!(patch(&map(&[]), &map(&[("cni-compatibility-ip", "")]), &[], DATA_PATH).0.len(), 1);
    }

    #[test]
    fn a_withdrawn_annotation_is_removed_once() {
        let gone = [format!("{PREFIX}cilium-internal-ip")];
        let have = map(&[("cilium-internal-ip", "10.0.1.7"), ("last-seen", "1")]);
        let (removal, event) = patch(&have, &map(&[("last-seen", "1")]), &gone, DATA_PATH);
        assert_eq!(removal.into_iter().collect::<Vec<_>>(), [(gone[0].clone(), None)]);
        assert_eq!(event, Some(ErrorEvent::Local));
        assert_eq!(patch(&map(&[]), &map(&[]), &gone, DATA_PATH), (NodePatch::new(), None));
    }

    #[test]
    fn a_stop_removes_what_upstream_removes_and_is_there() {
        let have = map(&[
            ("agent", "0.1.0 1"),
            ("key", "k"),
            ("force-endpoint", "x:1"),
            ("cni-compatibility-ip", ""),
            ("granularity", "full"),
        ]);
        let keys: Vec<_> = removal(&have).into_keys().collect();
        assert_eq!(keys, ["kilo.squat.ai/agent", "kilo.squat.ai/granularity", "kilo.squat.ai/key"]);
    }
}
