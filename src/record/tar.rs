//! Tar archives as samples: files with the same key follow each other, and are one record.
//!
//! Grouping is WebDataset's (`base_plus_ext`): the key is the path up to the first dot of its last component, the rest
//! is the file's kind, in lower case. Names without a dot, names that begin with one (`.DS_Store`, `._x`) and what is
//! no regular file have no part in a sample, as there. A sample is known to be whole when the next one begins.
//!
//! Read are ustar, pax (`path` and `size`), GNU long names, and the headers of before; sparse files are refused, since
//! their bytes are not the file's. Global pax headers are skipped: a decoder that starts in the middle can't know them.
//! Blocks of zeros are passed over anywhere, so archives may stand one behind the other (`tar -i`); an archive that ends
//! after a file, without such blocks, is whole, as for GNU tar and Python. Every header's checksum is compared.

mod header;
mod pax;

use bytes::Bytes;

use super::decoder::Framing;
use super::input::Input;
use super::{Data, Files, Flaw, Record};
use header::{BLOCK_BYTES, Header, Kind};

/// The longest extended header that is read: names and attributes, not data.
const MAX_EXTENDED_BYTES: u64 = 1 << 20;

/// Samples of at most `limit` bytes.
#[derive(Debug)]
pub(super) struct Tar {
    limit: u64,
    sample: Option<Sample>,
    /// What extended headers say of the file that follows.
    extended: pax::Extended,
    /// Where the headers of the file that follows begin.
    entry: Option<u64>,
    /// Bytes of a file that nobody wants, and its padding.
    skip: u64,
}

/// A sample that may go on.
#[derive(Debug)]
struct Sample {
    offset: u64,
    len_bytes: u64,
    files: Files,
}

impl Sample {
    fn record(self, end: u64) -> Record {
        Record {
            offset: self.offset,
            end,
            data: Data::Files(self.files),
        }
    }
}

/// What became of an entry.
enum Step {
    /// There was none: more bytes, or the end.
    None,
    /// It was used.
    Used,
    /// It begins another sample: the one before is whole.
    Whole(Record),
}

impl Framing for Tar {
    fn next(&mut self, input: &mut Input) -> Result<Option<Record>, Flaw> {
        loop {
            match self.step(input)? {
                Step::Used => {}
                Step::Whole(record) => return Ok(Some(record)),
                Step::None if input.ended() => {
                    return Ok(self
                        .sample
                        .take()
                        .map(|sample| sample.record(input.offset())));
                }
                Step::None => return Ok(None),
            }
        }
    }
}

impl Tar {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            sample: None,
            extended: pax::Extended::default(),
            entry: None,
            skip: 0,
        }
    }

    fn step(&mut self, input: &mut Input) -> Result<Step, Flaw> {
        self.skip -= input.skip(self.skip);
        if self.skip > 0 {
            return self
                .ended(input, "a file of a tar archive", self.skip)
                .map(|()| Step::None);
        }
        let offset = input.offset();
        if !input.want(BLOCK_BYTES) {
            let what = "the header of a file in a tar archive";
            if input.ended() && input.is_empty() && self.entry.is_some() {
                return Err(Flaw::fatal(
                    offset,
                    "the object ends behind an extended header of a tar archive",
                ));
            }
            if input.is_empty() {
                return Ok(Step::None);
            }
            return self.ended(input, what, BLOCK_BYTES).map(|()| Step::None);
        }
        let block = input
            .peek::<{ BLOCK_BYTES as usize }>()
            .expect("it was asked for");
        if block.iter().all(|byte| *byte == 0) {
            input.skip(BLOCK_BYTES);
            return Ok(Step::Used);
        }
        let header = Header::parse(&block).map_err(|reason| Flaw::fatal(offset, reason))?;
        match header.kind {
            Kind::Extended(kind) => self.extend(input, kind, header.size),
            Kind::File => self.file(input, &header),
            Kind::Empty => {
                self.end_entry();
                self.pass_over(input, 0)
            }
            Kind::Other => {
                let size = self.end_entry().size.unwrap_or(header.size);
                self.pass_over(input, size)
            }
        }
    }

    /// That the object does not end here.
    fn ended(&self, input: &Input, what: &str, needs: u64) -> Result<(), Flaw> {
        match input.ended() {
            true => Err(Flaw::truncated(
                input.offset(),
                what,
                input.available() as u64,
                needs,
            )),
            false => Ok(()),
        }
    }

    fn begin_entry(&mut self, offset: u64) -> u64 {
        *self.entry.get_or_insert(offset)
    }

    fn end_entry(&mut self) -> pax::Extended {
        self.entry = None;
        std::mem::take(&mut self.extended)
    }

    /// Leaves out the entry at hand, header and data.
    fn pass_over(&mut self, input: &mut Input, size: u64) -> Result<Step, Flaw> {
        let offset = input.offset();
        let padded = size.checked_next_multiple_of(BLOCK_BYTES);
        let bytes = padded.and_then(|padded| padded.checked_add(BLOCK_BYTES));
        self.skip = bytes.ok_or_else(|| {
            Flaw::fatal(offset, format!("a file of {size} bytes in a tar archive"))
        })?;
        Ok(Step::Used)
    }

    fn extend(&mut self, input: &mut Input, kind: pax::Kind, size: u64) -> Result<Step, Flaw> {
        let offset = input.offset();
        self.begin_entry(offset);
        if size > MAX_EXTENDED_BYTES {
            let what = "an extended header of a tar archive";
            return Err(Flaw::too_long(offset, what, size, MAX_EXTENDED_BYTES));
        }
        let Some(data) = self.data(input, size)? else {
            return Ok(Step::None);
        };
        self.extended
            .read(kind, &data)
            .map_err(|reason| Flaw::fatal(offset, reason))?;
        Ok(Step::Used)
    }

    fn file(&mut self, input: &mut Input, header: &Header) -> Result<Step, Flaw> {
        let offset = input.offset();
        let begin = self.begin_entry(offset);
        let size = self.extended.size.unwrap_or(header.size);
        let name = self.extended.path.as_deref().unwrap_or(&header.name);
        let Some((key, kind)) = split(name).filter(|_| !name.ends_with('/')) else {
            self.end_entry();
            return self.pass_over(input, size);
        };
        let (key, kind) = (key.to_owned(), kind.to_lowercase());
        if let Some(whole) = self.sample.take_if(|sample| sample.files.key != key) {
            return Ok(Step::Whole(whole.record(begin)));
        }
        let sum = self
            .sample
            .as_ref()
            .map_or(0, |sample| sample.len_bytes)
            .saturating_add(size);
        if sum > self.limit {
            return Err(Flaw::too_long(
                offset,
                "a sample of a tar archive",
                sum,
                self.limit,
            ));
        }
        let Some(data) = self.data(input, size)? else {
            return Ok(Step::None);
        };
        self.end_entry();
        let sample = self.sample.get_or_insert_with(|| Sample {
            offset: begin,
            len_bytes: 0,
            files: Files {
                key,
                files: Vec::new(),
            },
        });
        if sample.files.files.iter().any(|(other, _)| *other == kind) {
            let reason = format!(
                "sample {} has two files of the kind {kind:?}",
                sample.files.key
            );
            return Err(Flaw::fatal(offset, reason));
        }
        sample.len_bytes = sum;
        sample.files.files.push((kind, data));
        Ok(Step::Used)
    }

    /// An entry's data, once header, data and padding are there.
    fn data(&mut self, input: &mut Input, size: u64) -> Result<Option<Bytes>, Flaw> {
        // Bounded by a limit before.
        let padded = size.next_multiple_of(BLOCK_BYTES);
        if !input.want(BLOCK_BYTES + padded) {
            return self
                .ended(input, "a file of a tar archive", BLOCK_BYTES + padded)
                .map(|()| None);
        }
        input.skip(BLOCK_BYTES);
        let data = input.take(size as usize);
        input.skip(padded - size);
        Ok(Some(data))
    }
}

/// A path's key and kind. `None` of a name that has no dot, or begins with one.
fn split(path: &str) -> Option<(&str, &str)> {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name + path[name..].find('.').filter(|dot| *dot > 0)?;
    Some((&path[..dot], &path[dot + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases of WebDataset's own `base_plus_ext`.
    #[test]
    fn keys_end_at_the_first_dot_of_the_last_component() {
        assert_eq!(split("a/b.d/c.cls.json"), Some(("a/b.d/c", "cls.json")));
        assert_eq!(split("000017.jpg"), Some(("000017", "jpg")));
        assert_eq!(split("./x."), Some(("./x", "")));
        for none in ["README", "a/.DS_Store", ".hidden.jpg", "a.b/c", ""] {
            assert_eq!(split(none), None, "{none}");
        }
    }
}
