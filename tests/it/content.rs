//! What a channel's FIFOs carry: manifests, records, compression, shuffling and shares; and what is wrong with an input.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fake_s3::{Effect, FakeS3, Operation, Rule};
use flate2::write::GzEncoder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use standpipe::client::{LocalClient, MemoryClient, ObjectClient};
use standpipe::download::{Download, DownloadConfig};
use standpipe::error::{Error, Result};
use standpipe::input::{Channel, Selection, Shard, permutation};
use standpipe::metrics::Metrics;
use standpipe::pipe::{Content, PipeChannel, PipeConfig, PipeServer};
use standpipe::prefetch::{PrefetchConfig, Prefetcher};
use standpipe::record::recordio;
use standpipe::runtime;

/// No step of a test takes this long unless something hangs.
const HANG: Duration = Duration::from_secs(20);

/// Objects in memory, and an engine over them.
struct Stage {
    memory: MemoryClient,
    engine: Prefetcher,
}

impl Stage {
    fn new(objects: &[(&str, &[u8])]) -> Self {
        let memory = MemoryClient::default();
        for (key, bytes) in objects {
            memory.put(format!("memory://m/{key}").parse().unwrap(), bytes.to_vec());
        }
        let engine = engine(Arc::new(memory.clone()));
        Self { memory, engine }
    }

    fn put(&self, key: &str, bytes: impl Into<Bytes>) {
        self.memory
            .put(format!("memory://m/{key}").parse().unwrap(), bytes);
    }

    /// What a channel delivers in its first epochs, or why it delivers nothing. `{m}` stands for the bucket.
    fn epochs(&self, channel: &str, shard: Shard, epochs: u64) -> Result<Vec<Vec<u8>>> {
        epochs_of(
            &self.engine,
            &channel.replace("{m}", "memory://m"),
            shard,
            epochs,
        )
    }

    fn epoch(&self, channel: &str) -> Vec<u8> {
        self.epochs(channel, Shard::WHOLE, 1).unwrap().remove(0)
    }

    fn refused(&self, channel: &str) -> String {
        let error = self.epochs(channel, Shard::WHOLE, 1).unwrap_err();
        chain(&error)
    }
}

fn engine(client: Arc<dyn ObjectClient>) -> Prefetcher {
    let mut config = PrefetchConfig::default();
    config.memory_bytes = 64 << 20;
    config.part_bytes = 1 << 20;
    Prefetcher::new(client, config, Arc::new(Metrics::default())).unwrap()
}

/// An error and its causes.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn epochs_of(
    engine: &Prefetcher,
    channel: &str,
    shard: Shard,
    epochs: u64,
) -> Result<Vec<Vec<u8>>> {
    let channel: Channel = channel.parse()?;
    let content = runtime::handle().block_on(Content::open(engine, &channel, shard))?;
    let dir = tempfile::tempdir().unwrap();
    let mut config = PipeConfig::new(dir.path());
    config.epochs = Some(epochs);
    config.farewell_grace = Duration::from_millis(10);
    let name = channel.name.parse()?;
    let channel = PipeChannel::new(name, move |epoch| content.epoch(epoch, |objects| objects));
    let (failed, failure) = mpsc::channel();
    let server = PipeServer::start(
        config,
        vec![channel],
        engine.metrics().clone(),
        Arc::new(move |failure| failed.send(failure.error.clone()).unwrap()),
    )?;
    let (path, (tell, told)) = (dir.path().to_owned(), mpsc::channel());
    thread::spawn(move || {
        for epoch in 0..epochs {
            let fifo = path.join(format!("train_{epoch}"));
            while !fifo.exists() {
                thread::sleep(Duration::from_millis(1));
            }
            let _ = tell.send(fs::read(fifo).unwrap());
        }
    });
    let mut all = Vec::new();
    let since = Instant::now();
    while all.len() < epochs as usize {
        assert!(since.elapsed() < HANG, "it hangs");
        if let Ok(error) = failure.try_recv() {
            drop(server);
            return Err(error);
        }
        all.extend(told.recv_timeout(Duration::from_millis(2)));
    }
    drop(server);
    Ok(all)
}

fn records<'a>(payloads: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut all = Vec::new();
    payloads
        .into_iter()
        .for_each(|payload| recordio::encode(payload, u32::MAX, &mut all));
    all
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn shard(rank: u64, count: u64) -> Shard {
    Shard::new(rank, count).unwrap()
}

/// Single letters as objects `d/a`, `d/b`, ...
fn letters(count: u8) -> (Stage, Vec<u8>) {
    let stage = Stage::new(&[]);
    let letters: Vec<u8> = (b'a'..b'a' + count).collect();
    for letter in &letters {
        stage.put(&format!("d/{}", char::from(*letter)), vec![*letter]);
    }
    (stage, letters)
}

/// I1: a prefix is the beginning of keys, and not a folder: the key itself and all longer ones; markers of folders are
/// none of the data.
#[test]
fn a_prefix_is_the_beginning_of_keys() {
    let stage = Stage::new(&[
        ("train", b"1"),
        ("train-old/x", b"2"),
        ("train/", b""),
        ("train/a/", b""),
        ("train/a/y", b"3"),
        ("tr", b"no"),
    ]);
    assert_eq!(stage.epoch("train={m}/train"), b"123");
    assert_eq!(stage.epoch("train={m}/train/"), b"3");
    assert_eq!(stage.epoch("train={m}/train/a/y"), b"3");
    assert_eq!(
        stage.epoch("train={m}/train,record-wrapper=recordio"),
        records([&b"1"[..], b"2", b"3"])
    );
}

/// I2: a manifest's objects come in its order, each as often as it stands there.
#[test]
fn a_manifest_is_delivered_in_its_order() {
    let stage = Stage::new(&[
        ("p/a", b"A"),
        ("p/b/c", b"BC"),
        ("p/dir/", b""),
        (
            "m",
            b"[{\"prefix\": \"memory://m/p/\"}, \"b/c\", \"a\", \"dir/\", \"b/c\"]",
        ),
    ]);
    assert_eq!(stage.epoch("train={m}/m,s3-data-type=manifest"), b"BCABC");
    let wrapped = stage.epoch("train={m}/m,s3-data-type=ManifestFile,record-wrapper=RecordIO");
    assert_eq!(wrapped, records([&b"BC"[..], b"A", b"BC"]));
}

/// I3: of each line of an augmented manifest the attributes come in the order of AttributeNames: of those in `-ref` the
/// object's bytes, of strings the text without quotes, of all else the text as it stands in the line.
#[test]
fn an_augmented_manifest_is_delivered_line_by_line_in_the_order_of_the_names() {
    let stage = Stage::new(&[
        ("1.jpg", b"ONE"),
        ("2.jpg", b""),
        (
            "m.jsonl",
            b"{\"class\": 1, \"image-ref\": \"memory://m/1.jpg\", \"box\": [1,  2.50], \"x\": {}}\n\
              {\"image-ref\": \"memory://m/2.jpg\", \"box\": \"[]\", \"class\": \"zero\"}\n",
        ),
    ]);
    let of = |names: &str, more: &str| {
        stage.epoch(&format!(
            "train={{m}}/m.jsonl,s3-data-type=augmented,attribute-names={names}{more}"
        ))
    };
    let wrapped = of("image-ref:class:box", ",record-wrapper=recordio");
    assert_eq!(
        wrapped,
        records([&b"ONE"[..], b"1", b"[1,  2.50]", b"", b"zero", b"[]"])
    );
    assert_eq!(of("class:image-ref", ""), b"1ONEzero");
    assert_eq!(
        of("class", ",record-wrapper=recordio"),
        records([&b"1"[..], b"zero"])
    );
}

/// I4: with RecordIO each object or attribute is one record, whole below 2^29 bytes; beyond that, or beyond
/// record-part-size, in parts without anything between them.
#[test]
fn records_are_whole_unless_a_part_size_is_asked_for() {
    let large: Vec<u8> = (0..3_000_001u32).map(|n| (n / 7) as u8).collect();
    let stage = Stage::new(&[
        ("d/a", &large),
        ("d/b", b""),
        ("d/c", b"\x0a\x23\xd7\xcemagic"),
    ]);
    let objects = [&large[..], b"", b"\x0a\x23\xd7\xcemagic"];
    assert!(stage.epoch("train={m}/d/,record-wrapper=recordio") == records(objects));
    let mut parts = Vec::new();
    objects
        .iter()
        .for_each(|object| recordio::encode(object, 1_000_000, &mut parts));
    assert!(stage.epoch("train={m}/d/,record-wrapper=recordio,record-part-size=1000000") == parts);
}

/// I5: gzip is undone object by object, whatever its number of members, before records are made of it.
#[test]
fn gzip_is_undone_before_the_wrapping() {
    let text = vec![7; 5_000_000];
    let members = [gzip(b"one"), gzip(b""), gzip(b"two")].concat();
    let stage = Stage::new(&[
        ("d/a.gz", &members),
        ("d/b", &gzip(&text)),
        ("d/c", &gzip(b"")),
    ]);
    let plain = [&b"onetwo"[..], &text].concat();
    assert!(stage.epoch("train={m}/d/,compression=gzip") == plain);
    let wrapped = stage.epoch("train={m}/d/,compression=gzip,record-wrapper=recordio");
    assert!(wrapped == records([&b"onetwo"[..], &text, b""]));
    stage.put(
        "m.jsonl",
        "{\"a-ref\": \"memory://m/d/a.gz\", \"b\": \"text\"}",
    );
    let augmented =
        "train={m}/m.jsonl,s3-data-type=augmented,attribute-names=a-ref:b,compression=gzip";
    assert_eq!(stage.epoch(augmented), b"onetwotext");
}

/// I6: each epoch of a shuffled channel has an order of its own, which the seed, the epoch and the number of items decide:
/// objects of a prefix, entries of a manifest, lines of an augmented one. Without a seed all epochs are alike.
#[test]
fn shuffled_epochs_differ_and_are_the_same_in_every_run() {
    let (stage, letters) = letters(20);
    let lines: String = letters
        .iter()
        .map(|l| format!("{{\"n\": \"{}\"}}\n", char::from(*l)))
        .collect();
    stage.put("m.jsonl", lines);
    let names: Vec<String> = letters
        .iter()
        .map(|l| format!("\"{}\"", char::from(*l)))
        .collect();
    stage.put(
        "m",
        format!("[{{\"prefix\": \"memory://m/d/\"}}, {}]", names.join(",")),
    );
    let expected: Vec<Vec<u8>> = (0..3)
        .map(|epoch| {
            permutation(-5, epoch, 20)
                .iter()
                .map(|at| letters[*at as usize])
                .collect()
        })
        .collect();
    for channel in [
        "d/",
        "m,s3-data-type=manifest",
        "m.jsonl,s3-data-type=augmented,attribute-names=n",
    ] {
        for _run in 0..2 {
            let epochs = stage
                .epochs(
                    &format!("train={{m}}/{channel},shuffle=-5"),
                    Shard::WHOLE,
                    3,
                )
                .unwrap();
            assert_eq!(epochs, expected, "{channel}");
        }
    }
    assert_ne!(expected[0], expected[1]);
    assert_eq!(
        stage.epochs("train={m}/d/", Shard::WHOLE, 2).unwrap(),
        [letters.clone(), letters]
    );
}

/// I7: with ShardedByS3Key each host gets a share, and all shares together are the whole, each item once; they differ by
/// one item at most, and of fewer items than hosts some hosts get none. A shuffled channel is shuffled as a whole first,
/// so that a host's share is another one in each epoch.
#[test]
fn shares_make_up_the_whole_and_move_with_the_shuffle() {
    let (stage, letters) = letters(11);
    for seed in ["", ",shuffle=3"] {
        let channel = format!("train={{m}}/d/,distribution=sharded{seed}");
        let shares: Vec<_> = (0..4)
            .map(|rank| stage.epochs(&channel, shard(rank, 4), 2).unwrap())
            .collect();
        for epoch in 0..2 {
            let mut all: Vec<u8> = shares
                .iter()
                .flat_map(|share| share[epoch].clone())
                .collect();
            all.sort_unstable();
            assert_eq!(all, letters);
            assert!(
                shares
                    .iter()
                    .all(|share| matches!(share[epoch].len(), 2 | 3))
            );
        }
        assert_eq!(shares[0][0] == shares[0][1], seed.is_empty());
    }
    assert_eq!(
        stage
            .epochs("train={m}/d/,distribution=sharded", shard(1, 4), 1)
            .unwrap()[0],
        b"bfj"
    );
    assert_eq!(
        stage
            .epochs("train={m}/d/,distribution=sharded", shard(11, 12), 2)
            .unwrap(),
        [b"", b""]
    );
    // Who is not told to share gets everything.
    assert_eq!(
        stage.epochs("train={m}/d/", shard(1, 4), 1).unwrap()[0],
        letters
    );
}

/// I8: what there is, is found out once: all epochs deliver the same objects, whatever is added later, and an object that
/// is replaced is an error.
#[test]
fn epochs_share_one_listing() {
    let (stage, letters) = letters(5);
    let channel: Channel = "train=memory://m/d/".parse().unwrap();
    let content = runtime::handle()
        .block_on(Content::open(&stage.engine, &channel, Shard::WHOLE))
        .unwrap();
    let read = |epoch| -> Result<Vec<u8>> {
        let objects = content.agenda().objects(epoch);
        let mut reader = stage.engine.read_all(objects)?.blocking();
        let mut all = Vec::new();
        while let Some(chunk) = reader.next_chunk()? {
            all.extend_from_slice(&chunk.bytes);
        }
        Ok(all)
    };
    assert_eq!(read(0).unwrap(), letters);
    stage.put("d/z", "later");
    assert_eq!(read(1).unwrap(), letters);
    stage.put("d/c", "replaced");
    assert!(matches!(read(2).unwrap_err(), Error::Changed { uri, .. } if uri == "memory://m/d/c"));
}

/// I9: what is wrong with a manifest is told before anything is served, with its address and the element or line.
#[test]
fn a_malformed_manifest_is_told_with_its_line() {
    let stage = Stage::new(&[
        ("d/a", b"A"),
        ("m", b"[{\"prefix\": \"memory://m/d/\"},\n \"a\",\n 3]"),
        (
            "m.jsonl",
            b"{\"a-ref\": \"memory://m/d/a\"}\n{\"a-ref\": \"memory://m/d/a\"\n",
        ),
        (
            "kind.jsonl",
            b"{\"a-ref\": \"memory://m/d/a\"}\n{\"a-ref\": [1]}\n",
        ),
    ]);
    for (channel, words) in [
        (
            "m,s3-data-type=manifest",
            ["memory://m/m:", "element 2", "line 3"],
        ),
        (
            "d/a,s3-data-type=manifest",
            ["memory://m/d/a:", "not a manifest", "line 1"],
        ),
        (
            "m.jsonl,s3-data-type=augmented,attribute-names=a-ref",
            ["memory://m/m.jsonl,", "line 2", "not JSON"],
        ),
        (
            "kind.jsonl,s3-data-type=augmented,attribute-names=a-ref",
            ["memory://m/kind.jsonl,", "line 2", "\"a-ref\""],
        ),
        (
            "none,s3-data-type=manifest",
            ["memory://m/none", "not found", ""],
        ),
        ("none/", ["memory://m/none/", "not found", ""]),
    ] {
        let error = stage.refused(&format!("train={{m}}/{channel}"));
        assert!(
            words.iter().all(|word| error.contains(word)),
            "{channel}: {error}"
        );
    }
}

/// I10: a line that lacks an attribute is such an error, too, unless on-missing-attribute=skip leaves it out.
#[test]
fn a_missing_attribute_is_an_error_or_leaves_its_line_out() {
    let stage = Stage::new(&[(
        "m.jsonl",
        b"{\"a\": 1, \"b\": 2}\n{\"b\": 3}\n{\"b\": 4, \"a\": 5}\n",
    )]);
    let channel = "train={m}/m.jsonl,s3-data-type=augmented,attribute-names=a:b";
    let error = stage.refused(channel);
    assert!(
        error.contains("m.jsonl, line 2") && error.contains("\"a\" is missing"),
        "{error}"
    );
    assert_eq!(
        stage.epoch(&format!("{channel},on-missing-attribute=skip")),
        b"1254"
    );
}

/// I11: an object that is not there is an error that names it, and where the manifest names it; its epoch gets no end.
#[test]
fn a_missing_object_is_an_error_that_names_the_line() {
    let stage = Stage::new(&[
        ("d/a", b"A"),
        ("m", b"[{\"prefix\": \"memory://m/d/\"}, \"a\", \"gone\"]"),
        (
            "m.jsonl",
            b"{\"x-ref\": \"memory://m/d/a\"}\n\n{\"x-ref\": \"memory://m/d/gone\"}\n",
        ),
    ]);
    let error = stage.refused("train={m}/m,s3-data-type=manifest");
    assert!(
        error.contains("an entry of memory://m/m: memory://m/d/gone: not found"),
        "{error}"
    );
    let error = stage.refused("train={m}/m.jsonl,s3-data-type=augmented,attribute-names=x-ref");
    assert!(
        error.contains(
            "memory://m/m.jsonl, line 3, attribute \"x-ref\": memory://m/d/gone: not found"
        ),
        "{error}"
    );
}

/// I12: an object that is no gzip, or not all of one, is an error that names it and the offset.
#[test]
fn wrong_gzip_is_an_error_that_names_the_object() {
    let whole = gzip(&[1; 100_000]);
    let stage = Stage::new(&[
        ("a/x", b"no gzip at all"),
        ("b/x", &whole[..whole.len() - 4]),
    ]);
    for key in ["a/", "b/"] {
        for wrapper in ["", ",record-wrapper=recordio"] {
            let error = stage.refused(&format!("train={{m}}/{key},compression=gzip{wrapper}"));
            assert!(
                error.contains(&format!("memory://m/{key}x")) && error.contains("offset"),
                "{error}"
            );
            assert!(error.contains("gzip"), "{error}");
        }
    }
}

/// I13: a download takes manifests and shares; the files of a manifest are called by their whole keys, or as they stand in
/// it.
#[test]
fn manifests_and_shares_are_downloaded() {
    let stage = Stage::new(&[
        ("p/q/a", b"A"),
        ("p/q/b", b"B"),
        ("p/q/c", b"C"),
        (
            "m",
            b"[{\"prefix\": \"memory://m/p/q/\"}, \"c\", \"a\", \"b\"]",
        ),
    ]);
    let download = |channel: &str, host: Shard| {
        let dir = tempfile::tempdir().unwrap();
        let channel: Channel = format!("t=memory://m/{channel}").parse().unwrap();
        let selection = Selection::of_channel(&channel, host).unwrap();
        Download::of(
            stage.engine.clone(),
            selection,
            dir.path(),
            DownloadConfig::default(),
        )
        .run()
        .unwrap();
        files(dir.path())
    };
    assert_eq!(
        download("m,s3-data-type=manifest", Shard::WHOLE),
        ["p/q/a", "p/q/b", "p/q/c"]
    );
    let relative = "m,s3-data-type=manifest,manifest-names=relative,distribution=sharded";
    assert_eq!(download(relative, shard(0, 2)), ["b", "c"]);
    assert_eq!(download(relative, shard(1, 2)), ["a"]);
    assert_eq!(download("p/,distribution=sharded", shard(1, 2)), ["q/b"]);
}

/// Files below a directory, sorted; each holds the capital of its name's last letter.
fn files(dir: &Path) -> Vec<String> {
    let output = Command::new("find")
        .args([".", "-type", "f"])
        .current_dir(dir)
        .output()
        .unwrap();
    let mut names: Vec<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| line[2..].to_owned())
        .collect();
    names.sort();
    for name in &names {
        let bytes = fs::read(dir.join(name)).unwrap();
        assert_eq!(
            bytes.to_ascii_lowercase(),
            &name.as_bytes()[name.len() - 1..]
        );
    }
    names
}

/// I14: what a mode cannot do is refused in the service's words, before anything is read.
#[test]
fn what_file_mode_cannot_do_is_refused() {
    for (options, words) in [
        (
            "compression=gzip",
            "Invalid compression type for channel training: File mode only supports NONE, got Gzip instead",
        ),
        ("record-wrapper=recordio", "RecordWrapperType"),
        (
            "s3-data-type=augmented,attribute-names=a",
            "AugmentedManifestFile can only be used if the Channel's input mode is Pipe",
        ),
    ] {
        let channel: Channel = format!("training=s3://b/p/,{options}").parse().unwrap();
        let error = Selection::of_channel(&channel, Shard::WHOLE)
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// I15: local files do for all of it: as prefixes, in manifests, as manifests.
#[test]
fn local_files_are_inputs_of_every_kind() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().display();
    fs::create_dir(dir.path().join("d")).unwrap();
    for (name, bytes) in [("d/a", &b"A"[..]), ("d/b", &gzip(b"B")[..])] {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    fs::write(
        dir.path().join("m"),
        format!("[{{\"prefix\": \"file://{root}/d/\"}}, \"a\"]"),
    )
    .unwrap();
    fs::write(
        dir.path().join("m.jsonl"),
        format!("{{\"x-ref\": \"file://{root}/d/b\", \"y\": 1}}"),
    )
    .unwrap();
    let engine = engine(Arc::new(LocalClient::new(Arc::default())));
    for (channel, expected) in [
        ("d/a", &b"A"[..]),
        ("m,s3-data-type=manifest", &b"A"[..]),
        (
            "m.jsonl,s3-data-type=augmented,attribute-names=y:x-ref,compression=gzip",
            &b"1B"[..],
        ),
    ] {
        let channel = format!("train=file://{root}/{channel}");
        let epochs = epochs_of(&engine, &channel, Shard::WHOLE, 2).unwrap();
        assert_eq!(epochs, [expected, expected], "{channel}");
    }
    let two = epochs_of(
        &engine,
        &format!("train=file://{root}/d/,distribution=sharded"),
        shard(1, 2),
        1,
    )
    .unwrap();
    assert_eq!(two, [gzip(b"B")]);
}

/// The command against `server`, with nothing of the machine's environment but the path.
fn standpipe(server: &FakeS3, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_standpipe"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .args(args)
        .args(["--endpoint-url", &server.endpoint(), "--no-sign-request"])
        .args(["--region", server.region()]);
    command
}

fn wait_for(path: &Path) {
    let since = Instant::now();
    while !path.exists() {
        assert!(since.elapsed() < HANG, "{} never came", path.display());
        thread::sleep(Duration::from_millis(1));
    }
}

/// An augmented manifest in S3 through the command: shuffled, shared out, decompressed and wrapped.
#[test]
fn the_command_serves_an_augmented_manifest() {
    let server = FakeS3::start().unwrap();
    let mut lines = String::new();
    for n in 0..200 {
        server.put(
            "bkt",
            &format!("img/{n:03}.gz"),
            &gzip(format!("image {n}").as_bytes()),
        );
        lines += &format!("{{\"image-ref\": \"s3://bkt/img/{n:03}.gz\", \"class\": {n}}}\n");
    }
    server.put("bkt", "train.jsonl", lines.as_bytes());
    let dir = tempfile::tempdir().unwrap();
    let channel = "train=s3://bkt/train.jsonl,s3-data-type=augmented,attribute-names=image-ref:class,shuffle=9,\
                   distribution=sharded,record-wrapper=recordio,compression=gzip";
    let args = [
        "pipe",
        "--channel",
        channel,
        "--hosts",
        "algo-2,algo-10,algo-1",
        "--current-host",
        "algo-10",
        "--epochs",
        "2",
    ];
    let mut command = standpipe(&server, &args);
    let mut command = command.arg("--dir").arg(dir.path()).spawn().unwrap();
    for epoch in 0..2u64 {
        let fifo = dir.path().join(format!("train_{epoch}"));
        wait_for(&fifo);
        let order = permutation(9, epoch, 200);
        let mine: Vec<_> = order
            .iter()
            .skip(1)
            .step_by(3)
            .map(|n| (format!("image {n}"), n.to_string()))
            .collect();
        let expected = records(
            mine.iter()
                .flat_map(|(image, class)| [image.as_bytes(), class.as_bytes()]),
        );
        assert!(fs::read(fifo).unwrap() == expected, "epoch {epoch}");
    }
    assert!(fs::read(dir.path().join("train_2")).unwrap().is_empty());
    assert!(command.wait().unwrap().success());
    let heads = server
        .log()
        .iter()
        .filter(|entry| entry.operation == Operation::Head && entry.key.starts_with("img/"))
        .count();
    assert!(heads < 120, "{heads} HEADs although the folder was listed");
}

/// I11: one that may not be read is one as well; through the command it is told on standard error, beside the FIFO and by
/// the exit code.
#[test]
fn a_forbidden_object_is_told_with_its_line() {
    let server = FakeS3::start().unwrap();
    server.put("bkt", "a", b"A");
    server.put("bkt", "secret", b"S");
    server.put(
        "bkt",
        "m.jsonl",
        b"{\"x-ref\": \"s3://bkt/a\"}\n{\"x-ref\": \"s3://bkt/secret\"}\n",
    );
    let denied = Rule::new(Effect::Status {
        status: 403,
        code: String::new(),
    });
    server.script("bkt/secret", vec![denied]);
    let dir = tempfile::tempdir().unwrap();
    let channel = "train=s3://bkt/m.jsonl,s3-data-type=augmented,attribute-names=x-ref";
    let mut command = standpipe(
        &server,
        &["pipe", "--channel", channel, "--failure-grace", "0"],
    );
    let command = command.arg("--dir").arg(dir.path());
    let command = command.stderr(Stdio::piped()).spawn().unwrap();
    let fifo = dir.path().join("train_0");
    wait_for(&fifo);
    // Nobody who reads on is told of an end before the process is gone.
    assert_eq!(fs::read(fifo).unwrap(), b"A");
    let output = command.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(
        errors.contains("line 2") && errors.contains("s3://bkt/secret"),
        "{errors}"
    );
    let status = fs::read_to_string(dir.path().join("train_0.error.json")).unwrap();
    assert!(
        status.contains("s3://bkt/secret") && status.contains("line 2"),
        "{status}"
    );
}

/// Bytes of an epoch by `examples/pipe_bring_your_own`'s train.py: looks every 0.1 s, for ever; reads up to 16 MiB at once.
fn read_as_bring_your_own(dir: &Path, channel: &str, epoch: u64, limit: usize) -> Vec<u8> {
    let path = dir.join(format!("{channel}_{epoch}"));
    while !path.exists() {
        thread::sleep(Duration::from_millis(100));
    }
    let (mut file, mut all) = (File::open(path).unwrap(), Vec::new());
    let mut buffer = vec![0; 16 << 20];
    while all.len() < limit {
        match file.read(&mut buffer).unwrap() {
            0 => break,
            n => all.extend_from_slice(&buffer[..n]),
        }
    }
    all
}

/// By PipeModeDataset: the epoch's number comes out of a state file, which is counted up; sleeps grow by a step (of 1 s
/// there); reads 64 KiB at once.
fn read_as_pipe_mode_dataset(dir: &Path, channel: &str) -> Vec<u8> {
    let state = dir.join(format!(".{channel}-pipe_mode-state"));
    let epoch: u64 = fs::read_to_string(&state).map_or(0, |text| text.parse().unwrap());
    fs::write(&state, (epoch + 1).to_string()).unwrap();
    let path = dir.join(format!("{channel}_{epoch}"));
    let mut pause = Duration::from_millis(10);
    while !path.exists() {
        thread::sleep(pause);
        pause += Duration::from_millis(10);
    }
    let (mut file, mut all) = (File::open(path).unwrap(), Vec::new());
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return all,
            n => all.extend_from_slice(&buffer[..n]),
        }
    }
}

/// By MLIO: three attempts a second apart, then never again; opens without blocking; what does not come within the data
/// timeout is an error.
fn read_as_mlio(dir: &Path, channel: &str, epoch: u64) -> Vec<u8> {
    let path = dir.join(format!("{channel}_{epoch}"));
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let open = |attempt| {
        if attempt > 0 {
            thread::sleep(Duration::from_secs(1));
        }
        File::options()
            .read(true)
            .custom_flags(nonblocking)
            .open(&path)
            .ok()
    };
    let mut file = (0..3)
        .find_map(open)
        .expect("the FIFO is there within two seconds");
    let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
    loop {
        let limit = Timespec {
            tv_sec: HANG.as_secs() as i64,
            tv_nsec: 0,
        };
        let ready = poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&limit)).unwrap();
        assert!(ready > 0, "FIFO {epoch} timed out");
        match file.read(&mut buffer) {
            Ok(0) => return all,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
}

/// P4, P8: three readers with the habits of those that exist, each on a channel of its own, read three epochs of records;
/// one leaves its second epoch early.
#[test]
fn readers_with_known_habits_get_their_records() {
    let (stage, letters) = letters(26);
    let dir = tempfile::tempdir().unwrap();
    let mut config = PipeConfig::new(dir.path());
    config.epochs = Some(3);
    config.farewell_grace = Duration::from_millis(10);
    let channels = ["own", "dataset", "mlio"].map(|name| {
        let channel: Channel = format!("{name}=memory://m/d/,record-wrapper=recordio,shuffle=1")
            .parse()
            .unwrap();
        let content = Content::open(&stage.engine, &channel, Shard::WHOLE);
        let content = runtime::handle().block_on(content).unwrap();
        PipeChannel::new(name.parse().unwrap(), move |epoch| {
            content.epoch(epoch, |objects| objects)
        })
    });
    let server = PipeServer::start(
        config,
        channels.into(),
        stage.engine.metrics().clone(),
        Arc::new(|failure| panic!("{failure:?}")),
    );
    let mut server = server.unwrap();
    let expected: Vec<Vec<u8>> = (0..3)
        .map(|epoch| {
            let order = permutation(1, epoch, 26);
            let payloads: Vec<[u8; 1]> = order.iter().map(|at| [letters[*at as usize]]).collect();
            records(payloads.iter().map(|payload| &payload[..]))
        })
        .collect();
    thread::scope(|scope| {
        let (dir, expected) = (dir.path(), &expected);
        scope.spawn(move || {
            for epoch in 0..3 {
                let limit = if epoch == 1 { 1 } else { usize::MAX };
                let read = read_as_bring_your_own(dir, "own", epoch, limit);
                assert!(expected[epoch as usize].starts_with(&read));
                assert!(epoch == 1 || read.len() == expected[epoch as usize].len());
            }
        });
        scope.spawn(move || {
            let read: Vec<_> = (0..3)
                .map(|_| read_as_pipe_mode_dataset(dir, "dataset"))
                .collect();
            assert_eq!(read, *expected);
        });
        scope.spawn(move || {
            let read: Vec<_> = (0..3)
                .map(|epoch| read_as_mlio(dir, "mlio", epoch))
                .collect();
            assert_eq!(read, *expected);
        });
    });
    let summary = server.wait().unwrap();
    assert_eq!(summary.channels[1].epochs, 3);
    assert_eq!(summary.channels[2].epochs, 3);
}
