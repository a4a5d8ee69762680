//! Objects of a live cluster, and the names in them resolved as its agents would.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use kilo_k8s::{ClientConfig, connect, list};
use kilo_mesh::Config;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::args::Global;
use crate::error::message;
use crate::input::Input;

/// How long a name may take to resolve.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which cluster the flags and the environment name.
pub fn config(global: &Global) -> ClientConfig {
    let environment = std::env::var("KUBECONFIG").ok();
    let home = std::env::var_os("HOME").map(PathBuf::from);
    ClientConfig::for_kgctl(global.kubeconfig.as_deref(), environment.as_deref(), home.as_deref())
}

/// Lists all Nodes and Peers.
///
/// # Errors
/// When there is no such cluster, it does not answer, or has no Peers.
pub fn read(global: &Global) -> anyhow::Result<Input> {
    let config = config(global);
    let label = global.topology_label.clone().unwrap_or_else(|| Config::default().topology_label);
    block_on(async {
        let client = connect(&config).await?;
        let (nodes, peers, findings) = list(&client, &label).await.map_err(|error| message(error.line()))?;
        anyhow::Ok(Input { nodes, peers, findings, live: true, ..Input::default() })
    })?
    .context("asking the cluster (-f FILE reads files instead)")
}

/// Resolves names, all at once; those that do not resolve are left out.
///
/// # Errors
/// When this machine cannot even begin.
pub fn resolve(names: BTreeSet<String>) -> anyhow::Result<BTreeMap<String, Vec<IpAddr>>> {
    block_on(async {
        let mut lookups = JoinSet::new();
        for name in names {
            lookups.spawn(async move {
                let addresses: BTreeSet<IpAddr> =
                    match timeout(PATIENCE, tokio::net::lookup_host((name.as_str(), 0))).await {
                        Ok(Ok(found)) => found.map(|address| address.ip().to_canonical()).collect(),
                        Ok(Err(_)) | Err(_) => BTreeSet::new(),
                    };
                (name, addresses)
            });
        }
        let mut resolved = BTreeMap::new();
        while let Some(lookup) = lookups.join_next().await {
            // One that was cancelled has found nothing.
            if let Ok((name, addresses)) = lookup
                && !addresses.is_empty()
            {
                resolved.insert(name, addresses.into_iter().collect());
            }
        }
        resolved
    })
}

fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime for requests")?;
    let result = runtime.block_on(work);
    // A look-up that is still under way keeps nobody waiting.
    runtime.shutdown_background();
    Ok(result)
}
