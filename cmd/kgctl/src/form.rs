//! JSON and YAML as kubectl prints them.

use anyhow::Context as _;
use serde::Serialize;

/// JSON, indented by two blanks, with a line feed at the end.
///
/// # Errors
/// When the value cannot be written as JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(value).context("writing JSON")?;
    text.push('\n');
    Ok(text)
}

/// YAML, lists at the depth of their key.
///
/// # Errors
/// When the value cannot be written as YAML.
pub fn yaml(value: &impl Serialize) -> anyhow::Result<String> {
    serde_saphyr::to_string(value).context("writing YAML")
}
