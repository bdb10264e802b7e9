//! `standpipe completions`: scripts for shells.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::report::Report;
use super::{Cli, stdout};
use crate::error::Result;

/// Print a completion script: `standpipe completions bash > /etc/bash_completion.d/standpipe`
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<Report> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "standpipe", &mut script);
        let mut out = std::io::stdout().lock();
        stdout::settle(std::io::Write::write_all(&mut out, &script))?;
        Ok(Report::default())
    }
}
