//! Nodes, links between them, pings and what `wg show` says.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kilo_wireguard::{PrivateKey, PublicKey};

use crate::node::DATA_DIR;

/// Whether namespaces can be made here; says so when not.
pub fn can_run() -> bool {
    let works = |cmd: &mut Command| {
        cmd.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    let missing = if !works(Command::new("unshare").args(["-n", "-m", "true"])) {
        "no permission to make namespaces"
    } else if !works(
        Command::new("sh").args(["-c", "modprobe tun; test -e /dev/net/tun || test -n \"$VM_RUN\""]),
    ) {
        "no /dev/net/tun"
    } else if !works(Command::new("wg").arg("--version")) {
        "no wg"
    } else if !works(Command::new("ping").arg("-V")) {
        "no ping"
    } else {
        return true;
    };
    println!("skipped: {missing}");
    false
}

/// Inside a virtual machine everything takes longer.
pub fn slow() -> u32 {
    if std::env::var_os("VM_RUN").is_some() { 10 } else { 1 }
}

/// A process with network and mount namespaces of its own.
pub struct Node {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    pub key: PrivateKey,
}

impl Node {
    /// Starts a node in fresh namespaces.
    pub fn new(n: u8, data: &std::path::Path) -> Self {
        let mut command = Command::new("unshare");
        // `wg` looks in one folder only.
        command.args(["-n", "-m", "--", "sh", "-c", "mount -t tmpfs none /run && exec \"$@\"", "sh"]);
        let node = Self::spawn(command, n, data);
        node.run(&["ip", "link", "set", "lo", "up"]);
        node
    }

    /// Starts another process in the namespaces of this (perhaps dead) one.
    pub fn again(keeper: &Keeper, n: u8, data: &std::path::Path) -> Self {
        let mut command = Command::new("nsenter");
        command.args(["-t", &keeper.0.id().to_string(), "-n", "-m", "--"]);
        Self::spawn(command, n, data)
    }

    fn spawn(mut command: Command, n: u8, data: &std::path::Path) -> Self {
        let mut child = command
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "node::node_process", "--nocapture", "--test-threads=1"])
            .env(DATA_DIR, data)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let stdout = BufReader::new(stdout).lines();
        let mut node = Self { child, stdin, stdout, key: key(n) };
        assert_eq!(node.try_ask("open auto true"), "ok");
        node
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn public(&self) -> PublicKey {
        self.key.public_key()
    }

    /// Sends a command and returns its answer.
    pub fn try_ask(&mut self, command: &str) -> String {
        writeln!(self.stdin, "{command}").unwrap();
        loop {
            let line = self.stdout.next().expect("the node answers").unwrap();
            if let Some(answer) = line.strip_prefix("answer ") {
                return answer.to_owned();
            }
        }
    }

    /// Sends a command that must succeed.
    pub fn ask(&mut self, command: &str) -> String {
        let answer = self.try_ask(command);
        assert!(!answer.starts_with("error"), "{command}: {answer}");
        answer
    }

    /// Makes the device, configures it and gives it an address.
    pub fn device(&mut self, mode: &str, addresses: &[&str]) {
        self.ask(&format!("open {mode} true"));
        self.ask("create");
        self.configure();
        for address in addresses {
            self.run(&["ip", "addr", "add", address, "dev", "kilo0"]);
        }
        self.run(&["ip", "link", "set", "kilo0", "up"]);
    }

    pub fn configure(&mut self) {
        let secret = self.key.secret_base64();
        self.ask(&format!("configure {} 51820", secret.as_str()));
    }

    /// A command in the node's namespaces.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid().to_string(), "-n", "-m", "--"]).args(words);
        command
    }

    pub fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs a command that must succeed and returns what it prints.
    pub fn run(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What `wg show kilo0 dump` says about each peer.
    pub fn wg(&self) -> BTreeMap<PublicKey, WgPeer> {
        self.run(&["wg", "show", "kilo0", "dump"]).lines().skip(1).map(WgPeer::parse).collect()
    }

    /// Starts pings, 20 a second, for this many seconds.
    pub fn ping(&self, to: &str, seconds: u32) -> Child {
        let count = (seconds * 20).to_string();
        self.command(&["ping", "-n", "-D", "-O", "-i", "0.05", "-c", &count, "-W", "2", to])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Ends the process at once, its namespaces with it unless somebody keeps them.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process in a node's namespaces, which keeps them, and ends with this.
pub struct Keeper(pub Child);

impl Keeper {
    pub fn of(node: &Node) -> Self {
        Self(node.command(&["sleep", "600"]).spawn().unwrap())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A line of `wg show DEVICE dump`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WgPeer {
    pub endpoint: String,
    pub ranges: String,
    pub handshake: u64,
    pub rx: u64,
    pub tx: u64,
}

impl WgPeer {
    fn parse(line: &str) -> (PublicKey, Self) {
        let f: Vec<&str> = line.split('\t').collect();
        let peer = Self {
            endpoint: f[2].into(),
            ranges: f[3].into(),
            handshake: f[4].parse().unwrap(),
            rx: f[5].parse().unwrap(),
            tx: f[6].parse().unwrap(),
        };
        (f[0].parse().unwrap(), peer)
    }
}

/// A cable between two nodes: 192.0.2.0/24 and fd00:2::/64, `.1` and `.2`.
pub fn cable(a: &Node, b: &Node, dev: &str, net: &str) {
    let pid = b.pid().to_string();
    a.run(&["ip", "link", "add", dev, "type", "veth", "peer", "name", dev, "netns", &pid]);
    for (node, host) in [(a, 1), (b, 2)] {
        node.run(&["ip", "addr", "add", &format!("{net}.{host}/24"), "dev", dev]);
        node.run(&["ip", "link", "set", dev, "up"]);
    }
}

/// What became of pings.
#[derive(Debug)]
pub struct Pings {
    pub sent: u32,
    pub received: u32,
    /// The longest time between two answers.
    pub gap: Duration,
}

/// Waits for pings to end.
pub fn pings(child: Child) -> Pings {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut times = Vec::new();
    for line in text.lines().filter(|l| l.contains("bytes from")) {
        let stamp = line.trim_start_matches('[').split(']').next().unwrap();
        times.push(stamp.parse::<f64>().unwrap());
    }
    let gap = times.windows(2).map(|w| w[1] - w[0]).fold(0.0, f64::max);
    let summary = text.lines().find(|l| l.contains("packets transmitted")).unwrap_or_default();
    let mut numbers = summary.split(|c: char| !c.is_ascii_digit()).filter_map(|w| w.parse().ok());
    Pings {
        sent: numbers.next().unwrap_or(0),
        received: numbers.next().unwrap_or(0),
        gap: Duration::from_secs_f64(gap),
    }
}

/// Asks again until it is so.
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(10) * slow(), "{what} did not come about");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A key by number.
pub fn key(n: u8) -> PrivateKey {
    PrivateKey::from_random([n; 32])
}
