//! The directory of manifests that the agents share in file mode, edited as a person would.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Node;

/// A directory of Nodes and Peers.
#[derive(Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// An empty one.
    pub fn new(path: PathBuf) -> Result<Self> {
        for dir in ["nodes", "peers"] {
            std::fs::create_dir_all(path.join(dir)).context("creating the state directory")?;
        }
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes the Node object that an administrator would: no annotation but the keepalive behind NAT.
    pub fn add_node(&self, node: &Node) -> Result<()> {
        let annotations = if node.behind_nat {
            "\n  annotations:\n    kilo.squat.ai/persistent-keepalive: \"5\""
        } else {
            ""
        };
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {}\n  labels:\n    \
             topology.kubernetes.io/region: {}{annotations}\nspec:\n  podCIDR: {}\n",
            node.name, node.location, node.pod_cidr
        );
        self.write(&format!("nodes/{}.yaml", node.name), &text)
    }

    /// Writes a Peer with one address, and an endpoint where it has one.
    pub fn put_peer(
        &self,
        name: &str,
        public_key: &str,
        address: IpAddr,
        endpoint: Option<(IpAddr, u16)>,
    ) -> Result<()> {
        let endpoint = endpoint.map_or(String::new(), |(ip, port)| {
            format!("  endpoint:\n    dnsOrIP:\n      ip: {ip}\n    port: {port}\n")
        });
        let length = if address.is_ipv4() { 32 } else { 128 };
        let text = format!(
            "apiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata:\n  name: {name}\nspec:\n  allowedIPs:\n  \
             - {address}/{length}\n{endpoint}  persistentKeepalive: 5\n  publicKey: {public_key}\n"
        );
        self.write(&format!("peers/{name}.yaml"), &text)
    }

    /// Removes a Peer.
    pub fn remove_peer(&self, name: &str) -> Result<()> {
        std::fs::remove_file(self.0.join(format!("peers/{name}.yaml"))).context("removing a Peer's file")
    }

    /// All files, in order, as arguments for `kgctl -f`.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for dir in ["nodes", "peers"] {
            for entry in std::fs::read_dir(self.0.join(dir)).context("reading the state directory")? {
                let path = entry.context("reading the state directory")?.path();
                // Only what an agent reads: one may be in the middle of writing another name.
                if path.extension().is_some_and(|extension| extension == "yaml") {
                    files.push(path);
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// Writes any objects into one file.
    pub fn put(&self, file: &str, text: &str) -> Result<()> {
        self.write(file, text)
    }

    /// Editors write beside and rename; so do we.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.0.join(name);
        let beside = path.with_extension("new");
        std::fs::write(&beside, text).context("writing a manifest")?;
        std::fs::rename(&beside, &path).context("renaming a manifest")
    }
}
