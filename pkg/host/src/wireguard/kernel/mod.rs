//! The kernel's WireGuard, by generic netlink.

mod answers;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod message;
mod socket;

use std::io;

use super::status::{SetDevice, Status};
use socket::Socket;

/// A kernel device by name. Errors keep the kernel's error number and never hold what a message said.
pub struct Kernel {
    socket: Socket,
    interface: String,
    messages: u64,
}

impl Kernel {
    /// The device of this name in the network namespace of the caller; `None` where the kernel has no
    /// WireGuard. The link is looked for when the device is used.
    pub fn open(interface: &str) -> io::Result<Option<Self>> {
        Ok(Socket::open()?.map(|socket| Self { socket, interface: interface.to_owned(), messages: 0 }))
    }

    /// Reads the device.
    pub fn status(&mut self) -> io::Result<Status> {
        self.socket.dump(message::get(&self.interface)).map(message::fold)
    }

    /// Changes the device, by one message or, with many ranges or peers, by several; the first that is
    /// refused ends it.
    pub fn set(&mut self, set: &SetDevice) -> io::Result<()> {
        for message in message::set(&self.interface, set) {
            self.messages += 1;
            self.socket.acknowledged(message)?;
        }
        Ok(())
    }

    /// Messages sent so far that change something.
    pub fn messages(&self) -> u64 {
        self.messages
    }
}

/// Whether the link is gone, or is no WireGuard link any more.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EOPNOTSUPP))
}
