//! A value that each process makes for itself, at first use.
//!
//! A forked child inherits the memory of its parent's value, and perhaps a lock in it that another thread held at that
//! moment and that nobody will ever open. So nothing here is a lock: the value is found through one atomic pointer, its
//! maker's pid stands beside it, and whoever has another pid makes one of its own. The inherited one is never touched
//! and never freed.

#![expect(
    unsafe_code,
    reason = "a pointer that changes with the process; every lock of the library is one that a fork can leave locked"
)]

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// No process has this pid.
const NOBODY: u32 = 0;

/// A value for each process; made by [`get`](Self::get), for a `static`.
#[derive(Debug)]
pub struct PerProcess<T: 'static> {
    made: AtomicPtr<Made<T>>,
    /// The process that is making one now: a lock that a forked child does not inherit, because its pid is another.
    maker: AtomicU32,
}

#[derive(Debug)]
struct Made<T> {
    pid: u32,
    value: T,
}

impl<T: Send + Sync + 'static> PerProcess<T> {
    /// None, yet.
    pub const fn new() -> Self {
        Self {
            made: AtomicPtr::new(ptr::null_mut()),
            maker: AtomicU32::new(NOBODY),
        }
    }

    /// This process's value; `make` is called if there is none.
    pub fn get(&self, make: impl FnOnce() -> T) -> &'static T {
        let pid = std::process::id();
        loop {
            if let Some(value) = self.of(pid) {
                return value;
            }
            let maker = self.maker.load(Ordering::Acquire);
            if maker == pid {
                // Another thread of this process: it takes as long as starting some threads takes.
                std::thread::yield_now();
                continue;
            }
            let taken =
                self.maker
                    .compare_exchange(maker, pid, Ordering::AcqRel, Ordering::Acquire);
            if taken.is_ok() {
                let _given_back = GiveBack(&self.maker);
                // Whoever was the maker before may have made it since the look above.
                return self.of(pid).unwrap_or_else(|| self.keep(pid, make()));
            }
        }
    }

    fn of(&self, pid: u32) -> Option<&'static T> {
        // SAFETY: it is null, or a box that was leaked by `keep` and is neither changed nor freed after.
        let made = unsafe { self.made.load(Ordering::Acquire).as_ref() }?;
        (made.pid == pid).then_some(&made.value)
    }

    fn keep(&self, pid: u32, value: T) -> &'static T {
        let made: &'static mut Made<T> = Box::leak(Box::new(Made { pid, value }));
        let pointer = ptr::from_mut(made);
        self.made.store(pointer, Ordering::Release);
        // SAFETY: the box was just leaked, and from here on there are only shared references to it.
        unsafe { &(*pointer).value }
    }
}

impl<T: Send + Sync + 'static> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Also when making panics.
struct GiveBack<'a>(&'a AtomicU32);

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        self.0.store(NOBODY, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn threads_that_come_at_once_get_the_same_one() {
        static VALUE: PerProcess<usize> = PerProcess::new();
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let make = || {
            std::thread::sleep(std::time::Duration::from_millis(5));
            MADE.fetch_add(1, Ordering::Relaxed)
        };
        let all: Vec<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| *VALUE.get(make))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(all, [0; 8]);
    }

    #[test]
    fn who_fails_to_make_one_does_not_hold_up_the_next() {
        static VALUE: PerProcess<u8> = PerProcess::new();
        let failed = std::panic::catch_unwind(|| VALUE.get(|| panic!("no threads")));
        assert!(failed.is_err());
        assert_eq!(*VALUE.get(|| 7), 7);
    }

    /// The moment at which a lock would be left locked: another thread is making the value when the process forks.
    #[test]
    fn a_child_that_is_forked_while_a_value_is_made_makes_its_own() {
        static VALUE: PerProcess<u32> = PerProcess::new();
        let (reached, is_reached) = std::sync::mpsc::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
        let maker = std::thread::spawn(move || {
            *VALUE.get(|| {
                reached.send(()).unwrap();
                may_go_on.recv().unwrap();
                std::process::id()
            })
        });
        is_reached.recv().unwrap();
        // SAFETY: the child calls what is tested, which takes no lock and allocates once, and leaves by `_exit`; glibc
        // keeps its allocator usable in forked children.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let mine = *VALUE.get(std::process::id) == std::process::id();
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(!mine)) };
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let mut status = -1;
        // SAFETY: `status` lives through the call.
        while unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == 0 {
            assert!(std::time::Instant::now() < deadline, "the child hangs");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        go_on.send(()).unwrap();
        assert_eq!((status, maker.join().unwrap()), (0, std::process::id()));
    }
}
