//! What is seen of it while it runs: which setting, how fast, and how long it will go on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::super::progress::{Bar, Frame, Progress, clock};
use super::super::size::human;
use super::measure::Counters;

/// On the screen until it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    run: Arc<Mutex<Run>>,
    _progress: Progress,
}

/// The run under way.
#[derive(Debug)]
struct Run {
    number: usize,
    name: String,
    metrics: Counters,
    begun: Instant,
}

impl Watch {
    /// Shows a bar if `show`, for so many runs in so much time.
    pub(super) fn start(show: bool, time: Duration, runs: usize) -> Self {
        let (started, run) = (Instant::now(), Arc::new(Mutex::new(Run::none())));
        let shown = run.clone();
        let frame = move |columns| {
            let run = shown.lock().unwrap_or_else(PoisonError::into_inner);
            frame(&run, runs, started.elapsed(), time, columns)
        };
        Self {
            run,
            _progress: Progress::frames(show, frame),
        }
    }

    /// The next run begins; `metrics` are its own.
    pub(super) fn begin(&self, name: String, metrics: Counters) {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        *run = Run {
            number: run.number + 1,
            name,
            metrics,
            begun: Instant::now(),
        };
    }
}

impl Run {
    fn none() -> Self {
        Self {
            number: 0,
            name: "connecting".into(),
            metrics: Counters::default(),
            begun: Instant::now(),
        }
    }
}

fn frame(run: &Run, runs: usize, elapsed: Duration, time: Duration, columns: usize) -> Frame {
    let rate =
        run.metrics.bytes_received.get() as f64 / run.begun.elapsed().as_secs_f64().max(1e-9);
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let text = format!(
        "{}/{runs}  {}  {}/s  {} left",
        run.number,
        run.name,
        human(rate),
        clock(time.saturating_sub(elapsed).as_secs_f64())
    );
    let passed = (millis(elapsed.min(time)), millis(time));
    Frame {
        bar: Bar::beside(&text, passed, columns),
        text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_which_run_and_how_long_all_take() {
        let run = Run {
            number: 3,
            name: "engine, 8MiB x 32".into(),
            metrics: Counters::default(),
            begun: Instant::now(),
        };
        let frame = frame(
            &run,
            16,
            Duration::from_secs(5),
            Duration::from_secs(20),
            80,
        );
        let bar = Bar {
            done: 5000,
            all: 20_000,
            columns: 24,
        };
        assert_eq!(frame.bar, Some(bar));
        assert_eq!(frame.text, "3/16  engine, 8MiB x 32  0 B/s  15s left");
    }
}
