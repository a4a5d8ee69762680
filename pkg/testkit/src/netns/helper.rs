//! What a program of tests runs of itself inside a namespace: `PROGRAM --helper tcp-serve PORT`.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// How long a TCP connection may take.
const TCP_LIMIT: Duration = Duration::from_secs(2);
/// How long an HTTP request may take.
const HTTP_LIMIT: Duration = Duration::from_secs(5);

/// This program, to be started again.
pub fn program() -> Result<PathBuf> {
    std::env::current_exe().context("finding this program")
}

/// Does what `--helper …` asks for; `None` when the first argument is something else. Every `main` that makes
/// a world calls this first. `more` knows helpers of the program's own.
pub fn main(more: impl FnOnce(&[&str]) -> Option<Result<()>>) -> Option<ExitCode> {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() != Some("--helper") {
        return None;
    }
    let args: Vec<String> = args.collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["tcp-serve", port] => tcp_serve(port),
        ["tcp-ask", to] => tcp_ask(to),
        ["http-get", to, path] => http_get(to, path),
        other => more(other).unwrap_or_else(|| Err(anyhow::anyhow!("unknown helper {other:?}"))),
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _nobody_reads = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    })
}

fn tcp_serve(port: &str) -> Result<()> {
    let port: u16 = port.parse().context("the port")?;
    // One socket takes both families: Linux leaves IPV6_V6ONLY off.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("listening")?;
    writeln!(std::io::stdout(), "listening")?;
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let Ok(from) = stream.peer_addr() else { continue };
        let _client_went = writeln!(stream, "{}", from.ip().to_canonical());
    }
    bail!("the listener ended")
}

fn tcp_ask(to: &str) -> Result<()> {
    let to: SocketAddr = to.parse().context("the address")?;
    let mut stream =
        TcpStream::connect_timeout(&to, TCP_LIMIT).with_context(|| format!("connecting to {to}"))?;
    stream.set_read_timeout(Some(TCP_LIMIT)).context("setting the time limit")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("reading from {to}"))?;
    write!(std::io::stdout(), "{answer}")?;
    Ok(())
}

/// Prints the body of an answer; an error for any status but 200.
fn http_get(to: &str, path: &str) -> Result<()> {
    let address: SocketAddr = to.parse().context("the address")?;
    let mut stream =
        TcpStream::connect_timeout(&address, HTTP_LIMIT).with_context(|| format!("connecting to {to}"))?;
    stream.set_read_timeout(Some(HTTP_LIMIT)).context("setting the time limit")?;
    // HTTP/1.0: the body ends where the connection does, never in chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {to}\r\n\r\n").context("asking")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("reading from {to}"))?;
    let answer = String::from_utf8(answer).context("the answer is no text")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of its head")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        bail!("{path} answers {status}: {}", body.trim());
    }
    write!(std::io::stdout(), "{body}")?;
    Ok(())
}
