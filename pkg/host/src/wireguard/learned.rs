//! Where peers were last heard from, on disk: a device that starts again calls them at once instead of
//! waiting for them, which a client behind NAT would not notice for two minutes.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kilo_wireguard::PublicKey;
use serde::{Deserialize, Serialize};

/// Entries kept; beyond it those go that were heard from longest ago.
const MAX_ENTRIES: usize = 16_384;
/// Room for them and a little more.
const MAX_FILE: u64 = 8 << 20;

/// Where a peer was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where its packets came from.
    pub endpoint: SocketAddr,
    /// The endpoint that it was configured with then; another one now is fresher than what was learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<SocketAddr>,
    /// Its last handshake when this was written, in seconds since 1970.
    #[serde(default)]
    pub seen: u64,
}

/// The file's content.
#[derive(Default, Serialize, Deserialize)]
struct File {
    endpoints: BTreeMap<PublicKey, Entry>,
}

/// What was learned before this start, and what is on disk now.
pub struct Learned {
    path: PathBuf,
    /// Not asked for yet.
    restored: BTreeMap<PublicKey, Entry>,
    written: BTreeMap<PublicKey, Entry>,
}

impl Learned {
    /// Reads `endpoints.json` in this directory. Without one, or with one that cannot be read, nothing is
    /// known: what was learned is a convenience.
    pub fn load(data_dir: &Path) -> Self {
        let path = data_dir.join("endpoints.json");
        let restored = match read(&path) {
            Ok(file) => file.endpoints,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "Cannot read the learned endpoints");
                }
                BTreeMap::new()
            }
        };
        Self { path, written: restored.clone(), restored }
    }

    /// Where the peer was before this start, once; `None` for a peer that was not there. With another
    /// `configured` endpoint than then, that one counts.
    pub fn take(&mut self, key: &PublicKey, configured: Option<SocketAddr>) -> Option<SocketAddr> {
        let entry = self.restored.remove(key)?;
        match configured {
            Some(new) if entry.configured != Some(new) => Some(new),
            Some(_) | None => Some(entry.endpoint),
        }
    }

    /// The peer is no longer wanted.
    pub fn forget(&mut self, key: &PublicKey) {
        self.restored.remove(key);
    }

    /// Takes in what the device knows now. What is to be written, if an endpoint differs from what is on
    /// disk; peers of before that nobody asked for yet stay.
    pub fn update(&mut self, mut now: BTreeMap<PublicKey, Entry>) -> Option<Write> {
        for (key, entry) in &self.restored {
            now.entry(*key).or_insert(*entry);
        }
        if now.len() > MAX_ENTRIES {
            let mut by_age: Vec<(u64, PublicKey)> = now.iter().map(|(k, e)| (e.seen, *k)).collect();
            by_age.sort_unstable();
            for (_, key) in &by_age[..now.len() - MAX_ENTRIES] {
                now.remove(key);
            }
        }
        let place = |e: &Entry| (e.endpoint, e.configured);
        if now.len() == self.written.len()
            && now.iter().zip(&self.written).all(|(a, b)| a.0 == b.0 && place(a.1) == place(b.1))
        {
            return None;
        }
        self.written.clone_from(&now);
        Some(Write { path: self.path.clone(), file: File { endpoints: now } })
    }

    /// What was to be written is not on disk: the next update writes again.
    pub fn failed(&mut self) {
        self.written.clear();
    }
}

/// A file that is to be written.
pub struct Write {
    path: PathBuf,
    file: File,
}

impl Write {
    /// Puts the file in the place of the old one, readable by its owner only.
    pub fn run(&self) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&self.file)?;
        let temporary = self.path.with_extension("json.tmp");
        if let Err(e) = std::fs::remove_file(&temporary)
            && e.kind() != io::ErrorKind::NotFound
        {
            return Err(e);
        }
        let mut out =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        out.write_all(&text)?;
        out.sync_data()?;
        std::fs::rename(&temporary, &self.path)?;
        // A rename is on the disk only when its directory is.
        self.path.parent().map_or(Ok(()), |directory| std::fs::File::open(directory)?.sync_all())
    }
}

fn read(path: &Path) -> io::Result<File> {
    if std::fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is too long"));
    }
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key(n: u16) -> PublicKey {
        let mut bytes = [1; 32];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        PublicKey::from_bytes(bytes)
    }

    fn entry(port: u16, configured: Option<u16>) -> Entry {
        let addr = |port| SocketAddr::from(([192, 0, 2, 1], port));
        Entry { endpoint: addr(port), configured: configured.map(addr), seen: u64::from(port) }
    }

    #[test]
    fn what_was_learned_comes_back_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut learned = Learned::load(dir.path());
        let write =
            learned.update([(key(1), entry(1, None)), (key(2), entry(2, Some(9)))].into()).expect("news");
        write.run().expect("written");
        assert!(learned.update([(key(1), entry(1, None)), (key(2), entry(2, Some(9)))].into()).is_none());
        let mode =
            std::fs::metadata(dir.path().join("endpoints.json")).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let mut again = Learned::load(dir.path());
        assert_eq!(again.take(&key(1), None), Some(entry(1, None).endpoint));
        assert_eq!(again.take(&key(1), None), None, "only after a start");
        assert_eq!(again.take(&key(2), entry(2, Some(9)).configured), Some(entry(2, None).endpoint));
        let mut again = Learned::load(dir.path());
        let moved = Some(entry(77, None).endpoint);
        assert_eq!(again.take(&key(2), moved), moved, "a new configuration is fresher");
    }

    #[test]
    fn peers_not_asked_for_yet_stay_on_disk_until_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let both: BTreeMap<_, _> = [(key(1), entry(1, None)), (key(2), entry(2, None))].into();
        Learned::load(dir.path()).update(both).expect("news").run().expect("written");
        let mut again = Learned::load(dir.path());
        assert!(again.take(&key(1), None).is_some());
        assert!(again.update([(key(1), entry(1, None))].into()).is_none());
        again.forget(&key(2));
        again.update([(key(1), entry(1, None))].into()).expect("news").run().expect("written");
        assert_eq!(Learned::load(dir.path()).restored.len(), 1);
    }

    #[test]
    fn the_file_is_bounded_and_garbage_is_survived() {
        let dir = tempfile::tempdir().expect("a directory");
        let many = (0..u16::MAX).map(|n| (key(n), entry(n, None))).collect();
        Learned::load(dir.path()).update(many).expect("news").run().expect("written");
        let restored = Learned::load(dir.path()).restored;
        assert_eq!(restored.len(), MAX_ENTRIES);
        assert!(restored.values().all(|e| e.seen >= u64::from(u16::MAX) - MAX_ENTRIES as u64));
        std::fs::write(dir.path().join("endpoints.json"), "{\"endpoints\": 5").expect("written");
        assert!(Learned::load(dir.path()).restored.is_empty());
    }
}
