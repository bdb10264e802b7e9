"""Objects back to back as one file that can't be rewound: what tar readers and decoders want."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, SupportsIndex

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from . import _standpipe

__all__ = ["sequential"]

# Readers of tar archives ask for 512 bytes at a time.
BUFFER_BYTES = 128 << 10


class _RawStream(io.RawIOBase):
    def __init__(self, stream: _standpipe.Stream) -> None:
        self._stream: _standpipe.Stream | None = stream
        self._chunks: Iterator[_standpipe.Chunk] = iter(stream)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        with memoryview(buffer).cast("B") as view:
            while not self._rest:
                # Let go of it first: the engine may need its memory for the next one.
                self._rest.release()
                self._rest = memoryview(b"")
                chunk = next(self._chunks, None)
                if chunk is None:
                    return 0
                self._rest = memoryview(chunk)
                del chunk
            count = min(len(view), len(self._rest))
            view[:count] = self._rest[:count]
        # A view of nothing would keep its chunk, too.
        behind = self._rest[count:] if count < len(self._rest) else memoryview(b"")
        self._rest.release()
        self._rest = behind
        return count

    def close(self) -> None:
        if self._stream is not None:
            self._rest.release()
            self._stream.close()
            self._stream = None
        super().close()

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> Any:
        raise TypeError("an open stream can't be pickled: pickle its URI and open it where it is read")


def sequential(stream: _standpipe.Stream) -> io.BufferedReader:
    """A file over a stream."""
    return io.BufferedReader(_RawStream(stream), BUFFER_BYTES)
