//! The backend itself: waits for hints, reads what may have changed, and tells the agent.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use kilo_agent::{Backend, BackendError, Event, NodePatch, PolicyEvent};
use kilo_mesh::Finding;
use tokio::sync::mpsc;

use crate::scan::{self, Found, ReadError};
use crate::store::Store;
use crate::watch::{Hint, Seen, Watch};
use crate::write::{self, WriteError};

/// How often everything is compared by `stat`, for file systems that tell nothing.
const RESCAN: Duration = Duration::from_secs(10);

/// The same while the directory is not there.
const RESCAN_VANISHED: Duration = Duration::from_secs(1);

/// How long a start waits for files that cannot be read to their end.
const HOLD: Duration = Duration::from_secs(5);

/// How long a file rests after a [`Hint`]: several changes at once are one, and half a file is none.
const fn rest(hint: Hint) -> Duration {
    match hint {
        Hint::Done => Duration::from_millis(20),
        Hint::New => Duration::from_millis(250),
        Hint::Writing => Duration::from_secs(2),
    }
}

/// A file that is written for longer than this is read all the same.
const LONGEST_WRITE: Duration = Duration::from_secs(10);

/// Nodes and Peers, and what network policies are about, from the `*.yaml`, `*.yml` and `*.json` files below a directory.
#[derive(Clone, Debug)]
pub struct FileBackend {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    half: Half,
    store: Mutex<Store>,
    /// One patch at a time.
    patching: Mutex<()>,
    /// What a killed agent left behind is looked for once.
    swept: Once,
}

/// Which of the objects a store holds. The two are read apart: neither waits for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    /// Nodes and Peers.
    Mesh,
    /// What network policies are about.
    Policies,
}

impl FileBackend {
    /// A backend on this directory; it need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { shared: Arc::new(Shared::new(root.into(), Half::Mesh)) }
    }
}

impl Backend for FileBackend {
    async fn run(&self, events: mpsc::Sender<Event>) -> Result<(), BackendError> {
        Follower::new(self.shared.clone()).follow(events, Store::waiting, Store::events).await
    }

    async fn run_policy(&self, events: mpsc::Sender<PolicyEvent>) -> Result<(), BackendError> {
        let shared = Arc::new(Shared::new(self.shared.root.clone(), Half::Policies));
        Follower::new(shared).follow(events, Store::policies_waiting, Store::policy_events).await
    }

    async fn patch_node(&self, name: &str, patch: &NodePatch) -> Result<(), BackendError> {
        let (shared, name, patch) = (self.shared.clone(), name.to_owned(), patch.clone());
        let action = format!("patching node {name}");
        let done = tokio::task::spawn_blocking(move || shared.patch(&name, &patch)).await;
        match done {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if is_forbidden(&error) => {
                Err(BackendError::Forbidden { action, source: Box::new(error) })
            }
            Ok(Err(error)) => Err(failed(&action, error)),
            Err(error) => Err(failed(&action, error)),
        }
    }
}

fn failed(action: &str, error: impl std::error::Error + Send + Sync + 'static) -> BackendError {
    BackendError::Failed { action: action.to_owned(), source: Box::new(error) }
}

fn is_forbidden(error: &WriteError) -> bool {
    matches!(error, WriteError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied)
}

impl Shared {
    fn new(root: PathBuf, half: Half) -> Self {
        Self { root, half, store: Mutex::default(), patching: Mutex::default(), swept: Once::new() }
    }

    /// A panic cannot leave the store half changed in a way that a next reading would not mend.
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads these files and compares the rest by `stat`, if asked to.
    fn look(&self, files: &[OsString], found: Option<&Result<Found, String>>, extra: &[Finding]) -> Looked {
        let now = Instant::now();
        let mut looked = Looked::default();
        let mut store = self.store();
        for file in files {
            if !self.take(&mut store, file, now) {
                looked.unsettled.push(file.clone());
            }
        }
        if found.is_none() && !store.has_missing() {
            looked.whole = store.is_whole();
            return looked;
        }
        let fresh;
        let found = match found {
            Some(found) => found,
            None => {
                fresh = scan::scan(&self.root).map_err(|e| e.to_string());
                &fresh
            }
        };
        match found {
            Ok(found) => {
                let gone: Vec<_> = store.paths().filter(|p| !found.files.contains_key(*p)).cloned().collect();
                gone.iter().for_each(|path| store.missing(path, now));
                looked.stale = found
                    .files
                    .iter()
                    .filter(|(path, stamp)| store.is_stale(path, **stamp) && !files.contains(path))
                    .map(|(path, _)| path.clone())
                    .collect();
            }
            Err(_) => {
                let all: Vec<_> = store.paths().cloned().collect();
                all.iter().for_each(|path| store.missing(path, now));
            }
        }
        looked.again = store.settle(&self.root, found.as_ref().map_err(String::as_str), extra, now);
        looked.vanished = store.has_vanished();
        looked.whole = store.is_whole();
        looked
    }

    /// Reads one file into the store. False when somebody is writing it.
    fn take(&self, store: &mut Store, file: &OsStr, now: Instant) -> bool {
        let path = self.root.join(file);
        match scan::read(&path) {
            Ok((text, stamp)) => match self.half {
                Half::Mesh => store.read(file, &text, stamp, device(&path)),
                Half::Policies => store.read_policies(file, &text, stamp, device(&path)),
            },
            Err(ReadError::Gone) => store.missing(file, now),
            Err(ReadError::Busy) => return false,
            Err(ReadError::Io(error)) => store.unreadable(file, &error.to_string()),
        }
        true
    }

    fn patch(&self, name: &str, patch: &NodePatch) -> Result<(), WriteError> {
        let _one = self.patching.lock().unwrap_or_else(PoisonError::into_inner);
        let own = write::own_file(&self.root, name);
        let holders = {
            let mut store = self.store();
            if store.paths().next().is_none()
                && let Ok(found) = scan::scan(&self.root)
            {
                let now = Instant::now();
                for file in found.files.keys() {
                    self.take(&mut store, file, now);
                }
            }
            if store.has_vanished() {
                return Err(WriteError::Vanished(format!("{} has lost its files", self.root.display())));
            }
            store.holders(name)
        };
        match holders.first().map(|(file, there)| (self.root.join(file), *there)) {
            // Back a moment ago, perhaps, and not read yet.
            Some((file, there)) if there || file.exists() => {
                self.swept.call_once(|| write::sweep(&file));
                write::patch(&self.root, &file, name, patch).map(drop)
            }
            // Moved or deleted a moment ago; the next attempt knows more.
            Some((file, _)) => Err(WriteError::Busy(file)),
            // Made by ourselves a moment ago, and not read yet.
            None if own.exists() => write::patch(&self.root, &own, name, patch).map(drop),
            None => write::create(&self.root, name, patch),
        }
    }
}

/// The number of the file system of a file's directory; a link's own directory counts.
fn device(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    path.parent().and_then(|parent| parent.metadata().ok()).map_or(0, |meta| meta.dev())
}

/// What a look brought.
#[derive(Default)]
struct Looked {
    /// Files that somebody is writing.
    unsettled: Vec<OsString>,
    /// Files with another stamp than when they were read.
    stale: Vec<OsString>,
    /// When to look at missing files again.
    again: Option<Instant>,
    vanished: bool,
    whole: bool,
}

/// When a file is to be read.
struct Due {
    at: Instant,
    hint: Hint,
    since: Instant,
}

/// What the agent may be told.
enum May {
    Tell,
    /// Only that there is nothing to read.
    Wait,
    Not,
}

struct Follower {
    shared: Arc<Shared>,
    /// None where the kernel refuses: then everything is found by comparing.
    watch: Option<Watch>,
    pending: BTreeMap<OsString, Due>,
    /// When to compare everything.
    rescan: Option<Instant>,
    /// Nothing has been told yet.
    holding: bool,
    hold_until: Option<Instant>,
    /// Why not every directory is watched.
    unwatched: Option<String>,
}

impl Follower {
    fn new(shared: Arc<Shared>) -> Self {
        let mut follower = Self {
            shared,
            watch: None,
            pending: BTreeMap::new(),
            rescan: Some(Instant::now()),
            holding: true,
            hold_until: None,
            unwatched: None,
        };
        match Watch::new() {
            Ok(watch) => follower.watch = Some(watch),
            Err(error) => follower.unwatched(&error),
        }
        follower
    }

    fn unwatched(&mut self, error: &std::io::Error) {
        let reason = error.to_string();
        if self.unwatched.as_ref() != Some(&reason) {
            if self.shared.half == Half::Mesh {
                tracing::warn!(%reason, "Not every directory can be watched");
            }
            self.unwatched = Some(reason);
        }
    }

    /// Tells what the store has to say, by one of these while nothing has been told and by the other from then on.
    async fn follow<E>(
        mut self,
        events: mpsc::Sender<E>,
        waiting: fn(&mut Store) -> Vec<E>,
        all: fn(&mut Store) -> Vec<E>,
    ) -> Result<(), BackendError> {
        loop {
            let due = self.pending.values().map(|d| d.at).chain(self.rescan).min();
            let sleep = tokio::time::sleep_until(due.unwrap_or_else(|| Instant::now() + RESCAN).into());
            tokio::select! {
                () = events.closed() => return Ok(()),
                seen = next(&mut self.watch) => match seen {
                    Ok(seen) => self.note(seen),
                    Err(error) => {
                        self.watch = None;
                        self.unwatched(&error);
                    }
                },
                () = sleep => {
                    let (vanished, whole) = self.work().await?;
                    let told = match self.may_tell(Instant::now(), vanished, whole) {
                        May::Tell => all(&mut self.shared.store()),
                        May::Wait => waiting(&mut self.shared.store()),
                        May::Not => Vec::new(),
                    };
                    for event in told {
                        if events.send(event).await.is_err() {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    fn note(&mut self, seen: Seen) {
        let now = Instant::now();
        if seen.tree {
            let soon = now + rest(Hint::Done);
            self.rescan = Some(self.rescan.map_or(soon, |r| r.min(soon)));
        }
        for (file, hint) in seen.files {
            self.expect(file, hint, now);
        }
    }

    /// Plans to read a file. A row of writes is waited out, a row of finished ones is not put off.
    fn expect(&mut self, file: OsString, hint: Hint, now: Instant) {
        let at = now + rest(hint);
        match self.pending.get_mut(&file) {
            Some(due) if due.hint == Hint::Done && hint == Hint::Done => {}
            Some(due) => {
                due.at = at.min(due.since + LONGEST_WRITE);
                due.hint = hint;
            }
            None => drop(self.pending.insert(file, Due { at, hint, since: now })),
        }
    }

    /// Does what is due; whether there is nothing to read, and whether everything could be.
    async fn work(&mut self) -> Result<(bool, bool), BackendError> {
        let now = Instant::now();
        let full = self.rescan.is_some_and(|at| at <= now);
        let files: Vec<_> =
            self.pending.iter().filter(|(_, due)| due.at <= now).map(|(file, _)| file.clone()).collect();
        for file in &files {
            self.pending.remove(file);
        }
        let found = if full { Some(self.scan().await?) } else { None };
        let extra: Vec<_> = self
            .unwatched
            .iter()
            .map(|reason| {
                let reason = format!("not every directory is watched, changes may take 10 s: {reason}");
                Finding::new("Host", "fs.inotify", "", reason)
            })
            .collect();
        let shared = self.shared.clone();
        let looked = blocking(move || shared.look(&files, found.as_ref(), &extra)).await?;
        let now = Instant::now();
        for file in looked.unsettled.into_iter().chain(looked.stale) {
            if !self.pending.contains_key(&file) {
                // Nothing has been told yet, so there is nothing that half a file could undo.
                let hint = if self.holding && self.hold_until.is_none() { Hint::Done } else { Hint::New };
                self.expect(file, hint, now);
            }
        }
        let period = if looked.vanished || self.holding { RESCAN_VANISHED } else { RESCAN };
        let planned = self.rescan.filter(|_| !full);
        self.rescan = planned.into_iter().chain(looked.again).chain([now + period]).min();
        Ok((looked.vanished, looked.whole))
    }

    fn may_tell(&mut self, now: Instant, vanished: bool, whole: bool) -> May {
        if self.holding {
            if vanished {
                self.hold_until = None;
                return May::Wait;
            }
            let until = *self.hold_until.get_or_insert(now + HOLD);
            if now < until && !(whole && self.pending.is_empty()) {
                if self.pending.is_empty() {
                    self.rescan = Some(self.rescan.map_or(until, |r| r.min(until)));
                }
                return May::Not;
            }
            self.holding = false;
        }
        May::Tell
    }

    /// Looks below the root, and watches what is there before that is read.
    async fn scan(&mut self) -> Result<Result<Found, String>, BackendError> {
        loop {
            let shared = self.shared.clone();
            let found = blocking(move || scan::scan(&shared.root).map_err(|e| e.to_string())).await?;
            let none = BTreeMap::new();
            let directories = found.as_ref().map_or(&none, |found| &found.directories);
            let Some(watch) = self.watch.as_mut() else { return Ok(found) };
            match watch.watch(&self.shared.root, directories.keys()) {
                // What was made in a new directory before it was watched has to be found.
                Ok(true) => {}
                Ok(false) => {
                    self.unwatched = None;
                    return Ok(found);
                }
                Err(error) => {
                    self.unwatched(&error);
                    return Ok(found);
                }
            }
        }
    }
}

/// The next hints; never any where nothing is watched.
async fn next(watch: &mut Option<Watch>) -> std::io::Result<Seen> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// Runs what waits for a disk where waiting does no harm.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BackendError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| failed("reading files", error))
}
