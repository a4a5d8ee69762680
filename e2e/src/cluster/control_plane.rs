//! etcd and kube-apiserver in a namespace, and `kubectl` beside them.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use kilo_testkit::netns::{Ns, Skip, World};
use serde_json::Value;

/// The reason why there is no API server, where the list of checks has found one.
const REASON: &str = "KILO_NO_CONTROL_PLANE";
/// What `.ci/control-plane` and the tests of it call.
const PROGRAMS: [&str; 6] = ["curl", "flock", "kubectl", "openssl", "setsid", "shuf"];

/// A running API server. It ends with this value.
#[derive(Debug)]
pub struct ControlPlane {
    ns: Ns,
    dir: PathBuf,
}

impl ControlPlane {
    /// Starts it on an address of a namespace; a skip where its programs are not built. All that accounts of
    /// pods ask and all that anybody does to Peers stands in its audit log.
    pub fn start(world: &World, ns: Ns, address: IpAddr) -> Result<Self> {
        if let Some(reason) = std::env::var_os(REASON) {
            return Err(Skip::because(format!("no API server: {}", reason.to_string_lossy())));
        }
        PROGRAMS.iter().try_for_each(|program| world.need(program))?;
        if !is_built() {
            return Err(Skip::because("no API server: .ci/install-control-plane has not run"));
        }
        let this = Self { ns, dir: world.dir().join("api") };
        std::fs::create_dir_all(this.dir.join("log")).context("creating the API server's directory")?;
        let policy = this.dir.join("audit-policy.json");
        std::fs::write(&policy, super::audit::policy().to_string()).context("writing the audit policy")?;
        let flags = format!(
            "APISERVER_FLAGS=--audit-policy-file={} --audit-log-path={}",
            policy.display(),
            this.audit_path().display()
        );
        this.script(&["env", &flags], &["start", "DIR", "--bind", &address.to_string()])?;
        Ok(this)
    }

    /// Runs `.ci/control-plane` with these words, `DIR` being its directory: faults and their end.
    pub fn control(&self, words: &[&str]) -> Result<String> {
        self.script(&[], words)
    }

    /// Runs `.ci/control-plane` with these words after a command; `DIR` stands for its directory.
    fn script(&self, before: &[&str], words: &[&str]) -> Result<String> {
        let script = repository()?.join(".ci/control-plane");
        let (script, dir) = (script.to_string_lossy(), self.dir.to_string_lossy());
        let mut argv: Vec<&str> = before.to_vec();
        argv.extend(["bash", &*script]);
        argv.extend(words.iter().map(|&word| if word == "DIR" { &*dir } else { word }));
        let output = self.ns.output(&argv)?;
        if !output.status.success() {
            bail!("control-plane {words:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Where it listens.
    pub fn address(&self) -> Result<SocketAddr> {
        let url = std::fs::read_to_string(self.dir.join("server")).context("reading the server's URL")?;
        let address = url.trim().strip_prefix("https://").context("the server's URL")?;
        address.parse().with_context(|| format!("the server's address {address:?}"))
    }

    /// The certificate that clients trust.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("pki/ca.crt")
    }

    pub(super) fn audit_path(&self) -> PathBuf {
        self.dir.join("audit.jsonl")
    }

    /// What `kubectl` prints as the administrator.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        let env = |name: &str, file: &str| format!("{name}={}", self.dir.join(file).display());
        let (config, cache) = (env("KUBECONFIG", "kubeconfig"), env("KUBECACHEDIR", "kubectl-cache"));
        let argv: Vec<&str> =
            ["env", &config, &cache, "kubectl"].into_iter().chain(words.iter().copied()).collect();
        let output = self.ns.output(&argv)?;
        if !output.status.success() {
            bail!("kubectl {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What `kubectl … -o json` prints.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let words: Vec<&str> = words.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.kubectl(&words)?).context("reading the JSON of kubectl")
    }

    /// Gives `kubectl VERB -f` one object.
    pub fn put(&self, verb: &str, object: &Value) -> Result<()> {
        let path = self.dir.join("object.json");
        std::fs::write(&path, object.to_string()).context("writing an object")?;
        self.kubectl(&[verb, "-f", &path.to_string_lossy()]).map(drop)
    }

    /// Applies an overlay of `manifests/` and waits until its definitions are in force.
    pub fn apply_manifests(&self, overlay: &str) -> Result<()> {
        let overlay = repository()?.join("manifests/overlays").join(overlay);
        self.kubectl(&["apply", "-k", &overlay.to_string_lossy()])?;
        let wanted = "--for=condition=Established";
        self.kubectl(&["wait", wanted, "--timeout=60s", "crd/peers.kilo.squat.ai"]).map(drop)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // What is left goes with the process namespace of the test.
        let _stopped = self.script(&[], &["stop", "DIR"]);
    }
}

fn repository() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")
}

fn is_built() -> bool {
    let cache = std::env::var_os("KILO_TEST_CACHE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/kilo-e2e")));
    let entries = cache.and_then(|cache| std::fs::read_dir(cache).ok()).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().join("bin")).any(|bin| {
        bin.parent()
            .and_then(Path::file_name)
            .is_some_and(|name| name.to_string_lossy().starts_with("control-plane-"))
            && ["etcd", "kube-apiserver"].iter().all(|program| bin.join(program).is_file())
    })
}
