//! What a consumer reads in an epoch, and in what order: computed from values.
//!
//! An epoch begins as a list of objects. It is dealt out in turn: item `j` goes to consumer `j mod n`. When it goes on
//! with another number of consumers, what each of the old ones has left becomes the list that is dealt out to the new
//! ones: first windows that were begun, then objects that were begun, then the others in the epoch's order. So a state
//! holds one [`Progress`] for each consumer and change of their number, and nothing for each object.

use sha2::{Digest as _, Sha256};

use super::config::{DatasetConfig, Even, OnError};
use super::progress::{Place, Progress};
use super::state::Generation;
use crate::error::{Error, Result};
use crate::input::permutation;
use crate::object::ObjectMeta;
use crate::record::{Codec, Compression, RecordFormat};

/// The objects, and what identifies them.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) objects: Vec<ObjectMeta>,
    /// Records of each, if that is known.
    pub(super) counts: Option<Vec<u64>>,
    /// Of addresses, versions and format: a state fits the inputs that it was made with.
    pub(super) fingerprint: String,
}

impl Inputs {
    pub(super) fn new(objects: Vec<ObjectMeta>, config: &DatasetConfig) -> Result<Self> {
        if u32::try_from(objects.len()).is_err() {
            return Err(Error::config(
                "inputs",
                "more than 2^32 objects: split them into several data sets",
            ));
        }
        if config.epochs.is_none()
            && config.even != Even::Pad
            && config.consumer.index() as usize >= objects.len()
        {
            let reason = format!(
                "{} objects for {} consumers: this one would wait for its first sample without end; use fewer workers",
                objects.len(),
                config.consumer.count()
            );
            return Err(Error::config("inputs", reason));
        }
        if let Some(unpinned) = objects.iter().find(|meta| !meta.id.is_pinned()) {
            let reason = "its size or version is not known: a listing or a HEAD tells both";
            return Err(Error::config(unpinned.id.uri.to_string(), reason));
        }
        let counts = counts(&objects, config)?;
        let fingerprint = fingerprint(&objects, config);
        let inputs = Self {
            objects,
            counts,
            fingerprint,
        };
        match config.epochs.is_none() && inputs.gives_nothing(config) {
            true => Err(Error::config(
                "even",
                "each consumer would get no sample at all, without end: use fewer workers, or end after some epochs",
            )),
            false => Ok(inputs),
        }
    }

    /// Whether equally many samples for all are none, in every epoch.
    fn gives_nothing(&self, config: &DatasetConfig) -> bool {
        let Some(counts) = &self.counts else {
            return false;
        };
        let whole = List {
            begun: Vec::new(),
            fresh: (0..self.objects.len() as u32).collect(),
        };
        let filled = counts.iter().filter(|count| **count > 0).count();
        match config.even {
            Even::None => false,
            Even::Pad => filled == 0,
            // Shuffled, enough objects that hold something reach all consumers in one epoch or other.
            Even::Drop if config.shuffle.is_some() => filled < config.consumer.count() as usize,
            Even::Drop => target(&whole, self, config) == Some(0),
        }
    }
}

fn counts(objects: &[ObjectMeta], config: &DatasetConfig) -> Result<Option<Vec<u64>>> {
    let plain = config.decoding.compression == Compression::Is(Codec::None);
    let known = match (&config.counts, config.decoding.format) {
        (Some(counts), _) if counts.len() != objects.len() => {
            let reason = format!("{} counts for {} objects", counts.len(), objects.len());
            return Err(Error::config("counts", reason));
        }
        (Some(counts), _) => Some(counts.clone()),
        (None, RecordFormat::Raw) => Some(vec![1; objects.len()]),
        (None, RecordFormat::Fixed(len)) if plain => {
            let count = |meta: &ObjectMeta| meta.size_bytes / u64::from(len.get());
            Some(objects.iter().map(count).collect())
        }
        _ => None,
    };
    match (config.even, &known) {
        (Even::Drop | Even::Pad, None) => Err(Error::unusable(
            "even",
            "how many records each object holds is not known",
            "give the records of each object as counts, or read without even",
        )),
        _ => Ok(known),
    }
}

fn fingerprint(objects: &[ObjectMeta], config: &DatasetConfig) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{}\n", config.decoding.format));
    for meta in objects {
        let version = meta.id.version_id.as_ref().or(meta.id.etag.as_ref());
        let version = version.map_or("", |version| version);
        hash.update(format!("{}\n{version}\n{}\n", meta.id.uri, meta.size_bytes));
    }
    let digest = hash.finalize();
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// An object to read, from a place on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) object: u32,
    /// None: from its first byte.
    pub(super) place: Option<Place>,
}

/// One item of a list of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    /// The rest of an object, or all of it.
    Object(Part),
    /// A window that another consumer began: `len` records out of `parts`, shuffled as it did, without the first
    /// `given`.
    Window {
        parts: Vec<Part>,
        len: u64,
        given: u64,
    },
}

/// Work in order. Objects that nobody began are the many: they are kept as their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct List {
    begun: Vec<Work>,
    fresh: Vec<u32>,
}

impl List {
    fn len(&self) -> usize {
        self.begun.len() + self.fresh.len()
    }

    fn get(&self, at: usize) -> Option<Work> {
        let fresh = || {
            let object = *self.fresh.get(at.checked_sub(self.begun.len())?)?;
            Some(Work::Object(Part {
                object,
                place: None,
            }))
        };
        self.begun.get(at).cloned().or_else(fresh)
    }

    /// What consumer `index` of `count` gets.
    fn deal(&self, index: usize, count: usize) -> Self {
        let after = self.begun.len() % count;
        Self {
            begun: self
                .begun
                .iter()
                .skip(index)
                .step_by(count)
                .cloned()
                .collect(),
            fresh: {
                let first = (index + count - after) % count;
                self.fresh
                    .iter()
                    .skip(first)
                    .step_by(count)
                    .copied()
                    .collect()
            },
        }
    }

    /// How many items consumer `index` of `count` has.
    fn dealt(&self, index: usize, count: usize) -> u64 {
        self.len().saturating_sub(index).div_ceil(count) as u64
    }

    /// What is left when each consumer is as far as it told.
    fn left(&self, epoch: u64, generation: &Generation) -> Self {
        let count = generation.consumers.max(1) as usize;
        let mut windows = Vec::new();
        let (mut opened, mut unopened) = (Vec::new(), Vec::new());
        let mut fresh = Vec::new();
        let progress: Vec<Progress> = (0..count)
            .map(|index| generation.progress(epoch, index as u32))
            .collect();
        for (index, progress) in progress.iter().enumerate() {
            windows.extend(self.window_left(index, count, progress));
        }
        for at in 0..self.len() {
            let (progress, item) = (progress[at % count], (at / count) as u64);
            let unread = progress.unread();
            if progress.done || item < unread.item {
                continue;
            }
            match (self.get(at), unread.place.filter(|_| item == unread.item)) {
                (Some(Work::Object(part)), place @ Some(_)) => {
                    opened.push(Work::Object(Part { place, ..part }));
                }
                (
                    Some(Work::Object(Part {
                        object,
                        place: None,
                    })),
                    None,
                ) => fresh.push(object),
                (Some(work), _) => unopened.push(work),
                (None, _) => {}
            }
        }
        windows.append(&mut opened);
        windows.append(&mut unopened);
        Self {
            begun: windows,
            fresh,
        }
    }

    /// The window that consumer `index` is giving out.
    fn window_left(&self, index: usize, count: usize, progress: &Progress) -> Option<Work> {
        let window = progress.window.filter(|_| !progress.done)?;
        let item = |number: u64| {
            self.get(
                usize::try_from(number)
                    .ok()?
                    .checked_mul(count)?
                    .checked_add(index)?,
            )
        };
        let mut parts = Vec::new();
        let last = window.next.item + u64::from(window.next.place.is_some());
        // Samples that were given again, to pad, are not missed. Such a window may begin at an own item that held nothing.
        if last > self.dealt(index, count) {
            return None;
        }
        for number in progress.at.item..last {
            match item(number) {
                Some(Work::Window { parts, len, .. }) => {
                    let given = window.given;
                    return Some(Work::Window { parts, len, given });
                }
                Some(Work::Object(part)) => {
                    let here = progress.at.place.filter(|_| number == progress.at.item);
                    let place = here.or(part.place);
                    parts.push(Part { place, ..part });
                }
                None => break,
            }
        }
        (!parts.is_empty()).then_some(Work::Window {
            parts,
            len: window.len,
            given: window.given,
        })
    }
}

/// Samples in an item, where the objects' records are counted.
fn samples_in(work: &Work, counts: &[u64]) -> u64 {
    match work {
        Work::Object(Part { object, place }) => {
            let before = place.map_or(0, |place| place.record);
            counts[*object as usize].saturating_sub(before)
        }
        Work::Window { len, given, .. } => len.saturating_sub(*given),
    }
}

/// A consumer's work in an epoch.
#[derive(Debug)]
pub(super) struct Plan {
    own: List,
    /// What follows it, over and over, when a consumer must give more than it has.
    padding: Vec<u32>,
    /// Samples to give out; none: all.
    pub(super) target: Option<u64>,
}

impl Plan {
    /// The work of the configured consumer, after what `earlier` generations had.
    pub(super) fn new(
        inputs: &Inputs,
        config: &DatasetConfig,
        epoch: u64,
        earlier: &[Generation],
    ) -> Self {
        let len = inputs.objects.len() as u32;
        let order = match config.shuffle {
            Some(shuffle) => permutation(shuffle.seed, epoch, len),
            None => (0..len).collect(),
        };
        let whole = List {
            begun: Vec::new(),
            fresh: order.clone(),
        };
        let begun = earlier
            .iter()
            .filter(|generation| !generation.is_before(epoch));
        let list = begun.fold(whole, |list, generation| list.left(epoch, generation));
        let (index, count) = (
            config.consumer.index() as usize,
            config.consumer.count() as usize,
        );
        let own = list.deal(index, count);
        let target = target(&list, inputs, config);
        let short = target.is_some_and(|target| match &inputs.counts {
            Some(counts) => total(&own, counts) < target || config.on_error == OnError::Skip,
            None => false,
        });
        let mut padding = if short { order } else { Vec::new() };
        if !padding.is_empty() {
            // Else all would be padded with the same objects.
            let from = index % padding.len();
            padding.rotate_left(from);
        }
        Self {
            own,
            padding,
            target,
        }
    }

    /// An item; none behind the last one.
    pub(super) fn item(&self, number: u64) -> Option<Work> {
        let at = usize::try_from(number).ok()?;
        let padding = || {
            let behind = at.checked_sub(self.own.len())?;
            let object = *self.padding.get(behind % self.padding.len().max(1))?;
            Some(Work::Object(Part {
                object,
                place: None,
            }))
        };
        self.own.get(at).or_else(padding)
    }

    /// Items after which padding comes round again.
    pub(super) fn padding_round(&self) -> u64 {
        self.padding.len() as u64
    }

    /// Items that another consumer began; they come first.
    pub(super) fn begun(&self) -> u64 {
        self.own.begun.len() as u64
    }

    /// How a window of this item's records is formed: only with those of items of the same zone, and of its own size if
    /// it has one.
    pub(super) fn zone(&self, number: u64) -> Zone {
        match self.own.begun.get(number as usize) {
            Some(Work::Window { len, given, .. }) => Zone::Begun {
                item: number,
                len: *len,
                given: *given,
            },
            _ if number < self.own.len() as u64 => Zone::Own,
            _ => Zone::Padding,
        }
    }
}

/// See [`Plan::zone`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zone {
    Own,
    Begun { item: u64, len: u64, given: u64 },
    Padding,
}

fn total(list: &List, counts: &[u64]) -> u64 {
    let begun: u64 = list.begun.iter().map(|work| samples_in(work, counts)).sum();
    let fresh: u64 = list
        .fresh
        .iter()
        .map(|object| counts[*object as usize])
        .sum();
    begun + fresh
}

/// How many samples each consumer gives out, if all are to give equally many.
fn target(list: &List, inputs: &Inputs, config: &DatasetConfig) -> Option<u64> {
    let counts = inputs.counts.as_ref()?;
    let count = config.consumer.count() as usize;
    let mut totals = vec![0; count];
    for at in 0..list.len() {
        totals[at % count] += list.get(at).map_or(0, |work| samples_in(&work, counts));
    }
    match config.even {
        Even::None => None,
        Even::Drop => totals.into_iter().min(),
        Even::Pad => totals.into_iter().max(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::progress::{Begun, Cursor};
    use super::super::state::Position;
    use super::*;
    use std::collections::BTreeMap;

    fn objects(list: &List) -> Vec<u32> {
        list.fresh.clone()
    }

    fn place(offset: u64) -> Option<Place> {
        Some(Place {
            offset,
            record: offset,
            codec: Codec::None,
        })
    }

    #[test]
    fn items_are_dealt_in_turn_whatever_their_kind() {
        let list = List {
            begun: (100..103)
                .map(|object| {
                    Work::Object(Part {
                        object,
                        place: place(1),
                    })
                })
                .collect(),
            fresh: (0..7).collect(),
        };
        for count in 1..12 {
            for at in 0..list.len() {
                let own = list.deal(at % count, count);
                assert_eq!(
                    own.get(at / count),
                    list.get(at),
                    "item {at} of {count} consumers"
                );
            }
            let dealt: usize = (0..count).map(|index| list.deal(index, count).len()).sum();
            assert_eq!(dealt, list.len());
        }
    }

    #[test]
    fn what_is_left_is_windows_then_begun_objects_then_the_others_in_order() {
        let list = List {
            begun: Vec::new(),
            fresh: (0..8).collect(),
        };
        // Consumer 0 (objects 0, 2, 4, 6) is in object 2; consumer 1 (1, 3, 5, 7) gives out a window of 1 and 3.
        let opened = Progress {
            at: Cursor {
                item: 1,
                place: place(5),
            },
            ..Progress::default()
        };
        let window = Progress {
            at: Cursor {
                item: 0,
                place: place(9),
            },
            window: Some(Begun {
                len: 4,
                given: 3,
                next: Cursor {
                    item: 1,
                    place: place(2),
                },
            }),
            ..Progress::default()
        };
        let generation = Generation {
            consumers: 2,
            positions: BTreeMap::from([(0, opened), (1, window)].map(|(consumer, progress)| {
                (
                    consumer,
                    Position {
                        epoch: 3,
                        progress,
                        skip: 0,
                    },
                )
            })),
        };
        assert_eq!(list.left(4, &generation), list, "the next epoch is whole");
        assert_eq!(
            list.left(2, &generation),
            List::default(),
            "the one before is done"
        );
        let left = list.left(3, &generation);
        let part = |object, offset| Part {
            object,
            place: offset,
        };
        assert_eq!(
            left.begun,
            [
                Work::Window {
                    parts: vec![part(1, place(9)), part(3, None)],
                    len: 4,
                    given: 3
                },
                Work::Object(part(2, place(5))),
                Work::Object(part(3, place(2))),
            ]
        );
        assert_eq!(objects(&left), [4, 5, 6, 7]);
    }
}
