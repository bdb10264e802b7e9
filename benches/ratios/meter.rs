//! What a run costs: time, CPU here and in the server, memory, page faults.
#![expect(unsafe_code, reason = "libc has the CPU clock of another process")]

use std::time::{Duration, Instant};

/// The CPU seconds that a process has used, with all its threads, to the nanosecond.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both calls write to the variable that they are given, and to nothing else.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) != 0
            || libc::clock_gettime(clock, &mut time) != 0
    };
    assert!(!failed, "process {pid} is gone");
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Nanoseconds of a clock that all processes share.
pub(crate) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Between two readings of [`now_ns`].
pub(crate) fn seconds_between(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e9
}

/// The most memory that this process has had.
pub(crate) fn peak_rss_bytes() -> u64 {
    peak_rss_bytes_of(std::process::id())
}

/// The most memory that a process has had.
pub(crate) fn peak_rss_bytes_of(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

fn page_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may hold anything: minor faults are the eighth field, major ones the tenth.
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    [7, 9]
        .iter()
        .filter_map(|at| fields.get(*at)?.parse::<u64>().ok())
        .sum()
}

/// The counters at the beginning of a run.
pub(crate) struct Meter {
    server: u32,
    start: Instant,
    client_cpu_s: f64,
    server_cpu_s: f64,
    faults: u64,
    first_byte: Option<Duration>,
}

/// And what was used since.
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    pub(crate) client_cpu_s: f64,
    pub(crate) server_cpu_s: f64,
    pub(crate) faults: u64,
    pub(crate) first_byte_s: f64,
}

impl Meter {
    pub(crate) fn start(server: u32) -> Self {
        Self {
            server,
            faults: page_faults(),
            server_cpu_s: cpu_seconds(server),
            client_cpu_s: cpu_seconds(std::process::id()),
            first_byte: None,
            start: Instant::now(),
        }
    }

    pub(crate) fn byte_seen(&mut self) {
        self.first_byte.get_or_insert_with(|| self.start.elapsed());
    }

    pub(crate) fn stop(&self) -> Cost {
        Cost {
            seconds: self.start.elapsed().as_secs_f64(),
            client_cpu_s: cpu_seconds(std::process::id()) - self.client_cpu_s,
            server_cpu_s: cpu_seconds(self.server) - self.server_cpu_s,
            faults: page_faults() - self.faults,
            first_byte_s: self.first_byte.unwrap_or_default().as_secs_f64(),
        }
    }
}
