//! The promises: what is measured for each, and what the ratio must be.

use std::path::Path;

use fake_s3::{Latency, Shape};
use serde::Serialize;
use standpipe::prefetch::PrefetchConfig;

use crate::mount::{self, Mount, Mounter};
use crate::reader::{self, Place, Reading, Seen};
use crate::server::{BUCKET, Objects, Server, Spec};
use crate::{Outcome, Scale, meter};

const MIB: u64 = 1 << 20;

/// Who reads.
#[derive(Debug, Clone, PartialEq)]
enum Way {
    /// The engine's stream, with so many requests in flight; by default as many as a mount.
    Engine(Option<usize>),
    /// By calls of the library, in the reader's process.
    Library,
    /// Through a new mount that knows nothing yet.
    Cold(Mounter),
    /// Through a new mount of ours, over a cache that an earlier one has filled.
    Warm(Mounter),
    /// From the local file system, which holds a copy.
    Local,
    /// Downloaded first (File mode), then read from the local file system: both count.
    Download,
}

/// Something to measure under one condition.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    what: &'static str,
    spec: Spec,
    /// What is mounted, or downloaded: all keys begin with it.
    prefix: &'static str,
    cases: Vec<(String, Way, Reading)>,
    aims: Vec<Aim>,
    rounds: usize,
    /// So little is read that ratios mean nothing.
    smoke: bool,
}

/// What a promise is about; nothing where a case is missing.
type Value = dyn Fn(&Round<'_>) -> Option<f64>;

struct Aim {
    what: String,
    bound: Bound,
    value: Box<Value>,
}

impl std::fmt::Debug for Aim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Aim")
            .field("what", &self.what)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// What one run gave.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Sample {
    /// From the start of the mount until it answers; of a download, all its time.
    pub(crate) start_s: f64,
    /// From the start of the mount until the first bytes are read.
    pub(crate) first_byte_s: f64,
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    pub(crate) files: u64,
    fingerprint: u64,
    /// What came over the network.
    pub(crate) wire_bytes: u64,
    /// Of the reader, and of the mount's process.
    pub(crate) cpu_s: f64,
    /// Of the process that fetches.
    pub(crate) peak_rss_bytes: u64,
    /// Seconds since the start of the mount or the download, and the share of the bytes that had been read then.
    pub(crate) progress: Vec<(f64, f64)>,
}

impl Sample {
    pub(crate) fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / 1e9 / self.seconds
    }

    pub(crate) fn files_per_s(&self) -> f64 {
        self.files as f64 / self.seconds
    }
}

/// All samples of one case.
#[derive(Debug, Serialize)]
pub(crate) struct CaseResult {
    pub(crate) label: String,
    pub(crate) samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
pub(crate) struct RowResult {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) cases: Vec<CaseResult>,
    pub(crate) verdicts: Vec<Verdict>,
}

/// Whether a promise holds: the median of the rounds, the smallest and the largest.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) what: String,
    pub(crate) aim: String,
    pub(crate) measured: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) met: bool,
}

/// One round's samples by label.
struct Round<'a>(Vec<(&'a str, &'a Sample)>);

impl Round<'_> {
    fn get(&self, label: &str) -> Option<&Sample> {
        let found = self.0.iter().find(|(found, _)| *found == label);
        found.map(|(_, sample)| *sample)
    }

    /// Of `of`'s value to `to`'s.
    fn ratio(&self, of: &str, to: &str, value: fn(&Sample) -> f64) -> Option<f64> {
        Some(value(self.get(of)?) / value(self.get(to)?))
    }

    /// Of `of`'s value to the best peer's.
    fn to_peers(&self, of: &str, value: fn(&Sample) -> f64) -> Option<f64> {
        let peers = ["rclone", "s3fs"];
        let best = peers.iter().filter_map(|peer| Some(value(self.get(peer)?)));
        Some(value(self.get(of)?) / best.reduce(f64::max)?)
    }
}

impl Row {
    fn case(mut self, label: &str, way: Way, reading: &Reading) -> Self {
        self.cases.push((label.into(), way, reading.clone()));
        self
    }

    fn peers(self, peers: &[(&'static str, Mounter)], reading: &Reading) -> Self {
        peers.iter().fold(self, |row, (label, mounter)| {
            row.case(label, Way::Cold(*mounter), reading)
        })
    }

    fn aim(
        mut self,
        what: &str,
        bound: Bound,
        value: impl Fn(&Round<'_>) -> Option<f64> + 'static,
    ) -> Self {
        self.aims.push(Aim {
            what: what.into(),
            bound,
            value: Box::new(value),
        });
        self
    }

    /// What the mounts' memory may be at most, whatever is read: `--memory`, and 64 MiB beside it.
    fn in_memory(self, labels: &[&'static str]) -> Self {
        labels.iter().copied().fold(self, |row, label| {
            let what = format!("peak RSS above the budget, MiB, {label}");
            row.aim(&what, Bound::AtMost(64.0), move |round| {
                let above = round.get(label)?.peak_rss_bytes as f64 - budget_bytes() as f64;
                Some(above / MIB as f64)
            })
        })
    }

    /// Measures every case once a round, in turn: what the machine does meanwhile hits all of them alike.
    pub(crate) fn measure(self, rounds: Option<usize>) -> Outcome<RowResult> {
        let server = Server::start(&self.spec)?;
        let home = tempfile::tempdir()?;
        self.prepare(&server, home.path())?;
        let mut cases: Vec<_> = self
            .cases
            .iter()
            .map(|(label, _, _)| CaseResult {
                label: label.clone(),
                samples: Vec::new(),
            })
            .collect();
        for _ in 0..rounds.unwrap_or(self.rounds) {
            for ((_, way, reading), case) in self.cases.iter().zip(&mut cases) {
                case.samples
                    .push(self.sample(way, reading, &server, home.path())?);
            }
        }
        self.check_bytes(&cases)?;
        let aims = self.aims.iter().filter(|_| !self.smoke);
        let verdicts = aims.filter_map(|aim| judge(aim, &cases));
        Ok(RowResult {
            name: self.name,
            what: self.what,
            verdicts: verdicts.collect(),
            cases,
        })
    }

    /// The copy of those who read locally, and the cache of those who come back.
    fn prepare(&self, server: &Server, home: &Path) -> Outcome<()> {
        let ways = || self.cases.iter().map(|(_, way, _)| way);
        if ways().any(|way| *way == Way::Local) {
            self.download(server, &home.join("local"))?;
        }
        if ways().any(|way| matches!(way, Way::Warm(_))) {
            self.fill_cache(server, &home.join("cache"))?;
        }
        Ok(())
    }

    /// By the command that exists for it: a mount stores what the disk keeps up with, and drops the rest.
    fn fill_cache(&self, server: &Server, cache: &Path) -> Outcome<()> {
        let uri = format!("s3://{BUCKET}/{}", self.prefix);
        let status = mount::standpipe(&["cache", "warm", &uri], &server.endpoint)
            .arg("--cache")
            .arg(cache)
            .status()?;
        match status.success() {
            true => Ok(()),
            false => Err(format!("cache warm: {status}").into()),
        }
    }

    fn download(&self, server: &Server, dir: &Path) -> Outcome<()> {
        let uri = format!("s3://{BUCKET}/{}", self.prefix);
        let status = mount::standpipe(&["download", &uri], &server.endpoint)
            .arg(dir)
            .status()?;
        match status.success() {
            true => Ok(()),
            false => Err(format!("download: {status}").into()),
        }
    }

    fn sample(
        &self,
        way: &Way,
        reading: &Reading,
        server: &Server,
        home: &Path,
    ) -> Outcome<Sample> {
        match way {
            Way::Engine(concurrency) => {
                let place = Place::Engine {
                    endpoint: server.endpoint.clone(),
                    prefix: self.prefix.into(),
                    concurrency: *concurrency,
                };
                itself(&place, reading)
            }
            Way::Library => {
                let place = Place::Library {
                    endpoint: server.endpoint.clone(),
                    prefix: self.prefix.into(),
                };
                itself(&place, reading)
            }
            Way::Local => {
                let start_ns = meter::now_ns();
                let seen = reader::run(&Place::Dir(home.join("local")), reading)?;
                Ok(Sample::new(seen, start_ns, 0))
            }
            Way::Download => {
                let dir = tempfile::tempdir_in(home)?;
                let (wire, start_ns) = (wire_bytes()?, meter::now_ns());
                self.download(server, dir.path())?;
                let start_s = meter::seconds_between(start_ns, meter::now_ns());
                let seen = reader::run(&Place::Dir(dir.path().into()), reading)?;
                let mut sample = Sample::new(seen, start_ns, wire_bytes()? - wire);
                sample.start_s = start_s;
                sample.seconds += start_s;
                Ok(sample)
            }
            Way::Warm(mounter) => self.through(*mounter, reading, server, home),
            Way::Cold(mounter) => {
                let fresh = tempfile::tempdir_in(home)?;
                self.through(*mounter, reading, server, fresh.path())
            }
        }
    }

    fn through(
        &self,
        mounter: Mounter,
        reading: &Reading,
        server: &Server,
        home: &Path,
    ) -> Outcome<Sample> {
        let (dir, cache) = (home.join("mnt"), home.join("cache"));
        let (wire, start_ns) = (wire_bytes()?, meter::now_ns());
        let mount = Mount::start(mounter, &server.endpoint, self.prefix, &dir, &cache)?;
        let ready = mount.ready;
        let place = Place::Dir(dir);
        let seen = reader::run(&place, reading)?;
        let mut sample = Sample::new(seen, start_ns, wire_bytes()? - wire);
        sample.start_s = ready.as_secs_f64();
        sample.cpu_s += meter::cpu_seconds(mount.pid());
        sample.peak_rss_bytes = meter::peak_rss_bytes_of(mount.pid());
        Ok(sample)
    }

    /// Whoever read the same has seen the same.
    fn check_bytes(&self, cases: &[CaseResult]) -> Outcome<()> {
        let mut expected = None;
        for ((_, _, reading), case) in self.cases.iter().zip(cases) {
            if matches!(reading, Reading::Walk { .. } | Reading::Opens { .. }) {
                continue;
            }
            for sample in &case.samples {
                let found = (sample.bytes, sample.fingerprint);
                if sample.bytes == 0 || found != *expected.get_or_insert(found) {
                    let (name, label) = (self.name, &case.label);
                    return Err(
                        format!("{name}, {label}: read {found:x?}, not {expected:x?}").into(),
                    );
                }
            }
        }
        Ok(())
    }
}

impl Sample {
    fn new(seen: Seen, start_ns: u64, wire_bytes: u64) -> Self {
        let mut timeline = seen.timeline;
        timeline.sort_unstable();
        let first_ns = timeline.first().map_or(start_ns, |(at, _)| *at);
        let mut read = 0;
        let every = timeline.len().div_ceil(200).max(1);
        let mut progress = Vec::new();
        for (index, (at, bytes)) in timeline.iter().enumerate() {
            read += bytes;
            if index % every == 0 || index + 1 == timeline.len() {
                let share = read as f64 / seen.bytes as f64;
                progress.push((meter::seconds_between(start_ns, *at), share));
            }
        }
        Self {
            start_s: 0.0,
            first_byte_s: meter::seconds_between(start_ns, first_ns),
            seconds: seen.seconds,
            bytes: seen.bytes,
            files: seen.files,
            fingerprint: seen.fingerprint,
            wire_bytes,
            cpu_s: seen.cpu_s,
            peak_rss_bytes: seen.peak_rss_bytes,
            progress,
        }
    }
}

/// By a reader that fetches by itself.
fn itself(place: &Place, reading: &Reading) -> Outcome<Sample> {
    let (wire, start_ns) = (wire_bytes()?, meter::now_ns());
    let seen = reader::run(place, reading)?;
    Ok(Sample::new(seen, start_ns, wire_bytes()? - wire))
}

/// What `--memory` is by default.
fn budget_bytes() -> u64 {
    PrefetchConfig::default().memory_bytes
}

/// What the loopback interface has carried: the server's answers, and questions that are small beside them.
fn wire_bytes() -> Outcome<u64> {
    let table = std::fs::read_to_string("/proc/net/dev")?;
    let line = table
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("lo:"))
        .ok_or("no loopback interface in /proc/net/dev")?;
    Ok(line
        .split_whitespace()
        .next()
        .ok_or("an empty line in /proc/net/dev")?
        .parse()?)
}

fn judge(aim: &Aim, cases: &[CaseResult]) -> Option<Verdict> {
    let rounds = cases.first()?.samples.len();
    let values: Vec<f64> = (0..rounds)
        .filter_map(|round| {
            let samples = cases
                .iter()
                .map(|case| (case.label.as_str(), &case.samples[round]));
            (aim.value)(&Round(samples.collect()))
        })
        .collect();
    // Without the peers there is nothing to compare with.
    if values.is_empty() {
        return None;
    }
    let measured = median(&values);
    let (aim_text, met) = match aim.bound {
        Bound::AtLeast(bound) => (format!("at least {bound}"), measured >= bound),
        Bound::AtMost(bound) => (format!("at most {bound}"), measured <= bound),
    };
    Some(Verdict {
        what: aim.what.clone(),
        aim: aim_text,
        measured,
        least: values.iter().copied().fold(f64::INFINITY, f64::min),
        most: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        met,
    })
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Sizes by scale.
#[derive(Debug, Clone, Copy)]
struct Sizes(Scale);

impl Sizes {
    fn pick<T>(self, full: T, quick: T, smoke: T) -> T {
        match self.0 {
            Scale::Full => full,
            Scale::Quick => quick,
            Scale::Smoke => smoke,
        }
    }

    fn row(self, name: &'static str, what: &'static str, spec: Spec, prefix: &'static str) -> Row {
        Row {
            name,
            what,
            spec,
            prefix,
            cases: Vec::new(),
            aims: Vec::new(),
            rounds: self.pick(5, 3, 1),
            smoke: self.0 == Scale::Smoke,
        }
    }
}

fn spec(latency: Option<Latency>, objects: Objects) -> Spec {
    Spec {
        shape: Shape {
            latency: latency.unwrap_or_default(),
            ..Shape::default()
        },
        objects: vec![objects],
        ..Spec::default()
    }
}

/// Without the tail, so that two runs meet the same.
fn s3_without_tail() -> Latency {
    Latency::parse("30ms+20ms/MiB").expect("a model's name")
}

pub(crate) fn all(scale: Scale, peers: &[(&'static str, Mounter)]) -> Vec<Row> {
    let sizes = Sizes(scale);
    vec![
        sequential(
            sizes,
            peers,
            "cold",
            "one large file, cold, plain",
            None,
            0.6,
        ),
        sequential(
            sizes,
            peers,
            "cold-s3",
            "one large file, cold, latency 30ms+20ms/MiB",
            Some(s3_without_tail()),
            0.9,
        ),
        warm(sizes),
        opens(sizes),
        files(sizes, peers),
        files_warm(sizes),
        random(sizes, peers),
        start(
            sizes,
            "start",
            "many objects: the first file, and all names",
            None,
        ),
        start(
            sizes,
            "start-s3",
            "the same, latency 30ms+20ms/MiB: pages of 1,000 keys come one after another",
            Some(s3_without_tail()),
        ),
        modes(
            sizes,
            "modes-jpegs",
            "images of 110 KB, 4 readers",
            8_000,
            110_000,
        ),
        modes(
            sizes,
            "modes-tfrecords",
            "shards of 110 MB, 4 readers",
            12,
            110_000_000,
        ),
    ]
}

/// The big file of the large-file rows.
fn big(sizes: Sizes) -> Objects {
    Objects {
        key: "big/".into(),
        size_bytes: sizes.pick(2048, 1024, 16) * MIB,
        count: Some(1),
    }
}

const BIG: &str = "000000";

fn sequential(
    sizes: Sizes,
    peers: &[(&'static str, Mounter)],
    name: &'static str,
    what: &'static str,
    latency: Option<Latency>,
    bound: f64,
) -> Row {
    let reading = Reading::Sequential { file: BIG.into() };
    sizes
        .row(name, what, spec(latency, big(sizes)), "big/")
        .case("engine", Way::Engine(None), &reading)
        .case("library", Way::Library, &reading)
        .case("mount", Way::Cold(Mounter::Standpipe), &reading)
        .case("mount, cache", Way::Cold(Mounter::Cached), &reading)
        .peers(peers, &reading)
        .aim("library to engine, GB/s", Bound::AtLeast(0.85), |round| {
            round.ratio("library", "engine", Sample::gb_per_s)
        })
        .aim("mount to engine, GB/s", Bound::AtLeast(bound), |round| {
            round.ratio("mount", "engine", Sample::gb_per_s)
        })
        .aim(
            "mount to the better peer, GB/s",
            Bound::AtLeast(2.0),
            |round| round.to_peers("mount", Sample::gb_per_s),
        )
        .in_memory(&["mount", "mount, cache"])
}

fn warm(sizes: Sizes) -> Row {
    let reading = Reading::Sequential { file: BIG.into() };
    sizes
        .row(
            "warm",
            "one large file, wholly in the cache, a new mount",
            spec(None, big(sizes)),
            "big/",
        )
        .case("local", Way::Local, &reading)
        .case("mount", Way::Warm(Mounter::Cached), &reading)
        .case(
            "mount, no passthrough",
            Way::Warm(Mounter::CachedThroughUs),
            &reading,
        )
        .aim("mount to local, GB/s", Bound::AtLeast(0.9), |round| {
            round.ratio("mount", "local", Sample::gb_per_s)
        })
        .aim(
            "the same without passthrough",
            Bound::AtLeast(0.35),
            |round| round.ratio("mount, no passthrough", "local", Sample::gb_per_s),
        )
}

fn small(count: u64) -> Objects {
    Objects {
        key: "small/".into(),
        size_bytes: 100_000,
        count: Some(count),
    }
}

fn opens(sizes: Sizes) -> Row {
    let reading = Reading::Opens { readers: 4 };
    sizes
        .row(
            "opens",
            "files of 100 KB in the cache, opened, looked at and closed, 4 threads",
            spec(None, small(sizes.pick(20_000, 10_000, 50))),
            "small/",
        )
        .case("local", Way::Local, &reading)
        .case("mount", Way::Warm(Mounter::Cached), &reading)
        .case(
            "mount, each open asked for",
            Way::Warm(Mounter::CachedPerFile),
            &reading,
        )
        .aim("opens a second", Bound::AtLeast(25_000.0), |round| {
            Some(round.get("mount")?.files_per_s())
        })
        .aim(
            "the same, each asked for",
            Bound::AtLeast(25_000.0),
            |round| Some(round.get("mount, each open asked for")?.files_per_s()),
        )
}

fn files(sizes: Sizes, peers: &[(&'static str, Mounter)]) -> Row {
    let reading = Reading::Files { readers: 8 };
    let shuffled = Reading::Shuffled { readers: 8 };
    sizes
        .row(
            "files",
            "files of 100 KB, 8 readers, cold, latency 30ms+20ms/MiB",
            spec(
                Some(s3_without_tail()),
                small(sizes.pick(10_000, 2_000, 50)),
            ),
            "small/",
        )
        .case("engine", Way::Engine(None), &reading)
        .case(
            "engine, as many in flight",
            Way::Engine(Some(PrefetchConfig::default().most_requests())),
            &reading,
        )
        .case("mount", Way::Cold(Mounter::Standpipe), &reading)
        .case("mount, cache", Way::Cold(Mounter::Cached), &reading)
        .case("mount, shuffled", Way::Cold(Mounter::Standpipe), &shuffled)
        .peers(peers, &reading)
        .aim(
            "time to the engine's, as many in flight",
            Bound::AtMost(1.2),
            |round| {
                round.ratio("mount", "engine, as many in flight", |sample| {
                    sample.seconds
                })
            },
        )
        .aim(
            "files/s to the better peer's",
            Bound::AtLeast(5.0),
            |round| round.to_peers("mount", Sample::files_per_s),
        )
        .in_memory(&["mount", "mount, cache", "mount, shuffled"])
}

fn files_warm(sizes: Sizes) -> Row {
    let reading = Reading::Files { readers: 8 };
    let again = Reading::FilesAgain { readers: 8 };
    sizes
        .row(
            "files-warm",
            "files of 100 KB, 8 readers, wholly in the cache, a new mount; and once more on the same mount",
            spec(None, small(sizes.pick(10_000, 5_000, 50))),
            "small/",
        )
        .case("local", Way::Local, &reading)
        .case("mount", Way::Warm(Mounter::Cached), &reading)
        .case(
            "mount, each open asked for",
            Way::Warm(Mounter::CachedPerFile),
            &reading,
        )
        .case("local, again", Way::Local, &again)
        .case("mount, again", Way::Warm(Mounter::Cached), &again)
        .case(
            "mount, each open asked for, again",
            Way::Warm(Mounter::CachedPerFile),
            &again,
        )
        .aim("files/s to local, a new mount", Bound::AtLeast(0.7), |round| {
            round.ratio("mount", "local", Sample::files_per_s)
        })
        .aim("the same, second epoch", Bound::AtLeast(0.7), |round| {
            round.ratio("mount, again", "local, again", Sample::files_per_s)
        })
}

const RANDOM_BYTES: u64 = 128 << 10;

fn random(sizes: Sizes, peers: &[(&'static str, Mounter)]) -> Row {
    let size_bytes = sizes.pick(2048, 256, 16) * MIB;
    let reading = Reading::Random {
        file: BIG.into(),
        block_bytes: RANDOM_BYTES,
        readers: 16,
        reads: size_bytes / RANDOM_BYTES,
    };
    let file = Objects {
        key: "big/".into(),
        size_bytes,
        count: Some(1),
    };
    sizes
        .row(
            "random",
            "every 128 KiB of a file once, at random, 16 readers, cold, latency 30ms+20ms/MiB",
            spec(Some(s3_without_tail()), file),
            "big/",
        )
        .case("mount", Way::Cold(Mounter::Standpipe), &reading)
        .case("mount, cache", Way::Cold(Mounter::Cached), &reading)
        .peers(peers, &reading)
        .aim("bytes fetched to bytes read", Bound::AtMost(1.3), |round| {
            round.get("mount").map(amplification)
        })
        .aim("the same with a cache", Bound::AtMost(1.3), |round| {
            round.get("mount, cache").map(amplification)
        })
        .aim(
            "GB/s to the better peer's, with a cache",
            Bound::AtLeast(3.0),
            |round| round.to_peers("mount, cache", Sample::gb_per_s),
        )
        .in_memory(&["mount", "mount, cache"])
}

fn amplification(sample: &Sample) -> f64 {
    sample.wire_bytes as f64 / sample.bytes as f64
}

fn start(sizes: Sizes, name: &'static str, what: &'static str, latency: Option<Latency>) -> Row {
    let keys = sizes.pick(1_000_000, 200_000, 2_000);
    let objects = Objects {
        key: "many/".into(),
        size_bytes: 1_000,
        count: Some(keys),
    };
    let first = Reading::Sequential { file: BIG.into() };
    let walk = |times| Reading::Walk { times };
    let row = sizes
        .row(name, what, spec(latency, objects), "many/")
        .case("first file", Way::Cold(Mounter::Standpipe), &first)
        .case("walk", Way::Cold(Mounter::Standpipe), &walk(1))
        .aim("first file, s since start", Bound::AtMost(2.0), |round| {
            Some(round.get("first file")?.first_byte_s)
        });
    if latency.is_some() {
        return row;
    }
    row.case("second walk", Way::Cold(Mounter::Standpipe), &walk(2))
        .aim("keys listed a second", Bound::AtLeast(50_000.0), |round| {
            Some(round.get("walk")?.files_per_s())
        })
        .aim(
            "names and sizes a second, listed before",
            Bound::AtLeast(300_000.0),
            |round| Some(round.get("second walk")?.files_per_s()),
        )
        .aim(
            "peak RSS of the mount, bytes a key, names of 6 included",
            Bound::AtMost(126.0 + 64.0 * MIB as f64 / keys as f64),
            move |round| Some(round.get("second walk")?.peak_rss_bytes as f64 / keys as f64),
        )
}

/// FastFile beside File mode, on the shapes of SageMaker's own comparison of its input modes, scaled.
fn modes(sizes: Sizes, name: &'static str, what: &'static str, count: u64, size_bytes: u64) -> Row {
    let shrink = sizes.pick(1, 2, 400);
    let objects = Objects {
        key: "train/".into(),
        size_bytes: if size_bytes > MIB {
            size_bytes / sizes.pick(1, 1, 100)
        } else {
            size_bytes
        },
        count: Some((count / shrink).max(4)),
    };
    let reading = Reading::Files { readers: 4 };
    sizes
        .row(name, what, spec(Some(s3_without_tail()), objects), "train/")
        .case("File", Way::Download, &reading)
        .case("FastFile", Way::Cold(Mounter::Standpipe), &reading)
        .aim(
            "time to the first byte, FastFile to File",
            Bound::AtMost(0.2),
            |round| round.ratio("FastFile", "File", |sample| sample.first_byte_s),
        )
        .aim(
            "total time, FastFile to File",
            Bound::AtMost(1.0),
            |round| {
                let total =
                    |sample: &Sample| sample.progress.last().map_or(f64::NAN, |last| last.0);
                round.ratio("FastFile", "File", total)
            },
        )
}
