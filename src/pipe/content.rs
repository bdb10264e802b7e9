//! What the FIFOs of a channel carry: its objects in the epoch's order, shaped as the channel says.

use std::fmt;

use super::shape::Shape;
use super::stream::EpochStream;
use crate::error::Result;
use crate::input::{Agenda, Channel, Compression, InputMode, Objects, RecordWrapper, Shard};
use crate::object::ObjectMeta;
use crate::prefetch::Prefetcher;

/// A channel that was opened, on one host.
pub struct Content {
    engine: Prefetcher,
    agenda: Agenda,
    shape: Shape,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content")
            .field("agenda", &self.agenda)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

impl Content {
    /// Looks at the channel and finds out what there is: reads its manifest, or begins its listing. `host` is this host's
    /// share of sharded channels.
    ///
    /// # Errors
    /// What the channel asks for and Pipe mode cannot do; a manifest that cannot be read or is wrong; nothing there.
    pub async fn open(engine: &Prefetcher, channel: &Channel, host: Shard) -> Result<Self> {
        channel.validate(InputMode::Pipe)?;
        let agenda = Agenda::open(engine.client(), channel, host).await?;
        Ok(Self::of(engine, channel, agenda))
    }

    /// The same for a run that a later one goes on with: the order does not depend on how the store lists.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) async fn open_repeatable(
        engine: &Prefetcher,
        channel: &Channel,
        host: Shard,
    ) -> Result<Self> {
        channel.validate(InputMode::Pipe)?;
        let agenda = Agenda::open_repeatable(engine.client(), channel, host).await?;
        Ok(Self::of(engine, channel, agenda))
    }

    fn of(engine: &Prefetcher, channel: &Channel, agenda: Agenda) -> Self {
        let part_bytes = u32::try_from(channel.record_part_bytes).unwrap_or(u32::MAX);
        Self {
            engine: engine.clone(),
            agenda,
            shape: Shape {
                gzip: channel.compression == Compression::Gzip,
                part_bytes: (channel.record_wrapper == RecordWrapper::RecordIo)
                    .then_some(part_bytes),
            },
        }
    }

    /// Whether a byte of an object is a byte of the stream: only then do the objects' sizes tell the epoch's.
    pub fn is_plain(&self) -> bool {
        self.shape.is_plain() && !self.agenda.has_texts()
    }

    /// What there is.
    pub fn agenda(&self) -> &Agenda {
        &self.agenda
    }

    /// The stream of an epoch. `through` sees the objects on their way to the engine, to count them.
    ///
    /// # Errors
    /// When the engine has no memory for one more stream, or the epoch no order.
    pub fn epoch(
        &self,
        epoch: u64,
        through: impl FnOnce(Objects) -> Objects,
    ) -> Result<EpochStream> {
        let script = self.agenda.script(epoch).transpose()?;
        let reader = self.engine.read_all(through(self.agenda.objects(epoch)))?;
        Ok(EpochStream::new(reader, script, self.shape))
    }

    /// The same from a byte of the first of `through`'s objects on. Where bytes are not the objects' own (decompressed,
    /// wrapped) it is from its beginning.
    ///
    /// # Errors
    /// As [`epoch`](Self::epoch).
    pub fn epoch_from(
        &self,
        epoch: u64,
        through: impl FnOnce(Objects) -> Objects,
        first_byte: impl FnOnce(&ObjectMeta) -> u64 + Send + 'static,
    ) -> Result<EpochStream> {
        if !self.is_plain() {
            return self.epoch(epoch, through);
        }
        let objects = through(self.agenda.objects(epoch));
        let reader = self.engine.read_all_from(objects, first_byte)?;
        Ok(EpochStream::new(reader, None, self.shape))
    }

    /// The stream of an augmented manifest's epoch from a line of this host's share on.
    ///
    /// # Errors
    /// As [`epoch`](Self::epoch).
    pub fn epoch_from_line(&self, epoch: u64, line: usize) -> Result<EpochStream> {
        let script = self.agenda.script_from(epoch, line).transpose()?;
        let objects = self.agenda.objects_from(epoch, line);
        let reader = self.engine.read_all(objects)?;
        Ok(EpochStream::new(reader, script, self.shape))
    }
}
