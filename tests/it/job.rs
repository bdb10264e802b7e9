//! `standpipe run` as a container sees it: small trainers in shell, over a scripted S3, and what is left when they end.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fake_s3::{Effect, FakeS3, Latency, Operation, Rule, Shape};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{code, command, ended, server, signal, text, wait_for};

mod checkpoint;
mod ending;
mod files;
mod resume;

/// A directory that is `/opt/ml` to a trainer, and a server.
pub(crate) struct Host {
    pub(crate) server: FakeS3,
    dir: TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self {
            server: server(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("ml").join(path)
    }

    /// A file beside the tree.
    pub(crate) fn beside(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// `standpipe run FLAGS -- sh -c SCRIPT`, in the directory that holds the tree.
    pub(crate) fn command(&self, flags: &[&str], script: &str) -> Command {
        let base = self.at("").display().to_string();
        let mut args = vec!["run", "--base-dir", base.as_str(), "--json"];
        args.extend(flags);
        args.extend(["--", "sh", "-c", script]);
        let mut command = command(&self.server, &args);
        command.current_dir(self.dir.path());
        command
    }

    pub(crate) fn run(&self, flags: &[&str], script: &str) -> Ran {
        let child = self.start(flags, script);
        Ran::of(ended(child))
    }

    pub(crate) fn start(&self, flags: &[&str], script: &str) -> Child {
        let mut command = self.command(flags, script);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// The same, to be killed: what it leaves behind holds no pipe of ours.
    pub(crate) fn start_unheard(&self, flags: &[&str], script: &str) -> Child {
        let mut command = self.command(flags, script);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    pub(crate) fn wait_for(&self, file: &str) {
        wait_for(file, || self.beside(file).exists());
    }

    fn said(&self, file: &str) -> String {
        fs::read_to_string(self.beside(file)).unwrap_or_default()
    }

    /// FIFOs, mounts, locks and records: everything that only a run needs.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for directory in ["", "input", "input/data"] {
            for entry in fs::read_dir(self.at(directory)).into_iter().flatten() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                let is_fifo = entry.file_type().unwrap().is_fifo();
                // What a later run goes on with.
                let is_mark = [".standpipe-files", ".standpipe-stored.json"];
                let is_mark = is_mark.iter().any(|mark| name.starts_with(mark));
                if is_fifo || (name.starts_with(".standpipe") && !is_mark) {
                    left.push(name);
                }
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let base = self.at("").display().to_string();
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&base))
                .map(Into::into),
        );
        left
    }
}

/// What came of a run.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stderr: String,
    pub(crate) json: Value,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        let out = text(&output.stdout);
        let last = out.lines().last().unwrap_or_default();
        Self {
            code: code(&output),
            stderr: text(&output.stderr),
            json: serde_json::from_str(last).unwrap_or_default(),
        }
    }

    #[track_caller]
    pub(crate) fn succeeded(&self) -> &Self {
        assert_eq!(self.code, 0, "{} {}", self.stderr, self.json);
        self
    }
}

fn is_alive(pid: &str) -> bool {
    // A zombie is dead; its parent is just slow.
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    !state.is_empty() && !state.starts_with('Z')
}

/// J7: every Pipe channel's first FIFO is there before the trainer starts, File channels are there whole, and each epoch is
/// the objects back to back.
#[test]
fn a_trainer_finds_its_channels() {
    let host = Host::new();
    let script = r#"
        cd "$SAGEMAKER_BASE_DIR/input/data"
        test -p train_0 && test -p val_0 && test -f files/a && test -f files/sub/c || exit 90
        cat train_0; cat train_1; cat val_0
        cat files/a files/sub/c
    "#;
    let flags = [
        "--channel",
        "train=s3://bkt/dir/,mode=pipe",
        "--channel",
        "val=s3://bkt/s-,mode=pipe",
        "--channel",
        "files=s3://bkt/dir/",
        "--name",
        "my-job",
    ];
    let output = host.command(&flags, script).output().unwrap();
    let out = text(&output.stdout);
    let data = "alpha\nbeta\ngamma\nalpha\nbeta\ngamma\nzero\none\ntwo\nalpha\ngamma\n";
    assert!(out.starts_with(data), "{out} {}", text(&output.stderr));
    let ran = Ran::of(output);
    ran.succeeded();
    assert_eq!(host.left(), [""; 0]);
    assert_eq!(ran.json["job_name"], "my-job");
    let channels = ran.json["channels"].as_array().unwrap();
    let told: Vec<_> = channels
        .iter()
        .map(|channel| {
            (
                channel["channel"].as_str().unwrap(),
                channel["mode"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [("files", "File"), ("train", "Pipe"), ("val", "Pipe")]
    );
    assert_eq!(
        (&channels[0]["bytes"], &channels[1]["epochs"]),
        (&17.into(), &2.into())
    );
    assert!(channels[1]["first_byte_seconds"].is_number());
}

/// J8: the exit code is the trainer's, 128 + N when signal N killed it, 127 when it is not there; `output/failure` is told.
#[test]
fn the_exit_code_is_the_trainers() {
    let host = Host::new();
    assert_eq!(host.run(&[], "exit 37").code, 37);
    assert_eq!(host.run(&[], "kill -9 $$").code, 137);
    let failing = host.run(
        &[],
        r#"echo "loss is NaN" > "$SAGEMAKER_BASE_DIR/output/failure"; exit 1"#,
    );
    assert_eq!(
        (failing.code, &failing.json["failure_reason"]),
        (1, &"loss is NaN".into())
    );
    // Of the run before, nothing is told.
    let fine = host.run(&[], "true");
    assert_eq!((fine.code, &fine.json["failure_reason"]), (0, &Value::Null));
    let base = host.at("").display().to_string();
    let mut missing = command(
        &host.server,
        &["run", "--base-dir", &base, "--", "/no/such/trainer"],
    );
    let output = missing.output().unwrap();
    assert_eq!(code(&output), 127);
    assert!(text(&output.stderr).contains("/no/such/trainer"));
    assert_eq!(host.left(), [""; 0]);
}

#[test]
fn the_documents_and_the_environment_are_there() {
    let host = Host::new();
    let request = r#"{"TrainingJobName": "from-json", "HyperParameters": {"epochs": "3", "lr": "0.1"},
        "Environment": {"FLAVOUR": "x"}, "RoleArn": "r",
        "InputDataConfig": [{"ChannelName": "train", "ContentType": "text/csv", "InputMode": "Pipe",
          "DataSource": {"S3DataSource": {"S3Uri": "s3://bkt/dir/", "S3DataType": "S3Prefix"}}}]}"#;
    fs::write(host.beside("job.json"), request).unwrap();
    let script = r#"
        cd "$SAGEMAKER_BASE_DIR"
        cat input/config/hyperparameters.json input/config/inputdataconfig.json
        echo "$TRAINING_JOB_NAME $FLAVOUR $SM_HP_EPOCHS $SM_CURRENT_HOST"
        grep -c '"current_host":"algo-2"' input/config/resourceconfig.json
    "#;
    let flags = [
        "--job",
        "job.json",
        "--hyperparameter",
        "epochs=4",
        "--sm-env",
        "--host-rank",
        "1",
        "--host-count",
        "2",
    ];
    let output = host.command(&flags, script).output().unwrap();
    let out = text(&output.stdout);
    let expected = concat!(
        r#"{"epochs":"4","lr":"0.1"}{"train":{"ContentType":"text/csv","TrainingInputMode":"Pipe","S3DistributionType":"FullyReplicated","RecordWrapperType":"None"}}"#,
        "from-json x 4 algo-2\n1\n"
    );
    assert!(out.starts_with(expected), "{out}");
    assert!(text(&output.stderr).contains("without effect here: RoleArn"));
}

/// J9: SIGTERM reaches the trainer at once; one that does not end within the grace is killed; the code says 143 either way.
#[test]
fn sigterm_is_passed_on_and_followed_by_sigkill() {
    let host = Host::new();
    let saves = "trap 'echo saved > saved; exit 9' TERM; touch ready; while :; do sleep 0.01; done";
    let child = host.start(&["--channel", "train=s3://bkt/dir/,mode=pipe"], saves);
    host.wait_for("ready");
    signal(&child, Signal::TERM);
    let ran = Ran::of(ended(child));
    assert_eq!(host.said("saved"), "saved\n");
    assert_eq!((ran.code, &ran.json["trainer_exit_code"]), (143, &9.into()));
    assert_eq!(ran.json["killed"], false);
    assert_eq!(host.left(), [""; 0]);

    let stubborn = "trap '' TERM; touch stubborn; while :; do sleep 0.01; done";
    let child = host.start(&["--stop-grace", "1"], stubborn);
    host.wait_for("stubborn");
    signal(&child, Signal::TERM);
    let asked = Instant::now();
    let ran = Ran::of(ended(child));
    assert!(asked.elapsed() >= Duration::from_secs(1));
    assert_eq!((ran.code, &ran.json["killed"]), (143, &true.into()));
    assert_eq!(ran.json["trainer_exit_code"], 137);

    // Twice is at once.
    fs::remove_file(host.beside("stubborn")).unwrap();
    let child = host.start(&[], stubborn);
    host.wait_for("stubborn");
    signal(&child, Signal::INT);
    std::thread::sleep(Duration::from_millis(50));
    signal(&child, Signal::INT);
    assert_eq!(Ran::of(ended(child)).code, 130);
}

/// J10: what the trainer has started and left does not outlive the run, whatever session it moved to, and whatever it has
/// made of its environment.
#[test]
fn no_process_is_left_behind() {
    let host = Host::new();
    let script = "sleep 600 & echo $! > a; setsid sleep 600 & sleep 0.2; echo $! > b
        env -i setsid sh -c 'sleep 600 & echo $! > c; exec sleep 600' & echo $! > d
        while [ ! -s c ]; do sleep 0.01; done; exit 3";
    let ran = host.run(&[], script);
    assert_eq!(ran.code, 3);
    for file in ["a", "b", "c", "d"] {
        wait_for("it is dead", || !is_alive(&host.said(file)));
    }
    assert!(ran.stderr.contains("left behind"), "{}", ran.stderr);
}

/// J11: under SIGKILL the trainer dies with us, and the next run in the same tree cleans up and works.
#[test]
fn after_sigkill_the_next_run_cleans_up() {
    let host = Host::new();
    let flags = ["--channel", "train=s3://bkt/dir/,mode=pipe"];
    let script = r#"cat "$SAGEMAKER_BASE_DIR/input/data/train_0" > /dev/null
        setsid sleep 600 & echo $! > stray; echo $$ > ready; while :; do sleep 0.01; done"#;
    let child = host.start_unheard(&flags, script);
    host.wait_for("ready");
    signal(&child, Signal::KILL);
    ended(child);
    wait_for("the trainer is dead", || !is_alive(&host.said("ready")));
    assert_ne!(
        host.left(),
        [""; 0],
        "SIGKILL leaves things behind, or this test tests nothing"
    );
    let again = r#"test "$(ls "$SAGEMAKER_BASE_DIR/input/data")" = train_0 && cat "$SAGEMAKER_BASE_DIR/input/data/train_0""#;
    let output = host.command(&flags, again).output().unwrap();
    assert!(text(&output.stdout).starts_with("alpha\nbeta\ngamma\n"));
    assert!(!is_alive(&host.said("stray")));
    assert_eq!(host.left(), [""; 0]);
}

/// The same at any moment: a tree that was killed at a random point is used by the next run.
#[test]
fn killed_at_random_moments_a_tree_stays_usable() {
    let host = Host::new();
    let flags = [
        "--channel",
        "train=s3://bkt/dir/,mode=pipe",
        "--channel",
        "files=s3://bkt/s-",
    ];
    let script = r#"cd "$SAGEMAKER_BASE_DIR/input/data"; n=0; while :; do cat train_$n > /dev/null || exit 1; n=$((n+1)); done"#;
    let mut rng = fastrand::Rng::with_seed(11);
    for _ in 0..12 {
        let child = host.start_unheard(&flags, script);
        std::thread::sleep(Duration::from_millis(rng.u64(0..80)));
        signal(&child, Signal::KILL);
        ended(child);
    }
    let check = r#"cd "$SAGEMAKER_BASE_DIR/input/data"; cat train_0 files/s-*.tar"#;
    let output = host.command(&flags, check).output().unwrap();
    let out = text(&output.stdout);
    assert!(
        out.starts_with("alpha\nbeta\ngamma\nzero\none\ntwo\n"),
        "{out} {}",
        text(&output.stderr)
    );
    assert_eq!(host.left(), [""; 0]);
}

fn forbid(server: &FakeS3, key: &str) {
    let status = Effect::Status {
        status: 403,
        code: "AccessDenied".into(),
    };
    let rule = Rule::new(status).operations(&[Operation::Get]);
    server.script(key, vec![rule]);
}

/// J12: when an input fails mid-stream the trainer is dead before it could see an end, and the exit code is the failure's.
#[test]
fn a_failed_input_never_looks_like_the_end() {
    let host = Host::new();
    forbid(&host.server, "bkt/dir/b");
    let script =
        r#"cat "$SAGEMAKER_BASE_DIR/input/data/train_0" > got; echo $? > finished; sleep 600"#;
    let ran = host.run(&["--channel", "train=s3://bkt/dir/,mode=pipe"], script);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert_eq!(host.said("got"), "alpha\n");
    assert!(!host.beside("finished").exists(), "the trainer saw an end");
    assert!(ran.stderr.contains("s3://bkt/dir/b"), "{}", ran.stderr);
    assert_eq!(ran.json["cause"], "input");
    assert_eq!(ran.json["ok"], false);
    // The reason stays beside where the FIFO was; the FIFO does not.
    assert!(host.at("input/data/train_0.error.json").exists());
    assert!(!host.at("input/data/train_0").exists());
}

/// J13: a trainer that ignores SIGTERM and keeps reading is killed before its FIFO closes, too.
#[test]
fn a_stubborn_reader_sees_no_end_either() {
    let host = Host::new();
    forbid(&host.server, "bkt/dir/b");
    let script =
        r#"trap '' TERM; cat "$SAGEMAKER_BASE_DIR/input/data/train_0" > got; echo $? > finished"#;
    let flags = [
        "--channel",
        "train=s3://bkt/dir/,mode=pipe",
        "--stop-grace",
        "1",
    ];
    let ran = host.run(&flags, script);
    assert_eq!(
        (ran.code, &ran.json["killed"]),
        (4, &true.into()),
        "{}",
        ran.stderr
    );
    assert!(!host.beside("finished").exists());
}

/// J12: a reader that is not the trainer's sees no end either, as long as it can be waited for.
#[test]
fn a_reader_of_somebody_elses_sees_no_end_of_a_failed_input() {
    let host = Host::new();
    forbid(&host.server, "bkt/dir/b");
    let flags = ["--channel", "train=s3://bkt/dir/,mode=pipe"];
    let child = host.start(&flags, "touch ready; sleep 600");
    host.wait_for("ready");
    let fifo = fs::File::open(host.at("input/data/train_0")).unwrap();
    let got = std::thread::spawn(move || {
        let mut fifo = fifo;
        let mut bytes = [0; 64];
        let n = std::io::Read::read(&mut fifo, &mut bytes).unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        // Without an end the pipe has nothing to say.
        let mut polled = [rustix::event::PollFd::new(
            &fifo,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let events = rustix::event::poll(&mut polled, Some(&now)).unwrap();
        (bytes[..n].to_vec(), events)
    });
    assert_eq!(got.join().unwrap(), (b"alpha\n".to_vec(), 0));
    assert_eq!(Ran::of(ended(child)).code, 4);
}

/// J14: SIGTERM while a File channel is downloaded ends the run at once, without a trainer, and the next run goes on.
#[test]
fn a_download_can_be_stopped_before_there_is_a_trainer() {
    let host = Host::new();
    for n in 0..40 {
        host.server.put("bkt", &format!("many/{n:02}"), &[7; 1000]);
    }
    host.server.set_shape(Shape {
        latency: Latency::fixed(Duration::from_millis(300)),
        ..Shape::default()
    });
    let flags = ["--channel", "files=s3://bkt/many/", "--concurrency", "2"];
    let child = host.start(&flags, "touch started");
    let files = host.at("input/data/files");
    wait_for("a file is there", || {
        fs::read_dir(&files).is_ok_and(|mut files| files.next().is_some())
    });
    signal(&child, Signal::TERM);
    let asked = Instant::now();
    let ran = Ran::of(ended(child));
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert_eq!(
        (ran.code, &ran.json["trainer_exit_code"]),
        (143, &Value::Null),
        "{}",
        ran.stderr
    );
    assert!(!host.beside("started").exists());
    assert_eq!(host.left(), [""; 0]);
    host.server.set_shape(Shape::default());
    host.run(
        &flags,
        r#"test $(ls "$SAGEMAKER_BASE_DIR/input/data/files" | wc -l) = 40"#,
    )
    .succeeded();
}

/// J15: what cannot work is told before the trainer starts: a missing prefix, too little disk, a tree that cannot be written
/// to, a tree that another run uses, files of another source.
#[test]
fn what_cannot_work_is_told_before_the_trainer_starts() {
    let host = Host::new();
    host.server.put_synthetic("bkt", "huge/object", 1 << 60, 1);
    host.run(&["--channel", "old=s3://bkt/dir/"], "true")
        .succeeded();
    for (flags, expected, says) in [
        (
            vec!["--channel", "t=s3://bkt/none/,mode=pipe"],
            3,
            "s3://bkt/none/",
        ),
        (vec!["--channel", "t=s3://bkt/none/"], 3, "s3://bkt/none/"),
        (vec!["--channel", "t=s3://bkt/huge/"], 2, "mode=pipe"),
        (
            vec!["--channel", "old=s3://bkt/s-"],
            2,
            "not downloaded from s3://bkt/s-",
        ),
        (
            vec!["--channel", "t=s3://bkt/dir/,compression=gzip"],
            2,
            "only supports NONE",
        ),
        (vec!["--job", "absent.json"], 1, "absent.json"),
    ] {
        let ran = host.run(&flags, "touch started");
        assert_eq!(ran.code, expected, "{flags:?}: {} {}", ran.stderr, ran.json);
        let told = ran.json["error"]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let fix = ran.json["error"]["fix"].as_str().unwrap_or_default();
        assert!(format!("{told} {fix}").contains(says), "{flags:?}: {told}");
        assert!(!host.beside("started").exists(), "{flags:?}");
        assert_eq!(host.left(), [""; 0], "{flags:?}");
    }
    let args = ["run", "--base-dir", "/proc/nothing", "--json", "--", "true"];
    let unwritable = Ran::of(command(&host.server, &args).output().unwrap());
    assert_eq!(unwritable.code, 2, "{}", unwritable.json);
    assert!(
        unwritable.json["error"]["fix"]
            .as_str()
            .unwrap()
            .contains("--base-dir")
    );
    let child = host.start(&[], "touch busy; while :; do sleep 0.01; done");
    host.wait_for("busy");
    let second = host.run(&[], "true");
    assert_eq!(second.code, 2);
    let told = second.json["error"]["message"].as_str().unwrap();
    assert!(told.contains(&child.id().to_string()), "{told}");
    signal(&child, Signal::TERM);
    assert_eq!(Ran::of(ended(child)).code, 143);
}

/// J16: a FastFile channel is a read-only mount while the trainer runs; without one the error names `mode=file`.
#[test]
fn fast_file_channels_are_mounted() {
    let host = Host::new();
    let flags = ["--channel", "data=s3://bkt/dir/,mode=fastfile"];
    let script = r#"cd "$SAGEMAKER_BASE_DIR/input/data/data"; cat a sub/c; touch x 2>/dev/null && exit 91; exit 0"#;
    let output = host.command(&flags, script).output().unwrap();
    let can_mount = Path::new("/dev/fuse").exists() && rustix::process::geteuid().is_root();
    if !can_mount {
        let ran = Ran::of(output);
        let fix = ran.json["error"]["fix"].as_str().unwrap_or_default();
        assert!(ran.code == 2 && fix.contains("mode=file"), "{fix}");
        return;
    }
    assert!(
        text(&output.stdout).starts_with("alpha\ngamma\n"),
        "{}",
        text(&output.stderr)
    );
    let ran = Ran::of(output);
    ran.succeeded();
    assert_eq!(ran.json["channels"][0]["bytes"], 12);
    assert!(!host.at("input/data/data").exists());
    assert_eq!(host.left(), [""; 0]);
}

/// J17: MaxRuntimeInSeconds ends the trainer with SIGTERM, and the code is 124.
#[test]
fn a_job_that_takes_too_long_is_stopped() {
    let host = Host::new();
    let request = r#"{"StoppingCondition": {"MaxRuntimeInSeconds": 1}}"#;
    fs::write(host.beside("job.json"), request).unwrap();
    let script = "trap 'exit 0' TERM; while :; do sleep 0.01; done";
    let ran = host.run(&["--job", "job.json"], script);
    assert_eq!((ran.code, &ran.json["trainer_exit_code"]), (124, &0.into()));
}

/// The entry point of the example image, in both of its roles, and its trainer's way through an interruption.
#[test]
fn the_examples_entry_point_trains_is_interrupted_and_goes_on() {
    let host = Host::new();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/container");
    let trainer = examples.join("train.py").display().to_string();
    let program = Path::new(env!("CARGO_BIN_EXE_standpipe"));
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let base = host.at("").display().to_string();
    let start = |epochs: &str| {
        // What `command` sets up, under the entry point.
        let run = command(&host.server, &[]);
        let mut entry = Command::new(examples.join("entrypoint.sh"));
        entry
            .env_clear()
            .envs(
                run.get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .env("PATH", &path)
            .args([
                "--base-dir",
                &base,
                "--json",
                "--checkpoint",
                "s3://bkt/ckpt/",
            ])
            .args(["--hyperparameter", &format!("epochs={epochs}")])
            .args([
                "--channel",
                "train=s3://bkt/dir/,mode=pipe",
                "--",
                "python3",
                &trainer,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        entry.spawn().unwrap()
    };
    let child = start("1000000");
    let state = host.at("checkpoints/state.json");
    wait_for("an epoch was saved", || state.exists());
    signal(&child, Signal::TERM);
    assert_eq!(Ran::of(ended(child)).code, 143);
    let saved: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    let epochs = saved["epoch"].as_u64().unwrap() + 2;
    // Another instance: nothing is left but what is in S3.
    fs::remove_dir_all(host.at("")).unwrap();
    let output = ended(start(&epochs.to_string()));
    let out = text(&output.stdout);
    assert!(
        out.contains(&format!(
            "trained on {} bytes in {epochs} epochs\n",
            17 * epochs
        )),
        "{out} {}",
        text(&output.stderr)
    );
    Ran::of(output).succeeded();

    // As the platform calls it, in the tree that is there.
    fs::remove_dir_all(host.at("checkpoints")).unwrap();
    fs::write(host.at("input/config/inputdataconfig.json"), "{}").unwrap();
    let mut entry = Command::new(examples.join("entrypoint.sh"));
    entry
        .arg("train")
        .env("TRAINER", &trainer)
        .env("SAGEMAKER_BASE_DIR", &base);
    let output = entry.output().unwrap();
    assert_eq!(
        text(&output.stdout),
        format!("trained on 0 bytes in {epochs} epochs\n")
    );
}

/// J28: channels are all that `pipe` and `download` take: manifests, shuffled, wrapped, and shared out by the job's hosts.
#[test]
fn channels_may_be_manifests_shuffled_and_shared_out() {
    let manifest = br#"[{"prefix": "s3://bkt/dir/"}, "a", "b", "sub/c"]"#;
    let mut told = Vec::new();
    for rank in ["0", "1"] {
        let host = Host::new();
        host.server.put("bkt", "m.json", manifest);
        let flags = [
            "--host-rank",
            rank,
            "--host-count",
            "2",
            "--channel",
            "train=s3://bkt/m.json,mode=pipe,s3-data-type=manifest,distribution=sharded,shuffle=3",
            "--channel",
            "files=s3://bkt/m.json,s3-data-type=manifest",
            "--channel",
            "records=s3://bkt/dir/a,mode=pipe,record-wrapper=recordio",
        ];
        let script = r#"cd "$SAGEMAKER_BASE_DIR/input/data"
            test "$(cat files/dir/sub/c)" = gamma && test "$(wc -c < records_0)" = 16 || exit 90
            cat train_0"#;
        let output = host.command(&flags, script).output().unwrap();
        let out = text(&output.stdout);
        let lines = out.lines().filter(|line| !line.starts_with('{'));
        told.push(lines.map(str::to_owned).collect::<Vec<_>>());
        Ran::of(output).succeeded();
    }
    let sizes: Vec<_> = told.iter().map(Vec::len).collect();
    assert!(sizes == [2, 1] || sizes == [1, 2], "{told:?}");
    let mut all = told.concat();
    all.sort();
    assert_eq!(all, ["alpha", "beta", "gamma"]);
}
