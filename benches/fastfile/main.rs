//! FastFile mode beside the engine's own stream, local files, and the mounts that Debian has (`rclone mount`, `s3fs`).
//!
//! As in `ratios`, each promise is a ratio measured in one run: the same server, the same bytes, interleaved rounds, and a
//! fresh process for the server, for each mount and for each reader. What counts is the median of the rounds' ratios. The
//! network's bytes are those of the loopback interface: run nothing else beside it. Needs `/dev/fuse`; a peer that is not
//! installed is named and left out (`make bench-fastfile` installs both).
//!
//! `cargo bench --bench fastfile` runs all rows. Arguments after `--`: `--quick` (smaller, three rounds), `--row NAME` (repeatable),
//! `--rounds N`, `--json FILE`, `--svg FILE` (the picture of rows `modes-jpegs` and `modes-tfrecords`, if they are measured), `--list-rows`, and `--test` (tiny, one round, ours only:
//! asserts that everything runs and that the bytes are right).

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[path = "../../src/cli/chart.rs"]
#[expect(
    dead_code,
    unused_imports,
    reason = "the command line draws more, and tests it"
)]
mod chart;
#[path = "../ratios/meter.rs"]
#[expect(dead_code, reason = "`ratios` measures more than this bench")]
mod meter;
#[path = "../support/server.rs"]
#[expect(dead_code, reason = "this bench signs nothing")]
mod server;
#[path = "../support/stack.rs"]
mod stack;

mod mount;
mod picture;
mod reader;
mod report;
mod rows;

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Full,
    Quick,
    /// Only whether everything works.
    Smoke,
}

#[derive(Debug)]
struct Args {
    scale: Scale,
    rows: Vec<String>,
    rounds: Option<usize>,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
    list: bool,
}

impl Args {
    fn parse(mut words: impl Iterator<Item = String>) -> Outcome<Option<Self>> {
        let mut args = Self {
            scale: Scale::Full,
            rows: Vec::new(),
            rounds: None,
            json: None,
            svg: None,
            list: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                // Cargo's own.
                "--bench" => {}
                // A test runner that asks what tests there are: none.
                "--list" => return Ok(None),
                "--test" => args.scale = Scale::Smoke,
                "--quick" => args.scale = Scale::Quick,
                "--row" => args.rows.push(value()?),
                "--rounds" => args.rounds = Some(value()?.parse()?),
                "--json" => args.json = Some(value()?.into()),
                "--svg" => args.svg = Some(value()?.into()),
                "--list-rows" => args.list = true,
                _ => return Err(format!("{word}: see the head of benches/fastfile/main.rs").into()),
            }
        }
        Ok(Some(args))
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "fastfile: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    if server::serve_if_asked()? {
        return Ok(());
    }
    if let Some(seen) = reader::read_if_asked()? {
        return print(&serde_json::to_string(&seen)?);
    }
    let Some(args) = Args::parse(std::env::args().skip(1))? else {
        return Ok(());
    };
    let peers = mount::peers(args.scale);
    let all = rows::all(args.scale, &peers);
    if args.list {
        return all.iter().try_for_each(|row| print(row.name));
    }
    if let Some(unknown) = args
        .rows
        .iter()
        .find(|name| !all.iter().any(|row| row.name == **name))
    {
        return Err(format!("no row is called {unknown}: see --list-rows").into());
    }
    let mut results = Vec::new();
    for row in all {
        if args.rows.is_empty() || args.rows.iter().any(|name| name == row.name) {
            let result = row.measure(args.rounds)?;
            print(&report::table(&result))?;
            results.push(result);
        }
    }
    print(&report::summary(&results))?;
    if let Some(path) = args.json {
        std::fs::write(path, serde_json::to_string_pretty(&results)?)?;
    }
    let is_pictured = results.iter().any(|row| picture::shows(row.name));
    if let Some(path) = args.svg.filter(|_| is_pictured) {
        std::fs::write(path, picture::modes(&results)?)?;
    }
    Ok(())
}

fn print(text: &str) -> Outcome<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}
