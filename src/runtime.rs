//! One Tokio runtime per process, started at first use and never used after a fork.
//!
//! A forked child inherits the runtime's memory but not its threads: anything that waits on it would wait forever.
//! So the runtime is kept with the pid that made it ([`PerProcess`]), and a process with another pid makes its own and
//! leaves the inherited one alone (dropping it would join threads that do not exist).

mod per_process;

use tokio::runtime::{Builder, Handle, Runtime};

pub use per_process::PerProcess;

static RUNTIME: PerProcess<Runtime> = PerProcess::new();

/// The process's runtime; started by the first call.
///
/// # Panics
/// When the system refuses to start its threads.
pub fn handle() -> Handle {
    RUNTIME.get(start).handle().clone()
}

/// One reactor thread carries 8 to 20 Gb/s, and the consumer needs the other cores.
fn worker_threads(cores: usize) -> usize {
    (cores / 4).clamp(2, 8)
}

fn start() -> Runtime {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    Builder::new_multi_thread()
        .worker_threads(worker_threads(cores))
        .thread_name("standpipe")
        .enable_all()
        .build()
        .expect("the system can start the runtime's threads")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_runtime_per_process() {
        assert_eq!(handle().id(), handle().id());
    }

    /// Invariant 6: a forked child, which inherits the runtime's memory but none of its threads, gets one of its own.
    #[test]
    #[expect(unsafe_code, reason = "fork is what is tested")]
    fn a_forked_child_starts_its_own() {
        let spawn = || handle().block_on(async { tokio::spawn(async { 7 }).await.unwrap() });
        assert_eq!(spawn(), 7);
        // SAFETY: the child calls what a library's user would call, and leaves by `_exit` without unwinding; this test's
        // process has no other thread that could hold the allocator's lock but the runtime's, which are idle.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let code = i32::from(spawn() != 7);
            // SAFETY: as above.
            unsafe { libc::_exit(code) };
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let mut status = -1;
        // SAFETY: `status` lives through the call.
        while unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == 0 {
            assert!(std::time::Instant::now() < deadline, "the child hangs");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(status, 0);
    }

    #[test]
    fn a_quarter_of_the_cores_within_bounds() {
        assert_eq!([1, 2, 16, 192].map(worker_threads), [2, 2, 4, 8]);
    }
}
