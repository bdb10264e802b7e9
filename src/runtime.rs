//! One Tokio runtime per process, started at first use and never used after a fork.
//!
//! A forked child inherits the runtime's memory but not its threads: anything that waits on it would wait forever.
//! So the runtime is kept with the pid that made it ([`PerProcess`]), and a process with another pid makes its own and
//! leaves the inherited one alone (dropping it would join threads that do not exist).

mod per_process;

use std::pin::pin;
use std::time::Duration;

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

/// Awaits `work`, and if that takes longer than `after`, runs `prepare` meanwhile: what will be needed when it is done.
pub(crate) async fn meanwhile<T>(
    work: impl Future<Output = T>,
    after: Duration,
    prepare: impl FnOnce(),
) -> T {
    let mut work = pin!(work);
    match tokio::time::timeout(after, work.as_mut()).await {
        Ok(done) => done,
        Err(_) => {
            prepare();
            work.await
        }
    }
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

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_prepared_for() {
        let (quick, slow) = (Duration::from_millis(1), Duration::from_secs(1));
        for (takes, prepared) in [(quick, 0), (slow, 1)] {
            let mut count = 0;
            let work = async {
                tokio::time::sleep(takes).await;
                takes
            };
            assert_eq!(meanwhile(work, quick * 2, || count += 1).await, takes);
            assert_eq!(count, prepared);
        }
    }

    #[test]
    fn a_quarter_of_the_cores_within_bounds() {
        assert_eq!([1, 2, 16, 192].map(worker_threads), [2, 2, 4, 8]);
    }
}
