//! Windows of records, each shuffled by itself, and the progress through them.
//!
//! A window is a run of consecutive records of one zone ([`Zone`]). Its order is [`permutation`] of a hash of seed, epoch
//! and the place where it begins: whoever reads the same records gets the same order, on another host and under another
//! number of consumers, too. Without shuffling a window has one record.

use std::collections::VecDeque;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::config::Shuffle;
use super::lane::Tagged;
use super::plan::{Plan, Zone};
use super::progress::{Begun, Cursor, Progress};
use super::samples::Sample;
use super::unusable_state;
use crate::error::Result;
use crate::input::permutation;

/// Forms windows out of records in order, and gives out their samples.
#[derive(Debug)]
pub(super) struct Windows {
    plan: Arc<Plan>,
    shuffle: Option<Shuffle>,
    epoch: u64,
    /// Records that are in no window yet.
    pending: VecDeque<Tagged>,
    /// No more will come.
    ended: bool,
    /// The window that is given out, its next sample last.
    window: Vec<Sample>,
    progress: Progress,
    /// What a window that was begun before must hold.
    expected: Option<Begun>,
}

impl Windows {
    pub(super) fn new(
        plan: Arc<Plan>,
        shuffle: Option<Shuffle>,
        epoch: u64,
        progress: Progress,
    ) -> Self {
        Self {
            plan,
            shuffle,
            epoch,
            pending: VecDeque::new(),
            ended: false,
            window: Vec::new(),
            expected: progress.window,
            progress: Progress {
                window: None,
                ..progress
            },
        }
    }

    pub(super) fn push(&mut self, samples: Vec<Tagged>) {
        self.pending.extend(samples);
    }

    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Whether all records are in windows; when there is no further sample then, there will be none.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// How far it is, with what it gave out.
    pub(super) fn progress(&self) -> Progress {
        Progress {
            window: self.progress.window.or(self.expected),
            ..self.progress
        }
    }

    /// Whether records beyond the window at hand are wanted, to have the next one ready.
    pub(super) fn is_hungry(&self) -> bool {
        !self.ended && self.pending.len() < self.size()
    }

    /// The next sample; `None` when more records are needed or, at the end, when there is none.
    pub(super) fn next(&mut self) -> Result<Option<Sample>> {
        if self.window.is_empty() {
            if let Some(sample) = self.single() {
                return Ok(Some(sample));
            }
            if !self.form()? {
                return Ok(None);
            }
        }
        let sample = self.window.pop();
        self.progress.given += u64::from(sample.is_some());
        if let Some(window) = &mut self.progress.window {
            window.given += 1;
            if window.given >= window.len {
                self.progress.at = window.next;
                self.progress.window = None;
            }
        }
        Ok(sample)
    }

    /// The next record, where windows have one: without the work that larger ones take.
    fn single(&mut self) -> Option<Sample> {
        if self.size() > 1 || self.expected.is_some() {
            return None;
        }
        let plain =
            |tagged: &mut Tagged| !matches!(self.plan.zone(tagged.item), Zone::Begun { .. });
        let Tagged { sample, item, next } = self.pending.pop_front_if(plain)?;
        self.progress.given += 1;
        self.progress.at = Cursor {
            item,
            place: Some(next),
        };
        Some(sample)
    }

    fn size(&self) -> usize {
        self.shuffle.map_or(1, |shuffle| shuffle.window as usize)
    }

    /// Makes the next window, if all of it is there.
    fn form(&mut self) -> Result<bool> {
        let Some(first) = self.pending.front() else {
            return match self.expected.filter(|_| self.ended) {
                Some(_) => Err(changed()),
                None => Ok(false),
            };
        };
        let zone = self.plan.zone(first.item);
        let size = match zone {
            Zone::Begun { len, .. } => len as usize,
            Zone::Own | Zone::Padding => self.size(),
        };
        let same = |tagged: &&Tagged| self.plan.zone(tagged.item) == zone;
        let len = self.pending.iter().take(size).take_while(same).count();
        if len < size && len == self.pending.len() && !self.ended {
            return Ok(false);
        }
        let begun = match zone {
            Zone::Begun { len, given, item } => Some(Begun {
                len,
                given,
                next: Cursor {
                    item: item + 1,
                    place: None,
                },
            }),
            Zone::Own | Zone::Padding => None,
        };
        let expected = self.expected.take().or(begun);
        if expected
            .is_some_and(|expected| expected.len != len as u64 || expected.given >= expected.len)
        {
            return Err(changed());
        }
        self.give_out(len, expected);
        Ok(true)
    }

    fn give_out(&mut self, len: usize, expected: Option<Begun>) {
        let last = &self.pending[len - 1];
        let next = Cursor {
            item: last.item,
            place: Some(last.next),
        };
        let order = self.order(&self.pending[0].sample, len as u32);
        let mut samples: Vec<Option<Sample>> = self
            .pending
            .drain(..len)
            .map(|tagged| Some(tagged.sample))
            .collect();
        let given = expected.map_or(0, |begun| begun.given);
        let left = order.into_iter().skip(given as usize).rev();
        self.window = left.filter_map(|at| samples[at as usize].take()).collect();
        self.progress.window = Some(expected.unwrap_or(Begun {
            len: len as u64,
            given,
            next,
        }));
    }

    fn order(&self, first: &Sample, len: u32) -> Vec<u32> {
        let Some(shuffle) = self.shuffle.filter(|_| len > 1) else {
            return (0..len).collect();
        };
        let mut hash = Sha256::new();
        for part in [
            shuffle.seed.cast_unsigned(),
            self.epoch,
            u64::from(first.object_index),
            first.record.offset,
        ] {
            hash.update(part.to_le_bytes());
        }
        let digest = hash.finalize();
        let seed = i64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"));
        permutation(seed, self.epoch, len)
    }
}

fn changed() -> crate::error::Error {
    unusable_state("a window that was begun does not hold the records that it held")
}
