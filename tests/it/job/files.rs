//! File and FastFile channels: what they list, what they leave, and whose share they are.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use fake_s3::{Effect, Latency, Operation, Rule, Shape};

use super::Host;
use crate::cli::text;

impl Host {
    fn count(&self, operation: Operation) -> usize {
        let is_it = |entry: &&fake_s3::LogEntry| entry.operation == operation;
        self.server.log().iter().filter(is_it).count()
    }

    /// Names below a channel's directory.
    fn files(&self, channel: &str) -> Vec<String> {
        let root = self.at(&format!("input/data/{channel}"));
        let mut found = Vec::new();
        walk(&root, &root, &mut found);
        found.sort();
        found
    }
}

fn walk(root: &Path, directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => walk(root, &entry.path(), found),
            false => {
                let path = entry.path();
                found.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
}

/// J31: a File channel is listed once, and a manifest's objects are asked for once; a folder needs no `/` at its end.
#[test]
fn a_file_channel_is_listed_once() {
    let host = Host::new();
    for flag in ["files=s3://bkt/dir/", "files=s3://bkt/dir"] {
        host.server.clear_log();
        host.run(&["--channel", flag], "true").succeeded();
        assert_eq!(host.count(Operation::List), 1, "{flag}");
        assert_eq!(host.files("files"), ["a", "b", "sub/c"], "{flag}");
        fs::remove_dir_all(host.at("")).unwrap();
    }
    host.server.put(
        "bkt",
        "m.json",
        br#"[{"prefix": "s3://bkt/dir/"}, "a", "b", "a"]"#,
    );
    host.server.clear_log();
    let flag = "files=s3://bkt/m.json,s3-data-type=manifest,manifest-names=relative";
    host.run(&["--channel", flag], "true").succeeded();
    let asked = |entry: &&fake_s3::LogEntry| {
        entry.operation == Operation::Head && entry.key.starts_with("dir/")
    };
    // Each entry once, on its way to the one listing of them.
    assert_eq!(host.server.log().iter().filter(asked).count(), 3);
    assert_eq!(host.count(Operation::List), 0);
    assert_eq!(
        host.files("files"),
        ["a", "b"],
        "named twice, it is one file"
    );
}

/// J31: one exact key needs no permission to list.
#[test]
fn an_exact_key_needs_no_permission_to_list() {
    let host = Host::new();
    let denied = Effect::Status {
        status: 403,
        code: "AccessDenied".into(),
    };
    host.server
        .script("", vec![Rule::new(denied).operations(&[Operation::List])]);
    let script = r#"test "$(cat "$SAGEMAKER_BASE_DIR/input/data/files/a")" = alpha"#;
    host.run(&["--channel", "files=s3://bkt/dir/a"], script)
        .succeeded();
}

/// J31: a second run in the same tree takes away what is none of the data any more, and nothing else.
#[test]
fn what_is_gone_from_the_data_goes_from_the_tree() {
    let host = Host::new();
    let flags = ["--channel", "files=s3://bkt/dir/"];
    let script = r#"echo mine > "$SAGEMAKER_BASE_DIR/input/data/files/labels.cache""#;
    host.run(&flags, script).succeeded();
    assert_eq!(host.files("files"), ["a", "b", "labels.cache", "sub/c"]);
    host.server.delete("bkt", "dir/sub/c");
    host.server.put("bkt", "dir/d", b"delta\n");
    host.run(&flags, "true").succeeded();
    assert_eq!(host.files("files"), ["a", "b", "d", "labels.cache"]);
    assert!(!host.at("input/data/files/sub").exists());
}

/// J28: a FastFile channel is shared out as all others: of the listing's order every host sees its share.
#[test]
fn a_mount_shows_a_hosts_share() {
    let mut all = Vec::new();
    for rank in ["0", "1"] {
        let host = Host::new();
        let flags = [
            "--host-rank",
            rank,
            "--host-count",
            "2",
            "--channel",
            "data=s3://bkt/dir/,mode=fastfile,distribution=sharded",
        ];
        let script = r#"cd "$SAGEMAKER_BASE_DIR/input/data/data"; find . -type f | sort; cat a b sub/c 2>/dev/null; exit 0"#;
        let output = host.command(&flags, script).output().unwrap();
        let out = text(&output.stdout);
        if !Path::new("/dev/fuse").exists() || !rustix::process::geteuid().is_root() {
            assert!(text(&output.stderr).contains("mode=file") || out.contains("mode=file"));
            return;
        }
        all.push(
            out.lines()
                .filter(|line| !line.starts_with('{'))
                .collect::<Vec<_>>()
                .join(" "),
        );
    }
    assert_eq!(all, ["./a ./sub/c alpha gamma", "./b beta"]);
}

/// J18: files that are here and unchanged are not fetched again, and those that are missing come side by side.
#[test]
fn checkpoints_come_in_parallel_and_only_when_they_are_missing() {
    let host = Host::new();
    for n in 0..20 {
        host.server
            .put("bkt", &format!("ckpt/shard-{n:02}"), &[7; 1000]);
    }
    let latency = Latency::fixed(Duration::from_secs(1));
    host.server.set_shape(Shape {
        latency,
        ..Shape::default()
    });
    let flags = [
        "--checkpoint",
        "s3://bkt/ckpt",
        "--checkpoint-settle",
        "0.1",
    ];
    let begun = Instant::now();
    let script = r#"cd "$SAGEMAKER_BASE_DIR/checkpoints"; printf new > mine"#;
    let ran = host.run(&flags, script);
    ran.succeeded();
    // One after the other they take 20 s.
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(ran.json["checkpoint"]["restored_files"], 20);
    host.server.set_shape(Shape::default());
    // The object of `mine` is younger than the file.
    host.server.clear_log();
    let ran = host.run(&flags, "true");
    ran.succeeded();
    let told = &ran.json["checkpoint"];
    assert_eq!(
        (&told["restored_files"], &told["kept_files"]),
        (&0.into(), &21.into())
    );
    assert_eq!(host.count(Operation::Get), 0);
    assert_eq!(host.count(Operation::Put), 0);
    // Another host has written it: then it is fetched.
    host.server.put("bkt", "ckpt/mine", b"NEW");
    let ran = host.run(
        &flags,
        r#"test "$(cat "$SAGEMAKER_BASE_DIR/checkpoints/mine")" = NEW"#,
    );
    ran.succeeded();
    assert_eq!(ran.json["checkpoint"]["restored_files"], 1);
}

/// J15: memory that some epoch's end would lack is told before the command starts.
#[test]
fn too_little_memory_is_told_at_once() {
    let host = Host::new();
    let channels: Vec<String> = (0..5)
        .map(|n| format!("c{n}=s3://bkt/dir/,mode=pipe"))
        .collect();
    let mut flags = vec!["--memory", "64MiB"];
    flags.extend(channels.iter().flat_map(|channel| ["--channel", channel]));
    let ran = host.run(&flags, "touch started");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.json["error"]["message"]
            .as_str()
            .unwrap()
            .contains("5 Pipe channels")
    );
    assert!(!host.beside("started").exists());
}

/// J12: an epoch that nobody reads stops no trainer, whatever is the matter with it.
#[test]
fn an_epoch_that_nobody_opens_may_fail() {
    let host = Host::new();
    let status = Effect::Status {
        status: 403,
        code: "AccessDenied".into(),
    };
    // After the first epoch's.
    let rule = Rule::new(status).operations(&[Operation::Get]).skip(1);
    host.server.script("bkt/dir/a", vec![rule]);
    let flags = ["--channel", "train=s3://bkt/dir/,mode=pipe"];
    let trains =
        r#"cat "$SAGEMAKER_BASE_DIR/input/data/train_0" > got; sleep 1; echo done > finished"#;
    host.run(&flags, trains).succeeded();
    assert_eq!(host.said("got"), "alpha\nbeta\ngamma\n");
    assert_eq!(host.said("finished"), "done\n");
    // Whoever reads it sees no end.
    host.server.clear_script();
    let rule = Rule::new(Effect::Status {
        status: 403,
        code: "AccessDenied".into(),
    });
    host.server.script(
        "bkt/dir/a",
        vec![rule.operations(&[Operation::Get]).skip(1)],
    );
    let reads = r#"cd "$SAGEMAKER_BASE_DIR/input/data"; cat train_0 > ../../../got; cat train_1 > /dev/null; echo end > ../../../ended"#;
    let ran = host.run(&flags, reads);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(!host.beside("ended").exists());
}

/// J15: an object that cannot be read at all is told before the command starts, and a command that is not there before
/// anything is downloaded.
#[test]
fn what_cannot_be_read_or_run_is_told_at_once() {
    let host = Host::new();
    super::forbid(&host.server, "bkt/dir/a");
    let ran = host.run(
        &["--channel", "train=s3://bkt/dir/,mode=pipe"],
        "touch started",
    );
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(
        ran.json["error"]["message"]
            .as_str()
            .unwrap()
            .contains("s3://bkt/dir/a")
    );
    assert!(!host.beside("started").exists());
    assert_eq!(host.left(), [""; 0]);
    host.server.clear_script();
    host.server.clear_log();
    let base = host.at("").display().to_string();
    let args = [
        "run",
        "--base-dir",
        &base,
        "--channel",
        "files=s3://bkt/dir/",
        "--",
        "no-such-trainer",
    ];
    let output = crate::cli::command(&host.server, &args).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert_eq!(host.count(Operation::Get), 0);
}

/// Each would make up another.
#[test]
fn several_hosts_need_one_name_for_their_output() {
    let host = Host::new();
    let flags = [
        "--host-rank",
        "0",
        "--host-count",
        "2",
        "--output",
        "s3://bkt/out/",
    ];
    let ran = host.run(&flags, "touch started");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.json["error"]["fix"]
            .as_str()
            .unwrap()
            .contains("--name")
    );
    host.run(&[&flags[..], &["--name", "n"]].concat(), "true")
        .succeeded();
}
