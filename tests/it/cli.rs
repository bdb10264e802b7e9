//! The built command against a scripted S3: what it prints, where, and with which exit code.

mod resume;

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fake_s3::{Credentials, Effect, FakeS3, Operation, PutOptions, Rule};

mod bench;

const KEY: &str = "AKIDTEST";
const SECRET: &str = "secret-of-the-tests";
const SUBCOMMANDS: [&str; 11] = [
    "pipe",
    "run",
    "cat",
    "ls",
    "download",
    "mount",
    "umount",
    "cache",
    "bench",
    "demo",
    "completions",
];

/// Longer than any of these commands takes on a busy machine; a hang fails the test instead of the build.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server that checks signatures, with a few objects in `bkt`.
pub(crate) fn server() -> FakeS3 {
    let server = FakeS3::builder()
        .auth(Credentials::new(KEY, SECRET))
        .start()
        .unwrap();
    for (key, bytes) in [
        ("dir/", ""),
        ("dir/a", "alpha\n"),
        ("dir/b", "beta\n"),
        ("dir/sub/c", "gamma\n"),
        ("empty", ""),
        ("s-000.tar", "zero\n"),
        ("s-001.tar", "one\n"),
        ("s-002.tar", "two\n"),
    ] {
        server.put("bkt", key, bytes.as_bytes());
    }
    server
}

/// A command whose environment holds nothing of the machine's but the path.
fn bare(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_standpipe"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/nonexistent")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_REGION", "us-east-1")
        .args(args)
        .stdin(Stdio::null());
    command
}

pub(crate) fn command(server: &FakeS3, args: &[&str]) -> Command {
    let mut command = bare(args);
    command
        .env("AWS_ENDPOINT_URL", server.endpoint())
        .env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET);
    command
}

fn run(server: &FakeS3, args: &[&str]) -> Output {
    command(server, args).output().unwrap()
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output of a command that succeeds and says nothing else.
fn quietly(server: &FakeS3, args: &[&str]) -> String {
    let output = run(server, args);
    assert_eq!(
        (code(&output), text(&output.stderr).as_str()),
        (0, ""),
        "{args:?}"
    );
    text(&output.stdout)
}

/// Exit code and standard error of a command that fails without any output.
fn failing(server: &FakeS3, args: &[&str]) -> (i32, String) {
    let output = run(server, args);
    assert_eq!(text(&output.stdout), "", "{args:?}");
    (code(&output), text(&output.stderr))
}

/// The operations that reached the server, in order.
fn requests(server: &FakeS3) -> Vec<(Operation, String)> {
    let log = server.log().into_iter();
    log.filter(|entry| entry.operation != Operation::Bucket)
        .map(|entry| (entry.operation, entry.key))
        .collect()
}

pub(crate) fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let started = Instant::now();
    while !happened() {
        assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn ended(mut child: Child) -> Output {
    wait_for("the command ended", || child.try_wait().unwrap().is_some());
    child.wait_with_output().unwrap()
}

pub(crate) fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

fn files(directory: &Path) -> Vec<String> {
    let output = Command::new("find")
        .args([".", "-not", "-type", "d"])
        .current_dir(directory)
        .output()
        .unwrap();
    let mut names: Vec<_> = text(&output.stdout)
        .lines()
        .map(|line| line.trim_start_matches("./").to_owned())
        .collect();
    names.sort();
    names
}

/// S1: the order is the one given.
#[test]
fn cat_concatenates_objects_prefixes_and_patterns_in_the_order_given() {
    let server = server();
    for (uris, expected) in [
        (&["s3://bkt/dir/a"][..], "alpha\n"),
        (&["s3://bkt/dir/"], "alpha\nbeta\ngamma\n"),
        (&["s3://bkt/s-{002..000}.tar"], "two\none\nzero\n"),
        (
            &["s3://bkt/dir/b", "s3://bkt/empty", "s3://bkt/dir/a"],
            "beta\nalpha\n",
        ),
        (
            &["s3://bkt/s-{000,002}.tar", "s3://bkt/dir/sub/"],
            "zero\ntwo\ngamma\n",
        ),
        (&["s3://bkt/empty"], ""),
    ] {
        let args = [&["cat"], uris].concat();
        assert_eq!(quietly(&server, &args), expected, "{uris:?}");
    }
}

#[test]
fn cat_reads_a_large_object_over_both_transports() {
    let server = server();
    let size = 20_000_003;
    server.put_synthetic("bkt", "large", size, 7);
    let mut expected = vec![0; size as usize];
    fake_s3::content(7, 0, &mut expected);
    for transport in ["direct", "stock"] {
        let args = [
            "cat",
            "s3://bkt/large",
            "--part-size",
            "1MiB",
            "--transport",
            transport,
        ];
        let output = run(&server, &args);
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
        assert!(
            output.stdout == expected,
            "{transport}: {} bytes",
            output.stdout.len()
        );
    }
}

/// S2: no permission to list is needed.
#[test]
fn cat_needs_no_listing_and_its_checksum_may_be_forbidden() {
    let server = server();
    server.script(
        "bkt/",
        vec![
            Rule::new(Effect::Status {
                status: 403,
                code: String::new(),
            })
            .operations(&[Operation::List, Operation::Head]),
        ],
    );
    assert_eq!(quietly(&server, &["cat", "s3://bkt/dir/a"]), "alpha\n");
    let asked = requests(&server);
    assert_eq!(
        asked
            .iter()
            .filter(|(operation, _)| *operation == Operation::Get)
            .count(),
        1
    );
    assert!(
        asked
            .iter()
            .all(|(operation, key)| *operation != Operation::List && key == "dir/a"),
        "{asked:?}"
    );
}

#[test]
fn cat_takes_what_is_no_object_as_a_prefix() {
    let server = server();
    let args = ["cat", "s3://bkt/dir/a", "s3://bkt/s-00", "s3://bkt/dir/b"];
    assert_eq!(quietly(&server, &args), "alpha\nzero\none\ntwo\nbeta\n");
}

/// An object that goes away is an error, whatever else begins with its name: part of it may have been written already.
#[test]
fn cat_takes_no_object_that_went_away_for_a_prefix() {
    let server = server();
    server.put_synthetic("bkt", "big", 3 << 20, 1);
    server.put("bkt", "big.idx", b"index");
    server.put("bkt", "dir/bb", b"sibling");
    let gone = |key: &str, skip| {
        let effect = Effect::Status {
            status: 404,
            code: "NoSuchKey".into(),
        };
        server.script(
            key,
            vec![Rule::new(effect).operations(&[Operation::Get]).skip(skip)],
        );
    };
    gone("bkt/big", 1);
    gone("bkt/dir/b", 0);
    let mut big = vec![0; 3 << 20];
    fake_s3::content(1, 0, &mut big);
    let cases: [(&[&str], &[u8]); 2] = [
        (&["cat", "s3://bkt/big", "--part-size", "1MiB"], &big),
        // The first one lists it; the second one names it, and comes later.
        (&["cat", "s3://bkt/dir/", "s3://bkt/dir/b"], b"alpha\n"),
    ];
    for (args, expected) in cases {
        let output = run(&server, args);
        assert_eq!(code(&output), 3, "{}", text(&output.stderr));
        assert!(
            !output.stdout.is_empty() && expected.starts_with(&output.stdout),
            "{args:?}: {} bytes",
            output.stdout.len()
        );
    }
}

#[test]
fn files_are_read_like_objects() {
    let server = server();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("x"), "ex").unwrap();
    std::fs::write(directory.path().join("y"), "why").unwrap();
    let path = directory.path().display().to_string();
    assert_eq!(quietly(&server, &["cat", &path]), "exwhy");
    let both = format!("file://{path}/{{y,x}}");
    assert_eq!(
        quietly(&server, &["cat", &both, "s3://bkt/dir/a"]),
        "whyexalpha\n"
    );
}

#[test]
fn every_failure_has_its_exit_code_and_says_what_to_do() {
    let server = server();
    server.put("bkt", "forbidden", b"x");
    server.script(
        "bkt/forbidden",
        vec![Rule::new(Effect::Status {
            status: 403,
            code: "AccessDenied".into(),
        })],
    );
    server.put_synthetic("bkt", "changing", 3 << 20, 1);
    server.script(
        "bkt/changing",
        // Between two GETs: a HEAD beside them sees either version.
        vec![
            Rule::new(Effect::Replace { seed: 2 })
                .skip(1)
                .operations(&[Operation::Get]),
        ],
    );
    let changing = ["cat", "s3://bkt/changing", "--part-size", "1MiB", "--json"];
    assert_eq!(code(&run(&server, &changing)), 5);
    for (args, expected, parts) in [
        (
            &["cat", "s3://bkt/nothing"][..],
            3,
            &[
                "standpipe: s3://bkt/nothing: not found at offset 0 (HTTP 404 NoSuchKey",
                "request id",
                "\n  fix: check the bucket",
            ][..],
        ),
        (&["cat", "s3://no-such-bucket/x"], 3, &["NoSuchBucket"]),
        (
            &["cat", "s3://bkt/nothing/"],
            3,
            &["no object's key starts with this"],
        ),
        (&["ls", "s3://bkt/nothing/"], 3, &["not found"]),
        // A scheme that was forgotten or mistyped is a path.
        (
            &["ls", "bkt"],
            3,
            &[
                "not found",
                "fix: check the path; what is in S3 is named s3://",
            ],
        ),
        (
            &["cat", "s3:/bkt/a"],
            3,
            &["what is in S3 is named s3://bucket/key"],
        ),
        (
            &["download", "s3://bkt/nothing", "/nonexistent-target"],
            1,
            &["standpipe: /nonexistent-target"],
        ),
        (
            &["cat", "s3://bkt/forbidden"],
            4,
            &[
                "permission denied at offset 0 (HTTP 403 AccessDenied",
                "fix: the caller needs s3:GetObject",
            ],
        ),
        (
            &["cat", "s3://bkt/dir/a", "--no-sign-request"],
            4,
            &["permission denied"],
        ),
        (
            &["cat", "s3://bkt/dir/a", "--memory", "1KiB"],
            2,
            &["standpipe: memory: 1024 bytes do not hold one part"],
        ),
        (&["cat", "memory://m/x"], 2, &["one process only"]),
        (
            &["cat", "http://bkt/x"],
            2,
            &["unknown scheme", "use s3://bucket/key"],
        ),
        (
            &["cat", "s3://bkt/{0..9999999}"],
            2,
            &["stand for 10000000 names"],
        ),
        (
            &["cat", "s3://bkt/x", "--part-size", "8Mo"],
            2,
            &["64M (of 1024) or 64MB (of 1000)"],
        ),
        (&["cat"], 2, &["Usage: standpipe cat"]),
        (
            &["bench"],
            2,
            &[
                "Usage: standpipe bench [OPTIONS] <URI>\n       standpipe bench [OPTIONS] --synthetic",
            ],
        ),
        (&["frobnicate"], 2, &["unrecognized subcommand"]),
    ] {
        // The target directory of root's tests could be made; nobody can make one below a file.
        let args: Vec<_> = args
            .iter()
            .map(|arg| match *arg {
                "/nonexistent-target" => "/dev/null/target",
                other => other,
            })
            .collect();
        let (code, stderr) = failing(&server, &args);
        assert_eq!(code, expected, "{args:?}: {stderr}");
        for part in parts {
            let part = part.replace("/nonexistent-target", "/dev/null/target");
            assert!(
                stderr.contains(&part),
                "{args:?}: {part:?} is missing in {stderr}"
            );
        }
        assert!(!stderr.contains('\x1b'), "{stderr:?}");
    }
}

/// S3: corrupt bytes are never a success.
#[test]
fn corrupt_bytes_are_an_error_with_their_object() {
    let server = server();
    server.put("bkt", "flipped", &[7; 1000]);
    server.script(
        "bkt/flipped",
        vec![Rule::new(Effect::FlipBit { at_byte: 99 })],
    );
    // As a prefix, which is listed, and as an object, of which nothing is known before the first answer.
    for uri in ["s3://bkt/flip", "s3://bkt/flipped"] {
        let output = run(&server, &["cat", uri]);
        let stderr = text(&output.stderr);
        assert_eq!(code(&output), 5, "{uri}: {stderr}");
        assert!(
            stderr.contains("s3://bkt/flipped: corrupt"),
            "{uri}: {stderr}"
        );
    }
}

#[test]
fn wrong_keys_and_missing_credentials_say_which() {
    let server = server();
    let output = command(&server, &["cat", "s3://bkt/dir/a"])
        .env("AWS_SECRET_ACCESS_KEY", "wrong")
        .output()
        .unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(code(&output), 4, "{stderr}");
    assert!(
        stderr.contains("SignatureDoesNotMatch") && stderr.contains("--profile"),
        "{stderr}"
    );
    let output = bare(&[
        "cat",
        "s3://bkt/dir/a",
        "--endpoint-url",
        &server.endpoint(),
    ])
    .output()
    .unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(code(&output), 4, "{stderr}");
    assert!(
        stderr.contains("no usable AWS credentials") && stderr.contains("--no-sign-request"),
        "{stderr}"
    );
}

/// A profile that is named comes before keys in the environment, which may be another account's.
#[test]
fn a_named_profile_comes_before_the_environment() {
    let server = server();
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("credentials");
    let text_ = format!("[good]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n");
    std::fs::write(&file, text_).unwrap();
    let with_profile = |name: &str| {
        command(&server, &["cat", "s3://bkt/dir/a", "--profile", name])
            .env("AWS_SHARED_CREDENTIALS_FILE", &file)
            .env("AWS_SECRET_ACCESS_KEY", "of another account")
            .output()
            .unwrap()
    };
    let good = with_profile("good");
    assert_eq!(
        (code(&good), text(&good.stdout)),
        (0, "alpha\n".into()),
        "{}",
        text(&good.stderr)
    );
    let unknown = with_profile("nope");
    let stderr = text(&unknown.stderr);
    assert_eq!(code(&unknown), 4, "{stderr}");
    assert!(stderr.contains("the profile \"nope\""), "{stderr}");
}

/// The key alone is given; its MD5, which S3 wants beside it, is computed. Every command that reads takes it.
#[test]
fn objects_under_a_customers_key_are_read_with_it_and_only_with_it() {
    let server = server();
    let locked = PutOptions {
        customer_key_md5: Some("y4HAEFCYWuvAXWFTtA1Qpg==".into()),
        ..PutOptions::default()
    };
    // Small enough for a request of our own, and large enough for the SDK's and for a HEAD.
    let large: Vec<u8> = (0..3 << 20).map(|at: u32| (at % 251) as u8).collect();
    for (key, bytes) in [("locked/a", &b"alpha"[..]), ("locked/b", &large)] {
        server.put_with("bkt", key, bytes, locked.clone());
    }
    let expected = [b"alpha", &large[..]].concat();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (raw, other) = (file("raw", &[7; 32]), file("other", &[8; 32]));
    let base64 = file("base64", b"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n");
    let marked = format!("fileb://{raw}");
    for transport in ["direct", "stock"] {
        let common = [
            "s3://bkt/locked/",
            "--part-size",
            "1MiB",
            "--transport",
            transport,
        ];
        for key in [
            &["--sse-c", "AES256", "--sse-c-key", &marked][..],
            &["--sse-c", "--sse-c-key", &base64],
            &["--sse-c-key", &raw],
        ] {
            let output = run(&server, &[&["cat"], &common[..], key].concat());
            assert_eq!(code(&output), 0, "{}", text(&output.stderr));
            assert!(output.stdout == expected, "{transport} {key:?}");
        }
        let target = directory.path().join(transport).display().to_string();
        let download = ["download", common[0], &target];
        quietly(
            &server,
            &[&download, &common[1..], &["--sse-c-key", &raw]].concat(),
        );
        assert_eq!(std::fs::read(format!("{target}/b")).unwrap(), large);
        for (key, expected, said) in [
            (
                &[] as &[&str],
                1,
                "\n  fix: the object is encrypted with its owner's own key (SSE-C)",
            ),
            (
                &["--sse-c-key", &other],
                4,
                "the very key they were written with",
            ),
        ] {
            let (code, stderr) = failing(&server, &[&["cat"], &common[..], key].concat());
            assert_eq!(code, expected, "{transport}: {stderr}");
            assert!(stderr.contains(said), "{transport}: {stderr}");
        }
        let open = [
            "cat",
            "s3://bkt/dir/a",
            "--transport",
            transport,
            "--sse-c-key",
            &raw,
        ];
        let (_, stderr) = failing(&server, &open);
        assert!(
            stderr.contains("leave out --sse-c-key"),
            "{transport}: {stderr}"
        );
    }
    let pipes = directory.path().join("pipes").display().to_string();
    let pipe = [
        "pipe",
        "--channel",
        "t=s3://bkt/locked/",
        "--dir",
        &pipes,
        "--epochs",
        "1",
    ];
    let child = command(&server, &[&pipe[..], &["--sse-c-key", &raw]].concat())
        .spawn()
        .unwrap();
    let fifo = Path::new(&pipes).join("t_0");
    wait_for("the FIFO is there", || fifo.exists());
    assert!(std::fs::read(fifo).unwrap() == expected);
    // The farewell: whoever reads it does not keep the server waiting for others.
    assert_eq!(std::fs::read(Path::new(&pipes).join("t_1")).unwrap(), b"");
    assert_eq!(code(&ended(child)), 0);
    assert!(quietly(&server, &["ls", "s3://bkt/locked/", "--sse-c-key", &raw]).contains(" a\n"));
}

#[test]
fn an_unusable_customers_key_is_told_without_showing_it() {
    let server = server();
    let typed = "MySecretKeyOfThirtyTwoCharacters";
    let directory = tempfile::tempdir().unwrap();
    let short = directory.path().join("short").display().to_string();
    std::fs::write(&short, "too short").unwrap();
    for (flags, said) in [
        (
            &["--sse-c-key", typed][..],
            "give a file's name, never the key itself",
        ),
        (
            &["--sse-c-key", "fileb:///nonexistent/key"],
            "/nonexistent/key: No such file",
        ),
        (&["--sse-c-key", &short], "openssl rand -out FILE 32"),
        (&["--sse-c"], "name its file with --sse-c-key"),
        (&["--sse-c", "aws:kms"], "invalid value 'aws:kms'"),
        (
            &[
                "--sse-c-key",
                &short,
                "--endpoint-url",
                "http://minio.example",
            ],
            "holds no AES-256 key",
        ),
    ] {
        let (code, stderr) = failing(&server, &[&["cat", "s3://bkt/dir/a"], flags].concat());
        assert_eq!(code, 2, "{flags:?}: {stderr}");
        assert!(stderr.contains(said), "{flags:?}: {stderr}");
        assert!(!stderr.contains(typed), "{stderr}");
    }
    std::fs::write(&short, [7; 32]).unwrap();
    let open = [
        "cat",
        "s3://b/k",
        "--sse-c-key",
        &short,
        "--endpoint-url",
        "http://minio.example",
    ];
    let (code, stderr) = failing(&server, &open);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("use an https:// endpoint"), "{stderr}");
}

#[test]
fn an_unknown_certificate_is_told_with_the_flag_that_names_its_issuer() {
    let server = FakeS3::builder().tls(true).start().unwrap();
    server.put("bkt", "a", b"alpha");
    let args = ["cat", "s3://bkt/a", "--no-sign-request", "--endpoint-url"];
    let output = bare(&args).arg(server.endpoint()).output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(code(&output), 6, "{stderr}");
    assert!(stderr.contains("--ca-bundle"), "{stderr}");
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), server.ca_pem().unwrap()).unwrap();
    let output = bare(&args)
        .arg(server.endpoint())
        .arg("--ca-bundle")
        .arg(ca.path())
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "alpha", "{}", text(&output.stderr));
}

/// Asking again would not help, so it is not done.
#[test]
fn an_endpoint_with_the_wrong_scheme_is_told_at_once() {
    // Speaks HTTP, and waits for the end of a request that never comes when it gets a handshake.
    let patient = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let patient_url = format!("https://{}", patient.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in patient.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut asked = Vec::new();
                while !asked.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    asked.push(byte[0]);
                }
                let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 403 Forbidden\r\n\r\n");
            });
        }
    });
    let plain = server();
    // What a server of TLS says to a plain request: an alert (2, fatal; 22, record overflow).
    let tls = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tls_url = format!("http://{}", tls.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in tls.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = std::io::Write::write_all(&mut stream, &[21, 3, 1, 0, 2, 2, 22]);
        }
    });
    for (url, fix) in [
        (plain.endpoint().replace("http:", "https:"), "use http://"),
        (patient_url, "use http://"),
        (tls_url, "use https://"),
    ] {
        let started = Instant::now();
        let args = [
            "cat",
            "s3://bkt/dir/a",
            "--no-sign-request",
            "--endpoint-url",
            &url,
        ];
        let output = bare(&args).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(code(&output), 2, "{url}: {stderr}");
        assert!(
            stderr.contains(&format!("\n  fix: {fix}")),
            "{url}: {stderr}"
        );
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{url}: {:?}",
            started.elapsed()
        );
    }
}

/// A cache is a copy in plain of what its owner keeps encrypted.
#[test]
fn no_cache_keeps_what_is_encrypted_with_a_customers_key() {
    let server = server();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("key"), [7; 32]).unwrap();
    let (cache, key, point) = (at("cache"), at("key"), at("mnt"));
    for args in [
        &["mount", "s3://bkt/dir/", &point][..],
        &["cache", "warm", "s3://bkt/dir/"],
    ] {
        let flags = ["--cache", &cache, "--sse-c-key", &key];
        let (code, stderr) = failing(&server, &[args, &flags].concat());
        assert_eq!(code, 2, "{args:?}: {stderr}");
        assert!(stderr.contains("--no-cache"), "{args:?}: {stderr}");
        assert!(!dir.path().join("cache").exists(), "{args:?}");
    }
    assert!(requests(&server).is_empty());
}

/// What is written to a closed output is lost, and the system does not say so: `/dev/null` stands in its place.
#[test]
fn a_closed_standard_output_is_an_error() {
    let server = server();
    for args in ["cat s3://bkt/dir/a", "ls s3://bkt/dir/"] {
        let line = |end: &str| format!("exec '{}' {args} {end}", env!("CARGO_BIN_EXE_standpipe"));
        let shell = |line: &str| {
            let mut shell = Command::new("sh");
            for (name, value) in command(&server, &[]).get_envs() {
                shell.env(name, value.unwrap_or_default());
            }
            shell.args(["-c", line]).output().unwrap()
        };
        let closed = shell(&line(">&-"));
        let stderr = text(&closed.stderr);
        assert_eq!(code(&closed), 1, "{args}: {stderr}");
        assert!(
            stderr.contains("standard output: Bad file descriptor"),
            "{args}: {stderr}"
        );
        for nowhere in [">/dev/null", "<>/dev/null >&0"] {
            assert_eq!(code(&shell(&line(nowhere))), 0, "{args} {nowhere}");
        }
    }
}

#[test]
fn a_download_that_fails_leaves_no_directory() {
    let server = server();
    let refused = Rule::new(Effect::Status {
        status: 403,
        code: "AccessDenied".into(),
    });
    server.script("bkt/dir/sub/c", vec![refused.operations(&[Operation::Get])]);
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("x/y").display().to_string();
    for uri in ["s3://bkt/nothing/", "s3://bkt/dir/sub/"] {
        let (_, stderr) = failing(&server, &["download", uri, &target]);
        assert!(stderr.starts_with("standpipe: s3://bkt/"), "{stderr}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{uri}");
    }
}

#[test]
fn a_bundle_that_is_not_there_is_an_unusable_setting() {
    let args = ["cat", "s3://bkt/a", "--no-sign-request", "--ca-bundle"];
    let output = bare(&args).arg("/no/such/bundle.pem").output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(code(&output), 2, "{stderr}");
    assert!(
        stderr.contains("ca-bundle") && stderr.contains("/no/such/bundle.pem"),
        "{stderr}"
    );
}

#[test]
fn variables_of_flags_take_what_people_write_for_yes_and_no() {
    let server = FakeS3::start().unwrap();
    server.put("bkt", "a", b"alpha");
    let dir = tempfile::tempdir().unwrap();
    let download = |name: &str, value: &str| {
        let endpoint = server.endpoint();
        let mut command = bare(&["download", "s3://bkt/a", "--endpoint-url", &endpoint]);
        if name != "STANDPIPE_NO_SIGN_REQUEST" {
            command.arg("--no-sign-request");
        }
        let into = dir.path().join(format!("{name}-{value}"));
        command.arg(into).env(name, value).output().unwrap()
    };
    for (value, is_unsigned) in [("1", true), ("yes", true), ("0", false), ("", false)] {
        let output = download("STANDPIPE_NO_SIGN_REQUEST", value);
        let stderr = text(&output.stderr);
        // Without credentials, only what need not be signed goes well.
        assert_eq!(code(&output), if is_unsigned { 0 } else { 4 }, "{stderr}");
        let output = download("STANDPIPE_FSYNC", value);
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    }
    let output = download("STANDPIPE_FSYNC", "maybe");
    assert_eq!(code(&output), 2);
    assert!(text(&output.stderr).contains("1 or 0"));
}

/// S4: a reader that goes away is no failure.
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let server = server();
    server.put_synthetic("bkt", "large", 64 << 20, 3);
    for args in [
        &["cat", "s3://bkt/large"][..],
        &["completions", "bash"],
        &["ls", "s3://bkt/", "--recursive"],
    ] {
        let mut child = command(&server, args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        if args[0] == "cat" {
            stdout.read_exact(&mut [0; 10]).unwrap();
        }
        drop(stdout);
        let output = ended(child);
        assert_eq!(
            (code(&output), text(&output.stderr).as_str()),
            (0, ""),
            "{args:?}"
        );
    }
}

/// A line of a listing without its date.
fn undated(line: &str) -> &str {
    line.get(20..).unwrap_or(line)
}

#[test]
fn ls_looks_like_the_aws_cli() {
    let server = server();
    let listing = quietly(&server, &["ls", "s3://bkt/dir/", "--summarize"]);
    let lines: Vec<_> = listing.lines().collect();
    assert_eq!(lines[0], "                           PRE sub/");
    assert_eq!(undated(lines[2]), "         6 a");
    assert_eq!(&lines[4..], ["", "Total Objects: 3", "   Total Size: 11"]);
    let listing = quietly(&server, &["ls", "s3://bkt/s-", "--recursive", "--human"]);
    let lines: Vec<_> = listing.lines().map(undated).collect();
    assert_eq!(
        lines,
        [
            "   5 Bytes s-000.tar",
            "   4 Bytes s-001.tar",
            "   4 Bytes s-002.tar"
        ]
    );
    assert_eq!(
        quietly(&server, &["ls", "s3://bkt/dir"]),
        "                           PRE dir/\n"
    );
}

#[test]
fn ls_json_is_one_object() {
    let server = server();
    let listing = quietly(&server, &["ls", "s3://bkt/dir/", "--json"]);
    let listing: serde_json::Value = serde_json::from_str(&listing).unwrap();
    assert_eq!(listing["objects"], 3);
    assert_eq!(listing["entries"][0]["prefix"], "s3://bkt/dir/sub/");
    assert_eq!(listing["entries"][2]["size_bytes"], 6);
    server.create_bucket("bare", fake_s3::BucketOptions::default());
    let listing = quietly(&server, &["ls", "s3://bare/", "--json"]);
    let listing: serde_json::Value = serde_json::from_str(&listing).unwrap();
    assert_eq!(listing["objects"], 0);
}

#[test]
fn json_summaries_stand_beside_the_data() {
    let server = server();
    let output = run(&server, &["cat", "s3://bkt/dir/", "--json"]);
    assert_eq!(text(&output.stdout), "alpha\nbeta\ngamma\n");
    let summary: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(
        (&summary["ok"], &summary["bytes"], &summary["objects"]),
        (&true.into(), &17.into(), &3.into())
    );
    assert!(summary["first_byte_seconds"].is_f64() && summary["metrics"]["requests"].is_u64());

    let output = run(&server, &["cat", "s3://bkt/nothing", "--json"]);
    let summary: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(
        (&summary["ok"], &summary["exit_code"]),
        (&false.into(), &3.into())
    );
    assert!(
        summary["error"]["message"]
            .as_str()
            .unwrap()
            .contains("NoSuchKey")
    );

    let target = tempfile::tempdir().unwrap();
    let target = target.path().display().to_string();
    let output = run(&server, &["download", "s3://bkt/dir/", &target, "--json"]);
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&summary["command"], &summary["files_written"]),
        (&"download".into(), &3.into())
    );
    assert!(output.stderr.is_empty());
}

/// A bucket whose objects below `slow/` come at `bytes_per_second` together.
fn slow_server(size: u64, bytes_per_second: u64) -> FakeS3 {
    let server = server();
    server.put_synthetic("bkt", "slow/large", size, 5);
    let limit = Effect::TotalBandwidth { bytes_per_second };
    server.script("bkt/slow/", vec![Rule::new(limit)]);
    server
}

/// One file keeps one lane busy; the others wait for nothing.
#[test]
fn a_download_of_one_file_is_judged_by_the_lane_that_had_it() {
    let server = slow_server(8 << 20, 16 << 20);
    let target = tempfile::tempdir().unwrap();
    let target = target.path().display().to_string();
    let args = [
        "download",
        "s3://bkt/slow/",
        &target,
        "--part-size",
        "1MiB",
        "--json",
    ];
    let summary: serde_json::Value = serde_json::from_str(&quietly(&server, &args)).unwrap();
    let verdict = &summary["verdict"];
    assert_eq!(verdict["bottleneck"], "network", "{summary}");
    assert!(verdict["stall_share"].as_f64().unwrap() > 0.6, "{summary}");
}

/// Nobody waits while nobody reads: neither before the first reader nor in the farewell.
#[test]
fn pipe_mode_is_judged_by_the_time_with_a_reader() {
    const ALONE: Duration = Duration::from_secs(1);
    let server = slow_server(12 << 20, 16 << 20);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display().to_string();
    let args = [
        "pipe",
        "--channel",
        "t=s3://bkt/slow/",
        "--dir",
        &path,
        "--epochs",
        "1",
    ];
    let little_memory = ["--memory", "4MiB", "--part-size", "1MiB", "--json"];
    let child = command(&server, &[&args[..], &little_memory].concat())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let fifo = directory.path().join("t_0");
    wait_for("the FIFO is there", || fifo.exists());
    std::thread::sleep(ALONE);
    assert_eq!(std::fs::read(fifo).unwrap().len(), 12 << 20);
    assert_eq!(std::fs::read(directory.path().join("t_1")).unwrap(), b"");
    let summary: serde_json::Value = serde_json::from_slice(&ended(child).stdout).unwrap();
    let number = |name: &str| summary[name].as_f64().unwrap();
    let attended = number("attended_seconds");
    assert!(
        attended <= number("elapsed_seconds") - ALONE.as_secs_f64(),
        "{summary}"
    );
    assert!(
        summary["channels"][0]["attended"].as_f64().unwrap() <= attended,
        "{summary}"
    );
    let rate = f64::from(12 << 20) / attended;
    assert!(
        (number("bytes_per_second") / rate - 1.0).abs() < 0.01,
        "{summary}"
    );
    assert_eq!(summary["verdict"]["bottleneck"], "network", "{summary}");
    assert!(
        summary["verdict"]["stall_share"].as_f64().unwrap() > 0.6,
        "{summary}"
    );
}

/// F1: the tree is that of the keys, and a second run fetches only what is missing.
#[test]
fn download_writes_the_tree_and_a_second_run_only_what_is_missing() {
    let server = server();
    let size = 9 << 20;
    server.put_synthetic("bkt", "dir/large", size, 5);
    let target = tempfile::tempdir().unwrap();
    let path = target.path().display().to_string();
    let args = ["download", "s3://bkt/dir/", &path, "--part-size", "1MiB"];
    assert_eq!(quietly(&server, &args), "");
    assert_eq!(files(target.path()), ["a", "b", "large", "sub/c"]);
    let mut expected = vec![0; size as usize];
    fake_s3::content(5, 0, &mut expected);
    assert!(std::fs::read(target.path().join("large")).unwrap() == expected);

    std::fs::remove_file(target.path().join("sub/c")).unwrap();
    server.clear_log();
    assert_eq!(quietly(&server, &args), "");
    assert_eq!(
        requests(&server),
        [
            (Operation::List, "dir/".into()),
            (Operation::Get, "dir/sub/c".into())
        ]
    );
    assert_eq!(
        std::fs::read_to_string(target.path().join("sub/c")).unwrap(),
        "gamma\n"
    );
}

/// F2: one object is downloaded without permission to list.
#[test]
fn download_of_one_object_needs_no_permission_to_list() {
    let server = server();
    server.script(
        "bkt/",
        vec![
            Rule::new(Effect::Status {
                status: 403,
                code: String::new(),
            })
            .operations(&[Operation::List]),
        ],
    );
    let target = tempfile::tempdir().unwrap();
    let path = target.path().display().to_string();
    assert_eq!(quietly(&server, &["download", "s3://bkt/dir/a", &path]), "");
    assert_eq!(files(target.path()), ["a"]);
}

/// F3: an interrupted download leaves no file that is not whole, and nothing that is not worth it.
#[test]
fn ctrl_c_leaves_nothing_half_written() {
    let server = server();
    // First in order, so that it is the first of its lane: a lane's first part is small and arrives before the stall. As
    // a later one, on a lane that was done with the others before the listing went on, its first part is a whole one,
    // which the stall holds up, and no file would be begun.
    server.put_synthetic("bkt", "dir/0-large", 64 << 20, 5);
    server.script(
        "bkt/dir/0-large",
        vec![Rule::new(Effect::Stall {
            at_byte: 100_000,
            ms: 60_000,
        })],
    );
    for (interrupt, expected) in [
        (rustix::process::Signal::INT, 130),
        (rustix::process::Signal::TERM, 143),
    ] {
        let target = tempfile::tempdir().unwrap();
        let path = target.path().display().to_string();
        let child = command(&server, &["download", "s3://bkt/dir/", &path])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The temporary file is there, so the download is in the middle of it.
        wait_for("a file was begun", || {
            let names = files(target.path());
            names.iter().any(|name| name.contains(".standpipe-")) && names.contains(&"sub/c".into())
        });
        signal(&child, interrupt);
        let output = ended(child);
        assert_eq!(code(&output), expected, "{}", text(&output.stderr));
        assert_eq!(files(target.path()), ["a", "b", "sub/c"]);
        assert_eq!(text(&output.stderr), "standpipe: cancelled\n");
    }
}

#[test]
fn cat_dies_of_ctrl_c_at_once() {
    let server = server();
    server.put_synthetic("bkt", "large", 64 << 20, 5);
    server.script(
        "bkt/large",
        vec![Rule::new(Effect::Stall {
            at_byte: 10,
            ms: 60_000,
        })],
    );
    let child = command(&server, &["cat", "s3://bkt/large"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("it reads", || !requests(&server).is_empty());
    signal(&child, rustix::process::Signal::INT);
    assert_eq!(ended(child).status.signal(), Some(2));
}

#[test]
fn pipe_serves_an_unmodified_reader() {
    let server = server();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display().to_string();
    let args = [
        "pipe",
        "--channel",
        "train=s3://bkt/dir/",
        "--channel",
        "val=s3://bkt/s-",
        "--dir",
        &path,
        "--epochs",
        "2",
        "--json",
    ];
    let child = command(&server, &args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for epoch in 0..2 {
        for (name, expected) in [
            ("train", "alpha\nbeta\ngamma\n"),
            ("val", "zero\none\ntwo\n"),
        ] {
            let fifo = directory.path().join(format!("{name}_{epoch}"));
            wait_for("the FIFO is there", || fifo.exists());
            assert_eq!(std::fs::read_to_string(fifo).unwrap(), expected);
        }
    }
    let output = ended(child);
    // One listing serves all epochs, and the look before the first FIFO is made is its beginning.
    for prefix in ["dir/", "s-"] {
        let lists = requests(&server)
            .into_iter()
            .filter(|(what, key)| *what == Operation::List && key == prefix);
        assert_eq!(lists.count(), 1, "{prefix}");
    }
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["channels"][0]["epochs"], 2);
    assert_eq!(summary["bytes"], 2 * (17 + 13));
    assert!(
        files(directory.path())
            .iter()
            .all(|name| !name.starts_with("train_"))
    );
}

#[test]
fn pipe_fails_before_the_first_reader_when_there_is_nothing() {
    let server = server();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display().to_string();
    let (code, stderr) = failing(
        &server,
        &[
            "pipe",
            "--channel",
            "train=s3://bkt/nothing/",
            "--dir",
            &path,
        ],
    );
    assert_eq!(code, 3, "{stderr}");
    // Whoever waits for the FIFO finds why it does not come.
    assert_eq!(files(directory.path()), ["train_0.error.json"]);
    let told = std::fs::read(directory.path().join("train_0.error.json")).unwrap();
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    assert_eq!(told["object"], "s3://bkt/nothing/");
    assert!(told["fix"].is_string(), "{told}");
}

#[test]
fn pipe_tells_a_failure_at_once_and_exits_with_its_code() {
    let server = server();
    server.script(
        "bkt/dir/b",
        vec![Rule::new(Effect::Status {
            status: 403,
            code: "AccessDenied".into(),
        })],
    );
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display().to_string();
    let args = [
        "pipe",
        "--channel",
        "train=s3://bkt/dir/",
        "--dir",
        &path,
        "--failure-grace",
        "1",
    ];
    let child = command(&server, &args)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let fifo = directory.path().join("train_0");
    wait_for("the FIFO is there", || fifo.exists());
    let mut file = std::fs::File::open(fifo).unwrap();
    let mut read = [0; 6];
    file.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"alpha\n");
    let output = ended(child);
    let stderr = text(&output.stderr);
    assert_eq!(code(&output), 4, "{stderr}");
    assert!(
        stderr.contains("will not end") && stderr.contains("\n  fix: the caller needs"),
        "{stderr}"
    );
    // It was said when it happened; the end has nothing to add but the exit code.
    assert_eq!(stderr.matches("s3://bkt/dir/b").count(), 1, "{stderr}");
}

/// The umask takes nothing away, and a FIFO that an earlier server left gets the mode as well.
#[test]
fn fifos_have_the_mode_that_is_asked_for() {
    use std::os::unix::fs::PermissionsExt;
    let server = server();
    let program = env!("CARGO_BIN_EXE_standpipe");
    for (flag, umask, expected) in [
        ("--fifo-mode 0660", "077", 0o660),
        ("--fifo-mode 644", "022", 0o644),
        ("", "000", 0o600),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display();
        let line = format!(
            "umask {umask}; mkfifo {path}/left_0 && chmod 0622 {path}/left_0 && exec {program} pipe --dir {path} \
             --channel left=s3://bkt/dir/ --channel new=s3://bkt/dir/ --epochs 1 {flag}"
        );
        let environment = command(&server, &[]);
        let mut child = Command::new("sh")
            .args(["-c", &line])
            .env_clear()
            .envs(
                environment
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .spawn()
            .unwrap();
        let mode = |name: &str| {
            let found = std::fs::metadata(directory.path().join(name)).ok()?;
            Some(found.permissions().mode() & 0o7777)
        };
        for name in ["left_0", "new_0"] {
            wait_for(
                &format!("{name} has mode {expected:o} for {flag:?}"),
                || {
                    assert!(child.try_wait().unwrap().is_none(), "{flag:?}: it ended");
                    mode(name) == Some(expected)
                },
            );
        }
        // The FIFO of the next epoch, which is made while the first is read.
        let reader = std::fs::File::open(directory.path().join("new_0")).unwrap();
        wait_for("the next FIFO has it too", || {
            mode("new_1") == Some(expected)
        });
        drop(reader);
        signal(&child, rustix::process::Signal::TERM);
        let _ = ended(child);
    }
    for (mode, message) in [
        ("0440", "the owner must read and write"),
        ("01777", "the owner must read and write"),
        ("u+rw", "use octal digits, such as 0640"),
    ] {
        let args = [
            "pipe",
            "--channel",
            "t=s3://bkt/dir/",
            "--dir",
            "/dev/null/d",
        ];
        let (code, stderr) = failing(&server, &[&args[..], &["--fifo-mode", mode]].concat());
        assert_eq!(code, 2, "{mode}: {stderr}");
        assert!(stderr.contains(message), "{mode}: {stderr}");
    }
}

#[test]
fn ctrl_c_ends_pipe_mode() {
    let server = server();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display().to_string();
    let args = ["pipe", "--channel", "train=s3://bkt/dir/", "--dir", &path];
    let child = command(&server, &args)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let fifo = directory.path().join("train_0");
    wait_for("the FIFO is there", || fifo.exists());
    // It listens for signals shortly after: what is there must work whenever the signal comes.
    std::thread::sleep(Duration::from_millis(50));
    signal(&child, rustix::process::Signal::INT);
    let output = ended(child);
    assert_eq!(code(&output), 130, "{}", text(&output.stderr));
    assert!(!fifo.exists());
}

/// C15: `standpipe cache` fills, shows, verifies and empties a cache, for people and for machines.
#[test]
fn a_cache_is_warmed_shown_verified_and_emptied() {
    let server = server();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("c");
    let at = at.to_str().unwrap();
    let json = |args: &[&str]| -> serde_json::Value {
        let args = [&["cache"], args, &["--cache", at, "--json"]].concat();
        serde_json::from_str(&quietly(&server, &args)).unwrap()
    };
    let (status, told) = failing(&server, &["cache", "stat", "--cache", at]);
    assert!(
        status == 2 && told.contains("holds no cache"),
        "{status}: {told}"
    );
    assert!(!dir.path().join("c").exists());

    let warm = ["warm", "s3://bkt/dir/", "s3://bkt/s-{000..002}.tar"];
    let report = json(&warm);
    let sum = (6 + 5 + 6) + (5 + 4 + 4);
    assert_eq!(
        (&report["action"], &report["fetched_bytes"]),
        (&"warm".into(), &sum.into())
    );
    assert_eq!(
        (&report["bytes"], &report["not_kept_bytes"]),
        (&sum.into(), &0.into())
    );
    assert_eq!(json(&warm)["fetched_bytes"], 0);
    let gets = requests(&server)
        .into_iter()
        .filter(|(what, key)| *what == Operation::Get && !key.is_empty());
    assert_eq!(gets.count(), 6);

    // However the endpoint is spelled, and wherever that is said.
    let slash = format!("{}/", server.endpoint());
    let spelled = [&warm[..], &["--endpoint-url", &slash]].concat();
    assert_eq!(json(&spelled)["fetched_bytes"], 0);
    let profile = dir.path().join("config");
    let said = format!(
        "[profile other]\nendpoint_url = {slash}\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    );
    std::fs::write(&profile, said).unwrap();
    let args = ["cache", warm[0], warm[1], warm[2], "--cache", at, "--json"];
    let output = command(&server, &[&args[..], &["--profile", "other"]].concat())
        .env("AWS_CONFIG_FILE", &profile)
        .env_remove("AWS_ENDPOINT_URL")
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["fetched_bytes"], 0, "{report}");

    let stat = json(&["stat"]);
    assert_eq!(
        (&stat["complete_entries"], &stat["stored_bytes"]),
        (&6.into(), &sum.into())
    );
    let shown = quietly(&server, &["cache", "stat", "--cache", at]);
    assert!(
        shown.starts_with("6 objects (6 of them whole), 30 B of data in "),
        "{shown}"
    );
    let audit = json(&["verify"]);
    assert_eq!(
        (&audit["sound_blocks"], &audit["bad_blocks"]),
        (&6.into(), &0.into())
    );
    let disk = stat["disk_bytes"].as_u64().unwrap();
    let half = (disk / 2).to_string();
    assert!(json(&["evict", "--to", &half])["entries"].as_u64().unwrap() >= 3);
    assert!(json(&["stat"])["disk_bytes"].as_u64().unwrap() <= disk / 2);
    let shown = quietly(&server, &["cache", "clear", "--cache", at]);
    assert!(
        shown.contains(" objects, ") && shown.ends_with(" cleared\n"),
        "{shown}"
    );
    assert_eq!(json(&["stat"])["disk_bytes"], 0);
}

#[test]
fn help_names_every_flag_and_the_exit_codes() {
    let help = |args: &[&str]| text(&bare(args).output().unwrap().stdout);
    let top = help(&["--help"]);
    for word in SUBCOMMANDS.iter().chain(&[
        "Examples:",
        "Exit codes:",
        "143 ended by SIGTERM",
        "STANDPIPE_MEMORY",
    ]) {
        assert!(top.contains(word), "{word}");
    }
    let everywhere = [
        "--endpoint-url",
        "--region",
        "--profile",
        "--no-sign-request",
        "--request-payer",
        "--sse-c",
        "--sse-c-key",
        "--ca-bundle",
        "--transport",
        "--json",
        "--quiet",
        "--verbose",
        "STANDPIPE_LOG",
    ];
    let engine = ["--memory", "--part-size", "--concurrency", "--checksums"];
    for (command, own) in [
        ("cat", &engine[..]),
        ("download", &[&engine[..], &["--fsync"]].concat()),
        (
            "pipe",
            &[
                &engine[..],
                &[
                    "--channel",
                    "--dir",
                    "--epochs",
                    "--failure-grace",
                    "--fifo-mode",
                ],
            ]
            .concat(),
        ),
        ("ls", &["--recursive", "--human", "--summarize"]),
        ("cache", &["stat", "verify", "warm", "clear", "evict"]),
        ("bench", &["--synthetic", "--seconds", "--max-bytes"]),
        ("demo", &["--out"]),
    ] {
        let help = help(&[command, "--help"]);
        for flag in everywhere.iter().chain(own) {
            assert!(help.contains(flag), "{command}: {flag} is not in {help}");
        }
        let longest = help
            .lines()
            .map(|line| line.chars().count())
            .max()
            .unwrap_or(0);
        assert!(longest <= 106, "{command}: a line of {longest} characters");
        assert!(!help.contains('\x1b'));
    }
}

#[test]
fn what_is_required_is_not_shown_as_optional() {
    let help = text(&bare(&["bench", "--help"]).output().unwrap().stdout);
    assert!(!help.contains("[OPTIONS] [URI]"), "{help}");
    for usage in [
        "Usage: standpipe bench [OPTIONS] <URI>\n",
        "\n       standpipe bench [OPTIONS] --synthetic\n",
        "unless --synthetic",
    ] {
        assert!(help.contains(usage), "{usage:?} is not in {help}");
    }
}

#[test]
fn completions_name_the_subcommands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = bare(&["completions", shell]).output().unwrap();
        let script = text(&output.stdout);
        for name in SUBCOMMANDS {
            assert!(script.contains(name), "{shell}: {name}");
        }
    }
}

/// Runs a command line under a pseudo-terminal and gives what the screen was sent.
fn on_a_terminal(server: &FakeS3, line: &str) -> String {
    let program = env!("CARGO_BIN_EXE_standpipe");
    let mut script = Command::new("script");
    script
        .args(["-qec", &line.replace("standpipe", program), "/dev/null"])
        .env("AWS_ENDPOINT_URL", server.endpoint())
        .env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_REGION", "us-east-1")
        .env("TERM", "xterm")
        .stdin(Stdio::null());
    let output = script.output().expect("util-linux's `script`");
    assert!(output.status.success(), "{}", text(&output.stdout));
    text(&output.stdout)
}

#[test]
fn a_terminal_gets_a_progress_bar_and_a_verdict() {
    let server = slow_server(24 << 20, 32 << 20);
    let target = tempfile::tempdir().unwrap();
    let screen = on_a_terminal(
        &server,
        &format!(
            "standpipe download s3://bkt/slow/ {} --part-size 1MiB",
            target.path().display()
        ),
    );
    for part in [
        "of 24.0 MiB",
        "MiB/s",
        " left",
        "% for data",
        "1 file, 24.0 MiB in ",
        "the network was the limit",
    ] {
        assert!(screen.contains(part), "{part:?} is not in {screen:?}");
    }
    let screen = on_a_terminal(&server, "standpipe cat s3://bkt/slow/ --quiet > /dev/null");
    assert_eq!(screen, "");
}

/// Bytes, rate, time left and waiting, for `cat` and `pipe` as for `download`; in a narrow terminal too.
#[test]
fn every_progress_line_says_how_far_how_fast_and_how_long() {
    let server = slow_server(24 << 20, 32 << 20);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let cat = "standpipe cat s3://bkt/slow/ --part-size 1MiB > /dev/null";
    let read =
        format!("(until cat {path}/t_0 2>&-; do sleep 0.01; done > /dev/null; cat {path}/t_1) &");
    let pipe = format!(
        "{read} standpipe pipe --channel t=s3://bkt/slow/ --dir {path} --epochs 1 --part-size 1MiB; wait"
    );
    for (line, own) in [(cat, "of 24.0 MiB"), (pipe.as_str(), "epoch 1/1  ")] {
        let screen = on_a_terminal(&server, line);
        for part in [own, "of 24.0 MiB", "B/s  ", "s left  waited ", "% for data"] {
            assert!(screen.contains(part), "{part:?} is not in {screen:?}");
        }
        let screen = on_a_terminal(&server, &format!("stty rows 24 cols 40 <&1; {line}"));
        for part in ["/24.0 MiB ", "B/s ~", " wait "] {
            assert!(screen.contains(part), "{part:?} is not in {screen:?}");
        }
    }
}

/// Somebody at a terminal is told what to open; a script, which sees the FIFO, is told nothing.
#[test]
fn pipe_says_on_a_terminal_what_to_open() {
    let server = server();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let pipe = format!("standpipe pipe --channel t=s3://bkt/dir/ --dir {path} --epochs 1");
    let read =
        format!("(until cat {path}/t_0 2>&-; do sleep 0.01; done > {path}/out; cat {path}/t_1) &");
    let screen = on_a_terminal(&server, &format!("{read} {pipe}; wait"));
    let said = format!("{path}/t_0 is ready for a reader: s3://bkt/dir/");
    assert!(screen.contains(&said), "{screen:?}");
    assert!(
        screen.contains("1 channel, 1 epoch, 17 B in "),
        "{screen:?}"
    );
    assert_eq!(
        std::fs::read_to_string(directory.path().join("out")).unwrap(),
        "alpha\nbeta\ngamma\n"
    );
    let quiet = format!("{read} {pipe} --quiet; wait");
    assert_eq!(on_a_terminal(&server, &quiet), "");
}

#[test]
fn logs_go_to_standard_error_and_follow_the_flag() {
    let server = server();
    let output = run(&server, &["cat", "s3://bkt/dir/a", "-vvv"]);
    assert_eq!(text(&output.stdout), "alpha\n");
    let stderr = text(&output.stderr);
    assert!(
        !stderr.is_empty() && !stderr.contains('\x1b') && !stderr.contains(SECRET),
        "{stderr}"
    );
}

/// What a retry gets over is no error to the user, whoever logs it.
#[test]
fn faults_that_heal_are_not_logged() {
    let server = server();
    server.put_synthetic("bkt", "broken", 3 << 20, 1);
    let resets = Rule::new(Effect::Reset { at_byte: 1_000 });
    server.script(
        "bkt/broken",
        vec![resets.times(3), Rule::new(Effect::Garbage).times(2)],
    );
    let output = run(&server, &["cat", "s3://bkt/broken"]);
    assert_eq!((code(&output), output.stdout.len()), (0, 3 << 20));
    let stderr = text(&output.stderr);
    assert!(
        !stderr.contains("aws_smithy") && !stderr.contains("ERROR"),
        "{stderr}"
    );
    assert!(server.log().iter().any(|entry| !entry.faults.is_empty()));
}

#[test]
fn settings_come_from_the_environment_too() {
    let server = server();
    let output = command(&server, &["cat", "s3://bkt/dir/a"])
        .env("STANDPIPE_PART_SIZE", "nonsense")
        .output()
        .unwrap();
    assert_eq!(code(&output), 2);
    assert!(text(&output.stderr).contains("--part-size"));
}

/// F4: a file that can't be written whole is an error, told before its first byte is fetched where that is possible.
#[test]
fn a_full_disk_is_told_and_leaves_no_temporary_file() {
    // A quota of the shell stands in for a full disk: writes beyond it fail in the same place.
    let server = server();
    server.put_synthetic("bkt", "large", 4 << 20, 5);
    let target = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    let line = format!(
        "trap '' XFSZ; ulimit -f 1024; exec '{}' download s3://bkt/large '{}'",
        env!("CARGO_BIN_EXE_standpipe"),
        target.path().display()
    );
    let inherited = command(&server, &[]);
    shell.args(["-c", &line]).env_clear().stdin(Stdio::null());
    for (key, value) in inherited.get_envs() {
        if let Some(value) = value {
            shell.env(key, value);
        }
    }
    let output = shell.output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(code(&output), 1, "{stderr}");
    assert!(stderr.contains("large: File too large"), "{stderr}");
    assert!(files(target.path()).is_empty());
}

#[test]
fn the_demo_shows_both_modes_with_the_same_bytes() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().display().to_string();
    let args = ["demo", "--out", &path, "--size", "16MiB", "--json"];
    let output = ended(
        bare(&args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let (bytes, samples) = (&told["pipe"]["bytes"], &told["pipe"]["samples"]);
    assert!(bytes.as_u64() >= Some(16 << 20), "{told}");
    // Whole shards of 32 samples, and all of them came out of the archives.
    assert!(
        samples.as_u64().is_some_and(|n| n > 300 && n % 32 == 0),
        "{told}"
    );
    assert_eq!(told["file"]["samples"], *samples);
    assert_eq!(told["pipe"]["sha256"], told["file"]["sha256"]);
    assert_eq!(files(out.path()), ["demo.html", "demo.svg"]);
    let svg = std::fs::read_to_string(out.path().join("demo.svg")).unwrap();
    assert!(
        svg.contains("Pipe mode: first byte after") && !svg.contains("NaN"),
        "{svg}"
    );
}
