//! How a run ends when its end is not a quiet one: trainers that are killed over their checkpoints, uploads that take too
//! long, logs that nobody reads, terminals, and `nohup`.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fake_s3::{Effect, Latency, Operation, Rule};
use rustix::pipe::PipeFlags;
use rustix::process::Signal;

use super::{Host, Ran};
use crate::cli::{command, ended, signal, text, wait_for};

const CHECKPOINT: [&str; 4] = [
    "--checkpoint",
    "s3://bkt/ckpt",
    "--checkpoint-settle",
    "0.2",
];

/// Longer than any of these tests takes.
const NEVER: Duration = Duration::from_secs(300);

impl Host {
    fn slow_puts(&self, prefix: &str) {
        let rule = Rule::new(Effect::Latency(Latency::fixed(NEVER)));
        let rules = vec![rule.operations(&[Operation::Put])];
        self.server.script(prefix, rules);
    }
}

/// J29: what a trainer was writing when it was killed, or died, takes no place of a whole object: it is left out and named,
/// unless `--checkpoint-unsettled` says otherwise. The next run in the tree does not take it for whole either.
#[test]
fn what_a_killed_trainer_had_half_written_is_not_saved() {
    let script = r#"cd "$SAGEMAKER_BASE_DIR/checkpoints"; printf good > latest; touch ../../ready
        while [ ! -e ../../saved ]; do sleep 0.01; done
        printf ha > latest; printf new > other; kill -9 $$"#;
    // On a machine that is busy the end is noticed late.
    let flags = [&CHECKPOINT[..2], &["--checkpoint-settle", "2"]].concat();
    let run = |host: &Host, more: &[&str]| {
        let child = host.start(&[&flags[..], more].concat(), script);
        host.wait_for("ready");
        wait_for("it is saved", || host.object("ckpt/latest").is_some());
        fs::write(host.beside("saved"), "").unwrap();
        Ran::of(ended(child))
    };
    let host = Host::new();
    let ran = run(&host, &[]);
    assert_eq!(ran.code, 137, "{}", ran.stderr);
    assert_eq!(host.object("ckpt/latest").unwrap(), b"good");
    assert_eq!(host.object("ckpt/other"), None);
    let left = &ran.json["checkpoint"]["unsettled_files"];
    assert_eq!(left, &serde_json::json!(["latest", "other"]));
    assert!(ran.stderr.contains("latest, other"), "{}", ran.stderr);
    // What is here is newer than the object: it stays for who wants it.
    assert_eq!(fs::read(host.at("checkpoints/latest")).unwrap(), b"ha");
    let found =
        r#"cd "$SAGEMAKER_BASE_DIR/checkpoints"; test "$(cat latest)" = good && test ! -e other"#;
    host.run(&flags, found).succeeded();
    assert_eq!(host.object("ckpt/latest").unwrap(), b"good");
    assert_eq!(host.object("ckpt/other"), None);
    let aside = fs::read(host.at("checkpoints/latest.standpipe-unsettled"));
    assert_eq!(aside.unwrap(), b"ha");
    assert!(host.at("checkpoints/other.standpipe-unsettled").exists());
    assert_eq!(host.object("ckpt/latest.standpipe-unsettled"), None);

    let host = Host::new();
    let ran = run(&host, &["--checkpoint-unsettled"]);
    assert_eq!(ran.code, 137, "{}", ran.stderr);
    assert_eq!(host.object("ckpt/latest").unwrap(), b"ha");
}

/// J30: the last sync and the uploads end `--sync-grace` after the grace at the latest; what is not in S3 then is named.
#[test]
fn the_last_sync_has_a_limit() {
    let host = Host::new();
    host.slow_puts("bkt/ckpt/");
    let script = r#"cd "$SAGEMAKER_BASE_DIR/checkpoints"
        trap 'printf 1 > a; printf 2 > b; exit 0' TERM; touch ../../ready; while :; do sleep 0.01; done"#;
    let flags = [&CHECKPOINT[..], &["--stop-grace", "1", "--sync-grace", "1"]].concat();
    let child = host.start(&flags, script);
    host.wait_for("ready");
    signal(&child, Signal::TERM);
    let asked = Instant::now();
    let ran = Ran::of(ended(child));
    assert!(
        asked.elapsed() < Duration::from_secs(30),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(ran.code, 143, "{}", ran.stderr);
    let missing = &ran.json["checkpoint"]["missing_files"];
    assert_eq!(missing, &serde_json::json!(["a", "b"]));
    assert!(
        ran.stderr.contains("s3://bkt/ckpt/a") && ran.stderr.contains("--sync-grace"),
        "{}",
        ran.stderr
    );
    host.server.clear_script();
    // Of a request that was on its way nobody knows; it is whole or not there.
    assert!(host.object("ckpt/a").is_none_or(|a| a == b"1"));
    assert_eq!(host.object("ckpt/b"), None);
    // They are here, and go up with the next run.
    host.run(&CHECKPOINT, "true").succeeded();
    assert_eq!(host.object("ckpt/b").unwrap(), b"2");
}

/// J30: whoever asks for the end while a finished trainer's work is saved gives it the grace; who asks twice, none.
#[test]
fn saving_is_ended_by_a_second_signal() {
    let host = Host::new();
    host.slow_puts("bkt/out/");
    let script = r#"printf weights > "$SAGEMAKER_BASE_DIR/model/w"; touch finished"#;
    let mut child = host.start(&["--output", "s3://bkt/out/", "--name", "job"], script);
    host.wait_for("finished");
    let puts = || {
        host.server
            .log()
            .iter()
            .any(|entry| entry.operation == Operation::Put)
    };
    wait_for("it is being saved", puts);
    // Two that come at once are one; a third changes nothing.
    wait_for("it has ended", || {
        let has_ended = child.try_wait().unwrap().is_some();
        if !has_ended {
            signal(&child, Signal::TERM);
            std::thread::sleep(Duration::from_millis(100));
        }
        has_ended
    });
    let ran = Ran::of(ended(child));
    assert_eq!(
        (ran.code, &ran.json["trainer_exit_code"]),
        (1, &0.into()),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("once more"), "{}", ran.stderr);
    assert!(
        ran.json["error"]["message"]
            .as_str()
            .unwrap()
            .contains("model.tar.gz")
    );
}

/// J9: a log whose reader has gone changes nothing: the trainer has its grace, and what it saves is in S3.
#[test]
fn nobody_reads_the_log() {
    let host = Host::new();
    let script = r#"cd "$SAGEMAKER_BASE_DIR/checkpoints"; exec 2>/dev/null >/dev/null
        trap 'sleep 0.3; printf saved > last; exit 0' TERM; touch ../../ready; while :; do sleep 0.01; done"#;
    let mut child = host.start(&CHECKPOINT, script);
    host.wait_for("ready");
    drop(child.stderr.take());
    drop(child.stdout.take());
    signal(&child, Signal::TERM);
    let output = ended(child);
    assert_eq!(output.status.code(), Some(143));
    assert_eq!(host.object("ckpt/last").unwrap(), b"saved");
}

/// J9: nor does a log whose reader has stalled.
#[test]
fn nobody_reads_on_in_the_log() {
    let host = Host::new();
    let script = r#"cd "$SAGEMAKER_BASE_DIR/checkpoints"; exec 2>/dev/null >/dev/null
        trap '' TERM; printf saved > last; touch ../../ready; while :; do sleep 0.01; done"#;
    let (log, full) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    rustix::io::ioctl_fionbio(&full, true).unwrap();
    while rustix::io::write(&full, &[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&full, false).unwrap();
    let flags = [&CHECKPOINT[..], &["--stop-grace", "1"]].concat();
    let mut command = host.command(&flags, script);
    command.stdout(Stdio::piped()).stderr(full);
    let child = command.spawn().unwrap();
    drop(command);
    host.wait_for("ready");
    signal(&child, Signal::TERM);
    // That it is asked to end, and that it is killed, is told before that, and not read.
    wait_for("it is saved", || host.object("ckpt/last").is_some());
    wait_for("the tree is given back", || host.left().is_empty());
    drop(log);
    assert_eq!(Ran::of(ended(child)).code, 143);
}

/// J9: SIGHUP that we were told to ignore (`nohup`) is ignored, by the trainer, too.
#[test]
fn nohup_is_heeded() {
    let host = Host::new();
    let script = "touch ready; while [ ! -e enough ]; do sleep 0.01; done; kill -HUP $$; exit 5";
    let run = host.command(&[], script);
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"trap '' HUP; exec "$@""#, "sh"])
        .arg(run.get_program())
        .args(run.get_args())
        .env_clear()
        .envs(
            run.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .current_dir(run.get_current_dir().unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    host.wait_for("ready");
    signal(&child, Signal::HUP);
    std::thread::sleep(Duration::from_millis(200));
    fs::write(host.beside("enough"), "").unwrap();
    assert_eq!(Ran::of(ended(child)).code, 5);
    // One that nobody ignores is passed on like SIGTERM.
    fs::remove_file(host.beside("enough")).unwrap();
    fs::remove_file(host.beside("ready")).unwrap();
    let child = host.start(&[], script);
    host.wait_for("ready");
    signal(&child, Signal::HUP);
    assert_eq!(Ran::of(ended(child)).code, 129);
}

/// What a log shows of a run, without `--json` and without a terminal: the summary, and the trainer's own reason.
#[test]
fn a_log_tells_the_summary() {
    let host = Host::new();
    let base = host.at("").display().to_string();
    let script = r#"cat "$SAGEMAKER_BASE_DIR/input/data/train_0" > /dev/null
        echo "loss is NaN" > "$SAGEMAKER_BASE_DIR/output/failure"; exit 3"#;
    let args = [
        "run",
        "--base-dir",
        &base,
        "--channel",
        "train=s3://bkt/dir/,mode=pipe",
    ];
    let run = |more: &[&str]| {
        let args = [&args[..], more, &["--", "sh", "-c", script]].concat();
        let output = command(&host.server, &args).output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        text(&output.stderr)
    };
    let told = run(&[]);
    for words in [
        "train (Pipe): 17 B",
        "1 epoch",
        "failure: loss is NaN",
        "exit code 3",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert_eq!(run(&["--quiet"]), "");
}

/// A terminal of its own, whose keys are what is written to it.
struct Terminal {
    script: Option<Child>,
}

impl Drop for Terminal {
    /// A test that failed leaves nothing running beside the others: whatever is on the terminal is hung up.
    fn drop(&mut self) {
        if let Some(mut script) = self.script.take() {
            let _ = script.kill();
            let _ = script.wait();
        }
    }
}

impl Terminal {
    fn start(run: &Command) -> Self {
        let quoted =
            |part: &std::ffi::OsStr| format!("'{}'", part.to_str().unwrap().replace('\'', r"'\''"));
        let words = std::iter::once(run.get_program()).chain(run.get_args());
        let line: Vec<_> = words.map(quoted).collect();
        let mut terminal = Command::new("script");
        terminal
            .args(["-qefc", &format!("exec {}", line.join(" ")), "/dev/null"])
            .env_clear()
            .envs(
                run.get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .env("SHELL", "/bin/sh")
            .env("TERM", "xterm")
            .current_dir(run.get_current_dir().unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        Self {
            script: Some(terminal.spawn().unwrap()),
        }
    }

    fn script(&mut self) -> &mut Child {
        self.script.as_mut().unwrap()
    }

    fn press(&mut self, keys: &str) {
        let stdin = self.script().stdin.as_mut().unwrap();
        stdin.write_all(keys.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// The exit code, and all that was on the screen.
    fn ended(mut self) -> (i32, String) {
        let output = ended(self.script.take().unwrap());
        let screen = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code().unwrap_or(-1), screen)
    }
}

const CTRL_C: &str = "\x03";

/// J9: on a terminal Ctrl-C is the command's, each time; nothing is left behind when that ends.
#[test]
fn ctrl_c_on_a_terminal_is_the_commands() {
    let host = Host::new();
    let flags = [
        &CHECKPOINT[..],
        &["--channel", "train=s3://bkt/dir/,mode=pipe"],
    ]
    .concat();
    let script = r#"cd "$SAGEMAKER_BASE_DIR/checkpoints"; n=0
        trap 'n=$((n+1)); echo $n > ../../pressed; test $n = 2 && { printf saved > last; exit 7; }' INT
        touch ../../ready; while :; do sleep 0.01; done"#;
    let mut terminal = Terminal::start(&host.command(&flags, script));
    host.wait_for("ready");
    terminal.press(CTRL_C);
    wait_for("the first", || host.said("pressed") == "1\n");
    terminal.press(CTRL_C);
    let (code, screen) = terminal.ended();
    assert_eq!(code, 7, "{screen}");
    assert_eq!(host.object("ckpt/last").unwrap(), b"saved");
    assert_eq!(host.left(), [""; 0]);
}

/// J9: a command that does nothing about Ctrl-C dies of it, and so ends the run.
#[test]
fn ctrl_c_ends_a_command_that_does_not_catch_it() {
    let host = Host::new();
    let script = "touch ready; exec sleep 600";
    let flags = ["--channel", "train=s3://bkt/dir/,mode=pipe"];
    let mut terminal = Terminal::start(&host.command(&flags, script));
    host.wait_for("ready");
    terminal.press(CTRL_C);
    let (code, screen) = terminal.ended();
    assert_eq!(code, 130, "{screen}");
    assert_eq!(host.left(), [""; 0]);
}

/// J9: Ctrl-C before there is a command is ours: a download ends at once.
#[test]
fn ctrl_c_ends_a_download_before_there_is_a_command() {
    let host = Host::new();
    let rule = Rule::new(Effect::Latency(Latency::fixed(NEVER)));
    host.server
        .script("bkt/dir/", vec![rule.operations(&[Operation::Get])]);
    let flags = ["--channel", "files=s3://bkt/dir/"];
    let mut terminal = Terminal::start(&host.command(&flags, "touch started"));
    let gets = || {
        host.server
            .log()
            .iter()
            .any(|entry| entry.operation == Operation::List)
    };
    wait_for("it downloads", gets);
    std::thread::sleep(Duration::from_millis(300));
    terminal.press(CTRL_C);
    let (code, screen) = terminal.ended();
    assert_eq!(code, 130, "{screen}");
    assert!(!host.beside("started").exists());
    assert_eq!(host.left(), [""; 0]);
}

/// On a terminal `--progress` shows every channel while the command runs, and what that says comes through whole; so does
/// `--log-file`, into which it goes then. Without either the terminal is the command's.
#[test]
fn a_terminal_shows_the_channels() {
    let host = Host::new();
    host.server.put("bkt", "long/x", &[7; 3_000_000]);
    let script = r#"exec 3< "$SAGEMAKER_BASE_DIR/input/data/train_0"; echo one
        for n in 1 2 3 4 5 6 7 8; do dd bs=100000 count=1 iflag=fullblock <&3 2>/dev/null >/dev/null; sleep 0.1; done
        printf 'half a line'; sleep 0.5; echo ' and its end'; echo two >&2"#;
    let base = host.at("").display().to_string();
    let run = |more: &[&str]| {
        let args = [
            &[
                "run",
                "--base-dir",
                &base,
                "--channel",
                "train=s3://bkt/long/,mode=pipe",
            ],
            more,
            &["--", "sh", "-c", script],
        ];
        let mut run = command(&host.server, &args.concat());
        run.current_dir(host.beside("."));
        let (code, screen) = Terminal::start(&run).ended();
        assert_eq!(code, 0, "{screen}");
        screen
    };
    let screen = run(&["--progress"]);
    for words in [
        "train  Pipe",
        "epoch 0",
        "one\r\n",
        "half a line and its end\r\n",
        "two\r\n",
    ] {
        assert!(screen.contains(words), "{words:?}: {screen:?}");
    }
    let screen = run(&["--log-file", "log"]);
    assert!(
        screen.contains("train  Pipe") && !screen.contains("half a line"),
        "{screen:?}"
    );
    assert_eq!(host.said("log"), "one\nhalf a line and its end\ntwo\n");
    let screen = run(&[]);
    assert!(
        !screen.contains("train  Pipe") && screen.contains("train (Pipe)"),
        "{screen:?}"
    );
}

/// J17: a time that no clock reaches is no limit.
#[test]
fn an_absurd_max_runtime_is_no_limit() {
    let host = Host::new();
    for seconds in ["9223372036854775807", "31536000"] {
        let request = format!(r#"{{"StoppingCondition": {{"MaxRuntimeInSeconds": {seconds}}}}}"#);
        fs::write(host.beside("job.json"), request).unwrap();
        host.run(&["--job", "job.json"], "sleep 0.1").succeeded();
    }
}
