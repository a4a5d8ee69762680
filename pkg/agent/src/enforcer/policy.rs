//! The compiler of `kilo-policy` behind the enforcer's seam.

use std::net::IpAddr;

use kilo_mesh::Finding;
use kilo_nftables::{Table, Transaction};
use kilo_policy::{Compiler, Direction, Kind, LocalPod, MeshFacts, Mode, Reason};
use serde_json::Value;

use super::compile::{Compile, Explained, Programmed};
use crate::AttachedPod;

/// The policies of `kilo-policy`, made tables of.
#[derive(Debug)]
pub struct Policies {
    compiler: Compiler,
    /// Policies are kept, not only evaluated.
    enforces: bool,
    /// Policies are not even evaluated.
    off: bool,
    /// Sources are bound, not only counted.
    binds: bool,
}

impl Policies {
    /// As a compiler of this configuration makes them.
    pub fn new(config: kilo_policy::CompilerConfig) -> Self {
        let (enforces, binds) =
            (config.mode == Mode::On, config.antispoof == kilo_policy::Antispoof::Enforce);
        let off = config.mode == Mode::Off;
        Self { compiler: Compiler::new(config), enforces, off, binds }
    }
}

impl Compile for Policies {
    type Mesh = MeshFacts;

    fn restarted(&mut self, kind: Kind) {
        self.compiler.restarted(kind);
    }

    fn apply(&mut self, kind: Kind, object: &Value) -> Vec<Finding> {
        self.compiler.apply(kind, object).findings
    }

    fn synced(&mut self, kind: Kind) {
        self.compiler.synced(kind);
    }

    fn remove(&mut self, kind: Kind, namespace: &str, name: &str) {
        self.compiler.remove(kind, namespace, name);
    }

    fn set_mesh(&mut self, mesh: MeshFacts) {
        self.compiler.set_mesh(mesh);
    }

    fn set_local(&mut self, pods: &[AttachedPod]) {
        let each = |pod: &AttachedPod| LocalPod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            link: pod.link.clone(),
        };
        let addresses = pods.iter().flat_map(|pod| pod.addresses.iter().map(move |ip| (*ip, each(pod))));
        self.compiler.set_local(addresses.collect());
    }

    fn knows(&self, address: IpAddr) -> bool {
        self.off || self.compiler.judges(address)
    }

    fn adopt(&mut self, tables: &[Table]) {
        self.compiler.adopt(tables);
    }

    fn take(&mut self) -> Vec<Transaction> {
        self.compiler.take()
    }

    fn sweep(&mut self) -> Option<u32> {
        self.compiler.sweep()
    }

    fn failed(&mut self) {
        self.compiler.failed();
    }

    fn is(&self, tables: &[Table]) -> bool {
        let wanted = self.compiler.tables();
        let there = |table: &&Table| tables.iter().any(|t| t == *table);
        wanted.len() == tables.len() && wanted.iter().all(there)
    }

    fn explain(&self, prefix: &str, source: IpAddr, destination: IpAddr) -> Option<Explained> {
        let id = u32::from_str_radix(prefix.trim(), 16).ok()?;
        let explained = self.compiler.explain(id, source, destination)?;
        let direction = explained.direction.map(|direction| match direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        });
        let dropped = match explained.reason {
            Some(Reason::Weak) => false,
            Some(reason) if reason.is_spoof() => self.binds,
            Some(_) | None => self.enforces,
        };
        let why = match explained.reason {
            Some(reason) => reason.words().to_owned(),
            None => "no policy allows it".to_owned(),
        };
        Some(Explained { why, direction, isolated_by: explained.isolated_by, dropped })
    }

    fn whose(&self, address: IpAddr) -> String {
        self.compiler.end(address)
    }

    fn programmed(&self) -> Programmed {
        let stats = self.compiler.stats();
        Programmed {
            profiles: stats.profiles,
            sets: stats.sets,
            hash_elements: stats.hash_elements,
            interval_elements: stats.interval_elements,
            rules: stats.rules,
            unprogrammed: stats.unprogrammed,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_of_cni_is_known_when_the_cluster_tells_of_it() {
        let config = kilo_policy::CompilerConfig { node: "a".into(), ..Default::default() };
        let mut policies = Policies::new(config);
        let addresses: [IpAddr; 2] = ["10.2.1.5".parse().unwrap(), "fd02:1::5".parse().unwrap()];
        let attached = AttachedPod {
            container: "c".into(),
            namespace: "shop".into(),
            name: "web".into(),
            uid: "u".into(),
            link: "veth1".into(),
            addresses: addresses.to_vec(),
        };
        for kind in [Kind::Pod, Kind::Namespace, Kind::NetworkPolicy, Kind::Service, Kind::EndpointSlice] {
            policies.restarted(kind);
            policies.synced(kind);
        }
        policies.set_local(&[attached]);
        policies.take();
        assert!(addresses.iter().all(|address| !policies.knows(*address)));
        let metadata = json!({"namespace": "shop", "name": "web", "uid": "u"});
        policies.apply(Kind::Pod, &json!({"metadata": metadata, "spec": {"nodeName": "a"}}));
        policies.take();
        assert!(addresses.iter().all(|address| policies.knows(*address)));
    }
}
