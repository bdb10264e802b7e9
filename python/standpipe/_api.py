"""The functions of the package."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict, cast

from . import _standpipe, _stats
from ._file import BUFFER_BYTES, ObjectFile, RawObject

if TYPE_CHECKING:
    from typing import Unpack

    from .options import Options

Uri = str | os.PathLike[str]
Uris = Uri | Sequence[Uri]


def _uris(uris: Uris) -> list[str]:
    several = [uris] if isinstance(uris, str | os.PathLike) else uris
    return [os.fspath(uri) for uri in several]


def open_object(uri: Uri, mode: str = "rb", *, buffering: int = BUFFER_BYTES, **options: Unpack[Options]) -> ObjectFile:
    """Opens one object (``s3://bucket/key``, ``file:///path`` or a path) for reading, as a file.

    It costs one HEAD. Bytes are fetched as they are read, ahead of a reader that goes in order.

    Args:
        uri: the object.
        mode: ``"rb"``; there is no other.
        buffering: reads smaller than so many bytes go through a buffer of this size.
        options: see :class:`standpipe.Options`.

    Raises:
        NotFoundError, PermissionDeniedError, ...: see :mod:`standpipe.exceptions`.

    >>> import standpipe
    >>> with standpipe.open(uri) as file:
    ...     head = file.read(4)
    ...     file.seek(-4, 2), file.read()
    ...     head
    (8, b'tent')
    b'some'
    """
    if mode not in ("rb", "br"):
        raise ValueError(f"mode {mode!r}: objects can be read only, as bytes: use 'rb'")
    handle = _standpipe.open_object(_standpipe.Config(**options), os.fspath(uri))
    return ObjectFile(RawObject(handle), max(buffering, 1))


def stream(uris: Uris | Sequence[_standpipe.ObjectInfo], **options: Unpack[Options]) -> _standpipe.Stream:
    """Reads objects back to back: an iterator of :class:`standpipe.Chunk`, without a copy, ahead of its consumer.

    Args:
        uris: one or several of ``s3://bucket/key``, ``s3://bucket/prefix/`` (all objects below it, in key order),
            ``s3://bucket/shard-{000..146}.tar``, and local paths. A single one that does not end in ``/`` and is no
            object is the beginning of many keys; in a list it is missing, and an error. Or what :func:`list` gave:
            these objects are read as they were listed, without another look.
        options: see :class:`standpipe.Options`.

    Chunks lend you the engine's memory: let go of them as you go on. A program that keeps them all
    (``list(standpipe.stream(...))``) works, but from half of ``memory`` on it gets copies, which
    ``standpipe.stats(stream)`` counts.

    >>> import standpipe
    >>> for chunk in standpipe.stream(uri):
    ...     chunk.offset, bytes(chunk), memoryview(chunk)[:4].tobytes()
    (0, b'some content', b'some')
    """
    config = _standpipe.Config(**options)
    if not isinstance(uris, str | os.PathLike):
        listed = [uri for uri in uris if isinstance(uri, _standpipe.ObjectInfo)]
        if listed and len(listed) == len(uris):
            return _standpipe.open_listed(config, listed)
    return _standpipe.open_stream(config, _uris(cast(Uris, uris)))


def list_objects(uris: Uris, *, recursive: bool = True, **options: Unpack[Options]) -> Iterator[_standpipe.ObjectInfo]:
    """Lists objects, a page of a thousand at a time, as the iterator is read.

    Args:
        uris: as for :func:`stream`.
        recursive: all objects below; ``False``: one level, as ``ls`` does, with the common prefixes of what is below.
        options: see :class:`standpipe.Options`.

    >>> import standpipe
    >>> [(info.key.rsplit("/")[-1], info.size) for info in standpipe.list(uri)]
    [('object', 12)]
    """
    return _standpipe.list_objects(_standpipe.Config(**options), _uris(uris), recursive)


def stat(uri: Uri, **options: Unpack[Options]) -> _standpipe.ObjectInfo:
    """What is known of one object: its size, ETag and date, by one HEAD."""
    return _standpipe.stat_object(_standpipe.Config(**options), os.fspath(uri))


def stats(stream: _standpipe.Stream) -> _stats.Stats:
    """What a stream did, and the answer to "why is it slow?".

    >>> import standpipe
    >>> stream = standpipe.stream(uri)
    >>> total = sum(map(len, stream))
    >>> standpipe.stats(stream)["bytes"] == total
    True
    """
    return _stats.parse(stream._stats())


class DownloadSummary(TypedDict):
    """What a download did."""

    files_written: int
    files_skipped: int
    """Files that were complete before."""
    bytes_written: int
    bytes_resumed: int
    """Bytes of its files that an earlier run had written and that were found sound."""


def download(
    uri: Uri,
    directory: Uri,
    *,
    fsync: bool = False,
    progress: bool | Callable[[int, int], object] | None = None,
    **options: Unpack[Options],
) -> DownloadSummary:
    """Downloads an object, a prefix or a pattern into a directory, in parallel.

    Each file appears when it is complete and verified. What is there already is skipped, and large files that were
    interrupted are continued, Ctrl-C included.

    Args:
        uri: as for :func:`stream`, but one.
        directory: where to; made if it is missing.
        fsync: flush each file before it gets its name.
        progress: ``None``: a bar if standard error is a terminal and ``tqdm`` is installed; ``True``: a bar,
            ``False``: none; or a function of the bytes written and the bytes to write, as far as these are known.
        options: see :class:`standpipe.Options`.

    >>> import standpipe
    >>> standpipe.download(uri, folder + "/there")["files_written"]
    1
    """
    config = _standpipe.Config(**options)
    with _Progress(progress) as shown:
        done = _standpipe.download(config, os.fspath(uri), os.fspath(directory), fsync, shown.tell)
    return cast(DownloadSummary, done)


class _Progress:
    """A bar, a function, or nothing."""

    def __init__(self, wanted: bool | Callable[[int, int], object] | None) -> None:
        self._bar: _Bar | None = None
        self.tell: Callable[[int, int], object] | None = wanted if callable(wanted) else None
        if wanted is True or (wanted is None and sys.stderr.isatty()):
            self._bar = _bar(required=wanted is True)
            self.tell = self._draw if self._bar is not None else None

    def _draw(self, written: int, total: int) -> None:
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(written - self._bar.n)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


if TYPE_CHECKING:
    from typing import Protocol

    class _Bar(Protocol):
        total: float | None
        n: float

        def update(self, n: float) -> object: ...
        def close(self) -> None: ...


def _bar(*, required: bool) -> _Bar | None:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if required:
            raise ImportError("a progress bar needs tqdm: pip install tqdm, or pass a function") from None
        return None
    bar: _Bar = tqdm(unit="B", unit_scale=True, unit_divisor=1024)
    return bar


class FastFiles:
    """The files below ``s3://bucket/prefix/``, there before they are downloaded: FastFile mode without a mount.

    Nothing is fetched before it is read. Files that are read in the listing's order are fetched before they are opened;
    any other order is told by :meth:`prefetch`. With ``cache=`` what was read stays on disk, and :meth:`local` gives
    files that other programs can read.

    It can be pickled and may cross a fork: the process that reads opens anew.

    >>> import os, standpipe
    >>> files = standpipe.FastFiles(os.path.dirname(uri) + "/")
    >>> [entry.path for entry in files.list()]
    ['object']
    >>> files.open("object").read()
    b'some content'
    """

    def __init__(self, uri: Uri, **options: Unpack[Options]) -> None:
        self._files = _standpipe.FastFiles(_standpipe.Config(**options), os.fspath(uri))

    @property
    def uri(self) -> str:
        """What every key begins with."""
        return self._files.uri

    def list(self, folder: str = "") -> Iterator[_standpipe.Entry]:
        """What is in a folder, in the listing's order, as the listing arrives."""
        return self._files.entries(folder, False)

    def walk(self, folder: str = "") -> Iterator[_standpipe.Entry]:
        """Everything below a folder: each directory, then what is in it."""
        return self._files.entries(folder, True)

    def stat(self, path: str) -> _standpipe.Entry:
        """What is known of a file or folder, without a request."""
        return self._files.stat(path)

    def open(self, path: str, mode: str = "rb", *, buffering: int = BUFFER_BYTES) -> ObjectFile:
        """Opens a file, without a request."""
        if mode not in ("rb", "br"):
            raise ValueError(f"mode {mode!r}: objects can be read only, as bytes: use 'rb'")
        return ObjectFile(RawObject(self._files.open(path)), max(buffering, 1))

    def read(self, path: str) -> bytes:
        """A whole file."""
        handle = self._files.open(path)
        return RawObject(handle).readall()

    def prefetch(self, order: Iterable[str]) -> None:
        """Says which files will be read, in this order: those of a sampler, say. As many as fit are fetched, and the
        others as those are read."""
        self._files.prefetch([*order])

    def local(self, path: str) -> _standpipe.LocalFile:
        """All of a file on the local disk; needs ``cache=``."""
        return self._files.local(path)

    def __repr__(self) -> str:
        return f"FastFiles({self.uri!r})"
