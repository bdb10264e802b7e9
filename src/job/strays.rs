//! Processes of a run that outlive it.
//!
//! Every process of the trainer inherits a mark in its environment, whatever session or group it moves to and whoever
//! becomes its parent. `/proc/PID/environ` shows it to us where we may look. A process is held by a pidfd before its mark
//! is read, so that a number that is given to another process in between hits nobody.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The variable that marks them.
pub(super) const MARK: &str = "STANDPIPE_RUN_ID";

/// Killed processes are gone within microseconds, unless the kernel is busy for them.
const PATIENCE: Duration = Duration::from_secs(2);

/// Kills every process that bears the mark; gives how many there were.
pub(super) fn kill(run_id: &str) -> usize {
    if run_id.is_empty() {
        return 0;
    }
    let mark = format!("{MARK}={run_id}");
    let (begun, mut killed) = (Instant::now(), 0);
    // A process that forks while we look leaves one that we have not seen: until none is left.
    loop {
        let found = marked(&mark);
        killed = killed.max(found);
        if found == 0 || begun.elapsed() > PATIENCE {
            return killed;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Signals all that are there now.
fn marked(mark: &str) -> usize {
    let Ok(entries) = fs::read_dir("/proc") else {
        return 0;
    };
    let pids = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.parse().ok().and_then(Pid::from_raw)
    });
    pids.filter(|pid| kill_if_marked(*pid, mark)).count()
}

fn kill_if_marked(pid: Pid, mark: &str) -> bool {
    let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    let path = format!("/proc/{}/environ", pid.as_raw_nonzero());
    let environ = fs::read(path).unwrap_or_default();
    let is_ours = environ
        .split(|byte| *byte == 0)
        .any(|variable| variable == mark.as_bytes());
    is_ours && pidfd_send_signal(held, Signal::KILL).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_what_bears_the_mark_is_killed() {
        let sleeper = |id: &str| {
            let mut command = Command::new("sleep");
            command.arg("60").env(MARK, id).spawn().unwrap()
        };
        let id = format!("test-{}", std::process::id());
        let (mut ours, mut other) = (sleeper(&id), sleeper("another"));
        // The environment is the program's only once it was started.
        let path = format!("/proc/{}/environ", ours.id());
        while !String::from_utf8_lossy(&fs::read(&path).unwrap()).contains(&id) {
            std::thread::yield_now();
        }
        let waiter = std::thread::spawn(move || ours.wait().unwrap());
        assert_eq!(kill(&id), 1);
        assert_eq!(waiter.join().unwrap().signal(), Some(9));
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(kill(""), 0);
    }
}
