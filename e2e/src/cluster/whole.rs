//! The cluster: the ground, the API server, Nodes, and agents that came by the manifests.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kilo_testkit::netns::{World, eventually};
use kilo_wireguard::PublicKey;
use serde_json::{Value, json};

use super::daemon_set::{DaemonSet, pod_name};
use super::watchers::{Watched, watch};
use super::{ControlPlane, Request, Seen, Upstream};
use crate::mesh::{Agent, Mesh, Node, Place, Reach, StateDir, Traveller};
use crate::program;

/// The number of nodes.
const NODES: usize = 5;
/// The API server's machine is on the internet, where every node reaches it: `198.51.100.NUMBER`.
const NUMBER: u8 = 50;
/// The overlay of the manifests for clusters whose pods Kilo connects.
const OVERLAY: &str = "kubeadm";
/// How long the server may take to know new rights.
const RIGHTS: Duration = Duration::from_secs(30);

/// A cluster of two locations and five nodes.
#[derive(Debug)]
pub struct Cluster<'w> {
    /// The ground and the agents; its state directory is empty until somebody writes a [`dump`](Self::dump).
    pub mesh: Mesh<'w>,
    /// The server.
    pub api: ControlPlane,
    daemon_set: DaemonSet,
}

impl<'w> Cluster<'w> {
    /// Starts the server, applies the manifests and makes the Nodes. No agent runs yet.
    pub fn found(world: &'w World) -> Result<Self> {
        for program in ["ip", "nft", "wg", "ping"] {
            world.need(program)?;
        }
        world.need_tun()?;
        let place = Place::lay_out_for(world, NODES)?;
        let ns = place.traveller(world, "api", NUMBER)?;
        let api = ControlPlane::start(world, ns, IpAddr::from([198, 51, 100, NUMBER]))?;
        api.apply_manifests(OVERLAY)?;
        for node in &place.nodes {
            api.put("create", &node_object(node))?;
        }
        let daemon_set = DaemonSet::find(&api)?;
        let state = StateDir::new(world.dir().join("state"))?;
        let mesh = Mesh {
            world,
            place,
            state,
            agents: BTreeMap::new(),
            travellers: Vec::new(),
            stopped: std::collections::BTreeSet::new(),
        };
        let this = Self { mesh, api, daemon_set };
        this.may("patch", "nodes", true)?;
        this.may("watch", "peers.kilo.squat.ai", true)?;
        Ok(this)
    }

    /// Applies the manifests again.
    pub fn apply_manifests(&self) -> Result<()> {
        self.api.apply_manifests(OVERLAY)
    }

    /// Waits until the server lets, or does not let, the agents do something.
    pub fn may(&self, verb: &str, resource: &str, wanted: bool) -> Result<()> {
        let account = format!("--as={}", self.daemon_set.account()?);
        // The exit status says the same as the word, and there is a warning for resources without namespace.
        let ask = ["auth", "can-i", verb, resource, &account];
        eventually(RIGHTS, &format!("agents may {verb} {resource}: {wanted}"), || {
            let answer = self.api.kubectl(&ask);
            ensure!(answer.is_ok_and(|answer| answer.contains("yes")) == wanted, "the server says otherwise");
            Ok(())
        })
    }

    /// Starts the agent of every node as the DaemonSet has it.
    pub fn deploy(&mut self) -> Result<()> {
        let names: Vec<String> = self.mesh.place.nodes.iter().map(|node| node.name.clone()).collect();
        self.deploy_on(&names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Starts agents as the DaemonSet has them on these nodes only.
    pub fn deploy_on(&mut self, names: &[&str]) -> Result<()> {
        for name in names {
            let agent = self.daemon_set.start(&self.api, self.mesh.place.node(name)?)?;
            self.mesh.agents.insert((*name).to_owned(), agent);
        }
        Ok(())
    }

    /// Starts an agent of upstream Kilo on a node; a skip where its program is not at hand.
    pub fn deploy_upstream(&self, name: &str) -> Result<Upstream> {
        Upstream::start(&self.api, self.mesh.place.node(name)?)
    }

    /// Stops the agent of a node as a kubelet does and starts it again.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        self.mesh.agent(name)?.stop()?;
        let agent = self.daemon_set.run(&self.api, self.mesh.place.node(name)?)?;
        self.mesh.agents.insert(name.to_owned(), agent);
        Ok(())
    }

    /// What others need to know of each node: location, key, WireGuard address and endpoint.
    pub fn identities(&self) -> Result<BTreeMap<String, Vec<Value>>> {
        const NAMES: [&str; 4] = ["location", "key", "wireguard-ip", "endpoint"];
        let nodes = self.api.json(&["get", "nodes"])?;
        let items = nodes["items"].as_array().into_iter().flatten();
        let told = |node: &Value| {
            let annotations = &node["metadata"]["annotations"];
            let values = NAMES.map(|name| annotations[format!("kilo.squat.ai/{name}")].clone());
            (node["metadata"]["name"].to_string(), values.to_vec())
        };
        Ok(items.map(told).collect())
    }

    /// Waits until there is one mesh: every agent is ready and sees all nodes, every pod reaches every pod, the
    /// kernels are as planned, and the Nodes say what the agents found.
    pub fn converge(&self, limit: Duration) -> Result<Reach> {
        ensure!(self.mesh.agents.len() == NODES, "agents: {:?}", self.mesh.agents.keys());
        self.mesh.settle(limit)?;
        let reach = self.mesh.reach_all(limit)?;
        ensure!(reach.reached() >= NODES * (NODES - 1), "{reach}");
        self.mesh.kernels_as_planned(limit)?;
        eventually(limit, "the Nodes are annotated", || self.annotated())?;
        Ok(reach)
    }

    /// Whether each Node carries its agent's key and, where the agent leads, its WireGuard address, and the CNI
    /// file its pods' range.
    fn annotated(&self) -> Result<()> {
        let nodes = self.api.json(&["get", "nodes"])?;
        for node in nodes["items"].as_array().into_iter().flatten() {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            let annotation = |key: &str| &node["metadata"]["annotations"][format!("kilo.squat.ai/{key}")];
            let place = self.mesh.place.node(name)?;
            let key = place.ns.run("wg show kilo0 public-key")?;
            ensure!(*annotation("key") == key.trim(), "{name} has the key {}", annotation("key"));
            let cni = std::fs::read_to_string(Agent::cni_file(place)).context("reading the CNI file")?;
            let cni: Value = serde_json::from_str(&cni).context("reading the JSON of the CNI file")?;
            let ranges = &cni["plugins"][0]["ipam"]["ranges"];
            let wanted = json!([[{"subnet": place.pod_cidr.to_string()}]]);
            ensure!(*ranges == wanted, "the CNI file of {name} has the ranges {ranges}");
            for wanted in ["last-seen", "internal-ip", "endpoint"] {
                let there = annotation(wanted).as_str().is_some_and(|text| !text.is_empty());
                ensure!(there, "{name} has no {wanted}: {}", node["metadata"]["annotations"]);
            }
            let agent = self.mesh.agents.get(name).context("no agent")?;
            let plan = agent.plan()?;
            if plan["leader"] == true {
                let address = &plan["wireGuardCIDR"];
                let told = annotation("wireguard-ip");
                ensure!(told == address && told.is_string(), "{name} has the address {told}, not {address}");
            }
        }
        Ok(())
    }

    /// Creates a Peer with `kubectl`; when it was everywhere.
    pub fn create_peer(
        &self,
        name: &str,
        key: &PublicKey,
        address: Ipv4Addr,
        limit: Duration,
    ) -> Result<Seen> {
        let object = peer_object(name, &key.to_string(), address.into(), None);
        watch(&self.watched()?, key, address, true, limit, || self.api.put("create", &object))
    }

    /// Deletes a Peer with `kubectl`; when it was nowhere.
    pub fn delete_peer(
        &self,
        name: &str,
        key: &PublicKey,
        address: Ipv4Addr,
        limit: Duration,
    ) -> Result<Seen> {
        let delete = || self.api.kubectl(&["delete", "peer", name]).map(drop);
        watch(&self.watched()?, key, address, false, limit, delete)
    }

    /// Lets a laptop in as [`Mesh::admit`] does: its Peer is created, and its device configured.
    pub fn admit(&mut self, name: &str, number: u8, limit: Duration) -> Result<()> {
        let laptop = Traveller::arrive(self.mesh.world, &self.mesh.place, name, number)?;
        let peer = peer_object(name, &laptop.public_key, laptop.host.address, Some(laptop.endpoint));
        self.api.put("create", &peer)?;
        eventually(limit, &format!("{name} is configured"), || {
            self.dump()?;
            laptop.configure(&self.mesh.state, Duration::ZERO)
        })?;
        self.mesh.travellers.push(laptop);
        Ok(())
    }

    /// When the server had the request that did this to a Peer, since midnight.
    pub fn request_time(&self, verb: &str, name: &str) -> Result<Duration> {
        eventually(RIGHTS, "the request is in the audit log", || {
            let requests = self.api.requests()?;
            let found =
                requests.iter().rev().find(|r| r.verb == verb && r.resource == "peers" && r.name == name);
            found.map(|request| request.received).context("it is not")
        })
    }

    /// Lets the token of a node's pod be one that has expired.
    pub fn expire_token(&self, node: &str) -> Result<()> {
        self.daemon_set.expire_token(&self.api, self.mesh.place.node(node)?)
    }

    /// Gives the pod of a node a new token, as its kubelet does.
    pub fn renew_token(&self, node: &str) -> Result<()> {
        self.daemon_set.renew_token(&self.api, self.mesh.place.node(node)?)
    }

    /// What agents have asked of the server, by the name of their node.
    pub fn requests(&self) -> Result<BTreeMap<String, Vec<Request>>> {
        let account = self.daemon_set.account()?;
        let mut by_node: BTreeMap<String, Vec<Request>> = BTreeMap::new();
        for request in self.api.requests()?.into_iter().filter(|request| request.user == account) {
            let node = self.mesh.place.nodes.iter().find(|node| pod_name(node) == request.pod);
            let node = node.with_context(|| format!("a token of no pod: {request:?}"))?;
            by_node.entry(node.name.clone()).or_default().push(request);
        }
        Ok(by_node)
    }

    /// Writes to one Node with the token of another node's pod, as no agent does.
    pub fn write_as(&self, node: &str, other: &str) -> Result<()> {
        let patch = json!({"metadata": {"annotations": {"example.com/foreign": "yes"}}});
        let (node, path) = (self.mesh.place.node(node)?, format!("/api/v1/nodes/{other}"));
        self.daemon_set.request(&self.api, node, "PATCH", &path, &patch).map(drop)
    }

    fn watched(&self) -> Result<Vec<Watched>> {
        let mut nodes = Vec::new();
        for (name, agent) in &self.mesh.agents {
            let leads = agent.plan()?["leader"] == true;
            let socket = self.mesh.place.node(name)?.ns.dir().join("wireguard/kilo0.sock");
            nodes.push(Watched {
                name: name.clone(),
                socket: leads.then_some(socket),
                routes: format!("/proc/{}/net/route", agent.id()).into(),
            });
        }
        ensure!(nodes.iter().any(|node| node.socket.is_some()), "nobody leads");
        Ok(nodes)
    }

    /// Writes all Nodes and Peers as `kubectl` prints them into the state directory, one file each.
    pub fn dump(&self) -> Result<()> {
        for (kind, dir) in [("nodes", "nodes"), ("peers.kilo.squat.ai", "peers")] {
            let all = self.api.json(&["get", kind])?;
            for object in all["items"].as_array().into_iter().flatten() {
                let name = object["metadata"]["name"].as_str().context("an object without a name")?;
                self.mesh.state.put(&format!("{dir}/{name}.yaml"), &object.to_string())?;
            }
        }
        Ok(())
    }

    /// What `kgctl plan` says about a node, from what `kubectl get nodes,peers -o yaml` prints and the agent's
    /// facts.
    pub fn offline_plan(&self, agent: &Agent, node: &str) -> Result<Value> {
        let dir = &self.mesh.place.node(node)?.ns.dir().to_path_buf();
        let file = |name: &str, text: String| -> Result<PathBuf> {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            Ok(path)
        };
        let objects = self.api.kubectl(&["get", "nodes,peers.kilo.squat.ai", "-o", "yaml"])?;
        let (objects, facts) = (file("objects.yaml", objects)?, file("facts.json", agent.get("/facts")?)?);
        let output = Command::new(program("kgctl")?)
            .args(["plan", "--encapsulate=never", "-o", "json", "--node", node, "-f"])
            .arg(objects)
            .arg("--facts")
            .arg(facts)
            .output()
            .context("starting kgctl")?;
        if !output.status.success() {
            bail!("kgctl plan: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).context("reading the JSON of kgctl")
    }
}

/// A Node as a kubelet and an administrator leave it: a location, and the keepalive behind NAT.
pub fn node_object(node: &Node) -> Value {
    let mut metadata = json!({
        "name": node.name,
        "labels": {"topology.kubernetes.io/region": node.location, "kubernetes.io/os": "linux"},
    });
    if node.behind_nat {
        metadata["annotations"] = json!({"kilo.squat.ai/persistent-keepalive": "5"});
    }
    let range = node.pod_cidr.to_string();
    json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"podCIDR": range, "podCIDRs": [range]}})
}

/// A Peer with one address, and an endpoint where it has one.
pub fn peer_object(name: &str, key: &str, address: IpAddr, endpoint: Option<(IpAddr, u16)>) -> Value {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let mut spec = json!({
        "publicKey": key, "allowedIPs": [format!("{address}/{length}")], "persistentKeepalive": 5,
    });
    if let Some((ip, port)) = endpoint {
        spec["endpoint"] = json!({"dnsOrIP": {"ip": ip}, "port": port});
    }
    json!({
        "apiVersion": "kilo.squat.ai/v1alpha1", "kind": "Peer", "metadata": {"name": name}, "spec": spec,
    })
}
