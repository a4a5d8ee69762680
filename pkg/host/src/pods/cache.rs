//! libcni's records of what it has set up: one file for each attachment, written when its last plugin is done. They
//! survive the end of the agent, and of the machine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use kilo_agent::AttachedPod;
use serde::Deserialize;
use serde_json::Value;

use super::attachment::{IFNAME, pod};

/// A record is a few kilobytes.
const MAX: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    container_id: String,
    if_name: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    result: Value,
}

/// The pods of all records by sandbox; none where there is no directory. A record that cannot be read is left out.
pub(super) fn read(directory: &Path) -> io::Result<BTreeMap<String, AttachedPod>> {
    let mut pods = BTreeMap::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(pods),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if let Some(pod) = read_one(&path) {
            pods.insert(pod.container.clone(), pod);
        }
    }
    Ok(pods)
}

fn read_one(path: &Path) -> Option<AttachedPod> {
    let mut text = Vec::new();
    // One that goes while the directory is read is gone.
    File::open(path).ok()?.take(MAX).read_to_end(&mut text).ok()?;
    let record: Record = match serde_json::from_slice(&text) {
        Ok(record) => record,
        Err(error) => {
            // Other things of CNI's may be in there.
            tracing::debug!(path = %path.display(), %error, "CNI record is not read");
            return None;
        }
    };
    let args = record.cni_args.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    (record.if_name == IFNAME).then(|| pod(&record.container_id, args, &record.result)).flatten()
}
