//! Which cluster, and a client for it. The rules differ: `kg` never reads KUBECONFIG, `kgctl` does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Where a cluster is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientConfig {
    /// By the environment and the token of a pod's ServiceAccount.
    InCluster,
    /// By the current context of this file.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// A URL in place of the file's server.
        master: Option<String>,
    },
    /// At this URL, without credentials.
    Master(String),
}

impl ClientConfig {
    /// As `kg` finds it: `--kubeconfig` and `--master`, in the cluster when both are empty.
    pub fn for_agent(kubeconfig: &str, master: &str) -> Self {
        let url = (!master.is_empty()).then(|| master.to_owned());
        match (kubeconfig, url) {
            ("", None) => Self::InCluster,
            ("", Some(url)) => Self::Master(url),
            (path, master) => Self::Kubeconfig { path: path.into(), master },
        }
    }

    /// As `kgctl` finds it: `--kubeconfig` if given, else the file that KUBECONFIG names if it is there, else
    /// `.kube/config` in the home. An empty `--kubeconfig` means in the cluster.
    pub fn for_kgctl(flag: Option<&str>, kubeconfig: Option<&str>, home: Option<&Path>) -> Self {
        let file = |path: PathBuf| Self::Kubeconfig { path, master: None };
        match (flag, kubeconfig) {
            (Some(""), _) => Self::InCluster,
            (Some(path), _) => file(path.into()),
            (None, Some(path)) if Path::new(path).is_file() => file(path.into()),
            (None, _) => file(home.unwrap_or(Path::new("/")).join(".kube/config")),
        }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file cannot be read or says too little.
    #[error("reading the kubeconfig {} failed", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// We are not in a pod with a ServiceAccount.
    #[error("finding the cluster from inside failed; outside of a pod give --kubeconfig or --master")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// The URL is none.
    #[error("{0:?} is not the URL of an API server")]
    Url(String),
    /// Certificates or credentials cannot be used.
    #[error("making a client for {url} failed")]
    Client {
        /// The server.
        url: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Makes a client. Nothing is asked of the server yet.
///
/// # Errors
/// See [`ClientError`].
pub async fn connect(config: &ClientConfig) -> Result<Client, ClientError> {
    // Fails when there is one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = match config {
        ClientConfig::InCluster => Config::incluster().map_err(|e| ClientError::InCluster(Box::new(e)))?,
        ClientConfig::Master(master) => Config::new(url(master)?),
        ClientConfig::Kubeconfig { path, master } => {
            let wrong = |source| ClientError::Kubeconfig { path: path.clone(), source: Box::new(source) };
            let file = Kubeconfig::read_from(path).map_err(wrong)?;
            let options = KubeConfigOptions::default();
            let mut config = Config::from_custom_kubeconfig(file, &options).await.map_err(wrong)?;
            if let Some(master) = master {
                config.cluster_url = url(master)?;
            }
            config
        }
    };
    config.connect_timeout = Some(Duration::from_secs(10));
    // A watch brings a bookmark every minute; a server that is silent for longer is not there.
    config.read_timeout = Some(Duration::from_secs(150));
    let url = config.cluster_url.to_string();
    Client::try_from(config).map_err(|source| ClientError::Client { url, source: Box::new(source) })
}

fn url(text: &str) -> Result<http::Uri, ClientError> {
    // As upstream's client: a bare host:port is plain HTTP.
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    full.parse().map_err(|_| ClientError::Url(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_reads_flags_only() {
        let file = |master: Option<&str>| ClientConfig::Kubeconfig {
            path: "/k".into(),
            master: master.map(str::to_owned),
        };
        assert_eq!(ClientConfig::for_agent("", ""), ClientConfig::InCluster);
        assert_eq!(ClientConfig::for_agent("/k", ""), file(None));
        assert_eq!(ClientConfig::for_agent("/k", "https://a:1"), file(Some("https://a:1")));
        assert_eq!(ClientConfig::for_agent("", "a:1"), ClientConfig::Master("a:1".to_owned()));
    }

    #[test]
    fn kgctl_reads_the_environment_too() {
        let here = tempfile::NamedTempFile::new().expect("a file");
        let there = here.path().to_str().expect("text");
        let home = Path::new("/home/a");
        let file = |path: &str| ClientConfig::Kubeconfig { path: path.into(), master: None };
        assert_eq!(ClientConfig::for_kgctl(Some(""), Some(there), Some(home)), ClientConfig::InCluster);
        assert_eq!(ClientConfig::for_kgctl(Some("/f"), Some(there), Some(home)), file("/f"));
        assert_eq!(ClientConfig::for_kgctl(None, Some(there), Some(home)), file(there));
        assert_eq!(ClientConfig::for_kgctl(None, Some("/a:/b"), Some(home)), file("/home/a/.kube/config"));
        assert_eq!(ClientConfig::for_kgctl(None, None, Some(home)), file("/home/a/.kube/config"));
    }

    #[tokio::test]
    async fn errors_name_what_is_wrong() {
        let missing = ClientConfig::for_agent("/nowhere/kubeconfig", "");
        let error = connect(&missing).await.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("/nowhere/kubeconfig"), "{error}");
        let error = connect(&ClientConfig::Master("a b".into())).await.err().map(|e| e.to_string());
        assert!(error.unwrap_or_default().contains("a b"));
        assert!(connect(&ClientConfig::Master("127.0.0.1:1".into())).await.is_ok());
    }
}
