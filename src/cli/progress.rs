//! The progress bar: bytes, rate, time left and the share of the time in which the consumer waited.
//!
//! A thread samples counters ten times a second and draws; nothing in the data path knows of it. What does not fit into
//! the terminal is said in fewer words, then left out: first the bar, last what is done.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::size::{human, share};
use super::total::Total;
use crate::metrics::Presence;

/// Smooth to the eye, and nothing to the processor.
const TICK: Duration = Duration::from_millis(100);

/// The weight of the newest sample in the rate: it follows a change within about two seconds.
const RATE_WEIGHT: f64 = 0.1;

/// The widest bar, and the narrowest that still says something.
const BAR_COLUMNS: (usize, usize) = (24, 8);

/// The bar on the screen, for whoever else wants to write there.
static ON_SCREEN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sample {
    /// Bytes that are done.
    pub(super) bytes: u64,
    /// All there will be; nothing before the first of it is found.
    pub(super) total: Option<Total>,
    /// Files or epochs that are done.
    pub(super) count: Option<String>,
    /// How the consumers spent their time.
    pub(super) presence: Presence,
    /// What keeps everything waiting, when it is not the data.
    pub(super) waits_for: Option<&'static str>,
}

/// What one tick shows.
#[derive(Debug)]
pub(super) struct Frame {
    /// How far of how much, and the columns that a bar may take; no bar otherwise.
    pub(super) bar: Option<Bar>,
    /// Beside the bar.
    pub(super) text: String,
}

/// How far of how much, and in how many columns that is shown.
#[derive(Debug, PartialEq)]
pub(super) struct Bar {
    pub(super) done: u64,
    pub(super) all: u64,
    pub(super) columns: usize,
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
        let (mut before, mut last) = (Instant::now(), sample());
        let (mut rate, mut samples) = (0.0, 0);
        Self::frames(show, move |columns| {
            let (now, next) = (Instant::now(), sample());
            let newest = next.bytes.saturating_sub(last.bytes) as f64
                / (now - before).as_secs_f64().max(1e-9);
            samples += u32::from(next.bytes > 0);
            rate = smoothed(rate, newest, samples);
            (before, last) = (now, next);
            layout(&last, rate, columns)
        })
    }

    /// Shows a bar if `show`, drawn as `frame` says for a terminal of so many columns.
    pub(super) fn frames(show: bool, frame: impl FnMut(usize) -> Frame + Send + 'static) -> Self {
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

fn draw(ended: &mpsc::Receiver<()>, mut frame: impl FnMut(usize) -> Frame) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    *ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
    let terminal = Term::stderr();
    while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        // At every tick: terminals change their width.
        let next = frame(usize::from(terminal.size().1));
        // Before what draws anew: a new width with an old text may not fit.
        bar.set_style(style(next.bar.as_ref().map_or(0, |bar| bar.columns)));
        bar.set_message(next.text);
        if let Some(Bar { done, all, .. }) = next.bar {
            bar.set_length(all);
            bar.set_position(done);
        }
        bar.tick();
    }
    bar.finish_and_clear();
    *ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

fn style(bar_columns: usize) -> ProgressStyle {
    let template = match bar_columns {
        0 => "{msg}".to_owned(),
        columns => format!("{{bar:{columns}.cyan/blue}} {{msg}}"),
    };
    ProgressStyle::with_template(&template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}

/// The plain mean of the first samples, since the first byte; bytes come in whole parts.
fn smoothed(rate: f64, newest: f64, samples: u32) -> f64 {
    let weight = RATE_WEIGHT.max(1.0 / f64::from(samples.max(1)));
    rate + weight * (newest - rate)
}

/// The bar and the text beside it, so that both fit into `columns`.
fn layout(sample: &Sample, rate: f64, columns: usize) -> Frame {
    // In the last column some terminals break the line.
    let room = columns.saturating_sub(1);
    let mut text = join(&parts(sample, rate, Words::Many), "  ");
    if width(&text) > room {
        let mut few = parts(sample, rate, Words::Few);
        text = join(&few, " ");
        while width(&text) > room && few.len() > 1 {
            let least = (0..few.len()).max_by_key(|at| few[*at].0).unwrap_or(0);
            few.remove(least);
            text = join(&few, " ");
        }
    }
    let total = sample.total.filter(|total| total.is_final);
    let bar = total.and_then(|total| Bar::beside(&text, (sample.bytes, total.bytes), columns));
    Frame { bar, text }
}

impl Bar {
    /// So wide that it and `text` fit into `columns`, if it then still says something.
    pub(super) fn beside(text: &str, (done, all): (u64, u64), columns: usize) -> Option<Self> {
        let left = columns.saturating_sub(width(text) + 2);
        (left >= BAR_COLUMNS.1).then(|| Self {
            done,
            all,
            columns: left.min(BAR_COLUMNS.0),
        })
    }
}

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    Many,
    Few,
}

/// The parts of the line in order, each with its rank: the greatest is left out first.
fn parts(sample: &Sample, rate: f64, words: Words) -> Vec<(u8, String)> {
    let few = words == Words::Few;
    let mut parts = Vec::new();
    parts.extend(sample.count.clone().map(|count| (5, count)));
    let done = human(sample.bytes as f64);
    parts.push((
        0,
        match sample.total {
            Some(total) if few => share(sample.bytes, total.bytes, total.sign()),
            Some(total) => format!("{done} of {}{}", total.sign(), human(total.bytes as f64)),
            None if few => done,
            None => format!("{done}  listing…"),
        },
    ));
    if let Some(what) = sample.waits_for {
        parts.push((1, format!("waiting for {what}")));
        return parts;
    }
    parts.push((1, format!("{}/s", human(rate))));
    if let Some(left) = seconds_left(sample, rate) {
        let left = clock(left);
        parts.push((
            2,
            if few {
                format!("~{left}")
            } else {
                format!("{left} left")
            },
        ));
    }
    let stall = sample.presence.stall_share() * 100.0;
    parts.push((
        3,
        match few {
            true => format!("wait {stall:.0}%"),
            false => format!("waited {stall:.0}% for data"),
        },
    ));
    parts
}

/// Known only when all is listed and some of it moves.
fn seconds_left(sample: &Sample, rate: f64) -> Option<f64> {
    let total = sample.total.filter(|total| total.is_final && rate >= 1.0)?;
    Some(total.bytes.saturating_sub(sample.bytes) as f64 / rate)
}

fn join(parts: &[(u8, String)], between: &str) -> String {
    let texts: Vec<_> = parts.iter().map(|(_, text)| text.as_str()).collect();
    texts.join(between)
}

fn width(text: &str) -> usize {
    text.chars().count()
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
    use proptest::prelude::*;

    fn sample() -> Sample {
        Sample {
            bytes: 1 << 30,
            total: Some(Total {
                bytes: 3 << 30,
                is_final: true,
            }),
            count: Some("3/9 files".into()),
            presence: Presence {
                present: Duration::from_secs(5),
                stalled: Duration::from_millis(500),
                blocked: Duration::ZERO,
            },
            waits_for: None,
        }
    }

    /// The bar's columns and the text.
    fn shape(sample: &Sample, rate: f64, columns: usize) -> (usize, String) {
        let frame = layout(sample, rate, columns);
        (frame.bar.map_or(0, |bar| bar.columns), frame.text)
    }

    #[test]
    fn the_line_says_how_far_how_fast_how_long_and_why() {
        let rate = (256 << 20) as f64;
        let lines = |sample: &Sample| [120, 80, 40, 20].map(|columns| shape(sample, rate, columns));
        let shown = |bar: usize, text: &str| (bar, text.to_owned());
        let long = "3/9 files  1.00 GiB of 3.00 GiB  256 MiB/s  8s left  waited 10% for data";
        assert_eq!(
            lines(&sample()),
            [
                shown(24, long),
                shown(0, long),
                shown(0, "1.00/3.00 GiB 256 MiB/s ~8s wait 10%"),
                shown(0, "1.00/3.00 GiB"),
            ]
        );
        let growing = Sample {
            total: Some(Total {
                bytes: 3 << 30,
                is_final: false,
            }),
            count: None,
            ..sample()
        };
        assert_eq!(
            lines(&growing)[1..3],
            [
                shown(0, "1.00 GiB of ≥3.00 GiB  256 MiB/s  waited 10% for data"),
                shown(0, "1.00/≥3.00 GiB 256 MiB/s wait 10%"),
            ]
        );
        let unknown = Sample {
            total: None,
            ..growing.clone()
        };
        assert_eq!(
            shape(&unknown, 0.0, 80),
            shown(0, "1.00 GiB  listing…  0 B/s  waited 10% for data")
        );
        let alone = Sample {
            waits_for: Some("a reader"),
            ..sample()
        };
        assert_eq!(
            shape(&alone, 0.0, 80),
            shown(24, "3/9 files  1.00 GiB of 3.00 GiB  waiting for a reader")
        );
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_the_terminal(
            bytes in 0..1u64 << 50, more in 0..1u64 << 50, is_final: bool, rate in 0.0..1e12, columns in 21usize..200,
        ) {
            let total = Some(Total { bytes: bytes + more, is_final });
            let sample = Sample { bytes, total, ..sample() };
            let (bar, text) = shape(&sample, rate, columns);
            let bar = if bar == 0 { 0 } else { bar + 1 };
            prop_assert!(bar + width(&text) < columns, "{bar} {text}");
        }
    }

    #[test]
    fn times_are_short() {
        assert_eq!([0.1, 61.0, 3661.0].map(clock), ["1s", "1m01s", "1h01m"]);
    }

    #[test]
    fn the_rate_follows_within_about_two_seconds() {
        let rate = (10..30).fold(0.0, |rate, n| smoothed(rate, 100.0, n));
        assert!(rate > 85.0, "{rate}");
        let start = (1..=4).fold(0.0, |rate, n| {
            smoothed(rate, [10.0, 0.0, 0.0, 30.0][n as usize - 1], n)
        });
        assert_eq!(start, 10.0);
    }
}
