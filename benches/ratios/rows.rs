//! The promises, one row each.

use fake_s3::{Latency, Shape};
use serde::Serialize;

use crate::job::{Client, Job, Sample, Task, Work};
use crate::server::{Objects, Server, Spec};
use crate::work::Consumer;
use crate::{Outcome, Scale};

const MIB: u64 = 1 << 20;
const PART: u64 = 8 * MIB;
/// What S3 gives one connection, about.
const CONNECTION_BYTES_PER_SECOND: u64 = 90_000_000;
/// A link that 32 such connections would overfill and 16 would not.
const TOTAL_BYTES_PER_SECOND: u64 = 1_500_000_000;
/// How fast the trainer works that does something: about as fast as the latency model delivers.
const WORK_BYTES_PER_SECOND: u64 = 1_000_000_000;

/// A row: cases that are measured in turn, and what is demanded of them.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    what: String,
    spec: Spec,
    rounds: usize,
    cases: Vec<(String, Task)>,
    aims: Vec<Aim>,
    truth: Option<Truth>,
}

/// For exploring: what is measured in place of what a row says.
#[derive(Debug, Default)]
pub(crate) struct Tuning {
    pub(crate) cases: Vec<String>,
    pub(crate) concurrency: Option<usize>,
    pub(crate) memory_mib: Option<u64>,
}

/// One round's samples by label.
struct Round<'a>(Vec<(&'a str, &'a Sample)>);

impl Round<'_> {
    fn get(&self, label: &str) -> &Sample {
        let found = self.0.iter().find(|(name, _)| *name == label);
        found.expect("the case is one of the row's").1
    }

    fn ratio(&self, ours: &str, theirs: &str, value: fn(&Sample) -> f64) -> f64 {
        value(self.get(ours)) / value(self.get(theirs))
    }
}

enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// For the reader's information.
    None,
}

type Value = Box<dyn Fn(&Round<'_>) -> f64>;

struct Aim {
    what: String,
    bound: Bound,
    value: Value,
}

fn aim(what: impl Into<String>, bound: Bound, value: impl Fn(&Round<'_>) -> f64 + 'static) -> Aim {
    Aim {
        what: what.into(),
        bound,
        value: Box::new(value),
    }
}

/// One case's samples, a round each.
#[derive(Debug, Serialize)]
pub(crate) struct CaseResult {
    pub(crate) label: String,
    pub(crate) samples: Vec<Sample>,
}

/// Whether an aim is met.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) what: String,
    pub(crate) aim: String,
    pub(crate) measured: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) met: Option<bool>,
}

/// What a row gave.
#[derive(Debug, Serialize)]
pub(crate) struct RowResult {
    pub(crate) name: &'static str,
    pub(crate) what: String,
    pub(crate) cases: Vec<CaseResult>,
    pub(crate) verdicts: Vec<Verdict>,
}

/// The value in the middle; NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        _ if sorted.is_empty() => f64::NAN,
        0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

impl Row {
    pub(crate) fn tuned(mut self, tuning: &Tuning) -> Self {
        if !tuning.cases.is_empty() {
            self.cases.retain(|(label, _)| tuning.cases.contains(label));
            self.aims.clear();
        }
        for (_, task) in &mut self.cases {
            if task.client != Client::Raw {
                task.concurrency = tuning.concurrency.unwrap_or(task.concurrency);
                task.memory_bytes = tuning.memory_mib.map_or(task.memory_bytes, |mib| mib * MIB);
            }
        }
        if tuning
            .concurrency
            .or(tuning.memory_mib.map(|_| 0))
            .is_some()
        {
            for aim in &mut self.aims {
                aim.bound = Bound::None;
            }
        }
        self
    }

    /// Measures every case once a round, in turn: what the machine does meanwhile hits all of them alike.
    pub(crate) fn measure(self, rounds: Option<usize>) -> Outcome<RowResult> {
        let server = Server::start(&self.spec)?;
        let mut cases: Vec<_> = self
            .cases
            .iter()
            .map(|(label, _)| CaseResult {
                label: label.clone(),
                samples: Vec::new(),
            })
            .collect();
        let rounds = rounds.unwrap_or(self.rounds);
        for _ in 0..rounds {
            for ((_, task), case) in self.cases.iter().zip(&mut cases) {
                case.samples.push(Job::run(task, &server.endpoint)?);
            }
        }
        drop(server);
        self.check_bytes(&cases)?;
        let verdicts = self
            .aims
            .iter()
            .map(|aim| judge(aim, &cases, rounds))
            .collect();
        Ok(RowResult {
            name: self.name,
            what: self.what,
            cases,
            verdicts,
        })
    }

    /// Whoever read the same has seen the same, and at smoke scale what the server was told to have.
    fn check_bytes(&self, cases: &[CaseResult]) -> Outcome<()> {
        let mut expected = self.truth.as_ref().and_then(|truth| truth.tell(&self.spec));
        for ((label, task), case) in self.cases.iter().zip(cases) {
            for sample in &case.samples {
                let found = (sample.bytes, sample.fingerprint);
                let right = match &task.work {
                    Work::Small { requests, .. } => found.0 == requests * task.part_bytes,
                    Work::FirstByte { .. } => found.0 == task.part_bytes,
                    Work::Objects {
                        prefix,
                        size_bytes,
                        count,
                    } if prefix == "few/" => found.0 == size_bytes * count,
                    Work::Command { .. }
                    | Work::RawFirstByte { .. }
                    | Work::Train {
                        first_byte_only: true,
                        ..
                    } => found.0 > 0,
                    _ => found == *expected.get_or_insert(found),
                };
                if !right {
                    let name = self.name;
                    return Err(
                        format!("{name}, {label}: read {found:x?}, not {expected:x?}").into(),
                    );
                }
            }
        }
        Ok(())
    }
}

/// What the bytes below a prefix must look like.
#[derive(Debug)]
enum Truth {
    /// To a [`Consumer`].
    Touched(&'static str),
    /// To the reader of a FIFO.
    Crc(&'static str),
}

impl Truth {
    /// Bytes and fingerprint.
    fn tell(&self, spec: &Spec) -> Option<(u64, u64)> {
        let (Self::Touched(prefix) | Self::Crc(prefix)) = self;
        let mut consumer = Consumer::default();
        let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        for objects in spec
            .objects
            .iter()
            .filter(|objects| objects.key.starts_with(prefix))
        {
            for seed in 0..objects.count.unwrap_or(1) {
                let mut bytes = vec![0; objects.size_bytes as usize];
                fake_s3::content(seed, 0, &mut bytes);
                consumer.eat(&bytes);
                crc.update(&bytes);
            }
        }
        let fingerprint = match self {
            Self::Touched(_) => consumer.fingerprint,
            Self::Crc(_) => crc.finalize(),
        };
        Some((consumer.bytes, fingerprint))
    }
}

fn judge(aim: &Aim, cases: &[CaseResult], rounds: usize) -> Verdict {
    let values: Vec<f64> = (0..rounds)
        .map(|round| {
            let samples = cases
                .iter()
                .filter_map(|case| Some((case.label.as_str(), case.samples.get(round)?)));
            (aim.value)(&Round(samples.collect()))
        })
        .collect();
    let measured = median(&values);
    let (text, met) = match aim.bound {
        Bound::AtLeast(bound) => (format!("at least {bound}"), Some(measured >= bound)),
        Bound::AtMost(bound) => (format!("at most {bound}"), Some(measured <= bound)),
        Bound::None => ("none".into(), None),
    };
    Verdict {
        what: aim.what.clone(),
        aim: text,
        measured,
        least: values.iter().copied().fold(f64::INFINITY, f64::min),
        most: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        met,
    }
}

/// Sizes by scale.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    scale: Scale,
}

impl Sizes {
    fn pick<T>(self, full: T, quick: T, smoke: T) -> T {
        match self.scale {
            Scale::Full => full,
            Scale::Quick => quick,
            Scale::Smoke => smoke,
        }
    }

    fn big(self) -> u64 {
        self.pick(2 << 30, 1 << 30, 17 * MIB + 5)
    }

    fn rounds(self, noisy: bool) -> usize {
        self.pick(if noisy { 5 } else { 3 }, 3, 1)
    }

    fn row(self, name: &'static str, what: impl Into<String>, spec: Spec) -> Row {
        Row {
            name,
            what: what.into(),
            spec,
            rounds: self.rounds(false),
            cases: Vec::new(),
            aims: Vec::new(),
            truth: None,
        }
    }
}

impl Row {
    fn case(mut self, label: impl Into<String>, task: Task) -> Self {
        self.cases.push((label.into(), task));
        self
    }

    /// Times at smoke scale mean nothing.
    fn aim(mut self, sizes: Sizes, mut aim: Aim) -> Self {
        if sizes.scale == Scale::Smoke {
            aim.bound = Bound::None;
        }
        self.aims.push(aim);
        self
    }

    fn rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    /// Computing the bytes takes longer than reading them: only for tiny inputs.
    fn truth(mut self, sizes: Sizes, truth: Truth) -> Self {
        self.truth = (sizes.scale == Scale::Smoke).then_some(truth);
        self
    }
}

/// Unsigned, in parts of 8 MiB, with two parts of memory for each request: what the baseline has.
fn task(client: Client, concurrency: usize, work: Work) -> Task {
    Task {
        client,
        signed: false,
        concurrency,
        part_bytes: PART,
        memory_bytes: 2 * concurrency as u64 * PART,
        work,
    }
}

fn signed(task: Task) -> Task {
    Task {
        signed: true,
        ..task
    }
}

/// All rows, in the order of the table of promises.
pub(crate) fn all(scale: Scale) -> Vec<Row> {
    let sizes = Sizes { scale };
    vec![
        stream_plain(sizes),
        stream_tls(sizes),
        small(sizes),
        objects(sizes, "objects-fixed", "30ms+20ms/MiB"),
        objects(sizes, "objects-tail", "s3"),
        augmented(sizes),
        listing(sizes),
        capped(sizes),
        fifo(sizes),
        first_byte(sizes, "first-byte", false),
        first_byte(sizes, "first-byte-tls", true),
        pipe_or_download(sizes),
        memory(sizes, "memory-plain", false),
        memory(sizes, "memory-tls", true),
    ]
}

fn of_one(key: &str, size_bytes: u64, tls: bool) -> Spec {
    Spec {
        tls,
        objects: vec![Objects::one(key, size_bytes)],
        ..Spec::default()
    }
}

fn model(text: &str) -> Shape {
    Shape {
        latency: Latency::parse(text).expect("a model's name"),
        ..Shape::default()
    }
}

fn stream_plain(sizes: Sizes) -> Row {
    let size_bytes = sizes.big();
    let work = || Work::Stream {
        key: "big".into(),
        size_bytes,
    };
    let faster = |ours| move |round: &Round<'_>| round.ratio(ours, "raw", Sample::gb_per_s);
    let cheaper = |ours| move |round: &Round<'_>| round.ratio(ours, "raw", Sample::total_per_gb);
    sizes
        .row(
            "stream-plain",
            format!(
                "one object of {} MiB in order, plain, 8 in flight",
                size_bytes / MIB
            ),
            of_one("big", size_bytes, false),
        )
        .rounds(sizes.rounds(true))
        .truth(sizes, Truth::Touched("big"))
        .case("raw", task(Client::Raw, 8, work()))
        .case("direct", task(Client::Direct, 8, work()))
        .case("direct signed", signed(task(Client::Direct, 8, work())))
        .case("stock", task(Client::Stock, 8, work()))
        .aim(
            sizes,
            aim(
                "GB/s, direct to raw",
                Bound::AtLeast(0.95),
                faster("direct"),
            ),
        )
        .aim(
            sizes,
            aim(
                "total CPU/GB, direct to raw",
                Bound::AtMost(1.1),
                cheaper("direct"),
            ),
        )
        .aim(
            sizes,
            aim(
                "GB/s, direct signed to raw",
                Bound::AtLeast(0.95),
                faster("direct signed"),
            ),
        )
        .aim(
            sizes,
            aim(
                "total CPU/GB, direct signed to raw",
                Bound::AtMost(1.1),
                cheaper("direct signed"),
            ),
        )
        .aim(
            sizes,
            aim("GB/s, stock to raw", Bound::None, faster("stock")),
        )
        .aim(
            sizes,
            aim("total CPU/GB, stock to raw", Bound::None, cheaper("stock")),
        )
}

fn stream_tls(sizes: Sizes) -> Row {
    let size_bytes = sizes.big();
    let work = || Work::Stream {
        key: "big".into(),
        size_bytes,
    };
    sizes
        .row(
            "stream-tls",
            format!(
                "one object of {} MiB in order, TLS 1.3, 8 in flight",
                size_bytes / MIB
            ),
            of_one("big", size_bytes, true),
        )
        .rounds(sizes.rounds(true))
        .truth(sizes, Truth::Touched("big"))
        .case("direct", task(Client::Direct, 8, work()))
        .case("stock", task(Client::Stock, 8, work()))
        .aim(
            sizes,
            aim("GB/s, direct to stock", Bound::AtLeast(1.3), |round| {
                round.ratio("direct", "stock", Sample::gb_per_s)
            }),
        )
        .aim(
            sizes,
            aim(
                "client CPU/GB, direct to stock",
                Bound::AtMost(0.75),
                |round| round.ratio("direct", "stock", Sample::client_per_gb),
            ),
        )
        .aim(
            sizes,
            aim("total CPU/GB, direct to stock", Bound::None, |round| {
                round.ratio("direct", "stock", Sample::total_per_gb)
            }),
        )
}

fn small(sizes: Sizes) -> Row {
    let key_bytes = 16 * MIB;
    let task = |client, requests| Task {
        part_bytes: 4096,
        ..task(
            client,
            16,
            Work::Small {
                key: "small".into(),
                size_bytes: key_bytes,
                requests,
            },
        )
    };
    let many = sizes.pick(100_000, 50_000, 200);
    let few = sizes.pick(20_000, 10_000, 100);
    sizes
        .row(
            "small",
            "ranges of 4 KiB, 16 in flight, plain",
            of_one("small", key_bytes, false),
        )
        .rounds(sizes.rounds(true))
        .case("raw", task(Client::Raw, many))
        .case("direct", task(Client::Direct, many))
        .case("direct signed", signed(task(Client::Direct, many)))
        .case("stock signed", signed(task(Client::Stock, few)))
        .aim(
            sizes,
            aim(
                "client us/request, direct signed",
                Bound::AtMost(25.0),
                |round| round.get("direct signed").client_us_per_request(),
            ),
        )
        .aim(
            sizes,
            aim(
                "requests/s, direct signed to stock signed",
                Bound::AtLeast(4.0),
                |round| round.ratio("direct signed", "stock signed", Sample::requests_per_s),
            ),
        )
        .aim(
            sizes,
            aim("requests/s, direct signed to raw", Bound::None, |round| {
                round.ratio("direct signed", "raw", Sample::requests_per_s)
            }),
        )
}

fn objects(sizes: Sizes, name: &'static str, latency: &str) -> Row {
    let (count, size_bytes) = (sizes.pick(10_000, 5_000, 100), 100_000);
    let spec = Spec {
        shape: model(latency),
        objects: vec![Objects {
            key: "set/".into(),
            size_bytes,
            count: Some(count),
        }],
        ..Spec::default()
    };
    let task = |client| Task {
        memory_bytes: 256 * MIB,
        ..task(
            client,
            64,
            Work::Objects {
                prefix: "set/".into(),
                size_bytes,
                count,
            },
        )
    };
    let what = format!(
        "{count} objects of 100 KB in order, 64 in flight, latency {latency}, listing included (raw: in any order, not listed)"
    );
    sizes
        .row(name, what, spec)
        .truth(sizes, Truth::Touched("set/"))
        .case("raw", task(Client::Raw))
        .case("direct", task(Client::Direct))
        .aim(
            sizes,
            aim("objects/s, direct to raw", Bound::AtLeast(0.95), |round| {
                round.ratio("direct", "raw", Sample::gb_per_s)
            }),
        )
}

/// One by one the whole would take minutes: a fiftieth is read that way, and rates are compared.
fn augmented(sizes: Sizes) -> Row {
    let (count, size_bytes) = (sizes.pick(10_000, 5_000, 100), 100_000);
    let few = count / 50;
    let of = |key: &str, count| Objects {
        key: key.into(),
        size_bytes,
        count: Some(count),
    };
    let spec = Spec {
        shape: model("s3"),
        objects: vec![of("set/", count), of("few/", few)],
        manifests: vec![("set.jsonl".into(), "set/".into())],
        ..Spec::default()
    };
    let raw = |lanes, prefix: &str, count| {
        let work = Work::Objects {
            prefix: prefix.into(),
            size_bytes,
            count,
        };
        task(Client::Raw, lanes, work)
    };
    let ours = Task {
        memory_bytes: 256 * MIB,
        ..task(
            Client::Direct,
            64,
            Work::Augmented {
                manifest: "set.jsonl".into(),
            },
        )
    };
    let what = format!(
        "an augmented manifest with {count} refs of 100 KB in order, 64 in flight, latency s3, against GETs of known objects: 64 threads in any order, and one ({few} objects)"
    );
    sizes
        .row("augmented", what, spec)
        .truth(sizes, Truth::Touched("set/"))
        .case("64 naive", raw(64, "set/", count))
        .case("one by one", raw(1, "few/", few))
        .case("augmented", ours)
        .aim(
            sizes,
            aim(
                "objects/s, augmented to 64 naive",
                Bound::AtLeast(0.9),
                |round| round.ratio("augmented", "64 naive", Sample::gb_per_s),
            ),
        )
        .aim(
            sizes,
            aim(
                "objects/s, augmented to one by one",
                Bound::AtLeast(30.0),
                |round| round.ratio("augmented", "one by one", Sample::gb_per_s),
            ),
        )
}

/// A page takes what a small GET takes, and its own bytes; S3's pages are slower still.
fn listing(sizes: Sizes) -> Row {
    let count = sizes.pick(500_000, 200_000, 6_000);
    let spec = Spec {
        shape: model("60ms"),
        objects: vec![Objects {
            key: "keys/".into(),
            size_bytes: 1,
            count: Some(count),
        }],
        ..Spec::default()
    };
    let list = |in_one_go| {
        let work = Work::List {
            prefix: "keys/".into(),
            in_one_go,
        };
        task(Client::Direct, 64, work)
    };
    sizes
        .row(
            "listing",
            format!("{count} keys, pages of 1,000 after 60 ms each"),
            spec,
        )
        .case("in one go", list(true))
        .case("in ranges", list(false))
        .aim(
            sizes,
            aim("keys/s, in ranges", Bound::AtLeast(50_000.0), |round| {
                round.get("in ranges").requests_per_s()
            }),
        )
        .aim(
            sizes,
            aim("keys/s, in ranges to in one go", Bound::None, |round| {
                round.ratio("in ranges", "in one go", Sample::requests_per_s)
            }),
        )
}

fn capped(sizes: Sizes) -> Row {
    let size_bytes = sizes.big();
    let spec = Spec {
        shape: Shape {
            connection_bytes_per_second: Some(CONNECTION_BYTES_PER_SECOND),
            total_bytes_per_second: Some(TOTAL_BYTES_PER_SECOND),
            ..model("30ms")
        },
        ..of_one("big", size_bytes, false)
    };
    let what = format!(
        "one object of {} MiB in order, 30 ms and 90 MB/s a connection, 1500 MB/s in all",
        size_bytes / MIB
    );
    let mut row = sizes
        .row("capped", what, spec)
        .rounds(sizes.pick(3, 2, 1))
        .truth(sizes, Truth::Touched("big"));
    for lanes in [8usize, 16, 32] {
        let work = || Work::Stream {
            key: "big".into(),
            size_bytes,
        };
        let (raw, direct) = (format!("raw {lanes}"), format!("direct {lanes}"));
        let each = PART as f64 / (0.030 + PART as f64 / CONNECTION_BYTES_PER_SECOND as f64);
        let bound = (lanes as f64 * each).min(TOTAL_BYTES_PER_SECOND as f64) / 1e9;
        row = row
            .case(raw.clone(), task(Client::Raw, lanes, work()))
            .case(direct.clone(), task(Client::Direct, lanes, work()));
        let ours = direct.clone();
        row = row
            .aim(sizes, aim(
                format!("GB/s, {direct} to the lower of the cap and {raw}"),
                Bound::AtLeast(0.9),
                move |round| round.get(&direct).gb_per_s() / round.get(&raw).gb_per_s().min(TOTAL_BYTES_PER_SECOND as f64 / 1e9),
            ))
            .aim(sizes, aim(
                format!("GB/s, {ours} to the lower of the cap and {lanes} ideal connections ({bound:.3})"),
                Bound::None,
                move |round| round.get(&ours).gb_per_s() / bound,
            ));
    }
    row
}

fn fifo(sizes: Sizes) -> Row {
    let size_bytes = sizes.big();
    let work = || Work::Fifo {
        key: "big".into(),
        size_bytes,
    };
    let what = format!(
        "one object of {} MiB through a FIFO of 1 MiB, 8 in flight (raw: received, then written; CPU with the reader's)",
        size_bytes / MIB
    );
    sizes
        .row("fifo", what, of_one("big", size_bytes, false))
        .rounds(sizes.rounds(true))
        .truth(sizes, Truth::Crc("big"))
        .case("raw", task(Client::Raw, 8, work()))
        .case("direct", task(Client::Direct, 8, work()))
        .aim(
            sizes,
            aim("GB/s, pipe to raw", Bound::AtLeast(0.95), |round| {
                round.ratio("direct", "raw", Sample::gb_per_s)
            }),
        )
        .aim(
            sizes,
            aim("total CPU/GB, pipe to raw", Bound::None, |round| {
                round.ratio("direct", "raw", Sample::total_per_gb)
            }),
        )
}

/// As the engine is by default: what 10 Gb/s take.
fn trainer(client: Client, work: Work) -> Task {
    Task {
        memory_bytes: 336 * MIB,
        ..task(client, 28, work)
    }
}

/// The floor is what raw sockets need for a LIST of one key, a GET of one byte and the FIFO.
///
/// The unit is what a plain client needs for one GET in a fresh process. Both sides' clocks start at the same place:
/// with the process (before it, in whoever starts it), or with the first thing that a client does, which is to connect
/// for the one and to read its configuration for the other. LIST and GET are two units by nature; what is above is
/// set-up, parsing, the first part's own time on the line (4 KiB at 20 ms/MiB are 0.003 units) and the FIFO.
///
/// Over TLS, as S3 is used, a GET in a fresh process pays for a handshake. LIST pays for ours, and the GET follows on
/// the same connection.
fn first_byte(sizes: Sizes, name: &'static str, tls: bool) -> Row {
    let few = Objects {
        key: "few/".into(),
        size_bytes: 128 * MIB,
        count: Some(16),
    };
    let small = |key: &str, count| Objects {
        key: key.into(),
        size_bytes: 100_000,
        count: Some(count),
    };
    let some = small("some/", sizes.pick(5_000, 5_000, 1_200));
    let many = small("many/", sizes.pick(20_000, 20_000, 1_500));
    let spec = Spec {
        tls,
        shape: model("30ms+20ms/MiB"),
        objects: vec![few, some, many],
        manifests: vec![],
    };
    let train = |prefix: &str| {
        let work = Work::Train {
            prefix: prefix.into(),
            first_byte_only: true,
            work_bytes_per_second: None,
        };
        trainer(Client::Direct, work)
    };
    let command = Work::Command {
        prefix: "many/".into(),
    };
    let unit = Task {
        part_bytes: 1,
        ..task(
            Client::Raw,
            1,
            Work::FirstByte {
                key: "few/000000".into(),
            },
        )
    };
    let floor = task(
        Client::Raw,
        1,
        Work::RawFirstByte {
            prefix: "many/".into(),
        },
    );
    let since_client = |label| {
        move |round: &Round<'_>| {
            round.get(label).first_byte_since_client_s
                / round.get("one GET").first_byte_since_client_s
        }
    };
    let since_start = |label| {
        move |round: &Round<'_>| round.get(label).first_byte_s / round.get("one GET").first_byte_s
    };
    let mut row = sizes
        .row(
            name,
            format!(
                "Pipe: first byte in the reader, in units of one GET's; LIST included; latency 30ms+20ms/MiB, {}",
                if tls { "TLS" } else { "plain" }
            ),
            spec,
        )
        .rounds(sizes.pick(7, 5, 1))
        .case("one GET", unit)
        .case("raw LIST, GET, FIFO", floor)
        .case("16 x 128 MiB", train("few/"))
        .case("5000 x 100 KB", train("some/"))
        .case("20000 x 100 KB", train("many/"))
        .case("the command", trainer(Client::Direct, command))
        .aim(
            sizes,
            aim(
                "20000 keys against 5000",
                // Nothing of the second page is waited for; the rest is what the machine does meanwhile.
                Bound::AtMost(1.05),
                |round: &Round<'_>| {
                    round.get("20000 x 100 KB").first_byte_s / round.get("5000 x 100 KB").first_byte_s
                },
            ),
        );
    row = row.aim(
        sizes,
        aim(
            "20000 x 100 KB, `standpipe pipe` since its start",
            Bound::None,
            since_start("the command"),
        ),
    );
    for (clock, value) in [
        (
            "client's construction",
            Box::new(since_client("raw LIST, GET, FIFO")) as Value,
        ),
        (
            "process's start",
            Box::new(since_start("raw LIST, GET, FIFO")),
        ),
    ] {
        row = row.aim(
            sizes,
            aim(
                format!("the floor: raw LIST, GET and FIFO, since the {clock}"),
                Bound::None,
                value,
            ),
        );
    }
    for label in ["16 x 128 MiB", "20000 x 100 KB"] {
        row = row
            .aim(
                sizes,
                aim(
                    format!("{label}, since the client's construction"),
                    Bound::AtMost(2.0),
                    since_client(label),
                ),
            )
            .aim(
                sizes,
                aim(
                    format!("{label}, since the process's start"),
                    Bound::AtMost(2.0),
                    since_start(label),
                ),
            );
    }
    row
}

fn pipe_or_download(sizes: Sizes) -> Row {
    let files = Objects {
        key: "files/".into(),
        size_bytes: sizes.big() / 16,
        count: Some(16),
    };
    let spec = Spec {
        shape: model("s3"),
        objects: vec![files],
        ..Spec::default()
    };
    let pipe = |work_bytes_per_second| {
        let work = Work::Train {
            prefix: "files/".into(),
            first_byte_only: false,
            work_bytes_per_second,
        };
        trainer(Client::Direct, work)
    };
    let download = |work_bytes_per_second| {
        let work = Work::DownloadThenTrain {
            prefix: "files/".into(),
            work_bytes_per_second,
        };
        trainer(Client::Direct, work)
    };
    let what = format!(
        "{} MiB from a process's start to the reader's last byte, latency s3; the reader that works does 1 GB/s",
        sizes.big() / MIB
    );
    let busy = Some(WORK_BYTES_PER_SECOND);
    sizes
        .row("pipe-or-download", what, spec)
        .truth(sizes, Truth::Crc("files/"))
        .case("pipe, working reader", pipe(busy))
        .case("download, working reader", download(busy))
        .case("pipe, idle reader", pipe(None))
        .case("download, idle reader", download(None))
        .aim(
            sizes,
            aim(
                "time, pipe to download, working reader",
                Bound::AtMost(0.7),
                |round| {
                    round.ratio(
                        "pipe, working reader",
                        "download, working reader",
                        |sample| sample.seconds,
                    )
                },
            ),
        )
        .aim(
            sizes,
            aim(
                "time, pipe to download, idle reader",
                Bound::AtMost(0.7),
                |round| {
                    round.ratio("pipe, idle reader", "download, idle reader", |sample| {
                        sample.seconds
                    })
                },
            ),
        )
        .aim(
            sizes,
            aim("first byte, pipe to download", Bound::None, |round| {
                round.ratio("pipe, idle reader", "download, idle reader", |sample| {
                    sample.first_byte_s
                })
            }),
        )
}

fn memory(sizes: Sizes, name: &'static str, tls: bool) -> Row {
    let size_bytes = sizes.pick(1 << 30, 1 << 30, 17 * MIB + 5);
    let what = format!(
        "peak memory above the budget, {} MiB in order twice, 28 in flight, {}",
        size_bytes / MIB,
        if tls { "TLS" } else { "plain" }
    );
    let mut row = sizes
        .row(name, what, of_one("big", size_bytes, tls))
        .rounds(sizes.pick(3, 1, 1))
        .truth(sizes, Truth::Touched("big"));
    for budget in [32u64, 64, 128, 256, 512] {
        let work = Work::Stream {
            key: "big".into(),
            size_bytes,
        };
        let label = format!("{budget} MiB");
        let task = Task {
            memory_bytes: budget * MIB,
            ..task(Client::Direct, 28, work)
        };
        row = row.case(label.clone(), task).aim(
            sizes,
            aim(
                format!("MiB above a budget of {budget} MiB"),
                Bound::AtMost(64.0),
                move |round| round.get(&label).peak_rss_bytes as f64 / MIB as f64 - budget as f64,
            ),
        );
    }
    row
}
