//! What processes cost: CPU time, memory, wake-ups, bytes on disk; and how busy the machine is.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kilo_e2e::program;
use rustix::time::{ClockId, clock_gettime};

use crate::figures::Figure;

/// The CPU time of this process so far.
pub fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// The CPU time of another process so far.
pub fn cpu_of(pid: u32) -> Result<Duration> {
    let mut nanos = 0u64;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).context("the threads of a process")? {
        let text =
            std::fs::read_to_string(task?.path().join("schedstat")).context("the CPU time of a thread")?;
        nanos += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(Duration::from_nanos(nanos))
}

/// How often the threads of a process have waited so far, which is how often they were woken.
pub fn wakeups_of(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).context("the threads of a process")? {
        sum += status(&task?.path(), "voluntary_ctxt_switches")?;
    }
    Ok(sum)
}

/// The resident memory of a process in KiB: `VmRSS` now, `VmHWM` at the highest.
pub fn memory_of(pid: &str, which: &str) -> Result<u64> {
    status(&Path::new("/proc").join(pid), which)
}

/// The highest resident memory is from now on counted anew.
pub fn forget_peak() -> Result<()> {
    std::fs::write("/proc/self/clear_refs", "5").context("resetting the highest resident memory")
}

fn status(dir: &Path, key: &str) -> Result<u64> {
    let text = std::fs::read_to_string(dir.join("status")).context("the status of a process")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("{key} in status"))?;
    line.trim_start_matches(":")
        .split_whitespace()
        .next()
        .and_then(|n| n.parse().ok())
        .with_context(|| format!("the number of {key}"))
}

/// The machine and its load, in a line.
pub fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{cpus} processors, Linux {}, load {}",
        kernel.trim(),
        load.split(' ').take(3).collect::<Vec<_>>().join(" ")
    )
}

/// How big the programs are.
pub fn sizes() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, upstream) in [("kg", "50, beside alpine, iptables, graphviz and fonts"), ("kgctl", "48")] {
        let size = std::fs::metadata(program(name)?).context("the size of a program")?.len();
        figures.push(Figure::new(format!("size/{name}-mb"), size as f64 / 1e6).upstream(upstream));
    }
    Ok(figures)
}
