//! What lies below a directory: its object files with enough of their `stat` to see a change, and reading one.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// A larger file is not read: a directory of objects holds none.
const LARGEST: u64 = 64 << 20;

/// How deep directories are searched.
const DEEPEST: usize = 16;

/// What of a file's `stat` changes when its content may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    mode: u32,
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            mode: meta.mode(),
        }
    }
}

/// The files and directories below a root, by their path relative to it.
#[derive(Debug, Default)]
pub struct Found {
    /// Object files; symbolic links to files count as files.
    pub files: BTreeMap<OsString, Stamp>,
    /// Directories with the number of the file system they are on; the root is the empty path.
    pub directories: BTreeMap<OsString, u64>,
    /// Directories that cannot be listed, and why.
    pub unreadable: BTreeMap<OsString, String>,
}

/// Looks below `root` without reading any file. Names that begin with a dot are left out, and links to directories
/// are not followed.
///
/// # Errors
/// Only when `root` itself cannot be listed.
pub fn scan(root: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    found.directories.insert(OsString::new(), fs::metadata(root)?.dev());
    list(root, OsString::new(), 0, &mut found)?;
    Ok(found)
}

fn list(root: &Path, relative: OsString, depth: usize, found: &mut Found) -> io::Result<()> {
    for entry in fs::read_dir(root.join(&relative))? {
        let entry = entry?;
        let name = entry.file_name();
        if is_hidden(&name) {
            continue;
        }
        let path = join(&relative, &name);
        // What is gone again between the listing and here was never there.
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            let Ok(meta) = entry.metadata() else { continue };
            if depth == DEEPEST {
                found.unreadable.insert(path, format!("more than {DEEPEST} directories deep"));
                continue;
            }
            found.directories.insert(path.clone(), meta.dev());
            if let Err(error) = list(root, path.clone(), depth + 1, found) {
                found.unreadable.insert(path, error.to_string());
            }
        } else if is_object_file(&name)
            && let Ok(meta) = fs::metadata(entry.path())
            && meta.is_file()
        {
            found.files.insert(path, Stamp::of(&meta));
        }
    }
    Ok(())
}

/// A relative path of one more name.
pub fn join(relative: &OsStr, name: &OsStr) -> OsString {
    let mut path = relative.to_owned();
    if !path.is_empty() {
        path.push("/");
    }
    path.push(name);
    path
}

/// Editors, rsync and version control keep such names for themselves.
pub fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// Whether a file of this name holds objects.
pub fn is_object_file(name: &OsStr) -> bool {
    let ends = |end: &str| name.as_encoded_bytes().ends_with(end.as_bytes());
    !is_hidden(name) && (ends(".yaml") || ends(".yml") || ends(".json"))
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is none.
    #[error("there is no such file")]
    Gone,
    /// It changed while it was read: somebody is writing it.
    #[error("somebody is writing it")]
    Busy,
    /// Anything else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads a file that nobody writes meanwhile.
///
/// # Errors
/// See [`ReadError`].
pub fn read(path: &Path) -> Result<(Vec<u8>, Stamp), ReadError> {
    // A pipe would keep the opener waiting for ever.
    let opened =
        fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    let mut file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ReadError::Gone),
        opened => opened?,
    };
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(io::Error::other("it is no regular file").into());
    }
    if before.size() > LARGEST {
        return Err(io::Error::other(format!("it is larger than {LARGEST} bytes")).into());
    }
    let mut text = Vec::new();
    file.by_ref().take(LARGEST + 1).read_to_end(&mut text)?;
    let after = Stamp::of(&file.metadata()?);
    if after != Stamp::of(&before) || text.len() as u64 != after.size {
        return Err(ReadError::Busy);
    }
    Ok((text, after))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn finds_object_files_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).expect("made");
        fs::create_dir_all(root.join(".git")).expect("made");
        for name in ["z.yaml", "a/b/c.yml", "a/d.json", "a/e.txt", "a/.f.yaml", ".git/g.yaml", "h.yaml~"] {
            fs::write(root.join(name), "x").expect("written");
        }
        symlink(root.join("z.yaml"), root.join("link.yaml")).expect("linked");
        symlink(root.join("nowhere"), root.join("broken.yaml")).expect("linked");
        symlink(root, root.join("a/loop")).expect("linked");
        fs::create_dir(root.join("directory.yaml")).expect("made");
        let found = scan(root).expect("found");
        assert_eq!(found.files.keys().collect::<Vec<_>>(), ["a/b/c.yml", "a/d.json", "link.yaml", "z.yaml"]);
        assert_eq!(found.directories.keys().collect::<Vec<_>>(), ["", "a", "a/b", "directory.yaml"]);
        assert!(scan(&root.join("nowhere")).is_err());
    }

    #[test]
    fn does_not_wait_for_a_pipe() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pipe.yaml");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .expect("a pipe");
        assert!(matches!(read(&path), Err(ReadError::Io(_))));
        assert!(scan(dir.path()).expect("found").files.is_empty());
        assert!(matches!(read(&dir.path().join("none")), Err(ReadError::Gone)));
    }
}
