//! State that a forked child must not share with its parent.
#![expect(
    unsafe_code,
    reason = "a lock may be held by a thread that the child does not have, so the pointer is swapped without one"
)]

use std::sync::atomic::{AtomicPtr, Ordering};

/// One value per process: made at first use, and made anew by a child of a fork.
///
/// Locks in the inherited value may be held by threads that the child does not have, and its descriptors are shared with
/// the parent: the child never touches it, and leaks it.
pub(super) struct PerProcess<T> {
    make: Box<dyn Fn() -> T + Send + Sync>,
    now: AtomicPtr<Owned<T>>,
}

struct Owned<T> {
    pid: u32,
    value: T,
}

impl<T: Send + Sync> PerProcess<T> {
    pub(super) fn new(make: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self {
            make: Box::new(make),
            now: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// This process's value.
    pub(super) fn get(&self) -> &T {
        let pid = std::process::id();
        let found = self.now.load(Ordering::Acquire);
        // SAFETY: a pointer in `now` came from `Box::into_raw` and is freed by `drop` only, which has `&mut self`.
        if let Some(owned) = unsafe { found.as_ref() }
            && owned.pid == pid
        {
            return &owned.value;
        }
        let fresh = Box::into_raw(Box::new(Owned {
            pid,
            value: (self.make)(),
        }));
        let placed = self
            .now
            .compare_exchange(found, fresh, Ordering::AcqRel, Ordering::Acquire);
        let current = match placed {
            Ok(_) => fresh,
            Err(theirs) => {
                // SAFETY: `fresh` came from `into_raw` above, and nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
                theirs
            }
        };
        // SAFETY: as above; and another thread of this process can only have placed a value of this process, which is
        // not replaced before a fork.
        &unsafe { &*current }.value
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let found = *self.now.get_mut();
        // SAFETY: as in `get`; `&mut self` says that nobody holds a reference into it.
        let is_ours =
            unsafe { found.as_ref() }.is_some_and(|owned| owned.pid == std::process::id());
        if is_ours {
            // SAFETY: it came from `into_raw` and is freed once, here.
            drop(unsafe { Box::from_raw(found) });
        }
    }
}

impl<T> std::fmt::Debug for PerProcess<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PerProcess")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn it_is_made_once_and_dropped_once() {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let alive = Arc::new(AtomicUsize::new(0));
        let counter = alive.clone();
        let value = PerProcess::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
            Counted(counter.clone())
        });
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| value.get());
            }
        });
        assert_eq!(alive.load(Ordering::SeqCst), 1);
        drop(value);
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_child_gets_its_own_although_the_lock_is_held() {
        let value = PerProcess::new(|| std::sync::Mutex::new(std::process::id()));
        let held = value.get().lock().unwrap();
        // SAFETY: the child allocates and exits without unwinding; the test's process has no thread but the harness's,
        // which waits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let is_own = value
                .get()
                .try_lock()
                .is_ok_and(|pid| *pid == std::process::id());
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(!is_own)) };
        }
        let mut status = -1;
        // SAFETY: `status` lives through the call.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert_eq!((status, *held), (0, std::process::id()));
    }
}
