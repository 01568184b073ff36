//! What a process cost: its scheduler time in nanoseconds and its memory.

use std::{fs, path::Path, time::Duration};

/// User and system time of all threads of a process; interrupt work done on its account counts, as in `utime` + `stime`,
/// but in nanoseconds instead of clock ticks (proc(5), `schedstat`).
pub(crate) fn time_of(process: u32) -> Duration {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
        return Duration::ZERO;
    };
    threads
        .flatten()
        .map(|thread| run_time(&thread.path()))
        .sum()
}

fn run_time(thread: &Path) -> Duration {
    let text = fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|word| word.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

/// Resident memory of a process in KiB.
pub(crate) fn resident_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok())
        .unwrap_or(0)
}
