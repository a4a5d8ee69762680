//! The socket on which our CNI plugin tells of its calls. Only root may connect.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::attachment::Call;

/// The answer to a call that is in force.
pub(super) const DONE: &[u8] = b"done\n";
/// A call is a few kilobytes.
const MAX: u64 = 1 << 20;
/// Calls at once.
const CALLS: usize = 64;
/// A call is written in one go.
const READ: Duration = Duration::from_secs(2);

/// Binds the socket in a directory of its own, in the place of one that an earlier process left.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let beside = path.with_extension("new");
    let removed = fs::remove_file(&beside);
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    let listener = UnixListener::bind(&beside)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
    // At every moment there is one that was or one that is.
    fs::rename(&beside, path)?;
    Ok(listener)
}

/// Takes calls until nobody wants them any more.
pub(super) async fn serve(listener: UnixListener, calls: mpsc::Sender<(Call, oneshot::Sender<()>)>) {
    let room = Arc::new(Semaphore::new(CALLS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = calls.closed() => return,
        };
        match stream {
            Ok((stream, _)) => {
                let calls = calls.clone();
                tokio::spawn(async move {
                    if let Err(error) = one(stream, calls).await {
                        tracing::debug!(%error, "CNI call was broken off");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "CNI calls cannot be taken");
                tokio::time::sleep(READ).await;
            }
        }
    }
}

async fn one(
    stream: UnixStream,
    calls: mpsc::Sender<(Call, oneshot::Sender<()>)>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(read.take(MAX));
    tokio::time::timeout(READ, reader.read_until(b'\n', &mut line)).await??;
    let call: Call = serde_json::from_slice(&line)?;
    let (done, programmed) = oneshot::channel();
    calls.send((call, done)).await?;
    // The plugin gives up after its own time, and must not take a place from others then.
    tokio::select! {
        programmed = programmed => programmed?,
        _gone = reader.read_u8() => return Err("the plugin waits no longer".into()),
    }
    write.write_all(DONE).await?;
    Ok(())
}
