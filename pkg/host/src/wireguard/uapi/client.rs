//! Talks to the socket of a userspace device that somebody else runs: wireguard-go, BoringTun.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::text::{Errno, TextError, parse_status, write_set};
use crate::wireguard::status::{SetDevice, Status};

/// An answer is complete within this time, or the device counts as hung.
const TIMEOUT: Duration = Duration::from_secs(10);
/// More than 50,000 peers with several ranges each.
const MAX_ANSWER: usize = 64 << 20;

/// A foreign device, by its socket. Each request is a connection of its own: BoringTun takes one only.
pub struct Client {
    path: PathBuf,
}

/// Why a foreign device did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket could not be used.
    #[error("{path}: {what}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// `connecting`, `writing`, `reading`.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The answer could not be read.
    #[error("{path}: malformed answer")]
    Text {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TextError,
    },
    /// The device refused.
    #[error("{path}: the device refused")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Its error number.
        #[source]
        source: io::Error,
    },
}

impl ClientError {
    /// Whether the device answered, and did not want to.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Whether there is no device behind the socket any more.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Io { what: "connecting", source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            }
            Self::Io { .. } | Self::Text { .. } | Self::Refused { .. } => false,
        }
    }
}

impl Client {
    /// The device of this name, whether or not it is there.
    pub fn new(dir: &Path, name: &str) -> Self {
        Self { path: dir.join(format!("{name}.sock")) }
    }

    /// Whether somebody answers.
    pub async fn is_there(&self) -> bool {
        UnixStream::connect(&self.path).await.is_ok()
    }

    /// Reads the device.
    pub async fn get(&self) -> Result<Status, ClientError> {
        let answer = self.ask("get=1\n\n").await?;
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs());
        let (status, errno) = parse_status(&answer, now).map_err(|e| self.text(e))?;
        self.check(errno)?;
        Ok(status)
    }

    /// Changes the device.
    pub async fn set(&self, set: &SetDevice) -> Result<(), ClientError> {
        let answer = self.ask(&write_set(set)).await?;
        let (_, errno) = parse_status(&answer, 0).map_err(|e| self.text(e))?;
        self.check(errno)
    }

    async fn ask(&self, request: &str) -> Result<Zeroizing<String>, ClientError> {
        let io = |what| move |source| ClientError::Io { path: self.path.clone(), what, source };
        let talk = async {
            let mut stream = UnixStream::connect(&self.path).await.map_err(io("connecting"))?;
            stream.write_all(request.as_bytes()).await.map_err(io("writing"))?;
            read_answer(&mut stream).await.map_err(io("reading"))
        };
        tokio::time::timeout(TIMEOUT, talk)
            .await
            .unwrap_or_else(|_| Err(io("waiting")(io::ErrorKind::TimedOut.into())))
    }

    fn text(&self, source: TextError) -> ClientError {
        ClientError::Text { path: self.path.clone(), source }
    }

    fn check(&self, errno: Errno) -> Result<(), ClientError> {
        if errno == Errno::OK {
            return Ok(());
        }
        let source = io::Error::from_raw_os_error(errno.0.saturating_abs());
        Err(ClientError::Refused { path: self.path.clone(), source })
    }
}

/// Reads up to the blank line that ends an answer: the other side keeps the connection open.
async fn read_answer(stream: &mut UnixStream) -> io::Result<Zeroizing<String>> {
    let mut answer = Zeroizing::new(Vec::with_capacity(4096));
    while !answer.ends_with(b"\n\n") {
        if answer.len() > MAX_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
        }
        if stream.read_buf(&mut *answer).await? == 0 {
            break;
        }
    }
    // Taken out, not copied, so that no second copy of the secrets is left behind.
    String::from_utf8(std::mem::take(&mut *answer))
        .map(Zeroizing::new)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the answer is not UTF-8"))
}
