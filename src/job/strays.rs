//! Processes of a run that outlive it.
//!
//! They are found in two ways. While the run lives, it is the subreaper of its descendants: what the trainer has started
//! stays below this process, whatever session or group it moves to, and whatever it makes of its environment. And every
//! process of the trainer inherits a mark in its environment, which `/proc/PID/environ` shows where we may look: by that
//! the next run finds what a run that was killed has left. A process is held by a pidfd before it is looked at again, so
//! that a number that is given to another process in between hits nobody.
//!
//! Of this process's own children those are taken for the trainer's that were not there before, and are not in its
//! process group (as helpers are that a library starts: one that fetches credentials, one that mounts).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, child_subreaper, getpid, pidfd_open, pidfd_send_signal,
    set_child_subreaper, waitpid,
};

/// The variable that marks them.
pub(super) const MARK: &str = "STANDPIPE_RUN_ID";

/// Killed processes are gone within microseconds, unless the kernel is busy for them.
const PATIENCE: Duration = Duration::from_secs(2);

/// The runs of this process, and whether it was a subreaper before the first.
static RUNS: Mutex<(Vec<String>, bool)> = Mutex::new((Vec::new(), false));

fn runs() -> MutexGuard<'static, (Vec<String>, bool)> {
    RUNS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What descends from a run's trainer stays below this process as long as this lives.
#[derive(Debug)]
pub(super) struct Brood {
    run_id: String,
    /// Children that were there before.
    others: BTreeSet<i32>,
    /// Somebody waits for it.
    trainer: Option<i32>,
}

impl Brood {
    pub(super) fn new(run_id: &str) -> Self {
        let mut runs = runs();
        if runs.0.is_empty() {
            runs.1 = child_subreaper().is_ok_and(|set| set.is_some());
            if let Err(error) = set_child_subreaper(Some(getpid())) {
                tracing::warn!(%error, "processes that clear their environment may outlive the trainer");
            }
        }
        runs.0.push(run_id.to_owned());
        let own = getpid().as_raw_pid();
        let all = processes();
        let others = all.iter().filter(|(_, process)| process.parent == own);
        Self {
            run_id: run_id.to_owned(),
            others: others.map(|(pid, _)| *pid).collect(),
            trainer: None,
        }
    }

    pub(super) fn started(&mut self, trainer: Pid) {
        self.trainer = Some(trainer.as_raw_pid());
    }

    /// Forgets orphans that have ended, as an init would.
    pub(super) fn reap(&self) {
        self.children(&processes());
    }

    /// Kills all that is left of the run; the trainer itself has ended. Gives how many processes there were.
    pub(super) fn kill(&self) -> usize {
        let mark = mark_of(&self.run_id);
        until_none_is_left(|| {
            let mut found = marked(&mark);
            found.extend(self.descendants());
            found
        })
    }

    /// Signals those that the mark does not show.
    fn descendants(&self) -> BTreeSet<i32> {
        let all = processes();
        let mut found = BTreeSet::new();
        let mut below: Vec<i32> = self.children(&all);
        while let Some(pid) = below.pop() {
            let inner = all.iter().filter(|(_, process)| process.parent == pid);
            below.extend(inner.map(|(pid, _)| *pid));
            if !all[&pid].is_dead && kill_if_same(pid, all[&pid]) {
                found.insert(pid);
            }
        }
        found
    }

    /// The run's among our own children. Those that are dead already are reaped.
    fn children(&self, all: &BTreeMap<i32, Process>) -> Vec<i32> {
        let own = getpid().as_raw_pid();
        // Not by getpgrp: the first process of a container may be of a group that is outside of it, and has no number here.
        let group = all.get(&own).map_or(i32::MIN, |process| process.group);
        let marks: Vec<_> = runs().0.iter().map(|id| mark_of(id)).collect();
        let is_another_runs = |pid| {
            let marks = marks.iter().filter(|mark| **mark != mark_of(&self.run_id));
            let others: Vec<_> = marks.collect();
            !others.is_empty() && others.iter().any(|mark| bears(pid, mark))
        };
        let ours = all.iter().filter(|(pid, process)| {
            process.parent == own && process.group != group && !self.others.contains(pid)
        });
        let ours: Vec<_> = ours.map(|(pid, process)| (*pid, *process)).collect();
        let (dead, alive): (Vec<_>, Vec<_>) = ours.into_iter().partition(|(_, p)| p.is_dead);
        // With another run beside it, a dead child may be that run's trainer, which somebody waits for.
        if marks.len() == 1 {
            let orphans = dead
                .into_iter()
                .filter(|(pid, _)| Some(*pid) != self.trainer);
            for (pid, _) in orphans {
                let _ = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
            }
        }
        let pids = alive.into_iter().map(|(pid, _)| pid);
        pids.filter(|pid| !is_another_runs(*pid)).collect()
    }
}

impl Drop for Brood {
    fn drop(&mut self) {
        let mut runs = runs();
        runs.0.retain(|id| *id != self.run_id);
        if runs.0.is_empty() && !runs.1 {
            let _ = set_child_subreaper(None);
        }
    }
}

/// What `/proc/PID/stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    parent: i32,
    group: i32,
    is_dead: bool,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&String::from_utf8_lossy(&stat))
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name may hold anything, spaces and brackets too.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        let mut number = || fields.next()?.parse().ok();
        Some(Self {
            parent: number()?,
            group: number()?,
            is_dead: matches!(state, "Z" | "X"),
        })
    }
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn processes() -> BTreeMap<i32, Process> {
    pids()
        .filter_map(|pid| Some((pid, Process::read(pid)?)))
        .collect()
}

fn kill_if_same(pid: i32, process: Process) -> bool {
    kill_if(pid, |pid| {
        // An orphan's parent changes, its group does not.
        Process::read(pid).is_some_and(|now| now.group == process.group && !now.is_dead)
    })
}

fn mark_of(run_id: &str) -> String {
    format!("{MARK}={run_id}")
}

/// Kills every process that bears the mark; gives how many there were.
pub(super) fn kill(run_id: &str) -> usize {
    if run_id.is_empty() {
        return 0;
    }
    let mark = mark_of(run_id);
    until_none_is_left(|| marked(&mark))
}

fn until_none_is_left(mut signal_all: impl FnMut() -> BTreeSet<i32>) -> usize {
    let (begun, mut killed) = (Instant::now(), BTreeSet::new());
    // A process that forks while we look leaves one that we have not seen: until none is left.
    loop {
        let found = signal_all();
        let is_none = found.is_empty();
        killed.extend(found);
        if is_none || begun.elapsed() > PATIENCE {
            return killed.len();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Signals all that are there now.
fn marked(mark: &str) -> BTreeSet<i32> {
    pids()
        .filter(|pid| kill_if(*pid, |pid| bears(pid, mark)))
        .collect()
}

fn bears(pid: i32, mark: &str) -> bool {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environ
        .split(|byte| *byte == 0)
        .any(|variable| variable == mark.as_bytes())
}

fn kill_if(pid: i32, is_ours: impl Fn(i32) -> bool) -> bool {
    let held = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    held.is_some_and(|held| is_ours(pid) && pidfd_send_signal(held, Signal::KILL).is_ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let process = Process::parse("7 (a) Z (b) R 3 5 6 0").unwrap();
        let is_dead = false;
        let expected = Process {
            parent: 3,
            group: 5,
            is_dead,
        };
        assert_eq!(process, expected);
        assert!(Process::parse("7 (x) Z 1 1").unwrap().is_dead);
        assert_eq!(Process::parse("7 (x)"), None);
        let own = Process::read(getpid().as_raw_pid()).unwrap();
        assert_eq!(own.group, rustix::process::getpgrp().as_raw_pid());
    }

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
