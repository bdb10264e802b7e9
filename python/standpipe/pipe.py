"""Pipe mode from Python: a channel's FIFOs, epoch by epoch, as records.

A job in Pipe mode finds ``<directory>/<channel>_0``, reads it to the end, then ``<channel>_1``, and so on: on
SageMaker, under ``standpipe pipe`` and ``standpipe run`` alike. Nothing of S3 is needed here, nor any access to it:
who serves the channel reads it. Records are cut in Rust, without the GIL.

:class:`standpipe.torch.PipeDataset` and :func:`standpipe.tensorflow.PipeModeDataset` are made of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from . import _standpipe
from .dataset import _FINISH, _as_it_is
from .exceptions import ConfigError

if TYPE_CHECKING:
    from typing import Self

__all__ = ["PipeChannel", "PipeEpoch"]


def _directory(channel: str) -> str:
    """Where the job's environment says that this channel is, or all of them are."""
    told = os.environ.get(f"SM_CHANNEL_{channel.upper()}")
    return os.path.dirname(told) if told else os.path.join(os.environ.get("SM_INPUT_DIR") or "/opt/ml/input", "data")


class PipeChannel:
    """A channel of Pipe mode. Each iteration reads the next epoch, and is the only reader of its FIFO.

    Args:
        channel: its name, as in the job's ``InputDataConfig``.
        format: how the bytes are cut into records: ``recordio``, ``recordio-protobuf``, ``tfrecord``, ``lines``,
            ``jsonl``, ``tar``, ``fixed:N``, with gzip or zstd around them; ``raw``: pieces of the bytes, as they come.
        directory: where the FIFOs are. By default as ``SM_CHANNEL_<NAME>`` or ``SM_INPUT_DIR`` says, else
            ``/opt/ml/input/data``.
        epoch: the first one. A job that was started again finds the FIFOs begin at 0 again.
        compression: ``auto`` (by the first bytes), ``none``, ``gzip``, ``zstd``.
        max_record_size: what one record may hold at most; default 1 GiB.
        timeout: seconds for which nothing may come; then ``TimeoutError`` is raised. By default it waits as long as it
            takes; Ctrl-C works within 0.2 s.

    Epochs come in turn: the next FIFO is opened when the one before was read to its end, or was left (``break``), which
    closes it. Samples are those of :class:`standpipe.Dataset`. A record that is cut off or corrupt raises
    ``CorruptError`` with the FIFO's name and the offset; what the server says of its own failure raises
    ``LocalIOError``, however the FIFO ended. How many epochs there are the training script knows: a FIFO does not tell.

    >>> import os, threading
    >>> os.mkfifo(folder + "/train_0")
    >>> def serve():
    ...     with open(folder + "/train_0", "w") as fifo:
    ...         _ = fifo.write("one\\ntwo\\n")
    >>> threading.Thread(target=serve).start()
    >>> channel = PipeChannel("train", "lines", directory=folder)
    >>> list(channel), channel.next_epoch
    ([b'one', b'two'], 1)
    """

    def __init__(
        self,
        channel: str,
        format: str = "recordio",
        *,
        directory: str | os.PathLike[str] | None = None,
        epoch: int = 0,
        compression: Literal["auto", "none", "gzip", "zstd"] = "auto",
        max_record_size: int | str | None = None,
        timeout: float | None = None,
    ) -> None:
        if epoch < 0:
            raise ConfigError(f"epoch: {epoch}: it counts from 0")
        self._channel = channel
        self._format = format
        self._directory = os.fspath(directory) if directory is not None else _directory(channel)
        self._rest = (compression, max_record_size, timeout)
        self._next = epoch
        self._last: PipeEpoch | None = None
        # What can't work is told now, not in a worker.
        self._open(epoch)

    def _open(self, epoch: int) -> _standpipe.FifoRecords:
        return _standpipe.open_fifo(self._directory, self._channel, epoch, self._format, *self._rest)

    @property
    def next_epoch(self) -> int:
        """The epoch that the next iteration reads. One whose FIFO was opened is used up, whatever was read of it."""
        last = self._last
        return last.epoch + 1 if last is not None and last.opened else self._next

    def skip_to(self, epoch: int) -> None:
        """The next iteration reads this epoch, if it is not behind: for who has read those before it elsewhere."""
        if epoch > self.next_epoch:
            if self._last is not None:
                self._last.close()
            self._next, self._last = epoch, None

    def __iter__(self) -> PipeEpoch:
        epoch = self.next_epoch
        if self._last is not None:
            self._last.close()
        self._next = epoch
        self._last = PipeEpoch(self._open(epoch), epoch, self._format)
        return self._last

    def __getstate__(self) -> dict[str, Any]:
        # An open FIFO stays with its process.
        return {**self.__dict__, "_next": self.next_epoch, "_last": None}

    def __repr__(self) -> str:
        return f"PipeChannel({self._channel!r}, {self._format!r}, directory={self._directory!r})"


class PipeEpoch(Iterator[Any]):
    """The records of one epoch. Closing it early makes its server go on to the next one."""

    def __init__(self, inner: _standpipe.FifoRecords, epoch: int, format: str) -> None:
        self._inner = inner
        self._finish = _FINISH.get(format, _as_it_is)
        self._ready: Iterator[Any] = iter(())
        self._pid = os.getpid()
        self._was_opened = False
        self.epoch = epoch
        """Its number."""

    def __next__(self) -> Any:
        while True:
            for record in self._ready:
                return self._finish(record)
            self._ready = iter(self._more())

    def _more(self) -> list[Any]:
        try:
            return next(self._inner)
        finally:
            self._was_opened = self._inner.opened

    def batches(self) -> Iterator[list[Any]]:
        """The records that are there, at least one and at most 256 at a time: with less work for each."""
        rest = [self._finish(record) for record in self._ready]
        if rest:
            yield rest
        try:
            while True:
                yield [self._finish(record) for record in self._more()]
        except StopIteration:
            return

    @property
    def opened(self) -> bool:
        """Whether its FIFO was opened, by this iterator."""
        # A forked child can't ask its parent's.
        return self._inner.opened if self._pid == os.getpid() else self._was_opened

    @property
    def path(self) -> str:
        """Its FIFO."""
        return os.fspath(self._inner.path)

    @property
    def received_bytes(self) -> int:
        """Bytes that came out of the FIFO so far."""
        return self._inner.received_bytes

    def close(self) -> None:
        """Stops reading."""
        self._ready = iter(())
        # What a forked child has inherited is its parent's.
        if self._pid == os.getpid():
            self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
