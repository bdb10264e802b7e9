//! The command line: parse what was typed, then decide what it means.
//!
//! [`run`] parses into plain flag structs, sets up logging and hands over to one file per subcommand. A subcommand
//! returns a `Report` or an error; what is printed of it, where, and the exit code are decided in one place each
//! (`report`, `exit`). Standard output carries data and machine-readable results only; everything for people goes to
//! standard error, and nothing moves or shines there unless it is a terminal.

mod bench;
mod cache;
mod cat;
mod chart;
mod completions;
mod connect;
mod demo;
mod download;
mod exit;
mod flags;
mod interrupt;
mod logging;
mod ls;
mod pipe;
mod progress;
mod report;
mod size;
mod stdout;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, Subcommand};

use crate::error::Result;
use crate::metrics::Metrics;
use flags::{OutputFlags, SourceFlags};
use report::Report;

pub use size::Size;

/// Streams training data from S3: Pipe mode, File mode and plain bytes, at the speed of the wire, in bounded memory.
#[derive(Debug, Parser)]
#[command(name = "standpipe", version, after_help = exit::TABLE_HELP.as_str(), max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    source: SourceFlags,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    Pipe(pipe::Pipe),
    Cat(cat::Cat),
    Ls(ls::Ls),
    Download(download::Download),
    Cache(cache::Cache),
    Bench(bench::Bench),
    Demo(demo::Demo),
    Completions(completions::Completions),
}

/// What every subcommand gets.
#[derive(Debug)]
struct Context {
    source: SourceFlags,
    output: OutputFlags,
    metrics: Arc<Metrics>,
    started: Instant,
}

impl Context {
    /// Whether a progress bar is welcome.
    fn shows_progress(&self) -> bool {
        std::io::stderr().is_terminal() && !self.output.quiet && !self.output.json
    }
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Self::Pipe(_) => "pipe",
            Self::Cat(_) => "cat",
            Self::Ls(_) => "ls",
            Self::Download(_) => "download",
            Self::Cache(_) => "cache",
            Self::Bench(_) => "bench",
            Self::Demo(_) => "demo",
            Self::Completions(_) => "completions",
        }
    }

    fn run(self, context: &Context) -> Result<Report> {
        match self {
            Self::Pipe(command) => command.run(context),
            Self::Cat(command) => command.run(context),
            Self::Ls(command) => command.run(context),
            Self::Download(command) => command.run(context),
            Self::Cache(command) => command.run(context),
            Self::Bench(command) => command.run(context),
            Self::Demo(command) => command.run(context),
            Self::Completions(command) => command.run(),
        }
    }
}

/// Runs the command that `args` name (the program's name first) and says how it went.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help into a closed pipe is no failure, and there is nobody left to tell.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(exit::FAILURE));
        }
    };
    logging::start(&cli.output);
    let context = Context {
        source: cli.source,
        output: cli.output,
        metrics: Arc::default(),
        started: Instant::now(),
    };
    let name = cli.command.name();
    let result = cli.command.run(&context);
    report::print(name, &context, &result);
    exit::code(&result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }
}
