//! Kernel parameters below `/proc/sys`. Those of the network are of the namespace of the calling thread.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

const ROOT: &str = "/proc/sys";

/// The parameters that a plan may name for every machine; those of links are added by their names.
const GENERAL: [&str; 4] = [
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
];

/// The file of a parameter. A path that leaves `/proc/sys` is refused.
fn file(path: &str) -> io::Result<PathBuf> {
    let path = Path::new(path);
    if path.components().all(|part| matches!(part, Component::Normal(_)))
        && path.components().next().is_some()
    {
        Ok(Path::new(ROOT).join(path))
    } else {
        Err(io::Error::from(io::ErrorKind::InvalidInput))
    }
}

/// Reads the parameters that a plan may name; those that the kernel does not have are left out.
pub(crate) fn observe<'a>(links: impl IntoIterator<Item = &'a str>) -> BTreeMap<Box<str>, Box<str>> {
    let of_links = links.into_iter().map(|link| format!("net/ipv4/conf/{link}/rp_filter"));
    GENERAL
        .iter()
        .map(|path| (*path).to_owned())
        .chain(of_links)
        .filter_map(|path| {
            let text = std::fs::read_to_string(file(&path).ok()?).ok()?;
            Some((path.into_boxed_str(), text.trim().into()))
        })
        .collect()
}

/// The value of a parameter; `None` where the kernel does not have it.
pub(crate) fn get(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(file(path).ok()?).ok()?.trim().to_owned())
}

/// Writes parameters that have another value. Those that the kernel does not have, of a link that has gone or of a
/// family that is off, are passed over.
pub(crate) fn ensure<P: AsRef<str>>(wanted: impl IntoIterator<Item = (P, &'static str)>) -> io::Result<()> {
    for (path, value) in wanted {
        let path = path.as_ref();
        if get(path).is_some_and(|now| now != value) {
            set(path, value).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
            tracing::debug!(path, value, "Set a kernel parameter");
        }
    }
    Ok(())
}

/// Writes a parameter.
pub(crate) fn set(path: &str, value: &str) -> io::Result<()> {
    std::fs::write(file(path)?, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        for bad in ["", "/etc/passwd", "../../etc/passwd", "net/../../x", "."] {
            assert!(file(bad).is_err(), "{bad}");
        }
        assert_eq!(file("net/ipv4/ip_forward").unwrap(), Path::new("/proc/sys/net/ipv4/ip_forward"));
    }

    #[test]
    fn what_the_kernel_has_is_read() {
        let found = observe(["no-such-link"]);
        assert!(found.contains_key("net/ipv4/ip_forward"));
        assert!(!found.contains_key("net/ipv4/conf/no-such-link/rp_filter"));
    }
}
