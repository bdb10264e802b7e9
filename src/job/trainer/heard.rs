//! Where a trainer's output goes when it does not go where ours does.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::job::{OnOutput, Stream, TrainerOutput};

/// How long the last of it is waited for: only who could not be killed still holds the pipe then.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// As much as a pipe holds.
const PIECE_BYTES: usize = 64 << 10;

/// The threads that listen, each of which says when its stream has ended.
#[derive(Debug, Default)]
pub(super) struct Ears(Vec<Receiver<()>>);

impl Ears {
    /// Waits until all was heard.
    pub(super) fn end(&mut self) {
        for ended in self.0.drain(..) {
            // An error is an end, too.
            let _ = ended.recv_timeout(LAST_WORDS);
        }
    }
}

/// Before it starts.
pub(super) fn direct(command: &mut Command, output: &TrainerOutput) -> Result<()> {
    match output {
        TrainerOutput::Ours => {}
        TrainerOutput::File(path) => {
            let failed = |error| Error::io(path, error);
            let file = File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(failed)?;
            command
                .stderr(file.try_clone().map_err(failed)?)
                .stdout(file);
        }
        TrainerOutput::Heard { output, error, .. } => {
            if *output {
                command.stdout(Stdio::piped());
            }
            if *error {
                command.stderr(Stdio::piped());
            }
        }
    }
    Ok(())
}

/// When it has started.
pub(super) fn listen(child: &mut Child, output: &TrainerOutput) -> Result<Ears> {
    let mut ears = Ears::default();
    if let TrainerOutput::Heard { by, .. } = output {
        if let Some(pipe) = child.stdout.take() {
            ears.0.push(hear(pipe, Stream::Output, by.clone())?);
        }
        if let Some(pipe) = child.stderr.take() {
            ears.0.push(hear(pipe, Stream::Error, by.clone())?);
        }
    }
    Ok(ears)
}

/// Tells when the stream has ended.
fn hear(
    mut pipe: impl Read + Send + 'static,
    stream: Stream,
    by: OnOutput,
) -> Result<Receiver<()>> {
    let (ends, ended) = channel::<()>();
    let thread = std::thread::Builder::new().name("trainer's output".into());
    let started = thread.spawn(move || {
        let mut bytes = vec![0; PIECE_BYTES];
        while let Ok(read @ 1..) = pipe.read(&mut bytes) {
            by(stream, &bytes[..read]);
        }
        by(stream, &[]);
        drop(ends);
    });
    started.map_err(|error| Error::io("trainer's output", error))?;
    Ok(ended)
}
