//! The built program, run as people run it, and texts that are kept beside the tests.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What the program printed and how it ended.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `kgctl` with these arguments, `{}` in them standing for the folder of golden files.
pub fn kgctl(args: &[&str]) -> Run {
    kgctl_stdin(args, "")
}

/// Runs `kgctl` with this text as its standard input.
pub fn kgctl_stdin(args: &[&str], stdin: &str) -> Run {
    let dir = golden("");
    let dir = dir.to_str().expect("a path");
    let mut child = Command::new(env!("CARGO_BIN_EXE_kgctl"))
        .args(args.iter().map(|arg| arg.replace("{}", dir.trim_end_matches('/'))))
        .env_remove("KUBECONFIG")
        .env("HOME", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kgctl starts");
    // One that does not read its input may be gone already.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    let output = child.wait_with_output().expect("kgctl ends");
    Run {
        code: output.status.code().expect("an exit code"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// The path of a golden file.
pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name)
}

/// Compares with a golden file; `UPDATE_GOLDEN=1` writes it.
pub fn assert_golden(name: &str, got: &str) {
    let path = golden(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, got).expect("a golden file can be written");
        return;
    }
    let want = std::fs::read_to_string(&path).expect("a golden file");
    assert!(got == want, "{name} differs (UPDATE_GOLDEN=1 writes it):\n--- got\n{got}\n--- want\n{want}");
}
