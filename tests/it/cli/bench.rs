//! `standpipe bench` against servers whose limits are known: it has to find them.
//!
//! The figures are rates of this machine's real time, so these run alone (`.config/nextest.toml`). A run's window is a
//! third of a second at least; within ±15 % there is room for 50 ms in which this process was not scheduled at one of
//! its ends. What the counting gets wrong if it counts whole GETs is more: half of what is measured.

use std::ops::Range;

use fake_s3::Shape;
use serde_json::Value;

use super::*;

const MB: f64 = 1e6;
const TOLERANCE: f64 = 0.15;

/// A server with these caps in bytes a second, and more data than any of the runs reads.
fn capped(each: u64, total: Option<u64>) -> FakeS3 {
    let shape = Shape {
        connection_bytes_per_second: Some(each),
        total_bytes_per_second: total,
        ..Shape::default()
    };
    let server = FakeS3::builder()
        .auth(Credentials::new(KEY, SECRET))
        .shape(shape)
        .start()
        .unwrap();
    server.put_synthetic("bkt", "bench/large", 1 << 30, 5);
    server
}

/// What it says about `server`, as JSON.
fn told(server: &FakeS3, args: &[&str]) -> Value {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().display().to_string();
    let always = ["bench", "s3://bkt/bench/", "--json", "--out", &path];
    let told = quietly(server, &[&always, args].concat());
    assert_eq!(files(out.path()), ["bench.html", "bench.svg"]);
    serde_json::from_str(&told).unwrap()
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

fn around(rate: f64) -> Range<f64> {
    rate * (1.0 - TOLERANCE)..rate * (1.0 + TOLERANCE)
}

/// Every row of both series gives what the caps let its connections have.
fn check_rows(told: &Value, each: f64, total: f64) {
    let rows = |name: &str| told[name].as_array().cloned().unwrap();
    let all = [rows("ceiling"), rows("engine")].concat();
    assert!(all.len() >= 7, "{told}");
    for row in all {
        let wanted = (number(&row["concurrency"]) * each).min(total);
        let rate = number(&row["bytes_per_second"]);
        assert!(around(wanted).contains(&rate), "{wanted} is due: {row}");
        // Of requests that never end as well.
        assert!(number(&row["first_byte_p50_ms"]) > 0.0, "{row}");
    }
}

/// 64 requests of 8 or 16 MiB would take 13 or 27 seconds of this server's, and have half of one: no GET ends in it.
#[test]
fn a_cap_on_everything_is_found_and_named_in_the_time_that_was_asked_for() {
    let (each, total) = (10.0 * MB, 40.0 * MB);
    let server = capped(each as u64, Some(total as u64));
    let told = told(&server, &["--seconds", "5"]);
    let judgement = &told["judgement"];
    assert_eq!(judgement["limit"], "link", "{judgement}");
    let ceiling = number(&judgement["ceiling_bytes_per_second"]);
    assert!(around(total).contains(&ceiling), "{judgement}");
    check_rows(&told, each, total);
    let elapsed = number(&told["elapsed_seconds"]);
    assert!((4.5..6.0).contains(&elapsed), "{elapsed} s for 5");
}

#[test]
fn a_cap_on_each_connection_is_found_and_named() {
    let each = 2.0 * MB;
    let server = capped(each as u64, None);
    let told = told(&server, &["--seconds", "5"]);
    let judgement = &told["judgement"];
    assert_eq!(judgement["limit"], "connection", "{judgement}");
    let one = number(&judgement["one_connection_bytes_per_second"]);
    assert!(around(each).contains(&one), "{judgement}");
    assert_eq!(judgement["ceiling_concurrency"], 64, "{judgement}");
    check_rows(&told, each, f64::INFINITY);
}

/// Half a second of this server's; the rest is what 64 connections have under way when they are cut off.
#[test]
fn it_stays_within_its_bytes_and_recommends_flags() {
    let server = capped(10_000_000, Some(64 << 20));
    let out = tempfile::tempdir().unwrap();
    let path = out.path().display().to_string();
    let args = [
        "bench",
        "s3://bkt/bench/",
        "--max-bytes",
        "32MiB",
        "--out",
        &path,
    ];
    let output = run(&server, &args);
    let (told, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(code(&output), 0, "{stderr}");
    for part in [
        "The limit: ",
        "--part-size ",
        "runs ended within 100 ms",
        "figures are rough",
    ] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    let plan = "1 object with 1.00 GiB: 16 settings of 0.8 to 1.6 s, 20 s in all; at most about 32.0 MiB and ";
    assert!(stderr.starts_with(plan), "{stderr}");
    // No terminal, so nothing else.
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let sent = server.stats().bytes_sent;
    assert!((24 << 20..64 << 20).contains(&sent), "{sent}");
}

#[test]
fn a_terminal_sees_which_setting_runs_and_how_long_it_takes() {
    let server = capped(10_000_000, Some(32 << 20));
    let out = tempfile::tempdir().unwrap();
    let path = out.path().display().to_string();
    let line = format!(
        "standpipe bench s3://bkt/bench/ --seconds 4 --max-bytes 32MiB --out {path} > {path}/told"
    );
    let screen = on_a_terminal(&server, &line);
    for part in [
        "7 settings of 0.4 to 0.8 s, 4 s in all",
        "/7  bare GETs, 8MiB x ",
        "/7  engine, 8MiB x ",
        "MiB/s  4s left",
    ] {
        assert!(screen.contains(part), "{part:?} is not in {screen:?}");
    }
    for flag in ["--quiet", "--json"] {
        let silent = format!(
            "standpipe bench s3://bkt/bench/ --max-bytes 1MiB --out {path} {flag} > {path}/told"
        );
        assert_eq!(on_a_terminal(&server, &silent), "", "{flag}");
    }
}

#[test]
fn a_time_that_is_too_short_to_measure_is_refused() {
    let (code, stderr) = failing(&server(), &["bench", "s3://bkt/dir/", "--seconds", "3"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("3 is not in 4..=3600"), "{stderr}");
}
