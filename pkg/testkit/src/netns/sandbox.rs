//! The fresh namespaces that a test or demo runs in: network, mounts, processes, and users when not root.

use std::ffi::OsStr;
use std::io::Read as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

const WITHOUT_USERS: &[&str] = &["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// How fresh namespaces are made on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sandbox {
    users: bool,
}

impl Sandbox {
    /// Finds out how, `Err` with the reason where namespaces are not allowed. With `E2E_USERNS=1` a user
    /// namespace is made even by root.
    pub fn probe() -> Result<Self> {
        let forced = std::env::var_os("E2E_USERNS").is_some_and(|value| value == "1");
        let first = if forced { None } else { Self::try_with(false).ok() };
        match first {
            Some(sandbox) => Ok(sandbox),
            None => Self::try_with(true),
        }
    }

    fn try_with(users: bool) -> Result<Self> {
        let sandbox = Self { users };
        let output = sandbox
            .command("sh")
            .args(["-c", "mount -t tmpfs tmpfs /run && ip link set lo up"])
            .output()
            .context("starting unshare")?;
        if !output.status.success() {
            bail!(
                "no fresh namespaces: {}",
                String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")
            );
        }
        Ok(sandbox)
    }

    /// Whether a user namespace is part of it.
    pub fn has_users(self) -> bool {
        self.users
    }

    /// A command that runs `program` as the first process of fresh namespaces. Killing it kills all that
    /// `program` has started, because the process namespace goes with its first process.
    pub fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("unshare");
        if self.users {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(WITHOUT_USERS).arg("--").arg(program);
        command
    }
}

/// Prepares fresh namespaces from inside: an empty `/run` (named namespaces, WireGuard's sockets, xtables'
/// lock) that vanishes with the process, and `lo` up.
pub fn enter() -> Result<()> {
    let script = "mount -t tmpfs -o mode=755 tmpfs /run && mkdir -p /run/netns /run/wireguard /run/lock \
                  && mount -t tmpfs -o mode=755 tmpfs /run/netns && mount --make-shared /run/netns \
                  && ip link set lo up";
    let output = Command::new("sh").args(["-c", script]).output().context("starting sh")?;
    if !output.status.success() {
        bail!("preparing namespaces: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Ends this process when standard input, the read end of a pipe that the parent holds, is closed: also a
/// parent that is killed takes its children along.
pub fn die_with_parent() {
    std::thread::spawn(|| {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1)) {}
        std::process::exit(143);
    });
}
