//! Waiting for something that will be true soon.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Tries every 50 ms until `attempt` succeeds; after `limit` its last error is returned with `what` in front.
pub fn eventually<T>(limit: Duration, what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    // In the virtual machine, which sets this, processors are emulated, and perhaps by a busy machine.
    let limit = if std::env::var_os("VM_RUN").is_some() { limit * 4 } else { limit };
    let start = Instant::now();
    loop {
        let error = match attempt() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if start.elapsed() >= limit {
            return Err(error).with_context(|| format!("{what}: still not after {} s", limit.as_secs_f64()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
