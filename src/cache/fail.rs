//! Places where the tests kill the process, or have something happen.

/// Dies here by SIGKILL, as in `kill -9`, when a test has chosen this place. Compiled into the unit tests only.
#[cfg(test)]
pub(super) fn point(name: &str) {
    use std::sync::atomic::{AtomicI64, Ordering};

    static LEFT: AtomicI64 = AtomicI64::new(i64::MIN);
    let happens = EVENT.take();
    match happens {
        Some((at, event)) if at == name => return event(),
        other => EVENT.set(other),
    }
    let Ok(chosen) = std::env::var(CHOICE) else {
        return;
    };
    let Some((at, after)) = chosen.rsplit_once(':') else {
        return;
    };
    if at != name {
        return;
    }
    let after = after.parse().expect("a number");
    let _ = LEFT.compare_exchange(i64::MIN, after, Ordering::SeqCst, Ordering::SeqCst);
    if LEFT.fetch_sub(1, Ordering::SeqCst) == 0 {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

#[cfg(test)]
type Event = (&'static str, Box<dyn FnOnce()>);

#[cfg(test)]
thread_local! {
    static EVENT: std::cell::Cell<Option<Event>> = const { std::cell::Cell::new(None) };
}

/// What happens when this thread passes a place for the first time.
#[cfg(test)]
pub(super) fn at(name: &'static str, event: impl FnOnce() + 'static) {
    EVENT.set(Some((name, Box::new(event))));
}

/// `place:n`: die when the place is passed for the n-th time, counted from zero.
#[cfg(test)]
pub(super) const CHOICE: &str = "STANDPIPE_TEST_FAILPOINT";

#[cfg(not(test))]
pub(super) fn point(_: &str) {}
