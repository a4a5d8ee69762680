//! Inotify on one file by its name: its directory is watched, and that of what it points to if it is a link, so
//! that a file which is replaced, removed or made anew is noticed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, PipeWriter};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::epoll;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::sync::Notify;

/// What may make the file another one. Of writing only the end counts.
const CHANGES: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// A watch on a file. A thread of its own waits for the kernel, as tokio can do so only by unsafe means.
pub(crate) struct FileWatch {
    path: PathBuf,
    inotify: Arc<OwnedFd>,
    /// There are new events.
    told: Arc<Notify>,
    /// Its end ends the thread.
    _stop: PipeWriter,
    /// The path is a directory, and every file in it counts.
    whole: bool,
    /// The file's name in each watched directory, by the kernel's number of the watch; `None` for any name.
    names: BTreeMap<i32, Option<OsString>>,
    /// Something happened that nobody was told of.
    pending: bool,
}

impl FileWatch {
    /// Watches a file, whether or not it is there.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        Self::open(path, false)
    }

    /// Watches all files of a directory. One that is made later is watched from the next [`renew`](Self::renew) on,
    /// and that it is made is told.
    pub(crate) fn directory(path: &Path) -> io::Result<Self> {
        Self::open(path, true)
    }

    fn open(path: &Path, whole: bool) -> io::Result<Self> {
        let inotify = Arc::new(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?);
        let told = Arc::new(Notify::new());
        let (stopped, stop) = io::pipe()?;
        let queue = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Once for each event, whether or not it has been read by then.
        let news = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&queue, &*inotify, epoll::EventData::new_u64(0), news)?;
        epoll::add(&queue, &stopped, epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
        let (events, tell) = (inotify.clone(), told.clone());
        std::thread::Builder::new().name("cni-watch".to_owned()).spawn(move || {
            let _open = (events, stopped);
            listen(&queue, &tell);
        })?;
        let names = BTreeMap::new();
        let mut watch =
            Self { path: path.to_owned(), inotify, told, _stop: stop, whole, names, pending: false };
        watch.renew();
        Ok(watch)
    }

    /// Looks for the directories again, and forgets what happened: the file is read after this.
    pub(crate) fn renew(&mut self) {
        let target = fs::canonicalize(&self.path).ok();
        let mut names = BTreeMap::new();
        let mut places: Vec<(&Path, Option<OsString>)> = Vec::new();
        for file in [Some(&self.path), target.as_ref()].into_iter().flatten() {
            let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else { continue };
            let name = Some(name.to_owned());
            places.push((directory, name));
        }
        if self.whole {
            places.push((&self.path, None));
        }
        for (directory, name) in places {
            // A directory that is watched already keeps its number; one that was replaced gets another.
            match inotify::add_watch(&*self.inotify, directory, CHANGES) {
                Ok(number) => drop(names.insert(number, name)),
                Err(error) => {
                    tracing::debug!(path = %directory.display(), %error, "Directory is not watched")
                }
            }
        }
        for number in self.names.keys().filter(|number| !names.contains_key(number)) {
            // It may have ended by itself.
            let _ = inotify::remove_watch(&*self.inotify, *number);
        }
        self.names = names;
        self.count();
        self.pending = false;
    }

    /// Waits until something happened to the file. Nothing is lost when the future is dropped.
    pub(crate) async fn changed(&mut self) {
        while !std::mem::take(&mut self.pending) {
            self.told.notified().await;
            self.pending = self.count() > 0;
        }
    }

    /// Takes note of what this agent did, which was one event.
    pub(crate) fn absorb(&mut self) {
        self.pending |= self.count() > 1;
    }

    /// How many events there were since they were last counted.
    fn count(&mut self) -> usize {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&*self.inotify, &mut buffer);
        let mut count = 0;
        loop {
            match reader.next() {
                Ok(event) => {
                    let lost = ReadFlags::QUEUE_OVERFLOW | ReadFlags::IGNORED | ReadFlags::MOVE_SELF;
                    let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                    let ours = self.names.get(&event.wd()).map(Option::as_deref);
                    let is_file = ours.is_some_and(|ours| ours.is_none() || ours == name);
                    // The watch of a directory that was replaced ends with it.
                    let directory = event.events().intersects(lost) && (ours.is_some() || event.wd() < 0);
                    count += usize::from(directory || is_file);
                }
                Err(Errno::INTR) => {}
                Err(_) => return count,
            }
        }
    }
}

/// Tells of events until the other end of the pipe is closed.
fn listen(queue: &OwnedFd, tell: &Notify) {
    let mut buffer = [MaybeUninit::uninit(); 2];
    loop {
        match epoll::wait(queue, &mut buffer, None) {
            Ok((events, _)) if events.iter().any(|event| event.data.u64() != 0) => return,
            Ok(_) => tell.notify_one(),
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn told(watch: &mut FileWatch) -> bool {
        tokio::time::timeout(Duration::from_millis(200), watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn every_way_to_change_a_file_is_told_and_no_other_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cni/a.conflist");
        let other = dir.path().join("cni/b.conflist");
        fs::create_dir(dir.path().join("cni")).unwrap();
        let mut watch = FileWatch::new(&file).unwrap();
        assert!(!told(&mut watch).await);
        fs::write(&other, "x").unwrap();
        assert!(!told(&mut watch).await, "another file");
        let ways: [&dyn Fn(); 4] = [
            &|| fs::write(&file, "x").unwrap(),
            &|| fs::rename(&other, &file).unwrap(),
            &|| fs::write(&file, "y").unwrap(),
            &|| fs::remove_file(&file).unwrap(),
        ];
        for (number, way) in ways.iter().enumerate() {
            way();
            assert!(told(&mut watch).await, "way {number}");
            assert!(!told(&mut watch).await, "way {number} is told twice");
        }
        fs::remove_dir_all(dir.path().join("cni")).unwrap();
        assert!(told(&mut watch).await, "the directory has gone");
        fs::create_dir(dir.path().join("cni")).unwrap();
        watch.renew();
        fs::write(&file, "x").unwrap();
        assert!(told(&mut watch).await, "a new directory");
    }

    #[tokio::test]
    async fn all_files_of_a_directory_are_watched_also_when_it_is_made_later() {
        let dir = tempfile::tempdir().unwrap();
        let results = dir.path().join("results");
        let mut watch = FileWatch::directory(&results).unwrap();
        fs::write(dir.path().join("beside"), "x").unwrap();
        assert!(!told(&mut watch).await, "another file");
        fs::create_dir(&results).unwrap();
        assert!(told(&mut watch).await, "the directory has come");
        watch.renew();
        for name in ["a", "b"] {
            fs::write(results.join(name), "x").unwrap();
            assert!(told(&mut watch).await, "{name} has come");
        }
        fs::remove_file(results.join("a")).unwrap();
        assert!(told(&mut watch).await, "a has gone");
    }

    #[tokio::test]
    async fn what_a_link_points_to_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let (link, target) = (dir.path().join("link"), dir.path().join("there/file"));
        fs::create_dir(dir.path().join("there")).unwrap();
        fs::write(&target, "x").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let mut watch = FileWatch::new(&link).unwrap();
        fs::write(&target, "y").unwrap();
        assert!(told(&mut watch).await);
        watch.renew();
        fs::remove_file(&target).unwrap();
        watch.absorb();
        assert!(!told(&mut watch).await, "that was us");
    }
}
