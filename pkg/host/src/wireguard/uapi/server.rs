//! The socket by which `wg(8)` sees and changes our own userspace device.

use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::text::{Errno, Request, parse_request, write_status};
use crate::wireguard::status::{SetDevice, Status};

/// A client that says nothing, or does not take its answer, for so long is cut off.
const IDLE: Duration = Duration::from_secs(30);
/// More than 50,000 peers with several ranges each.
const MAX_REQUEST: usize = 64 << 20;
/// Clients at a time; more wait.
const MAX_CLIENTS: usize = 8;

/// What a request comes to.
pub type Answer = Result<(), Errno>;

/// The device behind a socket.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Reads the device.
    fn get(&self) -> impl Future<Output = Status> + Send;
    /// Changes the device.
    fn set(&self, set: SetDevice) -> impl Future<Output = Answer> + Send;
}

/// A socket that is served until this is dropped; the file goes then.
pub struct Server {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Server {
    /// Binds `DIR/NAME.sock` for the owner only, in the place of what is there: whoever made the link of this name
    /// has its socket, and a process that still answers on an old one has lost its link.
    pub fn bind(dir: &Path, name: &str, backend: impl Backend) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let path = dir.join(format!("{name}.sock"));
        // Whatever the umask: until it has its mode nobody else can get at the socket, which tells the private key.
        let hidden = dir.join(format!(".{name}.{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&hidden);
        std::fs::DirBuilder::new().mode(0o700).create(&hidden)?;
        let listener = listen(&hidden.join("sock"), &path);
        let _ = std::fs::remove_dir_all(&hidden);
        let listener = listener?;
        Ok(Self { path, task: tokio::spawn(accept(listener, backend)) })
    }
}

/// Binds a socket for the owner only, and gives it its name.
fn listen(hidden: &Path, path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(hidden)?;
    std::fs::set_permissions(hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(hidden, path)?;
    Ok(listener)
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        // Nobody to tell: the next device of this name replaces what is left.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, backend: impl Backend) {
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&clients).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let backend = backend.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, backend).await {
                        tracing::debug!(%error, "WireGuard configuration client failed");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "Cannot accept WireGuard configuration clients");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn serve(mut stream: UnixStream, backend: impl Backend) -> io::Result<()> {
    let mut pending = Zeroizing::new(Vec::new());
    while let Some(request) = read_request(&mut stream, &mut pending).await? {
        let text = std::str::from_utf8(&request).map_err(|_| Errno::PROTOCOL);
        let answer = match text.and_then(parse_request) {
            Ok(Request::Get) => write_status(&backend.get().await),
            Ok(Request::Set(set)) => errno(backend.set(set).await.err().unwrap_or(Errno::OK)),
            Err(e) => errno(e),
        };
        let written = tokio::time::timeout(IDLE, stream.write_all(answer.as_bytes()));
        written.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
    Ok(())
}

fn errno(errno: Errno) -> Zeroizing<String> {
    Zeroizing::new(format!("errno={}\n\n", errno.0))
}

/// The next request with its blank line; none when the client has gone. `pending` holds what came after it.
async fn read_request(
    stream: &mut UnixStream,
    pending: &mut Zeroizing<Vec<u8>>,
) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut searched = 0;
    loop {
        if let Some(at) = pending[searched..].windows(2).position(|w| w == b"\n\n") {
            let rest = pending.split_off(searched + at + 2);
            return Ok(Some(std::mem::replace(pending, Zeroizing::new(rest))));
        }
        searched = pending.len().saturating_sub(1);
        if pending.len() > MAX_REQUEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the request is too long"));
        }
        pending.reserve(4096);
        let read = tokio::time::timeout(IDLE, stream.read_buf(&mut **pending));
        if read.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? == 0 {
            return Ok(None);
        }
    }
}
