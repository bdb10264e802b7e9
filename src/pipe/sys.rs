//! The two system calls that no safe wrapper here offers.
#![expect(
    unsafe_code,
    reason = "pthread_sigmask and kcmp have no safe wrapper among our dependencies"
)]

use std::mem::MaybeUninit;

/// Blocks SIGPIPE in the calling thread, for good.
///
/// A write to a FIFO without a reader raises SIGPIPE in the thread that wrote, and its default is to kill the process.
/// Rust's and Python's start-up code ignore it, but a C++ or R host that loads this crate as a library may not, and a
/// FIFO has no `MSG_NOSIGNAL`. The disposition belongs to the host; the mask belongs to the thread. Blocked, the
/// signal stays pending on this thread and vanishes with it, and the write just answers EPIPE.
pub(super) fn block_sigpipe() {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises `set`, and the other calls get a pointer to it that lives through the call.
    let failed = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut())
    };
    debug_assert_eq!(failed, 0, "SIG_BLOCK and a valid set cannot fail");
}

/// Whether two descriptors are one open file (`dup` or fork made one from the other); `None` when the kernel does not
/// tell, because it was built without kcmp or the processes belong to somebody else.
pub(super) fn same_open_file(a: (u32, u32), b: (u32, u32)) -> Option<bool> {
    const KCMP_FILE: libc::c_int = 0;
    // SAFETY: kcmp takes numbers only and touches no memory of this process.
    let order = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            a.0 as libc::pid_t,
            b.0 as libc::pid_t,
            KCMP_FILE,
            libc::c_ulong::from(a.1),
            libc::c_ulong::from(b.1),
        )
    };
    (order >= 0).then_some(order == 0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn sigpipe_is_blocked_in_this_thread_only() {
        let mask = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let hex = status
                .lines()
                .find_map(|line| line.strip_prefix("SigBlk:\t"));
            u64::from_str_radix(hex.unwrap(), 16).unwrap() >> (libc::SIGPIPE - 1) & 1
        };
        let blocked = std::thread::spawn(move || {
            block_sigpipe();
            mask()
        });
        assert_eq!((blocked.join().unwrap(), mask()), (1, 0));
    }

    #[test]
    fn a_duplicate_is_the_same_open_file_and_a_second_open_is_not() {
        let pid = std::process::id();
        let open = || std::fs::File::open("/proc/self/status").unwrap();
        let (a, b) = (open(), open());
        let dup = a.try_clone().unwrap();
        let at = |file: &std::fs::File| (pid, file.as_raw_fd() as u32);
        assert_ne!(same_open_file(at(&a), at(&dup)), Some(false));
        assert_ne!(same_open_file(at(&a), at(&b)), Some(true));
    }
}
