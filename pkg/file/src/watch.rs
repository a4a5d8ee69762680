//! Inotify on a tree of directories: which files may have changed, and how long to leave each alone first.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader, PipeWriter};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::scan::{is_hidden, is_object_file, join};

/// What an event says about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// It is as its writer wants it, or gone.
    Done,
    /// It was made, or has been found: perhaps its writer has only begun.
    New,
    /// It is being written.
    Writing,
}

/// What is to be looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Files by relative path; the last hint on each.
    pub files: Vec<(OsString, Hint)>,
    /// Directories came or went, or events were lost: everything.
    pub tree: bool,
}

/// Watches on directories. A thread of its own waits for the kernel, as tokio can do so only by unsafe means.
#[derive(Debug)]
pub struct Watch {
    inotify: Arc<OwnedFd>,
    directories: Directories,
    seen: mpsc::UnboundedReceiver<io::Result<Seen>>,
    /// Its end ends the thread.
    _stop: PipeWriter,
}

/// The watched directories by the kernel's number for the watch.
type Directories = Arc<Mutex<BTreeMap<i32, OsString>>>;

impl Watch {
    /// A watch on nothing yet.
    ///
    /// # Errors
    /// When the kernel has no inotify instance left.
    pub fn new() -> io::Result<Self> {
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let inotify = Arc::new(inotify::init(flags)?);
        let directories = Directories::default();
        let (stopped, stop) = io::pipe()?;
        let (tell, seen) = mpsc::unbounded_channel();
        let listener = Listener { inotify: inotify.clone(), directories: directories.clone(), stopped, tell };
        std::thread::Builder::new().name("file-watch".to_owned()).spawn(move || listener.listen())?;
        Ok(Self { inotify, directories, seen, _stop: stop })
    }

    /// Watches exactly these directories, given relative to `root`. Whether one of them is new.
    ///
    /// # Errors
    /// When one cannot be watched although it is there; the others are.
    pub fn watch<'p>(
        &self,
        root: &Path,
        directories: impl Iterator<Item = &'p OsString>,
    ) -> io::Result<bool> {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MODIFY
            | WatchFlags::MOVE
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR
            | WatchFlags::EXCL_UNLINK;
        let mut known = lock(&self.directories);
        let mut watched = BTreeMap::new();
        let mut result = Ok(());
        for directory in directories {
            // A directory that is watched already keeps its number; one that was replaced gets another.
            match inotify::add_watch(&*self.inotify, root.join(directory), flags) {
                Ok(number) => drop(watched.insert(number, directory.clone())),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => result = Err(error.into()),
            }
        }
        for number in known.keys().filter(|n| !watched.contains_key(n)) {
            // It may have ended by itself.
            let _ = inotify::remove_watch(&*self.inotify, *number);
        }
        let new = watched.keys().any(|n| !known.contains_key(n));
        *known = watched;
        result.map(|()| new)
    }

    /// Waits for events and tells what they are about.
    ///
    /// # Errors
    /// When the kernel refuses to tell; it will not tell any more.
    pub async fn next(&mut self) -> io::Result<Seen> {
        self.seen.recv().await.unwrap_or_else(|| Err(io::Error::other("the thread that reads inotify ended")))
    }
}

fn lock(directories: &Directories) -> MutexGuard<'_, BTreeMap<i32, OsString>> {
    directories.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread needs.
struct Listener {
    inotify: Arc<OwnedFd>,
    directories: Directories,
    stopped: PipeReader,
    tell: mpsc::UnboundedSender<io::Result<Seen>>,
}

impl Listener {
    fn listen(self) {
        loop {
            let mut ready =
                [PollFd::new(&*self.inotify, PollFlags::IN), PollFd::new(&self.stopped, PollFlags::IN)];
            match poll(&mut ready, None) {
                Err(Errno::INTR) => continue,
                Err(error) => return drop(self.tell.send(Err(error.into()))),
                Ok(_) => {}
            }
            if !ready[1].revents().is_empty() {
                return;
            }
            let seen = self.read();
            let failed = seen.is_err();
            if self.tell.send(seen).is_err() || failed {
                return;
            }
        }
    }

    fn read(&self) -> io::Result<Seen> {
        let mut seen = Seen::default();
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = inotify::Reader::new(&*self.inotify, &mut buffer);
        // While directories are added their numbers are not known yet.
        let directories = lock(&self.directories);
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|n| OsStr::from_bytes(n.to_bytes()));
                    note(&directories, event.wd(), event.events(), name, &mut seen);
                }
                Err(Errno::WOULDBLOCK) => return Ok(seen),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn note(
    directories: &BTreeMap<i32, OsString>,
    number: i32,
    events: ReadFlags,
    name: Option<&OsStr>,
    seen: &mut Seen,
) {
    let of_directory = ReadFlags::ISDIR
        | ReadFlags::IGNORED
        | ReadFlags::UNMOUNT
        | ReadFlags::QUEUE_OVERFLOW
        | ReadFlags::DELETE_SELF
        | ReadFlags::MOVE_SELF;
    if events.intersects(of_directory) {
        seen.tree = true;
        return;
    }
    // An event of a watch that was just removed.
    let (Some(directory), Some(name)) = (directories.get(&number), name) else { return };
    if name.as_bytes().starts_with(b"..") && events.contains(ReadFlags::MOVED_TO) {
        // Kubernetes swaps all files of a mounted ConfigMap by renaming the link `..data`.
        seen.tree = true;
    }
    if is_hidden(name) || !is_object_file(name) {
        return;
    }
    let hint = if events.contains(ReadFlags::MODIFY) {
        Hint::Writing
    } else if events.contains(ReadFlags::CREATE) {
        Hint::New
    } else {
        Hint::Done
    };
    let path = join(directory, name);
    match seen.files.last_mut() {
        Some((last, of)) if *last == path => *of = hint,
        Some(_) | None => seen.files.push((path, hint)),
    }
}
