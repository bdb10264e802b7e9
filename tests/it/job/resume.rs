//! Where a stream goes on: at the byte, the record, the object or the line.

use std::fs;
use std::io::Write;

use rustix::process::Signal;
use serde_json::Value;

use super::{Host, Ran};
use crate::cli::{ended, signal, wait_for};

/// 1,000 lines of ten bytes.
fn lines(name: char) -> Vec<u8> {
    (0..1000)
        .flat_map(|n| format!("{name}{n:08}\n").into_bytes())
        .collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl Host {
    fn cursor(&self) -> Value {
        let text = self
            .object("ckpt/.standpipe/cursor-0.json")
            .unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Runs a trainer that takes `taken` bytes of the channel, writes a checkpoint and goes on; kills everything once that
    /// is in S3; and takes this host's disk away.
    fn taken_then_killed(&self, channel: &str, more: &[&str], taken: usize) {
        let script = format!(
            r#"cd "$SAGEMAKER_BASE_DIR"; exec 3< input/data/train_0
            dd bs={taken} count=1 iflag=fullblock <&3 2>/dev/null > ../first; sleep 2
            printf x > checkpoints/state; while :; do sleep 0.01; done"#
        );
        let child = self.start_unheard(&flags(channel, more), &script);
        wait_for("the cursor is in S3", || !self.cursor().is_null());
        signal(&child, Signal::KILL);
        ended(child);
        fs::remove_dir_all(self.at("")).unwrap();
    }

    /// What a run that goes on reads in its first two epochs.
    fn goes_on(&self, channel: &str, more: &[&str]) -> (Vec<u8>, Vec<u8>) {
        let script = r#"cd "$SAGEMAKER_BASE_DIR"; cat input/data/train_0 > ../rest; cat input/data/train_1 > ../next"#;
        let ran = self.run(&flags(channel, more), script);
        ran.succeeded();
        fs::remove_dir_all(self.at("")).unwrap();
        let read = |file: &str| fs::read(self.beside(file)).unwrap();
        (read("rest"), read("next"))
    }
}

fn flags<'a>(channel: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let flags = [
        "--checkpoint",
        "s3://bkt/ckpt",
        "--checkpoint-settle",
        "0.2",
        "--channel",
        channel,
    ];
    [&flags[..], more].concat()
}

/// J26: after a kill the stream goes on at the byte, at the beginning of the record or of the object, less the margin; and
/// the next epoch is whole.
#[test]
fn a_killed_run_goes_on_at_the_byte_the_record_or_the_object() {
    let host = Host::new();
    let mut all = Vec::new();
    for name in ['a', 'b', 'c'] {
        host.server
            .put("bkt", &format!("pos/{name}.csv"), &lines(name));
        all.extend(lines(name));
    }
    let channel = "train=s3://bkt/pos/,mode=pipe";
    host.taken_then_killed(channel, &["--resume-margin", "0"], 15_005);
    assert_eq!(fs::read(host.beside("first")).unwrap(), all[..15_005]);
    let cursor = host.cursor();
    let at = &cursor["channels"]["train"];
    assert_eq!(
        (&at["objects_before"], &at["offset"]),
        (&1.into(), &5_005.into()),
        "{cursor}"
    );
    for (resume, start) in [
        ("offset", 15_005),
        ("record", 15_000),
        ("object", 10_000),
        ("epoch", 0),
    ] {
        let (rest, next) = host.goes_on(channel, &["--resume", resume, "--resume-margin", "0"]);
        assert!(rest == all[start..], "{resume}: {} bytes", rest.len());
        assert!(next == all, "{resume}");
    }

    // What it may hold in buffers is given again.
    let host = Host::new();
    for name in ['a', 'b', 'c'] {
        host.server
            .put("bkt", &format!("pos/{name}.csv"), &lines(name));
    }
    host.taken_then_killed(channel, &["--resume-margin", "6000"], 15_005);
    let (rest, _) = host.goes_on(channel, &["--resume", "offset"]);
    assert!(rest == all[9_005..], "{} bytes", rest.len());
    // The default is more than was ever read.
    let host = Host::new();
    host.server.put("bkt", "pos/a.csv", &lines('a'));
    host.taken_then_killed(channel, &[], 5_005);
    let (rest, _) = host.goes_on(channel, &["--resume", "offset"]);
    assert!(rest == lines('a'), "{} bytes", rest.len());
}

/// J26: a run that goes on inside of an object is itself gone on with, at the right byte; and shuffled and shared out as
/// before.
#[test]
fn a_run_that_went_on_is_gone_on_with() {
    let host = Host::new();
    for name in 'a'..='f' {
        host.server
            .put("bkt", &format!("pos/{name}.csv"), &lines(name));
    }
    let channel = "train=s3://bkt/pos/,mode=pipe,shuffle=5,distribution=sharded";
    let hosts = [
        "--host-rank",
        "0",
        "--host-count",
        "2",
        "--resume",
        "offset",
        "--resume-margin",
        "0",
    ];
    host.taken_then_killed(channel, &hosts, 12_003);
    let first = fs::read(host.beside("first")).unwrap();
    let before = host.cursor();
    // The second run begins at byte 12,003 and takes 9,004 more.
    let script = r#"cd "$SAGEMAKER_BASE_DIR"; exec 3< input/data/train_0
        dd bs=9004 count=1 iflag=fullblock <&3 2>/dev/null > ../second; sleep 2; printf y > checkpoints/state"#;
    host.run(&flags(channel, &hosts), script).succeeded();
    fs::remove_dir_all(host.at("")).unwrap();
    assert_ne!(host.cursor(), before);
    let second = fs::read(host.beside("second")).unwrap();
    let (rest, next) = host.goes_on(channel, &hosts);
    let whole = [first, second, rest].concat();
    assert_eq!(whole.len(), 30_000);
    // Three objects of six, in some order, each whole.
    let mut names: Vec<_> = whole
        .chunks(10_000)
        .map(|object| object[0] as char)
        .collect();
    let expected: Vec<u8> = names.iter().flat_map(|name| lines(*name)).collect();
    assert!(whole == expected);
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 3);
    assert_eq!(next.len(), 30_000);
}

/// J26: a trainer that closes its FIFO before it saves what it was asked to save has not used up the epoch.
#[test]
fn a_trainer_that_closes_first_and_saves_then_goes_on_in_the_epoch() {
    let host = Host::new();
    // More than a pipe holds.
    let object = |name| lines(name).repeat(200);
    for name in ['a', 'b', 'c'] {
        host.server
            .put("bkt", &format!("pos/{name}.csv"), &object(name));
    }
    let all = [object('a'), object('b'), object('c')].concat();
    let channel = "train=s3://bkt/pos/,mode=pipe";
    let script = r#"cd "$SAGEMAKER_BASE_DIR"; exec 3< input/data/train_0
        trap 'exec 3<&-; sleep 1; printf x > checkpoints/state; exit 0' TERM
        dd bs=2500005 count=1 iflag=fullblock <&3 2>/dev/null > ../first; sleep 1
        touch ../ready; while :; do sleep 0.01; done"#;
    let child = host.start(&flags(channel, &["--resume-margin", "0"]), script);
    host.wait_for("ready");
    signal(&child, Signal::TERM);
    let ran = Ran::of(ended(child));
    assert_eq!(ran.code, 143, "{}", ran.stderr);
    fs::remove_dir_all(host.at("")).unwrap();
    let (rest, next) = host.goes_on(channel, &["--resume", "offset"]);
    assert!(rest == all[2_500_005..], "{} bytes", rest.len());
    assert_eq!(next.len(), all.len());
}

/// J26: a checkpoint of several files has no cursor before the last of them is in S3.
#[test]
fn a_cursor_waits_for_all_of_a_checkpoint() {
    let host = Host::new();
    host.server.put("bkt", "pos/a.csv", &lines('a'));
    let script = r#"cd "$SAGEMAKER_BASE_DIR"; exec 3< input/data/train_0
        dd bs=5000 count=1 iflag=fullblock <&3 2>/dev/null > ../first; sleep 1
        printf x > checkpoints/optimizer
        while [ ! -e ../enough ]; do printf x >> checkpoints/model; sleep 0.02; done
        while :; do sleep 0.01; done"#;
    let more = ["--resume-margin", "0"];
    let child = host.start_unheard(&flags("train=s3://bkt/pos/,mode=pipe", &more), script);
    wait_for("half of it is in S3", || {
        host.object("ckpt/optimizer").is_some()
    });
    // Several looks.
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(host.cursor().is_null(), "{}", host.cursor());
    fs::write(host.beside("enough"), "").unwrap();
    wait_for("the cursor is in S3", || !host.cursor().is_null());
    assert!(host.object("ckpt/model").is_some());
    signal(&child, Signal::KILL);
    ended(child);
}

/// J26: objects that inflate to nothing count: a compressed channel goes on at the right object.
#[test]
fn a_compressed_channel_with_an_empty_object_goes_on() {
    let host = Host::new();
    host.server.put("bkt", "z/_SUCCESS", b"");
    for name in ['a', 'b', 'c'] {
        host.server
            .put("bkt", &format!("z/{name}.csv.gz"), &gzip(&lines(name)));
    }
    let channel = "train=s3://bkt/z/,mode=pipe,compression=gzip";
    host.taken_then_killed(channel, &["--resume-margin", "0"], 15_005);
    assert_eq!(host.cursor()["channels"]["train"]["objects_before"], 2);
    for resume in ["object", "record", "offset"] {
        let (rest, _) = host.goes_on(channel, &["--resume", resume]);
        assert!(
            rest == [lines('b'), lines('c')].concat(),
            "{resume}: {} bytes",
            rest.len()
        );
    }
}

/// J26: an augmented manifest goes on at the beginning of a line, so that its attributes stay together.
#[test]
fn an_augmented_manifest_goes_on_at_a_line() {
    let host = Host::new();
    let mut manifest = String::new();
    for (n, name) in ['a', 'b', 'c', 'd'].into_iter().enumerate() {
        host.server
            .put("bkt", &format!("pos/{name}.csv"), &lines(name));
        manifest += &format!("{{\"x-ref\": \"s3://bkt/pos/{name}.csv\", \"class\": \"{n}\"}}\n");
    }
    host.server.put("bkt", "m.jsonl", manifest.as_bytes());
    let channel =
        "train=s3://bkt/m.jsonl,mode=pipe,s3-data-type=augmented,attribute-names=x-ref:class";
    // At the third line's second attribute; then within its object.
    for taken in [30_003, 25_000] {
        host.server.delete("bkt", "ckpt/.standpipe/cursor-0.json");
        host.taken_then_killed(channel, &["--resume-margin", "0"], taken);
        for resume in ["object", "record", "offset"] {
            let (rest, next) = host.goes_on(channel, &["--resume", resume]);
            let expected = [&lines('c')[..], b"2", &lines('d')[..], b"3"].concat();
            assert!(rest == expected, "{resume} {taken}: {} bytes", rest.len());
            assert_eq!(next.len(), 40_004);
        }
    }
    // Another manifest in its place.
    let other = manifest.replace("pos/c.csv", "pos/a.csv");
    host.server.put("bkt", "m.jsonl", other.as_bytes());
    let ran: Ran = host.run(&flags(channel, &["--resume", "record"]), "touch started");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(!host.beside("started").exists());
}
