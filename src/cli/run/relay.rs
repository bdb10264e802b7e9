//! The trainer's output on its way to the terminal that a live view is drawn on: whole lines, written above it.
//!
//! What has no end yet is kept and shown as a part of the view: two writers of one line would garble it. Of a line that is
//! written over (`\r`, as progress bars do it) the last state counts, as on a terminal.

use std::io::Write;
use std::sync::PoisonError;

use super::live::Unfinished;

/// A line that is longer is passed on in pieces.
const LONGEST_LINE: usize = 64 << 10;

/// One of the trainer's two outputs.
#[derive(Debug)]
pub(super) struct Relay {
    line: Vec<u8>,
    unfinished: Unfinished,
}

impl Relay {
    pub(super) fn new(unfinished: Unfinished) -> Self {
        Self {
            line: Vec::new(),
            unfinished,
        }
    }

    /// Takes what the trainer has written; gives what can be shown.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut whole = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.line.len() >= LONGEST_LINE {
                whole.extend_from_slice(last_state(&self.line));
                self.line.clear();
            }
        }
        self.show();
        whole
    }

    /// The end: what is left is a line.
    pub(super) fn end(&mut self) -> Vec<u8> {
        let mut rest = last_state(&self.line).to_vec();
        if !rest.is_empty() && !rest.ends_with(b"\n") {
            rest.push(b'\n');
        }
        self.line.clear();
        self.show();
        rest
    }

    fn show(&self) {
        let text = String::from_utf8_lossy(last_state(&self.line));
        let text = console::strip_ansi_codes(&text);
        let text = text.chars().filter(|c| !c.is_control()).collect();
        *self
            .unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = text;
    }
}

/// What a terminal shows of a line in the end.
fn last_state(line: &[u8]) -> &[u8] {
    let content = line.strip_suffix(b"\n").unwrap_or(line);
    let content = content.strip_suffix(b"\r").unwrap_or(content);
    let from = content
        .iter()
        .rposition(|byte| *byte == b'\r')
        .map_or(0, |at| at + 1);
    &line[from..]
}

/// Writes to the terminal, whoever still looks at it.
pub(super) fn write(to_stderr: bool, bytes: &[u8]) {
    let _ = match to_stderr {
        true => std::io::stderr().write_all(bytes),
        false => {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_come_whole_and_what_is_unfinished_is_shown_apart() {
        let unfinished = Unfinished::default();
        let mut relay = Relay::new(unfinished.clone());
        let shown = || unfinished.lock().unwrap().clone();
        assert_eq!(relay.take(b"one\ntw"), b"one\n");
        assert_eq!(shown(), "tw");
        assert_eq!(relay.take(b"o\n"), b"two\n");
        assert_eq!(shown(), "");
        assert_eq!(relay.take(b"\r 10%\r\x1b[32m 20%\x1b[0m"), b"");
        assert_eq!(shown(), " 20%");
        assert_eq!(relay.take(b"\r done\r\nnext"), b" done\r\n");
        assert_eq!(relay.end(), b"next\n");
        assert_eq!((relay.end(), shown()), (vec![], String::new()));
    }

    proptest! {
        /// However it is cut, nothing is lost of what is not written over.
        #[test]
        fn nothing_is_lost(text in "[ab\n]{0,60}", cut in 1usize..9) {
            let mut relay = Relay::new(Unfinished::default());
            let mut out = Vec::new();
            for piece in text.as_bytes().chunks(cut) {
                out.extend(relay.take(piece));
            }
            out.extend(relay.end());
            let mut expected = text.clone();
            if !expected.is_empty() && !expected.ends_with('\n') {
                expected.push('\n');
            }
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
