//! The private key of this node in `<data_dir>/key`: base64, as upstream Kilo has it. A file that is not a key
//! is never replaced, for with the key the node's identity would go; and nothing here ever prints it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kilo_wireguard::PrivateKey;
use zeroize::Zeroizing;

/// The name of the file in the data directory.
const FILE: &str = "key";
/// A key is 44 characters; more is something else.
const MAX: u64 = 256;

/// Why there is no private key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file or its directory cannot be read or written.
    #[error("{action} {path}")]
    Io {
        /// What was tried, `reading the private key`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is something else in it.
    #[error(
        "{0} does not hold a WireGuard private key in base64; it is left as it is: restore it, or remove it to let this node become another"
    )]
    Corrupt(PathBuf),
    /// Others may read or write it.
    #[error("{path} has the mode {mode:03o}, but must be for its owner alone: chmod 600 {path}")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl KeyFileError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// Reads the key of this node, or makes one where there is no file. A new file is complete or not there.
pub fn load_or_create(data_dir: &Path) -> Result<PrivateKey, KeyFileError> {
    let path = data_dir.join(FILE);
    match load(&path)? {
        Some(key) => {
            sweep(data_dir);
            Ok(key)
        }
        None => create(data_dir, &path),
    }
}

/// Removes what an agent left behind that was killed while it made the key: a private key, too.
fn sweep(data_dir: &Path) {
    let begin = format!(".{FILE}.");
    for entry in fs::read_dir(data_dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&begin) {
            // Only its owner can read it; a next start tries again.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A new key that is nowhere else.
///
/// # Errors
/// When the kernel has no random bytes to give.
pub fn generate() -> io::Result<PrivateKey> {
    let mut random = Zeroizing::new([0; 32]);
    fill_random(&mut *random)?;
    Ok(PrivateKey::from_random(*random))
}

/// Reads the key in a file; `None` where there is no file.
///
/// # Errors
/// When it cannot be read, holds something else, or may be read by others than its owner.
pub fn load(path: &Path) -> Result<Option<PrivateKey>, KeyFileError> {
    let failed = |source| KeyFileError::io("reading the private key", path)(source);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX as usize));
    file.take(MAX).read_to_end(&mut bytes).map_err(failed)?;
    let corrupt = || KeyFileError::Corrupt(path.to_owned());
    let text = std::str::from_utf8(&bytes).map_err(|_| corrupt())?;
    let key: PrivateKey = text.trim_matches(['\r', '\n']).parse().map_err(|_| corrupt())?;
    // What upstream takes for "no key".
    if key.secret_bytes() == &[0; 32] { Err(corrupt()) } else { Ok(Some(key)) }
}

fn create(data_dir: &Path, path: &Path) -> Result<PrivateKey, KeyFileError> {
    let failed = |source| KeyFileError::io("writing the private key", path)(source);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .map_err(KeyFileError::io("making the data directory", data_dir))?;
    let key = generate().map_err(failed)?;
    let mut unique = [0; 8];
    fill_random(&mut unique).map_err(failed)?;
    let temporary = data_dir.join(format!(".{FILE}.{:016x}", u64::from_ne_bytes(unique)));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(key.secret_base64().as_bytes())?;
            file.sync_all()
        })
        // A link, unlike a rename, does not replace a key that another agent wrote meanwhile.
        .and_then(|()| fs::hard_link(&temporary, path));
    let _ = fs::remove_file(&temporary);
    match written {
        Ok(()) => {}
        // Another agent was faster, and may have swept ours away.
        Err(error) => return load(path)?.ok_or_else(|| failed(error)),
    }
    File::open(data_dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
    if let Some(parent) = data_dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        // The directory may be as new as the file; where this is not allowed, it is not.
        let _ = File::open(parent).and_then(|dir| dir.sync_all());
    }
    tracing::info!(path = %path.display(), public_key = %key.public_key(), "Made a private key");
    Ok(key)
}

fn fill_random(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let got = rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty())?;
        bytes = &mut bytes[got..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/kilo");
        let key = load_or_create(&data).unwrap();
        let text = fs::read_to_string(data.join(FILE)).unwrap();
        assert_eq!(text.len(), 44, "base64 without newline");
        assert_eq!((mode(&data), mode(&data.join(FILE))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "nothing temporary stays");
        assert_eq!(load_or_create(&data).unwrap(), key);
        fs::write(data.join(FILE), format!("{text}\r\n")).unwrap();
        // Left behind by an agent that was killed.
        fs::write(data.join(".key.0123456789abcdef"), key.secret_base64().as_bytes()).unwrap();
        assert_eq!(load_or_create(&data).unwrap(), key, "newlines are tolerated");
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "no second copy of the key stays");
    }

    #[test]
    fn a_corrupt_file_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let zero = format!("{}=", "A".repeat(43));
        for bad in ["", "secret", &"A".repeat(44), &zero, &"B".repeat(1000)] {
            fs::write(&path, bad).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = load_or_create(dir.path()).unwrap_err();
            let said = format!("{error} {error:?}");
            assert!(matches!(error, KeyFileError::Corrupt(_)), "{said}");
            assert!(said.contains(path.to_str().unwrap()));
            assert!(bad.is_empty() || !said.contains(bad), "the content is not shown");
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let said = load_or_create(dir.path()).unwrap_err().to_string();
        assert!(said.contains("640") && said.contains("chmod 600"), "{said}");
        assert_eq!(mode(&path), 0o640, "and not changed");
    }
}
