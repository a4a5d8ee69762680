//! Figures, the thresholds they are held against, and the table of both.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// One measured figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured, `plan/100-nodes/0-peers/full/wall-ms`; its end is the unit.
    pub name: String,
    /// How much.
    pub value: f64,
    /// What upstream was measured to need, in words.
    pub upstream: Option<String>,
}

impl Figure {
    /// A figure without one of upstream's.
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Self { name: name.into(), value, upstream: None }
    }

    /// With upstream's figure beside it.
    pub fn upstream(mut self, figure: impl Into<String>) -> Self {
        self.upstream = Some(figure.into());
        self
    }

    pub(crate) fn read(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).context("a figure")?;
        Ok(Self {
            name: value["name"].as_str().context("a figure's name")?.to_owned(),
            value: value["value"].as_f64().context("a figure's value")?,
            upstream: value["upstream"].as_str().map(str::to_owned),
        })
    }

    pub(crate) fn write(&self) -> Result<String> {
        let value = json!({"name": self.name, "value": self.value, "upstream": self.upstream});
        serde_json::to_string(&value).context("writing a figure")
    }
}

/// The most that figures may be, or the least where the name says `-mbit`.
pub struct Thresholds(BTreeMap<String, f64>);

impl Thresholds {
    /// Those of the file that is checked in.
    pub fn read() -> Result<Self> {
        serde_json::from_str(include_str!("thresholds.json")).map(Self).context("reading thresholds.json")
    }
}

/// A table for `docs/benchmarks.md`, and how many figures are beyond their thresholds.
pub fn table(figures: &[Figure], thresholds: &Thresholds) -> (String, usize) {
    let mut text = String::from("| figure | ours | upstream | threshold |\n|---|---|---|---|\n");
    let mut exceeded = 0;
    for figure in figures {
        let at_least = figure.name.contains("-mbit");
        let limit = thresholds.0.get(&figure.name).copied();
        let beyond = limit.is_some_and(|l| if at_least { figure.value < l } else { figure.value > l });
        exceeded += usize::from(beyond);
        let limit = limit.map_or(String::new(), |l| {
            format!("{} {l}{}", if at_least { "≥" } else { "≤" }, if beyond { " **beyond**" } else { "" })
        });
        let upstream = figure.upstream.as_deref().unwrap_or_default();
        // Writing to a String does not fail.
        let _ = writeln!(text, "| {} | {} | {upstream} | {limit} |", figure.name, round(figure.value));
    }
    (text, exceeded)
}

/// Three digits are as many as these machines are worth.
fn round(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
