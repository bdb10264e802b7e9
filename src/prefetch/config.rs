//! How the engine reads ahead.

use crate::buffer::class_bytes;
use crate::checksum::ChecksumPolicy;
use crate::error::{Error, Result};

/// The link that the defaults are made for.
const DEFAULT_GBPS: f64 = 10.0;

/// Requests for small objects that are sent at once. At S3's 32 ms for each they are 3,000 a second: half of what one
/// prefix bears (5,500), so that two hosts can read it.
const SMALL_CONCURRENCY: usize = 96;

/// Parts that the memory should hold when nothing else is said: fewer cannot hide latency.
const LEAST_PARTS: u64 = 4;

/// How the engine reads ahead. The defaults suit a 10 Gb/s link to S3.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PrefetchConfig {
    /// Memory for parts, in bytes: the limit of what is in flight, ready or held by consumers.
    ///
    /// Default: one and a half times what the default concurrency needs, at most a quarter of the memory that the
    /// machine or the cgroup has.
    pub memory_bytes: u64,
    /// Size of a ranged GET. Default 8 MiB: the usual multipart size, and near the optimum of cost and throughput.
    pub part_bytes: u64,
    /// Size of a stream's first part, so that the first bytes come one latency after the request. Default 4 KiB,
    /// of which S3's time is 0.08 ms at the 20 ms/MiB of one connection.
    pub lead_bytes: u64,
    /// Parts in flight at most. Default [`model_concurrency`] of 10 Gb/s.
    pub concurrency: usize,
    /// Parts in flight at most where they are small, in FastFile mode: what bounds large ones is the link, and what bounds
    /// small ones is latency. Default 96; what is less than `concurrency` changes nothing.
    pub small_concurrency: usize,
    /// How far a new stream reads ahead before its consumer has stalled once. Default: all that memory allows, because
    /// a training job reads everything, and growing from one part costs half a second of every epoch.
    pub initial_window_bytes: u64,
    /// What to do about checksums of objects that are fetched in several parts.
    pub checksums: ChecksumPolicy,
}

impl Default for PrefetchConfig {
    fn default() -> Self {
        let part_bytes = 8 << 20;
        let concurrency = model_concurrency(DEFAULT_GBPS, part_bytes);
        let needed = concurrency as u64 * part_bytes * 3 / 2;
        Self {
            memory_bytes: needed
                .min(host_memory_bytes() / 4)
                .max(LEAST_PARTS * part_bytes),
            part_bytes,
            lead_bytes: 4 << 10,
            concurrency,
            small_concurrency: SMALL_CONCURRENCY,
            initial_window_bytes: u64::MAX,
            checksums: ChecksumPolicy::default(),
        }
    }
}

impl PrefetchConfig {
    /// What was asked for, and for the rest what fits to it; not validated.
    pub fn fitting(
        memory_bytes: Option<u64>,
        part_bytes: Option<u64>,
        concurrency: Option<usize>,
    ) -> Self {
        let mut config = Self::default();
        if let Some(part_bytes) = part_bytes.filter(|wanted| *wanted != config.part_bytes) {
            config.part_bytes = part_bytes;
            config.concurrency = model_concurrency(DEFAULT_GBPS, part_bytes.max(1));
            // Parts that the default memory holds few of need more of it.
            let least = part_bytes.saturating_mul(LEAST_PARTS);
            config.memory_bytes = config.memory_bytes.max(least);
        }
        if let Some(concurrency) = concurrency {
            // Who names a limit means all requests.
            (config.concurrency, config.small_concurrency) = (concurrency, concurrency);
        }
        config.memory_bytes = memory_bytes.unwrap_or(config.memory_bytes);
        config
    }

    /// Requests in flight at most, whatever they are for.
    pub fn most_requests(&self) -> usize {
        self.concurrency.max(self.small_concurrency)
    }

    /// Refuses what can't work, naming the field.
    pub fn validate(&self) -> Result<()> {
        if self.part_bytes < 64 << 10 || self.part_bytes > 1 << 30 {
            return Err(Error::config(
                "part size",
                format!("{} bytes: use 64KiB to 1GiB", self.part_bytes),
            ));
        }
        if self.concurrency == 0 || self.concurrency > 4096 {
            return Err(Error::config(
                "concurrency",
                format!("{}: use 1 to 4096", self.concurrency),
            ));
        }
        if self.lead_bytes == 0 {
            return Err(Error::config("lead size", "0 bytes: use at least 1"));
        }
        let least = class_bytes(self.part_bytes);
        if self.memory_bytes < least {
            let reason = format!(
                "{} bytes do not hold one part: use at least {least}, or smaller parts",
                self.memory_bytes
            );
            return Err(Error::config("memory", reason));
        }
        Ok(())
    }
}

/// How many GETs of `part_bytes` fill a link of `gbps` gigabits a second, from Little's law and S3's usual latency of
/// 30 ms and 20 ms per MiB (AnyBlob, PVLDB 16(11)); between 8 and 256.
pub fn model_concurrency(gbps: f64, part_bytes: u64) -> usize {
    let seconds = 0.030 + 0.020 * part_bytes as f64 / f64::from(1 << 20);
    let in_flight = gbps * 1e9 / 8.0 * seconds / part_bytes as f64;
    (in_flight.round() as usize).clamp(8, 256)
}

/// The memory that this process may use: the cgroup's limit or the machine's, whichever is less.
fn host_memory_bytes() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let cgroup = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse::<u64>().ok());
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace()
            .nth(1)?
            .parse::<u64>()
            .ok()
            .map(|kib| kib << 10)
    });
    cgroup.unwrap_or(u64::MAX).min(machine.unwrap_or(2 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_gives_the_published_numbers() {
        assert_eq!(
            [10.0, 25.0, 100.0].map(|gbps| model_concurrency(gbps, 8 << 20)),
            [28, 71, 256]
        );
        assert_eq!(model_concurrency(0.1, 8 << 20), 8);
    }

    #[test]
    fn what_is_not_said_fits_to_what_is() {
        let default = PrefetchConfig::default();
        let large = PrefetchConfig::fitting(None, Some(1 << 30), None);
        assert_eq!(large.memory_bytes, 4 << 30);
        assert!(large.concurrency < default.concurrency);
        let told = PrefetchConfig::fitting(Some(1 << 20), Some(1 << 20), Some(3));
        let told = (told.memory_bytes, told.part_bytes, told.concurrency);
        assert_eq!(told, (1 << 20, 1 << 20, 3));
        let few = PrefetchConfig::fitting(None, None, Some(3));
        assert_eq!((few.most_requests(), default.most_requests()), (3, 96));
        let none = PrefetchConfig::fitting(None, None, None);
        assert_eq!(none.concurrency, default.concurrency);
    }

    #[test]
    fn the_defaults_are_valid_and_bad_values_are_named() {
        PrefetchConfig::default().validate().unwrap();
        let cases = [
            (
                PrefetchConfig {
                    part_bytes: 1,
                    ..Default::default()
                },
                "part size",
            ),
            (
                PrefetchConfig {
                    concurrency: 0,
                    ..Default::default()
                },
                "concurrency",
            ),
            (
                PrefetchConfig {
                    memory_bytes: 1 << 20,
                    ..Default::default()
                },
                "memory",
            ),
            (
                PrefetchConfig {
                    lead_bytes: 0,
                    ..Default::default()
                },
                "lead size",
            ),
        ];
        for (config, name) in cases {
            assert!(config.validate().unwrap_err().to_string().starts_with(name));
        }
    }
}
