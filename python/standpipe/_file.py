"""File objects over open objects."""

from __future__ import annotations

import io
from datetime import datetime
from typing import TYPE_CHECKING, Any, SupportsIndex

from . import _standpipe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import WriteableBuffer

__all__ = ["ObjectFile", "RawObject"]

# Reads of at least this much go past the buffer, straight into the caller's memory; smaller ones cost a copy more
# and a call less. It is what buffered readers of Python use or will use.
BUFFER_BYTES = 128 << 10


class RawObject(io.RawIOBase):
    """An open object without a buffer: each read is a call. :class:`ObjectFile` is what :func:`standpipe.open`
    gives."""

    def __init__(self, handle: _standpipe.ObjectHandle) -> None:
        self._handle: _standpipe.ObjectHandle | None = handle
        self._position = 0
        self.name = handle.uri
        self.mode = "rb"

    @property
    def handle(self) -> _standpipe.ObjectHandle:
        """The open object; ValueError once it is closed."""
        if self._handle is None:
            raise ValueError("I/O operation on closed file.")
        return self._handle

    def readable(self) -> bool:
        return self._handle is not None or bool(self.handle)

    def seekable(self) -> bool:
        return self._handle is not None or bool(self.handle)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        with memoryview(buffer).cast("B") as view:
            count = self.handle.read_into(view, self._position)
        self._position += count
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self.handle.size if size is None or size < 0 else size
        found = self.handle.read_at(self._position, wanted)
        self._position += len(found)
        return found

    def readall(self) -> bytes:
        found = []
        while piece := self.read(-1):
            found.append(piece)
        return found[0] if len(found) == 1 else b"".join(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.handle.size}
        if whence not in origins:
            raise ValueError(f"whence {whence}: use 0, 1 or 2")
        position = origins[whence] + offset
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def tell(self) -> int:
        self.handle  # noqa: B018  (closed files raise)
        return self._position

    def close(self) -> None:
        self._handle = None
        super().close()

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> Any:
        raise TypeError("an open object can't be pickled: pickle its URI and open it where it is read")


class ObjectFile(io.BufferedReader):
    """An open object, as a file: ``read``, ``readinto``, ``seek``, ``tell``, lines, and ``with``.

    Reading in order reads ahead, with many requests at once; reading at random fetches small blocks. All of its bytes
    are of one version of the object: if it is replaced meanwhile, reading raises :class:`standpipe.ChangedError`.
    """

    def __init__(self, raw: RawObject, buffer_size: int = BUFFER_BYTES) -> None:
        super().__init__(raw, buffer_size)
        self._object = raw

    @property
    def uri(self) -> str:
        """The object's address."""
        return self._object.handle.uri

    @property
    def bucket(self) -> str:
        """Its bucket; empty for local files."""
        return self._object.handle.bucket

    @property
    def key(self) -> str:
        """Its key, or the path of a local file."""
        return self._object.handle.key

    @property
    def etag(self) -> str | None:
        """The ETag of the version that is read, quotes included."""
        return self._object.handle.etag

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self._object.handle.size

    @property
    def last_modified(self) -> datetime | None:
        """When it was last written, in UTC."""
        return self._object.handle.last_modified

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset`` on; the position stays. May be called by many threads at once."""
        return self._object.handle.read_at(offset, size)

    def readinto_at(self, buffer: WriteableBuffer, offset: int) -> int:
        """Fills ``buffer`` from ``offset`` on; says how many bytes those were. May be called by many threads at
        once."""
        with memoryview(buffer).cast("B") as view:
            return self._object.handle.read_into(view, offset)

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetches ranges (start, end) before they are read, in this order, as memory allows."""
        self._object.handle.prefetch(list(ranges))

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> Any:
        return self._object.__reduce_ex__(protocol)
