//! Writing our own Node: only into a file that holds nothing else, whole or not at all, and never over what
//! somebody else wrote meanwhile.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kilo_agent::NodePatch;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use serde_json::{Map, Value, json};

use crate::documents::read_trees;
use crate::scan::{self, ReadError};

/// How often a patch begins anew when the file changes under it.
const ATTEMPTS: u32 = 20;

/// How long a file that was replaced is kept, to see whether somebody still writes to it.
const SETTLE: Duration = Duration::from_millis(10);

/// The pause before it does.
const PAUSE: Duration = Duration::from_millis(50);

/// How old a file of ours must be before it counts as left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(60);

/// Why a Node was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// It is not alone in its file.
    #[error(
        "{} holds other objects too and is therefore never rewritten; move the Node to a file of its own, such as {}",
        .file.display(), .better.display()
    )]
    Shared {
        /// Where it stands.
        file: PathBuf,
        /// Where it should.
        better: PathBuf,
    },
    /// The file does not hold the Node in a readable form.
    #[error("{} cannot be read as a Node, so it is not rewritten: {reason}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Where a file for the Node would be made, there is one.
    #[error("{} does not hold the Node, so it is not overwritten", .0.display())]
    Occupied(PathBuf),
    /// There is no directory to write to, or it lost all its files.
    #[error("{0}; nothing is written until it is back")]
    Vanished(String),
    /// Somebody wrote the file each time.
    #[error("{} is being changed or moved by somebody else", .0.display())]
    Busy(PathBuf),
    /// The file system refuses.
    #[error("{what} {} failed", .file.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        file: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Changes annotations of the Node `name` in `file`. A file that has them already is left alone. Whether it was
/// written.
///
/// # Errors
/// See [`WriteError`]; the file is then as it was.
pub fn patch(root: &Path, file: &Path, name: &str, changes: &NodePatch) -> Result<bool, WriteError> {
    let busy = || WriteError::Busy(file.to_owned());
    let mut last = busy();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            std::thread::sleep(PAUSE);
        }
        let text = match scan::read(file) {
            Ok((text, _)) => text,
            Err(ReadError::Busy) => continue,
            // An editor may be between two renames.
            Err(ReadError::Gone) => {
                last = io_error("reading", file)(io::ErrorKind::NotFound.into());
                continue;
            }
            Err(ReadError::Io(error)) => return Err(io_error("reading", file)(error)),
        };
        let mut node = match alone(root, file, name, &text) {
            Ok(node) => node,
            // Half of a file, perhaps.
            Err(error @ WriteError::Unreadable { .. }) => {
                last = error;
                continue;
            }
            Err(error) => return Err(error),
        };
        if !apply(&mut node, changes) {
            return Ok(false);
        }
        if replace(file, &text, &print(file, &node)?)? {
            return Ok(true);
        }
        last = busy();
    }
    Err(last)
}

/// Makes a file for the Node `name`, which is nowhere yet.
///
/// # Errors
/// See [`WriteError`].
pub fn create(root: &Path, name: &str, changes: &NodePatch) -> Result<(), WriteError> {
    let file = own_file(root, name);
    let directory = root.join("nodes");
    match fs::create_dir(&directory) {
        Ok(()) => sync_directory(&directory)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io_error("making", &directory)(error)),
    }
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    apply(&mut node, changes);
    let temporary = write_beside(&file, &print(&file, &node)?)?;
    // A link, unlike a rename, fails when the name is taken.
    let linked = match rustix::fs::renameat_with(CWD, &temporary, CWD, &file, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => fs::hard_link(&temporary, &file).map(|()| remove(&temporary)),
        renamed => renamed.map_err(io::Error::from),
    };
    match linked {
        Ok(()) => sync_directory(&file),
        Err(error) => {
            remove(&temporary);
            if error.kind() == io::ErrorKind::AlreadyExists {
                return Err(WriteError::Occupied(file));
            }
            Err(io_error("writing", &file)(error))
        }
    }
}

/// The file that a Node has of its own.
pub fn own_file(root: &Path, name: &str) -> PathBuf {
    root.join("nodes").join(format!("{name}.yaml"))
}

/// The Node of this name, the only thing in this text.
fn alone(root: &Path, file: &Path, name: &str, text: &[u8]) -> Result<Value, WriteError> {
    let unreadable = |reason: String| WriteError::Unreadable { file: file.to_owned(), reason };
    let mut trees = read_trees(&file.to_string_lossy(), text);
    for tree in &trees {
        if let Err(finding) = tree {
            return Err(unreadable(format!("{}: {}", finding.field, finding.reason)));
        }
    }
    let shared = || Err(WriteError::Shared { file: file.to_owned(), better: own_file(root, name) });
    let (Some(Ok(node)), rest) = (trees.pop(), trees) else {
        return Err(unreadable("it is empty".to_owned()));
    };
    if !rest.is_empty() {
        return shared();
    }
    match node.get("kind").and_then(Value::as_str).unwrap_or_default() {
        "Node" => match kilo_mesh::read_node(&node) {
            Ok(read) if read.metadata.name == name => Ok(node),
            Ok(_) => Err(unreadable(format!("it holds no Node {name}"))),
            Err(finding) => Err(unreadable(finding.to_string())),
        },
        list if list.ends_with("List") => shared(),
        _ => Err(unreadable(format!("it holds no Node {name}"))),
    }
}

/// Whether anything had to be changed.
fn apply(node: &mut Value, changes: &NodePatch) -> bool {
    let Some(metadata) = child(node, "metadata") else { return false };
    let before = metadata.get("annotations").cloned();
    let Some(annotations) = child(metadata, "annotations").and_then(Value::as_object_mut) else {
        return false;
    };
    for (key, value) in changes {
        match value {
            Some(value) => drop(annotations.insert(key.clone(), Value::String(value.clone()))),
            None => drop(annotations.remove(key)),
        }
    }
    let empty = annotations.is_empty();
    if empty && let Some(metadata) = metadata.as_object_mut() {
        metadata.remove("annotations");
    }
    let nothing = |v: &Option<Value>| match v {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    };
    let after = metadata.get("annotations").cloned();
    before != after && !(nothing(&before) && nothing(&after))
}

/// The map under a key, made when there is none.
fn child<'v>(value: &'v mut Value, key: &str) -> Option<&'v mut Value> {
    let map = value.as_object_mut()?;
    let child = map.entry(key).or_insert(Value::Null);
    if child.is_null() {
        *child = Value::Object(Map::new());
    }
    Some(child)
}

/// The text of a file that holds just this object, in the format that the file's name tells.
fn print(file: &Path, node: &Value) -> Result<String, WriteError> {
    let wrong = |reason: String| WriteError::Unreadable { file: file.to_owned(), reason };
    let text = if file.extension() == Some(OsStr::new("json")) {
        serde_json::to_string_pretty(node).map(|t| t + "\n").map_err(|e| wrong(e.to_string()))?
    } else {
        serde_saphyr::to_string(node).map_err(|e| wrong(e.to_string()))?
    };
    // A text that reads back as anything else would change what a person wrote.
    match read_trees(&file.to_string_lossy(), text.as_bytes()).as_slice() {
        [Ok(back)] if back == node => Ok(text),
        _ => Err(wrong("it holds values that cannot be written again as they are".to_owned())),
    }
}

/// Puts `after` in the place of `file`, if that still holds `before`. Whether it did.
fn replace(file: &Path, before: &[u8], after: &str) -> Result<bool, WriteError> {
    // Through a link to the file itself: a rename would replace the link.
    let file = &fs::canonicalize(file).map_err(io_error("reading", file))?;
    let temporary = write_beside(file, after)?;
    let same = |path: &Path| matches!(scan::read(path), Ok((text, _)) if text == before);
    if !same(file) {
        remove(&temporary);
        return Ok(false);
    }
    let result = match rustix::fs::renameat_with(CWD, &temporary, CWD, file, RenameFlags::EXCHANGE) {
        // Twice: an editor that had opened the file before the exchange may write a moment after it.
        Ok(())
            if same(&temporary) && {
                std::thread::sleep(SETTLE);
                same(&temporary)
            } =>
        {
            remove(&temporary);
            Ok(true)
        }
        // Somebody wrote between the look and the exchange: theirs goes back to its place.
        Ok(()) => rustix::fs::renameat_with(CWD, &temporary, CWD, file, RenameFlags::EXCHANGE).map(|()| {
            remove(&temporary);
            false
        }),
        // File systems without exchange.
        Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::rename(&temporary, file).map(|()| true),
        // Deleted meanwhile.
        Err(Errno::NOENT) => {
            remove(&temporary);
            Ok(false)
        }
        Err(error) => {
            remove(&temporary);
            Err(error)
        }
    };
    let done = result.map_err(|e| io_error("writing", file)(e.into()))?;
    if done {
        sync_directory(file)?;
    }
    Ok(done)
}

/// Writes a text to a hidden file beside `file`, with its mode and owner, down to the disk.
fn write_beside(file: &Path, text: &str) -> Result<PathBuf, WriteError> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let temporary = file.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let wrong = || io_error("writing", &temporary);
    let model = fs::metadata(file).ok();
    let mode = model.as_ref().map_or(0o644, |m| m.mode() & 0o7777);
    remove(&temporary);
    let written = || -> io::Result<()> {
        let mut out = File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
        if let Some(model) = &model {
            // Only root may give files away; the content matters more.
            let _ = fchown(&out, Some(model.uid()), Some(model.gid()));
            out.set_permissions(model.permissions())?;
        }
        out.write_all(text.as_bytes())?;
        out.sync_all()
    };
    if let Err(error) = written() {
        remove(&temporary);
        return Err(wrong()(error));
    }
    Ok(temporary)
}

/// A rename is on the disk only when its directory is.
fn sync_directory(file: &Path) -> Result<(), WriteError> {
    let Some(directory) = file.parent() else { return Ok(()) };
    let synced = File::open(directory).and_then(|d| d.sync_all());
    // Some file systems cannot: the file itself is there anyway.
    match synced {
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => {
            Err(io_error("syncing", directory)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes what processes left beside `file` that were killed while they wrote it. What is younger than a minute may
/// be somebody's who still does.
pub fn sweep(file: &Path) {
    let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else { return };
    let begin = format!(".{}.", name.to_string_lossy());
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(&begin).and_then(|rest| rest.strip_suffix(".tmp"));
        let ours = pid.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit()));
        let old = || entry.metadata().ok()?.modified().ok()?.elapsed().ok().map(|age| age > LEFT_BEHIND);
        if ours && old() == Some(true) {
            remove(&entry.path());
        }
    }
}

/// Removes a file of our own; when that fails it is hidden and nobody reads it.
fn remove(temporary: &Path) {
    let _ = fs::remove_file(temporary);
}

fn io_error(what: &'static str, file: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let file = file.to_owned();
    move |source| WriteError::Io { what, file, source }
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
