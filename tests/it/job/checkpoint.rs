//! Checkpoints, models and spot notices: what is in S3 when a job ends, however it ends.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fake_s3::{Effect, LogEntry, Operation, Rule};
use flate2::read::GzDecoder;
use rustix::process::Signal;

use super::{Host, Ran};
use crate::cli::{command, ended, signal, text, wait_for};

const CHECKPOINT: [&str; 2] = ["--checkpoint", "s3://bkt/ckpt"];

impl Host {
    /// An object's bytes as another client sees them.
    pub(super) fn object(&self, key: &str) -> Option<Vec<u8>> {
        let uri = format!("s3://bkt/{key}");
        let output = command(&self.server, &["cat", &uri]).output().unwrap();
        output.status.success().then_some(output.stdout)
    }

    fn puts(&self) -> Vec<LogEntry> {
        let is_put = |entry: &LogEntry| entry.operation == Operation::Put;
        self.server.log().into_iter().filter(is_put).collect()
    }
}

/// J18: checkpoints are in the directory before the trainer starts, and what it has written is in S3 when the run has ended.
#[test]
fn checkpoints_are_restored_and_kept() {
    let host = Host::new();
    host.server.put("bkt", "ckpt/step-1", b"one");
    host.server.put("bkt", "ckpt/sub/state", b"state");
    host.server.put("bkt", "ckpt-of-another/x", b"x");
    let script = r#"cd "$SAGEMAKER_BASE_DIR/checkpoints"
        test "$(cat step-1 sub/state)" = onestate && test ! -e x || exit 90
        printf two > step-2; sleep 0.05; printf step-2 > latest; rm step-1"#;
    let ran = host.run(&CHECKPOINT, script);
    ran.succeeded();
    assert_eq!(host.object("ckpt/step-2").unwrap(), b"two");
    assert_eq!(host.object("ckpt/latest").unwrap(), b"step-2");
    // Deleting is asked for.
    assert_eq!(host.object("ckpt/step-1").unwrap(), b"one");
    let told = &ran.json["checkpoint"];
    assert_eq!(
        (&told["restored_files"], &told["uploaded_files"]),
        (&2.into(), &2.into())
    );
    let keys: Vec<_> = host.puts().into_iter().map(|entry| entry.key).collect();
    assert_eq!(
        keys,
        ["ckpt/step-2", "ckpt/latest"],
        "what did not change stays"
    );

    let deleting = [&CHECKPOINT[..], &["--checkpoint-delete"]].concat();
    host.run(&deleting, r#"rm "$SAGEMAKER_BASE_DIR/checkpoints/step-2""#)
        .succeeded();
    assert_eq!(host.object("ckpt/step-2"), None);
    assert!(host.object("ckpt/latest").is_some());
}

/// J19: while the trainer runs, files go up when they have settled, in the order in which they were written.
#[test]
fn checkpoints_go_up_while_the_trainer_runs() {
    let host = Host::new();
    let flags = [&CHECKPOINT[..], &["--checkpoint-settle", "0.3"]].concat();
    let script = r#"cd "$SAGEMAKER_BASE_DIR/checkpoints"
        printf weights > w.tmp; mv w.tmp weights; sleep 0.05; printf weights > latest
        (while [ ! -e ../../enough ]; do printf x >> growing; sleep 0.02; done) &
        while [ ! -e ../../enough ]; do sleep 0.02; done; wait"#;
    let child = host.start(&flags, script);
    wait_for("both are there", || host.puts().len() >= 2);
    let keys: Vec<_> = host.puts().into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys[..2], ["ckpt/weights", "ckpt/latest"]);
    assert_eq!(host.object("ckpt/growing"), None, "it had not settled");
    fs::write(host.beside("enough"), "").unwrap();
    Ran::of(ended(child)).succeeded();
    let local = fs::read(host.at("checkpoints/growing")).unwrap();
    assert_eq!(host.object("ckpt/growing").unwrap(), local);
}

/// J20: a large file goes up in parts and is seen whole or not at all: killed at random moments, S3 has the old one or the
/// new one.
#[test]
fn no_object_is_ever_half_a_file() {
    let host = Host::new();
    let flags = [&CHECKPOINT[..], &["--checkpoint-settle", "0.01"]].concat();
    // 12 MB of one letter each: two parts.
    let script = r#"cd "$SAGEMAKER_BASE_DIR/checkpoints"; n=0
        while :; do for letter in a b c; do
          head -c 12000000 /dev/zero | tr '\0' $letter > new; mv new big; sleep 0.3
        done; touch ../../looped; done"#;
    let mut rng = fastrand::Rng::with_seed(5);
    let mut seen = 0;
    for _ in 0..4 {
        let child = host.start_unheard(&flags, script);
        host.wait_for("looped");
        fs::remove_file(host.beside("looped")).unwrap();
        std::thread::sleep(Duration::from_millis(rng.u64(0..400)));
        signal(&child, Signal::KILL);
        ended(child);
        if let Some(bytes) = host.object("ckpt/big") {
            assert_eq!(bytes.len(), 12_000_000);
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "of two files");
            seen += 1;
        }
    }
    assert!(
        seen > 0,
        "nothing was ever uploaded: the test tests nothing"
    );
    // What this host had is newer than what S3 has: it stays, and goes up.
    let newest = fs::read(host.at("checkpoints/big")).unwrap();
    host.run(&flags, "true").succeeded();
    assert_eq!(host.object("ckpt/big").unwrap(), newest);
}

/// J21: SIGTERM: the trainer saves its work, and the last sync takes that to S3 before the run ends.
#[test]
fn what_is_saved_on_sigterm_is_in_s3() {
    let host = Host::new();
    let script = r#"cd "$SAGEMAKER_BASE_DIR/checkpoints"
        trap 'printf saved > last; exit 0' TERM; touch ../../ready; while :; do sleep 0.01; done"#;
    let child = host.start(&CHECKPOINT, script);
    host.wait_for("ready");
    signal(&child, Signal::TERM);
    let ran = Ran::of(ended(child));
    assert_eq!(
        (ran.code, &ran.json["trainer_exit_code"]),
        (143, &0.into()),
        "{}",
        ran.stderr
    );
    assert_eq!(host.object("ckpt/last").unwrap(), b"saved");
}

/// J21: so is what a handler saves that lets the signal have its way then, as handlers should.
#[test]
fn what_is_saved_before_a_command_dies_of_sigterm_is_in_s3() {
    let host = Host::new();
    let script = r#"cd "$SAGEMAKER_BASE_DIR/checkpoints"
        trap 'printf saved > last; trap - TERM; kill -TERM $$' TERM
        touch ../../ready; while :; do sleep 0.01; done"#;
    let child = host.start(&CHECKPOINT, script);
    host.wait_for("ready");
    signal(&child, Signal::TERM);
    let ran = Ran::of(ended(child));
    assert_eq!(
        (ran.code, &ran.json["trainer_exit_code"]),
        (143, &143.into()),
        "{}",
        ran.stderr
    );
    assert_eq!(host.object("ckpt/last").unwrap(), b"saved");
}

/// J22: a last sync that fails is the run's failure, unless the trainer failed itself.
#[test]
fn a_checkpoint_that_cannot_be_kept_is_told() {
    let host = Host::new();
    let denied = Effect::Status {
        status: 403,
        code: "AccessDenied".into(),
    };
    host.server.script(
        "bkt/ckpt/",
        vec![Rule::new(denied).operations(&[Operation::Put])],
    );
    let script = r#"printf x > "$SAGEMAKER_BASE_DIR/checkpoints/x""#;
    let ran = host.run(&CHECKPOINT, script);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("s3://bkt/ckpt/x"), "{}", ran.stderr);
    let failing = format!("{script}; exit 7");
    assert_eq!(host.run(&CHECKPOINT, &failing).code, 7);
}

/// J19, J22: a file that cannot be read keeps no other from S3, and is told at the end.
#[test]
fn an_unreadable_file_keeps_no_other_from_s3() {
    let host = Host::new();
    // Write-only, even to root.
    let script = r#"cd "$SAGEMAKER_BASE_DIR/checkpoints"
        ln -s /proc/sys/vm/compact_memory unreadable; sleep 0.05; printf y > newer"#;
    let ran = host.run(&CHECKPOINT, script);
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("unreadable"), "{}", ran.stderr);
    assert_eq!(host.object("ckpt/newer").unwrap(), b"y");
    // Another prefix does not get these.
    let ran = host.run(&["--checkpoint", "s3://bkt/elsewhere"], "true");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert_eq!(host.object("elsewhere/newer"), None);
}

/// J23: model and output go to PREFIX/JOB/output/ as archives of their contents; a job that failed has no model.
#[test]
fn model_and_output_are_uploaded() {
    let host = Host::new();
    let script = r#"cd "$SAGEMAKER_BASE_DIR"; mkdir model/sub; printf weights > model/sub/w; printf log > output/data/log"#;
    let flags = ["--output", "s3://bkt/out/", "--name", "done"];
    let ran = host.run(&flags, script);
    ran.succeeded();
    let archive = host.object("out/done/output/model.tar.gz").unwrap();
    let mut found = Vec::new();
    let mut archive = tar::Archive::new(GzDecoder::new(&archive[..]));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = String::new();
        entry.read_to_string(&mut bytes).unwrap();
        let path = entry.path().unwrap().display().to_string();
        found.extend((!bytes.is_empty()).then_some((path, bytes)));
    }
    assert_eq!(found, [("sub/w".to_owned(), "weights".to_owned())]);
    assert!(host.object("out/done/output/output.tar.gz").is_some());
    // A rerun goes on; another job does not take the model for its own.
    host.run(&flags, "true").succeeded();
    let failed = ["--output", "s3://bkt/out/", "--name", "failed"];
    let refused = host.run(&failed, "touch started");
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    let fix = refused.json["error"]["fix"].as_str().unwrap();
    assert!(fix.contains("--base-dir"), "{fix}");
    assert!(!host.beside("started").exists());
    fs::remove_dir_all(host.at("model")).unwrap();
    fs::remove_dir_all(host.at("output")).unwrap();
    let again = r#"printf log > "$SAGEMAKER_BASE_DIR/output/data/log"; exit 3"#;
    assert_eq!(host.run(&failed, again).code, 3);
    assert_eq!(host.object("out/failed/output/model.tar.gz"), None);
    assert!(host.object("out/failed/output/output.tar.gz").is_some());
}

/// An instance metadata service with one notice, once it is given.
struct Metadata {
    endpoint: String,
    given: Arc<AtomicBool>,
}

impl Metadata {
    fn start(path: &'static str, body: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let given = Arc::new(AtomicBool::new(false));
        let is_given = given.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), path, body, &is_given);
            }
        });
        Self { endpoint, given }
    }
}

fn answer(mut stream: TcpStream, path: &str, body: &str, given: &AtomicBool) {
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut piece).unwrap();
        request.extend_from_slice(&piece[..read]);
        if read == 0 {
            return;
        }
    }
    let request = text(&request);
    let is_token = request.starts_with("PUT /latest/api/token ");
    while is_token && !given.load(Ordering::Acquire) {
        // Until the trainer is there; the client waits for two seconds.
        std::thread::sleep(Duration::from_millis(1));
    }
    let has_token = request.contains("X-aws-ec2-metadata-token: the-token");
    let is_asked = request.starts_with(&format!("GET {path} "));
    let (status, body) = match (is_token, has_token, is_asked) {
        (true, ..) => ("200 OK", "the-token"),
        (_, false, _) => ("401 Unauthorized", ""),
        (_, _, true) => ("200 OK", body),
        _ => ("404 Not Found", ""),
    };
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}"
    );
}

/// J24: on a spot notice the trainer gets SIGTERM at once, the last sync runs, and the exit code is 75.
#[test]
fn spot_notices_stop_the_trainer_and_save_its_work() {
    for (path, body, mode, cause) in [
        (
            "/latest/meta-data/spot/instance-action",
            r#"{"action": "terminate", "time": "2100-01-01T00:00:00Z"}"#,
            "termination",
            "spot_termination",
        ),
        (
            "/latest/meta-data/events/recommendations/rebalance",
            r#"{"noticeTime": "2020-11-05T08:22:00Z"}"#,
            "all",
            "spot_rebalance",
        ),
    ] {
        let host = Host::new();
        let metadata = Metadata::start(path, body);
        let script = r#"cd "$SAGEMAKER_BASE_DIR/checkpoints"
            trap 'printf saved > last; exit 0' TERM; touch ../../ready; while :; do sleep 0.01; done"#;
        let flags = [&CHECKPOINT[..], &["--spot-notices", mode]].concat();
        let mut command = host.command(&flags, script);
        command
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata.endpoint)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let child = command.spawn().unwrap();
        host.wait_for("ready");
        metadata.given.store(true, Ordering::Release);
        let ran = Ran::of(ended(child));
        assert_eq!(
            (ran.code, &ran.json["cause"]),
            (75, &cause.into()),
            "{}",
            ran.stderr
        );
        assert_eq!(host.object("ckpt/last").unwrap(), b"saved");
    }
}

/// J25: while the job runs, its counters are on a port in Prometheus' format.
#[test]
fn metrics_are_on_a_port() {
    let host = Host::new();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let script = r#"cat "$SAGEMAKER_BASE_DIR/input/data/train_0" > /dev/null
        touch ready; while [ ! -e enough ]; do sleep 0.01; done"#;
    let port_text = port.to_string();
    let flags = [
        "--channel",
        "train=s3://bkt/dir/,mode=pipe",
        "--metrics-port",
        &port_text,
    ];
    let child = host.start(&flags, script);
    host.wait_for("ready");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("standpipe_channel_bytes_total{channel=\"train\",mode=\"Pipe\"} 17\n"),
        "{answer}"
    );
    fs::write(host.beside("enough"), "").unwrap();
    Ran::of(ended(child)).succeeded();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

/// J26: with `--resume` a run begins its epoch where the trainer was when the newest checkpoint was written: at the object
/// whose bytes it had not all taken out of the pipe, or at the beginning of the epoch.
#[test]
fn the_stream_goes_on_where_the_checkpoint_was_made() {
    let host = Host::new();
    for key in ["a", "b", "c"] {
        host.server.put(
            "bkt",
            &format!("pos/{key}"),
            &key.repeat(100_000).into_bytes(),
        );
    }
    let flags = |resume| {
        let more = [
            "--checkpoint-settle",
            "0.2",
            "--channel",
            "train=s3://bkt/pos/,mode=pipe",
            "--resume-margin",
            "0",
            "--resume",
            resume,
        ];
        [&CHECKPOINT[..], &more].concat()
    };
    // All three objects fit into the pipe: what lies in there was not read.
    let half = r#"cd "$SAGEMAKER_BASE_DIR"; exec 3< input/data/train_0
        dd bs=1000 count=150 iflag=fullblock <&3 2>/dev/null >/dev/null; sleep 2; printf x > checkpoints/state"#;
    host.run(&flags("off"), half).succeeded();
    let cursor: serde_json::Value =
        serde_json::from_slice(&host.object("ckpt/.standpipe/cursor-0.json").unwrap()).unwrap();
    let at = &cursor["channels"]["train"];
    assert_eq!(
        (&at["epoch"], &at["objects_before"]),
        (&0.into(), &1.into()),
        "{cursor}"
    );
    assert_eq!(at["object"], "s3://bkt/pos/b");
    let counts = r#"cd "$SAGEMAKER_BASE_DIR/input/data"; wc -c < train_0; wc -c < train_1"#;
    for (resume, first) in [("object", "200000"), ("epoch", "300000"), ("off", "300000")] {
        fs::remove_dir_all(host.at("")).unwrap();
        let output = host.command(&flags(resume), counts).output().unwrap();
        let out = text(&output.stdout);
        let told: Vec<_> = out.lines().take(2).map(str::trim).collect();
        assert_eq!(
            told,
            [first, "300000"],
            "{resume}: {}",
            text(&output.stderr)
        );
    }
    // Read to its end: the next epoch.
    let whole = r#"cd "$SAGEMAKER_BASE_DIR"; cat input/data/train_0 > /dev/null; sleep 2; printf y > checkpoints/state"#;
    host.run(&flags("object"), whole).succeeded();
    let cursor: serde_json::Value =
        serde_json::from_slice(&host.object("ckpt/.standpipe/cursor-0.json").unwrap()).unwrap();
    let at = &cursor["channels"]["train"];
    assert_eq!(
        (&at["epoch"], &at["objects_before"]),
        (&1.into(), &0.into()),
        "{cursor}"
    );
    // Another input: what lies where it would go on is not what was read.
    host.run(&flags("off"), half).succeeded();
    host.server.put("bkt", "pos/b", b"another");
    let ran = host.run(
        &flags("object"),
        r#"cat "$SAGEMAKER_BASE_DIR/input/data/train_0""#,
    );
    assert_ne!(ran.code, 0);
    let told = ran.json["error"]["message"].as_str().unwrap_or_default();
    assert!(
        told.contains("the input has changed"),
        "{} {}",
        ran.stderr,
        ran.json
    );
}
