//! The certificate of the webhook, read again when its files change: whoever renews it restarts nobody.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tracing::{info, warn};

/// How long the files are taken to be what they were.
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// What tells one state of a file from another: device, inode, size, and time of change.
type Stamp = (u64, u64, u64, i64, i64);

/// The certificate and key of a server.
#[derive(Debug)]
pub struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    now: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    stamps: (Stamp, Stamp),
    looked: Instant,
    /// The last pair could not be used, which has been told.
    refused: bool,
}

impl Certificate {
    /// Reads a certificate chain and its key from PEM files.
    pub fn load(cert: &Path, key: &Path) -> anyhow::Result<Self> {
        // Before they are read: what changes meanwhile is seen the next time.
        let stamps = stamps(cert, key).with_context(|| wanted(cert, key))?;
        let now = Loaded { config: read(cert, key)?, stamps, looked: Instant::now(), refused: false };
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), now: Mutex::new(now) })
    }

    /// What a connection of this moment is served with. A new pair that cannot be used, or is only half there,
    /// leaves the old one in force.
    pub fn current(&self) -> Arc<ServerConfig> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.looked.elapsed() >= FRESH {
            now.looked = Instant::now();
            self.renew(&mut now);
        }
        now.config.clone()
    }

    fn renew(&self, now: &mut Loaded) {
        let seen = stamps(&self.cert, &self.key).with_context(|| wanted(&self.cert, &self.key));
        if seen.as_ref().is_ok_and(|seen| *seen == now.stamps) {
            return;
        }
        let renewed = seen.and_then(|seen| Ok((seen, read(&self.cert, &self.key)?)));
        match renewed {
            Ok((seen, config)) => {
                (now.config, now.stamps, now.refused) = (config, seen, false);
                info!(path = %self.cert.display(), "Took up a new certificate");
            }
            Err(error) if !now.refused => {
                now.refused = true;
                warn!(error = %format!("{error:#}"), "New certificate cannot be used; the old one stays");
            }
            Err(_) => {}
        }
    }
}

fn wanted(cert: &Path, key: &Path) -> String {
    format!("reading the certificate {} and its key {}", cert.display(), key.display())
}

fn stamps(cert: &Path, key: &Path) -> io::Result<(Stamp, Stamp)> {
    let stamp = |path: &Path| {
        let file = fs::metadata(path)?;
        Ok::<_, io::Error>((file.dev(), file.ino(), file.size(), file.ctime(), file.ctime_nsec()))
    };
    Ok((stamp(cert)?, stamp(key)?))
}

fn read(cert: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let failed = |path: &Path| format!("reading {}", path.display());
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(cert).and_then(Iterator::collect).with_context(|| failed(cert))?;
    let private = PrivateKeyDer::from_pem_file(key).with_context(|| failed(key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .with_context(|| format!("using the certificate {} with its key", cert.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
