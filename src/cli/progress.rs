//! The progress bar: bytes, rate, time left and the share of the time in which the consumer waited.
//!
//! A thread samples counters ten times a second and draws; nothing in the data path knows of it.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::size::human;

/// Smooth to the eye, and nothing to the processor.
const TICK: Duration = Duration::from_millis(100);

/// The weight of the newest sample in the rate: it follows a change within about two seconds.
const RATE_WEIGHT: f64 = 0.1;

/// The bar on the screen, for whoever else wants to write there.
static ON_SCREEN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sample {
    /// Bytes that are done.
    pub(super) bytes: u64,
    /// All there will be, once known.
    pub(super) total_bytes: Option<u64>,
    /// Files that are done, and found; not shown if there are no files.
    pub(super) files: Option<(u64, u64)>,
    /// Time in which the consumer waited for data, in nanoseconds, over all streams.
    pub(super) stall_ns: u64,
    /// Streams at work.
    pub(super) streams: u32,
}

/// What one tick shows.
#[derive(Debug)]
pub(super) struct Frame {
    /// How far of how much, once known.
    pub(super) of: Option<(u64, u64)>,
    /// Beside the bar.
    pub(super) text: String,
}

/// A bar that is on the screen until it is dropped.
#[derive(Debug)]
pub(super) struct Progress {
    ends: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows a bar of bytes if `show`, fed by `sample`.
    pub(super) fn start(show: bool, sample: impl Fn() -> Sample + Send + 'static) -> Self {
        let started = Instant::now();
        let (mut before, mut last, mut rate) = (started, sample(), None);
        Self::frames(show, move || {
            let (now, next) = (Instant::now(), sample());
            let newest = next.bytes.saturating_sub(last.bytes) as f64
                / (now - before).as_secs_f64().max(1e-9);
            let smooth = smoothed(rate, newest);
            (before, last, rate) = (now, next, Some(smooth));
            Frame {
                of: next.total_bytes.map(|total| (next.bytes, total)),
                text: line(&next, smooth, now - started),
            }
        })
    }

    /// Shows a bar if `show`, drawn as `frame` says.
    pub(super) fn frames(show: bool, frame: impl FnMut() -> Frame + Send + 'static) -> Self {
        let (ends, ended) = mpsc::channel();
        let thread = show.then(|| std::thread::spawn(move || draw(&ended, frame)));
        Self {
            ends: Some(ends),
            thread,
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.ends.take();
        if let Some(thread) = self.thread.take() {
            // A bar that panicked is no reason to fail.
            let _ = thread.join();
        }
    }
}

/// Runs `print` with the bar out of the way.
pub(super) fn suspended<T>(print: impl FnOnce() -> T) -> T {
    let bar = ON_SCREEN
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    match bar {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

fn draw(ended: &mpsc::Receiver<()>, mut frame: impl FnMut() -> Frame) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    *ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
    let (style, spinner) = (style("{bar:24.cyan/blue} {msg}"), style("{spinner} {msg}"));
    while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        let next = frame();
        match next.of {
            Some((done, all)) => {
                bar.set_style(style.clone());
                bar.set_length(all);
                bar.set_position(done);
            }
            None => bar.set_style(spinner.clone()),
        }
        bar.set_message(next.text);
        bar.tick();
    }
    bar.finish_and_clear();
    *ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}

fn smoothed(rate: Option<f64>, newest: f64) -> f64 {
    rate.map_or(newest, |rate| rate + RATE_WEIGHT * (newest - rate))
}

/// The text beside the bar.
fn line(sample: &Sample, rate: f64, elapsed: Duration) -> String {
    let mut parts = Vec::new();
    if let Some((done, found)) = sample.files {
        parts.push(format!("{done}/{found} files"));
    }
    parts.push(match sample.total_bytes {
        Some(total) => format!("{} of {}", human(sample.bytes as f64), human(total as f64)),
        None => human(sample.bytes as f64),
    });
    parts.push(format!("{}/s", human(rate)));
    if let Some(total) = sample.total_bytes
        && rate >= 1.0
    {
        parts.push(format!(
            "{} left",
            clock(total.saturating_sub(sample.bytes) as f64 / rate)
        ));
    }
    let available = elapsed.as_nanos() as f64 * f64::from(sample.streams.max(1));
    let stall = (sample.stall_ns as f64 / available.max(1.0)).min(1.0) * 100.0;
    parts.push(format!("waited {stall:.0}% for data"));
    parts.join("  ")
}

/// Seconds as people read them.
pub(super) fn clock(seconds: f64) -> String {
    let whole = seconds.min(359_999.0).ceil() as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        _ => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_how_fast_how_long_and_why() {
        let sample = Sample {
            bytes: 1 << 30,
            total_bytes: Some(3 << 30),
            files: Some((3, 9)),
            stall_ns: 500_000_000,
            streams: 1,
        };
        let text = line(&sample, (256 << 20) as f64, Duration::from_secs(5));
        assert_eq!(
            text,
            "3/9 files  1.00 GiB of 3.00 GiB  256 MiB/s  8s left  waited 10% for data"
        );
        let unknown = Sample {
            total_bytes: None,
            files: None,
            ..sample
        };
        assert_eq!(
            line(&unknown, 0.0, Duration::ZERO),
            "1.00 GiB  0 B/s  waited 100% for data"
        );
    }

    #[test]
    fn times_are_short() {
        assert_eq!([0.1, 61.0, 3661.0].map(clock), ["1s", "1m01s", "1h01m"]);
    }

    #[test]
    fn the_rate_follows_within_about_two_seconds() {
        let rate = (0..20).fold(0.0, |rate, _| smoothed(Some(rate), 100.0));
        assert!(rate > 85.0, "{rate}");
    }
}
