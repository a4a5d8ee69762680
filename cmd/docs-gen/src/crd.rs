//! The definition of Peers as a manifest.

use anyhow::Context as _;

/// The text of `crds.yaml`.
pub fn manifest() -> anyhow::Result<String> {
    let crd = kilo_k8s::custom_resource_definition().context("writing the definition of Peers as JSON")?;
    let yaml = serde_saphyr::to_string(&crd).context("writing the definition of Peers as YAML")?;
    Ok(format!("# Made from pkg/k8s/src/crd.rs by `cargo run -p kilo-docs-gen`.\n{yaml}"))
}
