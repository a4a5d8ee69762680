//! The pods of the DaemonSet, made and started as its controller and the kubelets would.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::ControlPlane;
use crate::mesh::{Agent, Node};
use crate::program;

/// Where a pod finds the credentials of its ServiceAccount, below `/var/run/secrets`.
const CREDENTIALS: &str = "kubernetes.io/serviceaccount";
/// Makes a directory the pod's `/var/run/secrets`, which is the same as `/run/secrets` everywhere.
const MOUNT: &str = "mkdir -p /run/secrets && mount --bind \"$1\" /run/secrets && shift && exec \"$@\"";
/// Flags of the manifests that win over what keeps agents apart.
const OF_MANIFESTS: [&str; 2] = ["--hostname", "--listen"];

/// The agents' DaemonSet as the server has it.
#[derive(Debug)]
pub(super) struct DaemonSet {
    namespace: String,
    template: Value,
}

impl DaemonSet {
    /// The one of the manifests.
    pub(super) fn find(api: &ControlPlane) -> Result<Self> {
        let all = api.json(&["get", "daemonsets", "--all-namespaces"])?;
        let [set] = all["items"].as_array().map(Vec::as_slice).unwrap_or_default() else {
            anyhow::bail!("the manifests have not one DaemonSet: {all}");
        };
        let namespace = set["metadata"]["namespace"].as_str().context("the DaemonSet's namespace")?;
        Ok(Self { namespace: namespace.to_owned(), template: set["spec"]["template"].clone() })
    }

    /// The ServiceAccount of its pods as the server calls it.
    pub(super) fn account(&self) -> Result<String> {
        Ok(format!("system:serviceaccount:{}:{}", self.namespace, self.account_name()?))
    }

    fn account_name(&self) -> Result<&str> {
        self.template["spec"]["serviceAccountName"].as_str().context("the pods' ServiceAccount")
    }

    /// Sends a request with the token of a node's pod; the body of the answer.
    pub(super) fn request(
        &self,
        api: &ControlPlane,
        node: &Node,
        verb: &str,
        path: &str,
        body: &Value,
    ) -> Result<String> {
        let token = node.ns.dir().join("secrets").join(CREDENTIALS).join("token");
        let header = node.ns.dir().join("header");
        let token = std::fs::read_to_string(token).context("reading the token")?;
        std::fs::write(&header, format!("Authorization: Bearer {token}")).context("writing the header")?;
        let (url, ca) = (format!("https://{}{path}", api.address()?), api.ca());
        let (header, ca, body) = (format!("@{}", header.display()), ca.to_string_lossy(), body.to_string());
        let kind = "Content-Type: application/merge-patch+json";
        let argv =
            ["curl", "-sSf", "--cacert", &ca, "-X", verb, "-H", &header, "-H", kind, "-d", &body, &url];
        let output = node.ns.output(&argv)?;
        ensure!(output.status.success(), "{verb} {path}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes the pod of a node, runs its init containers and starts its agent with the token of that pod.
    pub(super) fn start(&self, api: &ControlPlane, node: &Node) -> Result<Agent> {
        let name = pod_name(node);
        let mut spec = self.template["spec"].clone();
        spec["nodeName"] = json!(node.name);
        let labels = &self.template["metadata"]["labels"];
        let metadata = json!({"name": name, "namespace": self.namespace, "labels": labels});
        api.put("create", &json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))?;

        let dir = node.ns.dir().join("secrets").join(CREDENTIALS);
        std::fs::create_dir_all(&dir).context("creating the credentials' directory")?;
        self.renew_token(api, node)?;
        std::fs::write(dir.join("namespace"), &self.namespace).context("writing the namespace")?;
        std::fs::copy(api.ca(), dir.join("ca.crt")).context("copying the certificate")?;

        self.prepare(api, node)?;
        self.run(api, node)
    }

    /// Gives the pod of a node a token, as its kubelet does from time to time.
    pub(super) fn renew_token(&self, api: &ControlPlane, node: &Node) -> Result<()> {
        let (pod, account) = (format!("--bound-object-name={}", pod_name(node)), self.account_name()?);
        let words = ["create", "token", account, "-n", &self.namespace, "--bound-object-kind=Pod", &pod];
        self.put_token(node, &api.kubectl(&words)?)
    }

    /// Gives the pod of a node a token that has expired.
    pub(super) fn expire_token(&self, api: &ControlPlane, node: &Node) -> Result<()> {
        let token = api.control(&["token", "DIR", &self.namespace, self.account_name()?, "-60"])?;
        self.put_token(node, &token)
    }

    fn put_token(&self, node: &Node, token: &str) -> Result<()> {
        let file = node.ns.dir().join("secrets").join(CREDENTIALS).join("token");
        std::fs::write(file, token.trim()).context("writing the token")
    }

    /// Starts the agent in the pod that a node has.
    pub(super) fn run(&self, api: &ControlPlane, node: &Node) -> Result<Agent> {
        let secrets = node.ns.dir().join("secrets");
        let server = api.address()?;
        let before = ["sh", "-c", MOUNT, "sh", &secrets.to_string_lossy(), "env"].map(str::to_owned);
        let before = before.into_iter().chain([
            format!("KUBERNETES_SERVICE_HOST={}", server.ip()),
            format!("KUBERNETES_SERVICE_PORT={}", server.port()),
        ]);
        Agent::start_with(node, &before.collect::<Vec<_>>(), &self.flags(node)?)
    }

    /// Runs the init containers, with directories of this node in place of those of a host.
    fn prepare(&self, api: &ControlPlane, node: &Node) -> Result<()> {
        let dir = node.ns.dir();
        let plugins = dir.join("image");
        std::fs::create_dir_all(&plugins).context("creating the image's directory")?;
        // What an installed plugin does is not looked at.
        std::fs::write(plugins.join("bridge"), "").context("writing a plugin")?;
        let conf = Agent::cni_file(node);
        let conf = conf.parent().context("the directory of the CNI file")?;
        for container in self.template["spec"]["initContainers"].as_array().into_iter().flatten() {
            let mut argv = vec!["env".to_owned()];
            for variable in container["env"].as_array().into_iter().flatten() {
                let name = variable["name"].as_str().context("a variable's name")?;
                let value = match variable["valueFrom"].get("configMapKeyRef") {
                    None => variable["value"].as_str().unwrap_or_default().to_owned(),
                    Some(reference) => self.config_map(api, reference)?,
                };
                argv.push(format!("{name}={value}"));
            }
            argv.push(program("kg")?.to_string_lossy().into_owned());
            for argument in container["args"].as_array().into_iter().flatten() {
                argv.push(argument.as_str().context("an argument")?.to_owned());
            }
            argv.push(format!("--source={}", plugins.display()));
            argv.push(format!("--bin-dir={}", dir.join("bin").display()));
            argv.push(format!("--conf-dir={}", conf.display()));
            let output = node.ns.output(&argv)?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "an init container on {}: {said}", node.name);
        }
        ensure!(dir.join("bin/bridge").is_file() && conf.is_dir(), "no init container installs CNI");
        Ok(())
    }

    fn config_map(&self, api: &ControlPlane, reference: &Value) -> Result<String> {
        let (name, key) = (reference["name"].as_str(), reference["key"].as_str());
        let name = name.context("a ConfigMap's name")?;
        let map = api.json(&["get", "configmap", name, "-n", &self.namespace])?;
        let value = map["data"][key.unwrap_or_default()].as_str();
        value.map(str::to_owned).with_context(|| format!("{name} has no key {key:?}"))
    }

    /// The arguments of the container, and then what this machine needs.
    fn flags(&self, node: &Node) -> Result<Vec<String>> {
        let containers = &self.template["spec"]["containers"];
        let container = &containers[0];
        ensure!(containers.as_array().is_some_and(|all| all.len() == 1), "not one container: {containers}");
        let mut own = Agent::flags(node);
        own.retain(|flag| !OF_MANIFESTS.contains(&flag_name(flag)));
        let mut flags = Vec::new();
        for argument in container["args"].as_array().into_iter().flatten() {
            let flag = expand(argument.as_str().context("an argument")?, &container["env"], node)?;
            if !own.iter().any(|own| flag_name(own) == flag_name(&flag)) {
                flags.push(flag);
            }
        }
        ensure!(!flags.is_empty(), "the container has no arguments: {container}");
        flags.extend(own);
        Ok(flags)
    }
}

/// The name of a node's pod.
pub(super) fn pod_name(node: &Node) -> String {
    format!("kilo-{}", node.name)
}

fn flag_name(flag: &str) -> &str {
    flag.split('=').next().unwrap_or_default()
}

/// Puts the container's variables into `$(NAME)`.
fn expand(argument: &str, env: &Value, node: &Node) -> Result<String> {
    let mut text = argument.to_owned();
    for variable in env.as_array().into_iter().flatten() {
        let name = variable["name"].as_str().context("a variable's name")?;
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("spec.nodeName") => node.name.clone(),
            Some("status.hostIP") => node.private.to_string(),
            Some(other) => anyhow::bail!("a kubelet would know {other}"),
            None => variable["value"].as_str().unwrap_or_default().to_owned(),
        };
        text = text.replace(&format!("$({name})"), &value);
    }
    Ok(text)
}
