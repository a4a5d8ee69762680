//! One process in a pod that listens on all ports that are asked about, and tries others all at once.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kilo_testkit::netns::{Ns, helper as program_helper};

/// How long a connection may take; a datagram is sent twice in this time.
const LIMIT: Duration = Duration::from_millis(600);

/// What is tried: `tcp` or `udp`, to an address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Where to.
    pub to: SocketAddr,
}

/// A prober that runs in a namespace, and ends with this.
#[derive(Debug)]
pub struct Prober {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Prober {
    /// Starts one that listens on these ports by TCP and UDP in both families.
    pub fn start(ns: &Ns, ports: &[u16]) -> Result<Self> {
        let exe = program_helper::program()?.to_string_lossy().into_owned();
        let mut argv = vec![exe, "--helper".to_owned(), "policy-prober".to_owned()];
        argv.extend(ports.iter().map(u16::to_string));
        let mut child = ns.command(&argv).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("the prober has no input")?;
        let mut output = BufReader::new(child.stdout.take().context("the prober has no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(line == "ready\n", "the prober in {} does not listen", ns.name());
        Ok(Self { child, input, output })
    }

    /// Begins to try all of these at once.
    pub fn ask(&mut self, asks: &[Ask]) -> Result<()> {
        let words: Vec<String> = asks.iter().map(|ask| format!("{}/{}", ask.protocol, ask.to)).collect();
        writeln!(self.input, "{}", words.join(" ")).context("asking a prober")
    }

    /// Which of what was asked last were answered.
    pub fn answers(&mut self) -> Result<Vec<bool>> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("reading from a prober")?;
        ensure!(line.ends_with('\n'), "a prober has ended");
        Ok(line.trim().bytes().map(|letter| letter == b'a').collect())
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// `--helper policy-prober PORT…`: answers one line of letters for each line of `tcp/ADDRESS:PORT` words.
pub fn helper(words: &[&str]) -> Option<Result<()>> {
    let ports = words.strip_prefix(&["policy-prober"])?;
    Some(run(ports))
}

fn run(ports: &[&str]) -> Result<()> {
    for port in ports {
        let port: u16 = port.parse().context("a port")?;
        let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("listening by TCP")?;
        let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).context("listening by UDP")?;
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let _client_went = stream.and_then(|mut stream| stream.write_all(b"x"));
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let _client_went = udp.send_to(&buffer[..length], from);
            }
        });
    }
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    for line in std::io::stdin().lines() {
        let line = line.context("reading what to try")?;
        let tries: Vec<_> = line
            .split_whitespace()
            .map(str::to_owned)
            .map(|word| std::thread::spawn(move || answered(&word)))
            .collect();
        let letters: String =
            tries.into_iter().map(|t| if matches!(t.join(), Ok(Ok(()))) { 'a' } else { 'd' }).collect();
        writeln!(out, "{letters}")?;
    }
    Ok(())
}

/// Whether somebody answers.
fn answered(word: &str) -> Result<()> {
    let (protocol, to) = word.split_once('/').context("no protocol")?;
    let to: SocketAddr = to.parse().context("an address")?;
    let mut byte = [0];
    if protocol == "tcp" {
        let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.read_exact(&mut byte)?;
        return Ok(());
    }
    ensure!(protocol == "udp", "no protocol {protocol}");
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(LIMIT / 2))?;
    let mut once = || socket.send(b"x").and_then(|_| socket.recv(&mut byte));
    once().or_else(|_lost| once())?;
    Ok(())
}
