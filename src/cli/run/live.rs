//! What a person sees of a job while it runs: a line per channel, redrawn below what the trainer says.
//!
//! Rates and shares are of the last seconds, because what matters to whoever watches is now. Plain functions make the text
//! from reports and the terminal's size.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::super::progress::{Frame, clock};
use super::super::size::human;
use crate::job::{ChannelReport, LiveChannels};

/// Long enough that whole parts do not make the rate jump, short enough to be now.
const WINDOW: Duration = Duration::from_secs(5);

/// Lines of channels, at most: half of the smallest usual terminal.
const MAX_LINES: usize = 12;

/// What the trainer has begun to say: a line without its end, such as a progress bar of its own.
pub(super) type Unfinished = Arc<Mutex<String>>;

/// One channel's past few seconds.
#[derive(Debug, Default)]
struct Past(VecDeque<(Instant, u64, Duration, Duration)>);

impl Past {
    fn add(&mut self, now: Instant, report: &ChannelReport) {
        let presence = &report.presence;
        self.0
            .push_back((now, report.bytes, presence.present, presence.stalled));
        while self.0.len() > 2
            && self
                .0
                .get(1)
                .is_some_and(|(at, ..)| now.duration_since(*at) >= WINDOW)
        {
            self.0.pop_front();
        }
    }

    /// Bytes a second, and the share of the reader's time in which it waited; none while there is no reader.
    fn now(&self) -> (f64, Option<f64>) {
        let (Some(first), Some(last)) = (self.0.front(), self.0.back()) else {
            return (0.0, None);
        };
        let seconds = last.0.duration_since(first.0).as_secs_f64();
        let rate = last.1.saturating_sub(first.1) as f64 / seconds.max(1e-3);
        let present = last.2.saturating_sub(first.2).as_secs_f64();
        let stalled = last.3.saturating_sub(first.3).as_secs_f64();
        (rate, (present > 0.0).then(|| (stalled / present).min(1.0)))
    }
}

/// Draws a job: to be asked for each frame.
pub(super) fn view(
    channels: LiveChannels,
    unfinished: Unfinished,
) -> impl FnMut(usize) -> Frame + Send + 'static {
    let (begun, mut past) = (Instant::now(), BTreeMap::<String, Past>::new());
    move |columns| {
        let now = Instant::now();
        let reports = channels.report();
        let mut lines = Vec::new();
        let said = unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if !said.is_empty() {
            lines.push(said);
        }
        let names = reports.iter().map(|report| report.channel.chars().count());
        let name_columns = names.max().unwrap_or_default();
        for report in reports.iter().take(MAX_LINES) {
            let past = past.entry(report.channel.clone()).or_default();
            past.add(now, report);
            lines.push(line(report, past.now(), name_columns));
        }
        if reports.len() > MAX_LINES {
            lines.push(format!("and {} more channels", reports.len() - MAX_LINES));
        }
        if let Some(last) = lines.last_mut() {
            last.push_str(&format!(
                "  [{}]",
                clock(now.duration_since(begun).as_secs_f64())
            ));
        }
        Frame {
            bar: None,
            text: fitted(&lines, columns),
        }
    }
}

fn line(report: &ChannelReport, (rate, share): (f64, Option<f64>), name_columns: usize) -> String {
    let name = format!("{:name_columns$}  {:8}", report.channel, report.mode);
    let bytes = human(report.bytes as f64);
    if report.mode == "File" {
        return format!("{name}  {bytes:>10}  there");
    }
    let epoch = report
        .epochs
        .map(|ended| ended + report.early_closes.unwrap_or_default());
    let epoch = epoch.map_or_else(String::new, |epoch| format!("  epoch {epoch}"));
    let waits = match share {
        Some(share) => format!("waited {:.0}% for data", share * 100.0),
        None => "no reader".into(),
    };
    let rate = format!("{}/s", human(rate));
    format!("{name}  {bytes:>10}  {rate:>12}{epoch}  {waits}")
}

/// Lines of the terminal's width: one that breaks would be drawn over.
fn fitted(lines: &[String], columns: usize) -> String {
    let room = columns.saturating_sub(1);
    let fitted = lines
        .iter()
        .map(|line| line.chars().take(room).collect::<String>());
    fitted.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Presence;

    fn report(mode: &'static str, bytes: u64, present: u64, stalled: u64) -> ChannelReport {
        let mut report = ChannelReport::default();
        report.channel = "train".into();
        report.mode = mode;
        report.bytes = bytes;
        report.epochs = (mode == "Pipe").then_some(2);
        report.early_closes = report.epochs.map(|_| 1);
        report.presence = Presence {
            present: Duration::from_secs(present),
            stalled: Duration::from_secs(stalled),
            blocked: Duration::ZERO,
        };
        report
    }

    #[test]
    fn a_line_tells_the_last_seconds_and_not_the_whole() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut past = Past::default();
        for (second, bytes, stalled) in [
            (0, 0, 0),
            (100, 1000 << 20, 90),
            (104, 1400 << 20, 91),
            (106, 1600 << 20, 91),
        ] {
            past.add(at(second), &report("Pipe", bytes, second, stalled));
        }
        let last = report("Pipe", 1600 << 20, 106, 91);
        assert_eq!(
            line(&last, past.now(), 7),
            "train    Pipe        1.56 GiB     100 MiB/s  epoch 3  waited 17% for data"
        );
        // Nobody has it open.
        let mut past = Past::default();
        past.add(at(0), &report("Pipe", 5, 3, 0));
        past.add(at(1), &report("Pipe", 5, 3, 0));
        assert!(line(&last, past.now(), 5).ends_with("0 B/s  epoch 3  no reader"));
        let files = report("File", 3 << 20, 0, 0);
        assert!(line(&files, (0.0, None), 5).ends_with("3.00 MiB  there"));
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let lines = ["äöü".repeat(30), "short".into()];
        let text = fitted(&lines, 41);
        let widths: Vec<_> = text.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths, [40, 5]);
    }
}
