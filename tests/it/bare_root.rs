//! The example image's programs where nothing else is: in a root file system of Debian's smallest set with Python, filled as
//! the Dockerfile says, as process 1 of its own. `scripts/check.py --only bare-root` makes the root, once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};

use crate::cli::{code, command, ended, server, text, wait_for};

/// Where the root lies: a copy of it is used, so that every run begins with it as it is.
fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bare-root");
    assert!(
        root.join("usr/bin/python3").exists(),
        "{} is not there: scripts/check.py --only bare-root makes it",
        root.display()
    );
    root
}

/// What the Dockerfile copies into its last stage: from here, or from the stage that builds.
fn fill(root: &Path) {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dockerfile = fs::read_to_string(project.join("examples/container/Dockerfile")).unwrap();
    let last = dockerfile.split("\nFROM ").last().unwrap().to_owned();
    let mut copied = 0;
    for line in last.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        let words: Vec<_> = line.split_whitespace().collect();
        let (from, to) = match words[..] {
            ["--from=build", "/src/target/release/standpipe", to] => {
                (PathBuf::from(env!("CARGO_BIN_EXE_standpipe")), to)
            }
            [from, to] => (project.join(from), to),
            _ => panic!("this test does not know how to copy {line}"),
        };
        let to = root.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&from, &to).unwrap();
        let mode = fs::metadata(&from).unwrap().permissions().mode();
        fs::set_permissions(&to, fs::Permissions::from_mode(mode)).unwrap();
        copied += 1;
    }
    assert_eq!(copied, 3, "{last}");
}

/// A container's process 1: namespaces of its own, the root changed, the entry point executed.
struct Container {
    unshare: Option<Child>,
}

impl Drop for Container {
    /// A test that failed leaves no trainer running beside the others: `--kill-child` does the rest.
    fn drop(&mut self) {
        if let Some(mut unshare) = self.unshare.take() {
            let _ = unshare.kill();
            let _ = unshare.wait();
        }
    }
}

impl Container {
    fn start(root: &Path, env: &Command, arguments: &[&str]) -> Self {
        let script = r#"mount -t proc proc "$ROOT/proc" && mount --rbind /dev "$ROOT/dev" && exec chroot "$ROOT" /usr/local/bin/entrypoint "$@""#;
        let mut unshare = Command::new("unshare");
        unshare
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                script,
                "sh",
            ])
            .args(arguments)
            .env_clear()
            .envs(
                env.get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("ROOT", root)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self {
            unshare: Some(unshare.spawn().unwrap()),
        }
    }

    /// As `docker stop` does.
    fn stop(&self) {
        let pid = self.unshare.as_ref().unwrap().id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let first: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(first).unwrap(), Signal::TERM).unwrap();
    }

    fn ended(mut self) -> (i32, String, String) {
        let output = ended(self.unshare.take().unwrap());
        (code(&output), text(&output.stdout), text(&output.stderr))
    }
}

/// The way of the README in examples/deploy: epochs go by, SIGTERM, another host goes on; then the platform's own call.
#[test]
fn the_image_trains_is_stopped_and_goes_on_on_another_host() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    let copied = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(self::root())
        .arg(&root)
        .status();
    assert!(copied.unwrap().success());
    fill(&root);
    let server = server();
    let env = command(&server, &[]);
    let run = |epochs: &str| {
        let epochs = format!("epochs={epochs}");
        let arguments = [
            "--name",
            "demo",
            "--hyperparameter",
            &epochs,
            "--channel",
            "train=s3://bkt/dir/,mode=pipe",
            "--channel",
            "files=s3://bkt/s-",
            "--checkpoint",
            "s3://bkt/ckpt/demo/",
            "--output",
            "s3://bkt/models/",
            "--",
            "python3",
            "/opt/program/train.py",
        ];
        Container::start(&root, &env, &arguments)
    };
    let container = run("1000000");
    let state = root.join("opt/ml/checkpoints/state.json");
    wait_for("an epoch was saved", || state.exists());
    assert!(root.join("opt/ml/input/data/files/s-000.tar").exists());
    container.stop();
    let (code, _, stderr) = container.ended();
    assert_eq!(code, 143, "{stderr}");
    assert!(stderr.contains("train (Pipe)"), "{stderr}");
    let saved: serde_json::Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    let epochs = saved["epoch"].as_u64().unwrap() + 2;

    fs::remove_dir_all(root.join("opt/ml")).unwrap();
    let (code, stdout, stderr) = run(&epochs.to_string()).ended();
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stdout.contains(&format!("bytes in {epochs} epochs\n")),
        "{stdout}"
    );
    let keys: Vec<_> = server.log().into_iter().map(|entry| entry.key).collect();
    assert!(
        keys.iter()
            .any(|key| key == "models/demo/output/model.tar.gz"),
        "{keys:?}"
    );

    // On SageMaker the platform has made the tree.
    fs::write(root.join("opt/ml/input/config/inputdataconfig.json"), "{}").unwrap();
    let (code, stdout, stderr) = Container::start(&root, &env, &["train"]).ended();
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stdout.starts_with("trained on ") && stdout.contains(&format!("{epochs} epochs")),
        "{stdout}"
    );
}
