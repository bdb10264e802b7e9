//! What Standpipe promises of its speed, as ratios measured in one run.
//!
//! A loopback number alone says more of the machine than of the program, and it differs by a third between two runs. So
//! each promise is a ratio: we against a raw-socket reader, or against the SDK's own transport, or against downloading
//! first, with the same server, the same bytes and interleaved rounds. Each measured run is a fresh process, and so is the
//! server: CPU, memory and page faults are told apart. What counts is the median of the rounds' own ratios; the smallest
//! and the largest show what the machine did meanwhile.
//!
//! `cargo bench --bench ratios` runs all rows. Arguments after `--`: `--quick` (half the bytes, three rounds), `--row NAME`
//! (repeatable), `--rounds N`, `--json FILE`, `--list-rows`, and `--test` (tiny, one round, only asserts that everything runs and
//! that the bytes are right). To explore, without verdicts: `--case LABEL` (repeatable) measures only those cases, and
//! `--concurrency N` and `--memory-mib N` change our side of each.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[path = "../support/raw.rs"]
mod raw;
#[path = "../support/server.rs"]
mod server;
#[path = "../support/stack.rs"]
mod stack;

mod fifo;
mod floor;
mod job;
mod meter;
mod report;
mod rows;
mod work;

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
    list: bool,
    tuning: rows::Tuning,
}

impl Args {
    fn parse(mut words: impl Iterator<Item = String>) -> Outcome<Option<Self>> {
        let mut args = Self {
            scale: Scale::Full,
            rows: Vec::new(),
            rounds: None,
            json: None,
            list: false,
            tuning: rows::Tuning::default(),
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
                "--list-rows" => args.list = true,
                "--case" => args.tuning.cases.push(value()?),
                "--concurrency" => args.tuning.concurrency = Some(value()?.parse()?),
                "--memory-mib" => args.tuning.memory_mib = Some(value()?.parse()?),
                _ => return Err(format!("{word}: see the head of benches/ratios/main.rs").into()),
            }
        }
        Ok(Some(args))
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "ratios: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    if server::serve_if_asked()? {
        return Ok(());
    }
    if let Some(seen) = fifo::read_if_asked()? {
        return print(&serde_json::to_string(&seen)?);
    }
    if let Some(sample) = job::Job::perform_if_asked()? {
        return print(&serde_json::to_string(&sample)?);
    }
    let Some(args) = Args::parse(std::env::args().skip(1))? else {
        return Ok(());
    };
    let all = rows::all(args.scale);
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
            let result = row.tuned(&args.tuning).measure(args.rounds)?;
            print(&report::table(&result))?;
            results.push(result);
        }
    }
    print(&report::summary(&results))?;
    if let Some(path) = args.json {
        std::fs::write(path, serde_json::to_string_pretty(&results)?)?;
    }
    Ok(())
}

fn print(text: &str) -> Outcome<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}
