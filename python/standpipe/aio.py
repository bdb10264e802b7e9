"""The same for ``asyncio``: ``async for chunk in standpipe.aio.stream(uri)``.

A stream wakes its event loop through a file descriptor; nothing of it runs on other threads of Python's. The other
functions take as long as a few requests, or block by nature (files): they run on the loop's worker threads, and those
stop within a tenth of a second when the task is cancelled.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, TypeVar

from . import _api, _standpipe
from ._file import ObjectFile
from ._stats import Stats

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self, Unpack

    from .options import Options

__all__ = ["Stream", "download", "list", "open", "read", "stat", "stream"]

_T = TypeVar("_T")


class Stream:
    """An asynchronous iterator of :class:`standpipe.Chunk`. Cancelling a wait loses nothing.

    Several tasks may share it: each chunk goes to one of them. Closing it ends it for all.
    """

    def __init__(self, opened: Callable[[], _standpipe.Stream]) -> None:
        self._open = opened
        self._inner: _standpipe.Stream | None = None
        self._closed = False
        # Chunks come one after another, and the descriptor has one reader.
        self._turn = asyncio.Lock()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _standpipe.Chunk:
        async with self._turn:
            if self._closed:
                raise StopAsyncIteration
            if self._inner is None:
                # Credentials and the first connection may take a while.
                self._inner = await _in_thread(self._open)
                if self._closed:
                    self._inner.close()
            inner = self._inner
            while (chunk := inner.poll()) is None:
                await _readable(inner.fileno(), inner)
            return chunk

    def stats(self) -> Stats:
        """As :func:`standpipe.stats`."""
        if self._inner is None:
            raise ValueError("the stream has not been read yet")
        return _api.stats(self._inner)

    async def aclose(self) -> None:
        """Cancels what is in flight; tasks that wait for a chunk find the end."""
        self._closed = True
        if self._inner is not None:
            self._inner.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def _in_thread(work: Callable[[], _T]) -> _T:
    """What blocks, on a thread of the loop's, which stops soon after this task is cancelled."""
    cancel = _standpipe.Cancel()

    def run() -> _T:
        with cancel:
            return work()

    try:
        return await asyncio.to_thread(run)
    except asyncio.CancelledError:
        cancel.set()
        raise


async def _readable(descriptor: int, inner: _standpipe.Stream) -> None:
    """Waits until the descriptor was rung. A ring before the wait is not lost: the descriptor stays readable."""
    loop = asyncio.get_running_loop()
    rung: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not rung.done():
            rung.set_result(None)

    loop.add_reader(descriptor, tell)
    try:
        await rung
    finally:
        loop.remove_reader(descriptor)


def stream(uris: _api.Uris, **options: Unpack[Options]) -> Stream:
    """As :func:`standpipe.stream`, for ``async for``."""
    return Stream(lambda: _api.stream(uris, **options))


async def open(uri: _api.Uri, mode: str = "rb", **options: Unpack[Options]) -> ObjectFile:
    """As :func:`standpipe.open`. Read it with ``await asyncio.to_thread(file.read, ...)``, or use :func:`read`."""
    return await _in_thread(lambda: _api.open_object(uri, mode, **options))


async def read(uri: _api.Uri, offset: int = 0, size: int = -1, **options: Unpack[Options]) -> bytes:
    """``size`` bytes of an object from ``offset`` on; all that follow, if it is negative."""

    def whole() -> bytes:
        with _api.open_object(uri, **options) as file:
            return file.read_at(offset, file.size if size < 0 else size)

    return await _in_thread(whole)


async def list(
    uris: _api.Uris, *, recursive: bool = True, **options: Unpack[Options]
) -> AsyncIterator[_standpipe.ObjectInfo]:
    """As :func:`standpipe.list`."""
    entries = await _in_thread(lambda: iter(_api.list_objects(uris, recursive=recursive, **options)))
    # A page of the listing at a time: each needs one turn of a thread, as it needs one request.
    while page := await _in_thread(lambda: [*itertools.islice(entries, 1000)]):
        for entry in page:
            yield entry


async def stat(uri: _api.Uri, **options: Unpack[Options]) -> _standpipe.ObjectInfo:
    """As :func:`standpipe.stat`."""
    return await _in_thread(lambda: _api.stat(uri, **options))


async def download(
    uri: _api.Uri, directory: _api.Uri, *, fsync: bool = False, **options: Unpack[Options]
) -> _api.DownloadSummary:
    """As :func:`standpipe.download`. When the task is cancelled the download stops; another goes on from there."""
    cancelled = False

    def look(_written: int, _total: int) -> None:
        if cancelled:
            raise asyncio.CancelledError

    work = asyncio.to_thread(lambda: _api.download(uri, directory, fsync=fsync, progress=look, **options))
    try:
        return await work
    except asyncio.CancelledError:
        cancelled = True
        raise
