//! One network namespace with a name, and what can be done inside.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Pinger, Process, helper};

/// A named network namespace with its own `/run/wireguard`.
#[derive(Clone, Debug)]
pub struct Ns {
    name: String,
    dir: PathBuf,
}

impl Ns {
    pub(super) fn new(name: &str, world: &Path) -> Result<Self> {
        let dir = world.join(name);
        std::fs::create_dir_all(dir.join("wireguard")).context("creating the namespace's directory")?;
        Ok(Self { name: name.to_owned(), dir })
    }

    /// One that the world has already.
    pub fn existing(name: &str) -> Result<Self> {
        Self::new(name, Path::new(super::world::DIR))
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its own directory; vanishes with the world.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command that runs inside. It sees this namespace's `/run/wireguard`.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, argv: &[S]) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name, "sh", "-c"])
            .arg("mount --bind \"$1\" /run/wireguard && shift && exec \"$@\"")
            .arg("sh")
            .arg(self.dir.join("wireguard"))
            .args(argv);
        command
    }

    /// Runs a command and returns its output whatever its exit status.
    pub fn output<S: AsRef<std::ffi::OsStr>>(&self, argv: &[S]) -> Result<Output> {
        self.command(argv).output().with_context(|| format!("running a command in {}", self.name))
    }

    /// Runs words separated by blanks; returns standard output, and an error unless the exit status is 0.
    pub fn run(&self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.check(line, self.output(&words)?)
    }

    /// Runs a shell script with `set -e`; returns its standard output.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.check(script, self.output(&["sh", "-ec", script])?)
    }

    /// Runs a command and parses its output as JSON.
    pub fn json(&self, line: &str) -> Result<serde_json::Value> {
        let text = self.run(line)?;
        let text = if text.trim().is_empty() { "[]" } else { &text };
        serde_json::from_str(text).with_context(|| format!("reading the JSON of `{line}` in {}", self.name))
    }

    fn check(&self, line: &str, output: Output) -> Result<String> {
        if !output.status.success() {
            bail!(
                "`{line}` in {} ended with {}: {}",
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a process inside; its output goes to `NAME.log` in [`dir`](Self::dir).
    pub fn spawn<S: AsRef<std::ffi::OsStr>>(&self, name: &str, argv: &[S]) -> Result<Process> {
        let log = self.dir.join(format!("{name}.log"));
        Process::start(&format!("{name} in {}", self.name), self.command(argv), log)
    }

    /// Sends one ping, waits at most a second for its answer, and returns the milliseconds it took.
    pub fn ping(&self, to: IpAddr) -> Result<f64> {
        let text = self.run(&format!("ping -n -c 1 -W 1 {to}"))?;
        let time = text.split_once("time=").and_then(|(_, rest)| rest.split_whitespace().next());
        time.and_then(|time| time.parse().ok()).with_context(|| format!("ping's output: {text}"))
    }

    /// Sends 20 pings a second until it is stopped.
    pub fn pinger(&self, to: IpAddr) -> Result<Pinger> {
        Pinger::start(self, to)
    }

    /// Starts a TCP server on all addresses that tells each client the address that it sees.
    pub fn tcp_server(&self, port: u16) -> Result<Process> {
        let exe = helper::program()?;
        let process = self.spawn(
            &format!("tcp-{port}"),
            &[exe.as_os_str(), "--helper".as_ref(), "tcp-serve".as_ref(), port.to_string().as_ref()],
        )?;
        super::eventually(Duration::from_secs(5), "the TCP server listens", || {
            if process.log().contains("listening") { Ok(()) } else { bail!("{}", process.log()) }
        })?;
        Ok(process)
    }

    /// Connects to a server of [`tcp_server`](Self::tcp_server) and returns the address that it saw.
    pub fn tcp_source(&self, to: SocketAddr) -> Result<IpAddr> {
        let text = self.helper(&["tcp-ask", &to.to_string()])?;
        text.trim().parse().with_context(|| format!("the answer of the TCP server at {to}: {text:?}"))
    }

    /// The body of an HTTP answer of status 200.
    pub fn http_get(&self, to: SocketAddr, path: &str) -> Result<String> {
        self.helper(&["http-get", &to.to_string(), path])
    }

    fn helper(&self, words: &[&str]) -> Result<String> {
        let exe = helper::program()?;
        let mut argv = vec![exe.as_os_str(), "--helper".as_ref()];
        argv.extend(words.iter().map(std::ffi::OsStr::new));
        self.check(&words.join(" "), self.output(&argv)?)
    }
}
