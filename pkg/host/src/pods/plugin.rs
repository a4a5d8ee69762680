//! The plugin's end of the socket.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::attachment::Call;
use super::server::DONE;

/// Tells the agent of a call and waits, at most for this long, until it is in force.
pub fn tell(path: &Path, call: &Call, limit: Duration) -> io::Result<()> {
    let end = Instant::now() + limit;
    // An agent that takes no calls must not hold this one up: connect may not wait.
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let mut stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    let left = || {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(Some(left)) }
    };
    let mut line = serde_json::to_vec(call)?;
    line.push(b'\n');
    stream.set_write_timeout(left()?)?;
    stream.write_all(&line)?;
    stream.set_read_timeout(left()?)?;
    let mut answer = [0; DONE.len()];
    stream.read_exact(&mut answer)?;
    if answer == DONE { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
