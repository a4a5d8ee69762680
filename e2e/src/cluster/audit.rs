//! What the API server's audit log says about who asked for what.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::ControlPlane;

/// One request that was answered; of a watch, its end.
#[derive(Clone, Debug)]
pub struct Request {
    /// `patch`, `list`, …
    pub verb: String,
    /// `nodes`, with a subresource `nodes/status`.
    pub resource: String,
    /// The object, if it was about one.
    pub name: String,
    /// Who asked.
    pub user: String,
    /// The pod whose token it was.
    pub pod: String,
    /// The status of the answer.
    pub code: u64,
    /// Since midnight (UTC), when the server had it.
    pub received: Duration,
}

impl Request {
    /// Whether it asked for a change.
    pub fn writes(&self) -> bool {
        !["get", "list", "watch"].contains(&self.verb.as_str())
    }
}

/// Everything that accounts of pods and upstream's agents do, and everything that is done to Peers.
pub(super) fn policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [
            {"level": "Metadata", "userGroups": ["system:serviceaccounts", super::upstream::GROUP]},
            {"level": "Metadata", "resources": [{"group": "kilo.squat.ai"}]},
            {"level": "None"},
        ],
    })
}

impl ControlPlane {
    /// All requests of the audit log so far.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let text = std::fs::read_to_string(self.audit_path()).context("reading the audit log")?;
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| request(line).with_context(|| format!("the audit log's line {line}")))
            .collect()
    }
}

fn request(line: &str) -> Result<Request> {
    let event: Value = serde_json::from_str(line)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &event["objectRef"];
    let resource = match object["subresource"].as_str() {
        Some(part) => format!("{}/{part}", text(&object["resource"])),
        None => text(&object["resource"]),
    };
    Ok(Request {
        verb: text(&event["verb"]),
        resource,
        name: text(&object["name"]),
        user: text(&event["user"]["username"]),
        pod: text(&event["user"]["extra"]["authentication.kubernetes.io/pod-name"][0]),
        code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
        received: time_of_day(event["requestReceivedTimestamp"].as_str().unwrap_or_default())
            .context("no time")?,
    })
}

/// `2026-01-31T12:34:56.789012Z` without its date.
fn time_of_day(text: &str) -> Option<Duration> {
    let time = text.split_once('T')?.1.strip_suffix('Z')?;
    let mut parts = time.split(':');
    let mut number = || parts.next()?.parse::<f64>().ok();
    let (hours, minutes, seconds) = (number()?, number()?, number()?);
    Duration::try_from_secs_f64(hours * 3600.0 + minutes * 60.0 + seconds).ok()
}
