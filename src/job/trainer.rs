//! The trainer: a child in a process group of its own, which dies when we do.
#![expect(
    unsafe_code,
    reason = "what happens between fork and exec has no safe form"
)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::TrainerOutput;
use super::strays::{self, Brood};
use crate::error::{Error, Result};

mod heard;

use heard::Ears;

/// What shells say of a command that is not there, and of one that cannot be run.
pub const NOT_FOUND: u8 = 127;
/// See [`NOT_FOUND`].
pub const NOT_EXECUTABLE: u8 = 126;

/// What is started.
#[derive(Debug)]
pub(super) struct What<'a> {
    pub(super) command: &'a [OsString],
    pub(super) variables: &'a BTreeMap<String, String>,
    pub(super) run_id: &'a str,
    pub(super) output: &'a TrainerOutput,
}

/// A running trainer. Dropping it kills it, and all that it has started.
#[derive(Debug)]
pub(super) struct Trainer {
    pid: Pid,
    brood: Brood,
    terminal: Option<Foreground>,
    ears: Ears,
    /// Its number may be somebody else's since.
    is_reaped: bool,
    /// Signals that were passed on to it and that it had a handler for.
    heeded: Cell<u64>,
}

impl Trainer {
    /// Starts it. Standard input is ours.
    ///
    /// The calling thread must live as long as the trainer should: the kernel watches the thread, not the process.
    pub(super) fn start(
        what: &What<'_>,
        on_end: impl FnOnce(ExitStatus) + Send + 'static,
    ) -> Result<Self> {
        let run_id = what.run_id;
        let (program, arguments) = what
            .command
            .split_first()
            .ok_or_else(|| Error::config("COMMAND", "none is given: put it behind --"))?;
        let terminal = Foreground::of_ours();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(what.variables)
            .env(strays::MARK, run_id)
            .process_group(0);
        heard::direct(&mut command, what.output)?;
        let mut brood = Brood::new(run_id);
        let (parent, is_foreground) = (std::process::id(), terminal.is_some());
        // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe calls are allowed:
        // it makes system calls, and touches no memory but its own copies of two numbers.
        unsafe { command.pre_exec(move || prepare(parent, is_foreground)) };
        let mut child = command
            .spawn()
            .map_err(|error| Error::io(std::path::PathBuf::from(program), error))?;
        let pid = Pid::from_child(&child);
        brood.started(pid);
        let mut trainer = Self {
            pid,
            brood,
            terminal,
            ears: Ears::default(),
            is_reaped: false,
            heeded: Cell::default(),
        };
        trainer.ears = heard::listen(&mut child, what.output)?;
        let waiter = std::thread::Builder::new().name("trainer".into());
        waiter
            .spawn(move || {
                // A wait fails only for want of the child, which is ours to reap.
                on_end(child.wait().unwrap_or(ExitStatus::from_raw(1 << 8)));
            })
            .map_err(|error| Error::io("trainer", error))?;
        Ok(trainer)
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Sends a signal to the process itself, as a container's runtime does: its workers are its own business.
    pub(super) fn signal(&self, number: u8) {
        if let Some(signal) = Signal::from_named_raw(i32::from(number)).filter(|_| !self.is_reaped)
        {
            self.heeded
                .set(self.heeded.get() | caught(self.pid) & bit_of(number.into()));
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Whether it was cut off in what it was doing. A handler of a signal that was passed on has done what it wanted before
    /// it lets the process die of the same signal, as handlers should; but of processes that had to be killed then (`strays`)
    /// one may have been writing.
    pub(super) fn was_cut_off(&self, status: ExitStatus, strays: usize) -> bool {
        let has_heeded = |number| self.heeded.get() & bit_of(number) != 0;
        is_violent(status) && !(strays == 0 && status.signal().is_some_and(has_heeded))
    }

    /// Takes note of orphans that have ended.
    pub(super) fn reap(&self) {
        self.brood.reap();
    }

    /// Kills it and its group.
    pub(super) fn kill(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
        if !self.is_reaped {
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }

    /// It has ended: what it has started and left goes, too. Gives how many processes there were.
    pub(super) fn ended(&mut self) -> usize {
        self.is_reaped = true;
        // The group's number is not given away while a member lives; without members this hits nobody.
        let _ = kill_process_group(self.pid, Signal::KILL);
        drop(self.terminal.take());
        let strays = self.brood.kill();
        // Nobody of its own holds the other ends any more.
        self.ears.end();
        strays
    }
}

impl Drop for Trainer {
    fn drop(&mut self) {
        if !self.is_reaped {
            self.kill();
            self.ended();
        }
    }
}

/// The exit code as a shell tells it.
pub(super) fn code_of(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|number| 128 + number));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Whether the command is there, as far as that can be told before there are channels, which may bring it.
pub(super) fn check(command: &[OsString], path: &OsStr, base: &Path) -> Result<()> {
    let Some(program) = command.first().map(Path::new) else {
        return Ok(());
    };
    let is_there = if program.components().count() > 1 {
        let is_brought = program.is_relative()
            || program.starts_with(base)
            || program.starts_with(super::spec::PLATFORM_BASE);
        is_brought || program.exists()
    } else {
        std::env::split_paths(path).any(|directory| directory.join(program).exists())
    };
    let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
    match is_there {
        true => Ok(()),
        false => Err(Error::io(program, missing())),
    }
}

/// Whether this process was told to ignore a signal.
pub(super) fn is_ignored(number: i32) -> bool {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks only: no new action is given, and `now` is as large as what is written there.
    let asked = unsafe { libc::sigaction(number, std::ptr::null(), now.as_mut_ptr()) };
    // SAFETY: zeros are a valid action, and so is what the call has written.
    asked == 0 && unsafe { now.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Whether a signal has ended a process that is still there: its memory goes first, or is dumped.
pub(super) fn is_dying(pid: i32) -> bool {
    // PF_DUMPCORE and PF_SIGNALED of the kernel's linux/sched.h.
    const ENDED: u64 = 0x200 | 0x400;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything: state, parent, group, session, terminal, its group, flags.
    let flags = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & ENDED != 0)
}

/// Signals that a process has handlers for, as a set of bits.
fn caught(pid: Pid) -> u64 {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let status = std::fs::read_to_string(path).unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or_default()
}

/// A signal's in such a set.
fn bit_of(number: i32) -> u64 {
    let place = u32::try_from(number - 1).ok();
    place
        .and_then(|place| 1u64.checked_shl(place))
        .unwrap_or_default()
}

/// Whether it was cut off in what it was doing: by a signal, or, as a shell tells it of its child, by one that nobody
/// can do anything about.
fn is_violent(status: ExitStatus) -> bool {
    const OF_A_CHILD: [i32; 5] = [
        libc::SIGKILL,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGABRT,
        libc::SIGILL,
    ];
    let of_a_child = |code: i32| OF_A_CHILD.contains(&(code - 128));
    status.signal().is_some() || status.code().is_some_and(of_a_child)
}

/// Runs in the child.
fn prepare(parent: u32, is_foreground: bool) -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before that.
    let is_orphan = rustix::process::getppid()
        .is_none_or(|now| now.as_raw_nonzero().get().cast_unsigned() != parent);
    if is_orphan {
        return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
    }
    if is_foreground {
        take_terminal(rustix::process::getpid());
        // Stopped by Ctrl-Z, it would keep the terminal, and nobody could wake it.
        // SAFETY: async-signal-safe, and takes numbers only.
        unsafe { libc::signal(libc::SIGTSTP, libc::SIG_IGN) };
    }
    Ok(())
}

/// The terminal of standard input belongs to the trainer while it runs, as a shell gives it to its jobs: reading from it
/// is allowed, and Ctrl-C goes there and not to us. (In our own group a trainer could not read; one signal would come
/// twice if we shared a group and passed it on.)
#[derive(Debug)]
struct Foreground {
    group: Pid,
}

impl Foreground {
    /// What we have, and give on.
    fn of_ours() -> Option<Self> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        // SAFETY: both take numbers at most and touch no memory.
        let (group, holder) = unsafe { (libc::getpgrp(), libc::tcgetpgrp(libc::STDIN_FILENO)) };
        // A group outside of our container has no number here, and is 0.
        let group = Pid::from_raw(group).filter(|_| group == holder)?;
        Some(Self { group })
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        take_terminal(self.group);
    }
}

/// Gives the terminal to a group. Whoever is not in the foreground is sent SIGTTOU for it, and would stop.
fn take_terminal(group: Pid) {
    let mut blocked = std::mem::MaybeUninit::uninit();
    let mut before = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises `blocked` and pthread_sigmask `before`; all are async-signal-safe or touch only
    // these two, which live through the calls.
    unsafe {
        libc::sigemptyset(blocked.as_mut_ptr());
        libc::sigaddset(blocked.as_mut_ptr(), libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, blocked.as_ptr(), before.as_mut_ptr());
        libc::tcsetpgrp(libc::STDIN_FILENO, group.as_raw_nonzero().get());
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_a_shell() {
        assert_eq!(code_of(ExitStatus::from_raw(0)), 0);
        assert_eq!(code_of(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(code_of(ExitStatus::from_raw(9)), 137);
    }

    #[test]
    fn what_was_cut_off_is_told_from_what_ended() {
        for (raw, is_cut_off) in [
            (0, false),
            (1 << 8, false),
            (9, true),
            (15, true),
            (137 << 8, true),
            (139 << 8, true),
            (143 << 8, false),
        ] {
            assert_eq!(is_violent(ExitStatus::from_raw(raw)), is_cut_off, "{raw:x}");
        }
    }

    #[test]
    fn a_process_that_a_signal_has_ended_is_dying() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert!(!is_dying(pid.as_raw_pid()) && !is_dying(0));
        kill_process(pid, Signal::KILL).unwrap();
        // It stays in the kernel's table until it is waited for.
        let since = std::time::Instant::now();
        while !is_dying(pid.as_raw_pid()) {
            assert!(since.elapsed().as_secs() < 30);
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn signals_have_a_bit_each() {
        assert_eq!([0, 1, 15, 64, 65].map(bit_of), [0, 1, 1 << 14, 1 << 63, 0]);
        // The runtime's, of which every Rust program has one.
        let own = caught(rustix::process::getpid());
        assert_ne!(own & bit_of(libc::SIGSEGV), 0);
        assert_eq!(own & bit_of(libc::SIGKILL), 0);
    }
}
