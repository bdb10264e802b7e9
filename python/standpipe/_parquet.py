"""Rows of Parquet files as samples: dealt out by Rust, read by pyarrow out of ranges that the engine fetched.

A row group is to rows what an object is to records: groups are permuted, dealt out, and read one after the other; rows
are mixed within a window; a state is in groups and rows. Which rows come when is decided where it is for all formats
(``open_rows``); here they are read. What is read of a file is its footer, once for the numbers of rows and again with
its groups, and of each group the chunks of the columns that are wanted. While rows of one group are given out, the next
one is on its way.

Groups are in memory whole, as Arrow's: the one at hand, the next one, and those that a window reaches into. They don't
count against the engine's memory.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from . import _standpipe
from .dataset import DatasetStats, Placed
from .exceptions import CorruptError, StandpipeError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Group", "Rows", "row_groups"]

Group = tuple[str, str | None, int, int]
"""A file's address and version, the group's number in it, and how many rows it holds."""

# Most footers fit: then a file costs one request. They are read so many at a time.
_TAIL_BYTES = 64 << 10
_FOOTERS_AHEAD = 16
_FOOTERS_KEPT = 8
# Column chunks that are no farther apart are fetched as one: at 20 ms/MiB the gap costs less than a request's latency.
_GAP_BYTES = 1 << 20
# Rows that become Python values at once.
_BLOCK_ROWS = 256


def row_groups(config: _standpipe.Config, objects: Sequence[_standpipe.ObjectInfo]) -> list[Group]:
    """All groups of all files, from their footers."""
    cancel = _standpipe.Cancel()

    def of(info: _standpipe.ObjectInfo) -> list[Group]:
        with cancel:
            footer = _footer(config, info)
        return [
            (info.uri, info.etag, number, footer.row_group(number).num_rows) for number in range(footer.num_row_groups)
        ]

    pool = ThreadPoolExecutor(_FOOTERS_AHEAD, "standpipe-footers")
    try:
        return [group for groups in pool.map(of, objects) for group in groups]
    except BaseException:
        # Ctrl-C, or one that failed: at its exit the interpreter waits for the pool's threads.
        cancel.set()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _footer(config: _standpipe.Config, info: _standpipe.ObjectInfo) -> Any:
    import pyarrow
    import pyarrow.parquet

    (tail,) = _standpipe.read_ranges(config, info, [(max(info.size - _TAIL_BYTES, 0), info.size)])
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != b"PAR1" or length > info.size:
        raise CorruptError(
            f"{info.uri}: no Parquet file: its last 8 bytes are {tail[-8:]!r}",
            uri=info.uri,
            offset=max(info.size - 8, 0),
        )
    if length > len(tail):
        (tail,) = _standpipe.read_ranges(config, info, [(info.size - length, info.size)])
    try:
        return pyarrow.parquet.read_metadata(pyarrow.BufferReader(tail))
    except (pyarrow.ArrowException, OSError) as error:
        raise CorruptError(
            f"{info.uri}: its footer can't be read: {error}", uri=info.uri, offset=info.size - length
        ) from error


class _Ranges(io.RawIOBase):
    """A file of which what will be read is in memory. What is not is fetched."""

    def __init__(self, config: _standpipe.Config, info: _standpipe.ObjectInfo, ranges: list[tuple[int, int]]) -> None:
        self._config, self._info = config, info
        starts = [start for start, _ in ranges]
        self._there = list(zip(starts, _standpipe.read_ranges(config, info, ranges), strict=True))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = offset + (0, self._at, self._info.size)[whence]
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        with memoryview(buffer).cast("B") as into:
            piece = self._piece(min(len(into), max(self._info.size - self._at, 0)))
            into[: len(piece)] = piece
            self._at += len(piece)
            return len(piece)

    def _piece(self, count: int) -> bytes | memoryview:
        for start, content in self._there:
            if start <= self._at and self._at + count <= start + len(content):
                return memoryview(content)[self._at - start : self._at - start + count]
        (piece,) = _standpipe.read_ranges(self._config, self._info, [(self._at, self._at + count)])
        return piece


def _spans(group: Any, columns: Sequence[str] | None) -> list[tuple[int, int]]:
    """Where the columns' chunks are, as few ranges."""
    chunks = []
    for number in range(group.num_columns):
        chunk = group.column(number)
        if columns is None or chunk.path_in_schema.split(".")[0] in columns:
            pages = (chunk.dictionary_page_offset, chunk.data_page_offset)
            # Some writers say 0 where there is no dictionary.
            start = min(page for page in pages if page)
            chunks.append((start, start + chunk.total_compressed_size))
    spans: list[tuple[int, int]] = []
    for start, end in sorted(chunks):
        if spans and start <= spans[-1][1] + _GAP_BYTES:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


class _Load:
    """A group on its way, on a thread of its own; it keeps nobody from ending."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._done = threading.Event()
        self._found: Any = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="standpipe-parquet", daemon=True).start()

    def _run(self) -> None:
        try:
            self._found = self._load()
        except BaseException as error:
            self._error = error
        self._done.set()

    def wait(self) -> Any:
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._found


class _Tables:
    """Groups as tables: those at hand, and the next one."""

    def __init__(
        self,
        config: _standpipe.Config,
        objects: Sequence[_standpipe.ObjectInfo],
        groups: list[Group],
        columns: list[str] | None,
        window: int,
    ) -> None:
        self._config = config
        self._infos = {info.uri: info for info in objects}
        self._groups = groups
        self._columns = columns
        self._loads: OrderedDict[int, _Load] = OrderedDict()
        self._given: dict[int, int] = {}
        self._footers: dict[str, Any] = {}
        # What two windows reach into, and what is being read, with the groups at their ends.
        self._most_rows = 2 * window + 4 * max((group[3] for group in groups), default=0)
        self.waited_seconds = 0.0
        self.read_bytes = 0

    def prefetch(self, group: int) -> None:
        if group in self._loads:
            # It is wanted soon: others make room before it does.
            self._loads.move_to_end(group)
        else:
            self._loads[group] = _Load(lambda: self._read(group))
            self._given[group] = 0
            rows = sum(self._groups[loaded][3] for loaded in self._loads)
            while rows > self._most_rows and len(self._loads) > 2:
                oldest, _ = self._loads.popitem(last=False)
                rows -= self._groups[oldest][3]

    def table(self, group: int) -> Any:
        begun = time.monotonic()
        self.prefetch(group)
        try:
            table = self._loads[group].wait()
        except Exception:
            # Whoever asks again gets it read again, and those ahead, which may have failed as it did.
            self._loads.clear()
            raise
        finally:
            self.waited_seconds += time.monotonic() - begun
        return table

    def note(self, group: int, rows: int) -> None:
        """So many rows were given out; a group of which all were is let go of."""
        self._given[group] = self._given.get(group, 0) + rows
        if self._given[group] >= self._groups[group][3]:
            self._loads.pop(group, None)

    def _footer_of(self, info: _standpipe.ObjectInfo) -> Any:
        """Of the files at hand: groups of one come one after the other, if they are not shuffled."""
        footer = self._footers.get(info.uri)
        if footer is None:
            footer = _footer(self._config, info)
            while len(self._footers) >= _FOOTERS_KEPT:
                self._footers.pop(next(iter(self._footers)), None)
            self._footers[info.uri] = footer
        return footer

    def _read(self, number: int) -> Any:
        import pyarrow
        import pyarrow.parquet

        uri, _, in_file, rows = self._groups[number]
        info = self._infos[uri]
        footer = self._footer_of(info)
        spans = _spans(footer.row_group(in_file), self._columns)
        if any(not start < end <= info.size for start, end in spans):
            raise CorruptError(f"{uri}: row group {in_file} is said to lie at {spans}", uri=uri, offset=info.size)
        try:
            file = pyarrow.PythonFile(_Ranges(self._config, info, spans), mode="r")
            reader = pyarrow.parquet.ParquetFile(file, metadata=footer)
            table = reader.read_row_group(in_file, columns=self._columns)
        except StandpipeError:
            raise
        except (pyarrow.ArrowException, OSError) as error:
            raise CorruptError(
                f"{uri}: row group {in_file} can't be read: {error}", uri=uri, offset=spans[0][0] if spans else 0
            ) from error
        self.read_bytes += sum(end - start for start, end in spans)
        if table.num_rows != rows:
            raise CorruptError(f"{uri}: row group {in_file} has {table.num_rows} rows of {rows}", uri=uri, offset=0)
        return table


class Rows(Placed):
    """The rows of one consumer: dicts, or tables of ``batch_size`` rows."""

    def __init__(
        self,
        tables: tuple[_standpipe.Config, Sequence[_standpipe.ObjectInfo], list[Group], list[str] | None],
        settings: dict[str, Any],
        state: str | None,
        batched: bool,
    ) -> None:
        inner = _standpipe.open_rows(tables[2], settings, state)
        super().__init__(inner, "parquet", batched)
        window = settings["shuffle"] or 1
        self._tables = _Tables(*tables, window)
        self._groups = tables[2]
        self._settings = settings
        self._blocks: OrderedDict[tuple[int, int], list[dict[str, Any]]] = OrderedDict()
        self._most_blocks = 2 * window // _BLOCK_ROWS + 4
        # Of whoever goes on with what others began the order of groups is not the epoch's.
        self._is_dealt_anew = state is not None and json.loads(state).get("consumer") is None
        self._order: tuple[int | None, dict[int, int], list[int]] = (None, {}, [])
        self._met: set[int] = set()
        self._begun: float | None = None

    def __next__(self) -> Any:
        self._begun = self._begun or time.monotonic()
        return super().__next__()

    def _made(self, places: list[tuple[int, int]]) -> Any:
        epoch = self._inner.epoch
        for group in dict.fromkeys(group for group, _ in places):
            self._look_ahead(epoch, group)
        return self._batch(places) if self._batched else self._row(*places[0])

    def _row(self, group: int, row: int) -> dict[str, Any]:
        block = (group, row // _BLOCK_ROWS)
        if block not in self._blocks:
            first = block[1] * _BLOCK_ROWS
            self._blocks[block] = self._tables.table(group).slice(first, _BLOCK_ROWS).to_pylist()
            if len(self._blocks) > self._most_blocks:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(block)
        self._tables.note(group, 1)
        return self._blocks[block][row % _BLOCK_ROWS]

    def _batch(self, places: list[tuple[int, int]]) -> Any:
        """A table, in the order of the places: each group's rows are taken at once."""
        import pyarrow

        by_group: dict[int, list[int]] = {}
        for at, (group, _) in enumerate(places):
            by_group.setdefault(group, []).append(at)
        parts, order = [], []
        for group, ats in by_group.items():
            parts.append(self._tables.table(group).take([places[at][1] for at in ats]))
            order += ats
        # Not before all are there: else the same batch is asked for again.
        for group, ats in by_group.items():
            self._tables.note(group, len(ats))
        table = pyarrow.concat_tables(parts, promote_options="permissive")
        if order == sorted(order):
            return table
        back = [0] * len(order)
        for now, then in enumerate(order):
            back[then] = now
        return table.take(back)

    def _look_ahead(self, epoch: int | None, group: int) -> None:
        """When a group is met, the one behind it in the epoch's order is fetched."""
        if self._order[0] != epoch:
            if self._order[0] is not None:
                self._is_dealt_anew = False
            order = [] if self._is_dealt_anew or epoch is None else self._order_of(epoch)
            self._order = (epoch, {group: at for at, group in enumerate(order)}, order)
            self._met = set()
        if group in self._met:
            return
        self._met.add(group)
        self._tables.prefetch(group)
        _, places, order = self._order
        behind = order[places[group] + 1 : places[group] + 2] if group in places else []
        for following in behind:
            self._tables.prefetch(following)

    def _order_of(self, epoch: int) -> list[int]:
        """This consumer's groups in an epoch, in turn: as if each had one row."""
        shuffle = 1 if self._settings["shuffle"] else None
        alone = {"epoch": epoch, "epochs": 1, "skip": 0, "even": "none", "batch_size": 4096, "drop_last": False}
        ones = [(uri, etag, number, min(rows, 1)) for uri, etag, number, rows in self._groups]
        inner = _standpipe.open_rows(ones, {**self._settings, **alone, "shuffle": shuffle}, None)
        return [group for batch in inner for group, _ in batch]

    def stats(self) -> DatasetStats:
        """What it did, and why it is slow."""
        stats = super().stats()
        elapsed = time.monotonic() - self._begun if self._begun is not None else 0.0
        waited = min(self._tables.waited_seconds, elapsed)
        share = waited / elapsed if elapsed else 0.0
        slow = share > 0.05
        limits = (
            "write smaller ones, name the columns that are needed, or read with more workers"
            if slow
            else "reading is not what limits it"
        )
        advice = f"the consumer waited {share:.0%} of the time for row groups: {limits}"
        stats["bytes"] = self._tables.read_bytes
        stats["elapsed_seconds"] = elapsed
        stats["waited_seconds"] = waited
        stats["verdict"] = {"bottleneck": "network" if slow else "consumer", "stall_share": share, "advice": advice}
        return stats

    def close(self) -> None:
        """Stops reading."""
        super().close()
        self._blocks.clear()
        self._tables._loads.clear()
