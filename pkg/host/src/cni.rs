//! The pod ranges in a CNI configuration list. Everything else in the file stays, its mode too; the text is
//! compact with sorted keys, as upstream Kilo writes it. The file is never made here, but put back as it was when
//! somebody removes it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use kilo_state::CniFile;
use serde_json::{Map, Value, json};

/// A configuration list is a few hundred bytes.
const MAX: u64 = 1 << 20;

/// Why the ranges could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    #[error("the file cannot be read or written")]
    Io(#[from] io::Error),
    #[error("the file is not JSON")]
    Json(#[source] serde_json::Error),
    #[error("the file has no list \"plugins\" with an object \"ipam\" in it")]
    NoIpam,
}

fn read(path: &Path) -> Result<Value, CniError> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(CniError::Json)
}

/// A file as it was last seen with ranges in it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    config: Value,
    /// Permission bits.
    mode: u32,
}

/// The `ipam` objects of the plugins.
fn ipams(config: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    config
        .get_mut("plugins")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(|plugin| plugin.get_mut("ipam")?.as_object_mut())
}

fn ranges_of(ipam: &Map<String, Value>) -> Vec<IpNet> {
    let sets = ipam.get("ranges").and_then(Value::as_array).into_iter().flatten();
    sets.filter_map(Value::as_array)
        .flatten()
        .filter_map(|range| range.get("subnet")?.as_str()?.parse().ok())
        .collect()
}

/// The ranges of the file as they are; `None` where there is no file, or none that could be written into. A
/// file whose plugins do not agree counts as one without ranges, so that it is written anew, and so does one that
/// has gone since it was `seen`.
pub(crate) fn observe(path: &str, seen: &mut Option<Seen>) -> Option<CniFile> {
    let mut config = match read(Path::new(path)) {
        Ok(config) => config,
        Err(CniError::Io(error)) if error.kind() == io::ErrorKind::NotFound && seen.is_some() => {
            return Some(CniFile { path: path.into(), ranges: Vec::new() });
        }
        Err(error) => {
            tracing::debug!(path, %error, "CNI file cannot be read");
            return None;
        }
    };
    let mut ranges: Option<Vec<IpNet>> = None;
    for ipam in ipams(&mut config) {
        let these = ranges_of(ipam);
        match &ranges {
            None => ranges = Some(these),
            Some(first) if *first == these => {}
            Some(_) => ranges = Some(Vec::new()),
        }
    }
    let ranges = ranges?;
    let mode = fs::metadata(path).map_or(0o644, |file| file.permissions().mode() & 0o7777);
    *seen = Some(Seen { config, mode });
    Some(CniFile { path: path.into(), ranges })
}

/// Puts the ranges into every plugin that has an `ipam`. The new file takes the old one's place in one step. Where
/// there is none it is made as it was `seen`, unless somebody else is quicker.
pub(crate) fn write(file: &CniFile, seen: Option<&Seen>) -> Result<(), CniError> {
    match (fs::canonicalize(&*file.path), seen) {
        // What a link points to is replaced, not the link.
        (Ok(path), _) => {
            let mut config = read(&path)?;
            let mode = fs::metadata(&path)?.permissions().mode() & 0o7777;
            let text = set_ranges(&mut config, &file.ranges)?;
            put(&path, mode, &text, |temporary| fs::rename(temporary, &path))
        }
        (Err(error), Some(seen)) if error.kind() == io::ErrorKind::NotFound => {
            let path = Path::new(&*file.path);
            let text = set_ranges(&mut seen.config.clone(), &file.ranges)?;
            put(path, seen.mode, &text, |temporary| match fs::hard_link(temporary, path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            })
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// Writes a whole file beside `path` and lets `place` give it that name. Nothing temporary stays.
fn put(
    path: &Path,
    mode: u32,
    text: &str,
    place: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), CniError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Container runtimes read every *.conf, *.conflist and *.json of the directory.
    let temporary = path.with_file_name(format!(".{name}.{}.kilo-tmp", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| place(&temporary))
        // A new name is on the disk only when its directory is.
        .and_then(|()| path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all()));
    sweep(path, &name);
    // After a rename there is nothing to remove.
    let _ = fs::remove_file(&temporary);
    Ok(written?)
}

/// Removes what agents left beside the file that were killed while they wrote it. What is younger than a minute may
/// be somebody's who still does.
fn sweep(path: &Path, name: &str) {
    let begin = format!(".{name}.");
    let entries = path.parent().and_then(|directory| fs::read_dir(directory).ok());
    for entry in entries.into_iter().flatten().flatten() {
        let other = entry.file_name().to_string_lossy().into_owned();
        let old = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if other.starts_with(&begin)
            && other.ends_with(".kilo-tmp")
            && old().is_some_and(|age| age > Duration::from_secs(60))
        {
            // Nobody reads it; the next write tries again.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The text of the file with these ranges: one set of ranges for each, so that a pod gets an address of each.
fn set_ranges(config: &mut Value, ranges: &[IpNet]) -> Result<String, CniError> {
    let ranges: Value = ranges.iter().map(|net| json!([{ "subnet": net.to_string() }])).collect();
    let mut any = false;
    for ipam in ipams(config) {
        ipam.insert("ranges".into(), ranges.clone());
        any = true;
    }
    // `serde_json::Map` is sorted by key.
    if any { Ok(config.to_string()) } else { Err(CniError::NoIpam) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The template that Kilo's manifests lay down.
    const TEMPLATE: &str = r#"{
   "cniVersion":"0.4.0",
   "name":"kilo",
   "plugins":[
      { "name":"kubernetes", "type":"bridge", "bridge":"kube-bridge", "isDefaultGateway":true,
        "forceAddress":true, "mtu": 1420, "ipam":{ "type":"host-local" } },
      { "type":"portmap", "snat":true, "capabilities":{ "portMappings":true } }
   ]
}"#;
    /// What upstream Kilo makes of it for the pod range 10.2.1.0/24.
    const GOLDEN: &str = r#"{"cniVersion":"0.4.0","name":"kilo","plugins":[{"bridge":"kube-bridge","forceAddress":true,"ipam":{"ranges":[[{"subnet":"10.2.1.0/24"}]],"type":"host-local"},"isDefaultGateway":true,"mtu":1420,"name":"kubernetes","type":"bridge"},{"capabilities":{"portMappings":true},"snat":true,"type":"portmap"}]}"#;

    fn file(dir: &tempfile::TempDir, text: &str) -> CniFile {
        let path = dir.path().join("10-kilo.conflist");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        CniFile { path: path.to_str().unwrap().into(), ranges: vec!["10.2.1.0/24".parse().unwrap()] }
    }

    #[test]
    fn the_template_becomes_upstreams_text() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = file(&dir, TEMPLATE);
        // Left behind by an agent that was killed an hour ago.
        let old = File::create(dir.path().join(".10-kilo.conflist.7.kilo-tmp")).unwrap();
        old.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).unwrap();
        assert_eq!(observe(&wanted.path, &mut None).unwrap().ranges, []);
        write(&wanted, None).unwrap();
        assert_eq!(fs::read_to_string(&*wanted.path).unwrap(), GOLDEN);
        assert_eq!(observe(&wanted.path, &mut None).unwrap(), wanted);
        let mode = fs::metadata(&*wanted.path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o664, "whatever the umask");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing temporary stays");
    }

    #[test]
    fn ranges_of_two_families_and_unknown_fields() {
        let mut config: Value =
            serde_json::from_str(r#"{"z":1.50,"plugins":[{"ipam":{"x":[]}},{"ipam":"dhcp"},7]}"#).unwrap();
        let ranges = ["10.2.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()];
        assert_eq!(
            set_ranges(&mut config, &ranges).unwrap(),
            r#"{"plugins":[{"ipam":{"ranges":[[{"subnet":"10.2.1.0/24"}],[{"subnet":"fd00:1::/64"}]],"x":[]}},{"ipam":"dhcp"},7],"z":1.5}"#
        );
    }

    #[test]
    fn plugins_that_differ_are_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mixed =
            r#"{"plugins":[{"ipam":{"ranges":[[{"subnet":"10.2.1.0/24"}]]}},{"ipam":{"ranges":[]}}]}"#;
        assert_eq!(observe(&file(&dir, mixed).path, &mut None).unwrap().ranges, []);
    }

    #[test]
    fn what_somebody_removes_is_put_back_and_what_somebody_puts_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = file(&dir, TEMPLATE);
        let mut seen = None;
        observe(&wanted.path, &mut seen).unwrap();
        fs::remove_file(&*wanted.path).unwrap();
        assert_eq!(observe(&wanted.path, &mut seen).unwrap().ranges, [], "there is something to write");
        write(&wanted, seen.as_ref()).unwrap();
        assert_eq!(fs::read_to_string(&*wanted.path).unwrap(), GOLDEN);
        assert_eq!(fs::metadata(&*wanted.path).unwrap().permissions().mode() & 0o777, 0o664);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing temporary stays");
        fs::write(&*wanted.path, "another's").unwrap();
        assert!(observe(&wanted.path, &mut seen).is_none());
        assert!(write(&wanted, seen.as_ref()).is_err());
        assert_eq!(fs::read_to_string(&*wanted.path).unwrap(), "another's");
    }

    #[test]
    fn no_file_is_made_and_a_foreign_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.conflist");
        let missing = CniFile { path: path.to_str().unwrap().into(), ranges: Vec::new() };
        assert!(observe(&missing.path, &mut None).is_none());
        assert!(matches!(write(&missing, None), Err(CniError::Io(_))));
        assert!(!path.exists());
        for text in ["", "[1]", r#"{"type":"bridge","ipam":{}}"#, r#"{"plugins":[{"type":"loopback"}]}"#] {
            let foreign = file(&dir, text);
            assert!(observe(&foreign.path, &mut None).is_none(), "{text}");
            assert!(write(&foreign, None).is_err(), "{text}");
            assert_eq!(fs::read_to_string(&*foreign.path).unwrap(), text);
        }
    }
}
