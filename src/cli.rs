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
#[cfg(all(feature = "fuse", target_os = "linux"))]
mod daemon;
mod demo;
mod download;
mod exit;
mod flags;
mod interrupt;
mod logging;
mod ls;
#[cfg(all(feature = "fuse", target_os = "linux"))]
mod mount;
mod pipe;
mod progress;
mod report;
mod size;
mod sse_c;
mod stdout;
mod total;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::{Parser, Subcommand};

use crate::error::{Error, Result};
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
    #[cfg(all(feature = "fuse", target_os = "linux"))]
    Mount(mount::Mount),
    #[cfg(all(feature = "fuse", target_os = "linux"))]
    Umount(mount::Umount),
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
    /// Whether the failure that ends the command was printed when it happened.
    told: Arc<AtomicBool>,
}

impl Context {
    fn new(source: SourceFlags, output: OutputFlags) -> Self {
        Self {
            source,
            output,
            metrics: Arc::default(),
            started: Instant::now(),
            told: Arc::default(),
        }
    }

    /// The same for another server, with counters of its own.
    fn at(&self, source: SourceFlags) -> Self {
        Self {
            source,
            output: self.output.clone(),
            metrics: Arc::default(),
            started: self.started,
            told: self.told.clone(),
        }
    }

    /// Says which profile it was that gave no credentials: the SDK only says that there is none.
    fn with_profile(&self, error: Error) -> Error {
        match (error, &self.source.profile) {
            (Error::Credentials { reason }, Some(name)) => Error::Credentials {
                reason: format!("the profile {name:?} gives none, or is not there: {reason}"),
            },
            (error, _) => error,
        }
    }

    /// Whether there is nothing left to say about a failure at the end.
    fn was_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

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
            #[cfg(all(feature = "fuse", target_os = "linux"))]
            Self::Mount(_) => "mount",
            #[cfg(all(feature = "fuse", target_os = "linux"))]
            Self::Umount(_) => "umount",
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
            #[cfg(all(feature = "fuse", target_os = "linux"))]
            Self::Mount(command) => command.run(context),
            #[cfg(all(feature = "fuse", target_os = "linux"))]
            Self::Umount(command) => command.run(),
            Self::Cache(command) => command.run(context),
            Self::Bench(command) => command.run(context),
            Self::Demo(command) => command.run(context),
            Self::Completions(command) => command.run(),
        }
    }
}

/// Runs the command that `args` name (the program's name first) and says how it went.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    ExitCode::from(status(args))
}

/// [`run`], with the exit code as the number that it is: for hosts that are not a Rust program.
pub fn status(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    #[cfg(all(feature = "fuse", target_os = "linux"))]
    let args = mount::as_helper(args);
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help into a closed pipe is no failure, and there is nobody left to tell.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(exit::FAILURE);
        }
    };
    logging::start(&cli.output);
    let context = Context::new(cli.source, cli.output);
    let name = cli.command.name();
    let result = cli
        .command
        .run(&context)
        .map_err(|error| context.with_profile(error));
    report::print(name, &context, &result);
    exit::number(&result)
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
