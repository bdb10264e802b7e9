"""Datasets for Ray Data: for whom one machine is not enough.

:func:`read` gives a ``ray.data.Dataset`` of Arrow blocks. Each read task is one consumer of a
:class:`standpipe.Dataset`: it gets a share of the objects (of Parquet: of the row groups), decodes them in Rust, and
yields blocks while it reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from .dataset import Dataset, SparseTensor
from .exceptions import ConfigError

if TYPE_CHECKING:
    from . import _api, _standpipe

    class _Datasource:
        pass

else:
    from ray.data.datasource import Datasource as _Datasource

__all__ = ["StandpipeDatasource", "read"]

# A block is closed at so many bytes or rows: Ray's own target is 128 MiB, and smaller ones let its pipeline begin
# sooner.
_BLOCK_BYTES = 32 << 20
_BLOCK_ROWS = 65_536
_NOT_HERE = ("rank", "world_size", "worker", "workers", "epochs", "even", "counts", "batch_size", "drop_last", "skip")
# Rows that are taken out of a Parquet file at once.
_TABLE_ROWS = 8192


def read(
    uris: _api.Uris | Sequence[_standpipe.ObjectInfo],
    format: str | None = None,
    *,
    override_num_blocks: int | None = None,
    concurrency: int | None = None,
    ray_remote_args: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """Reads objects as a ``ray.data.Dataset``; each sample once.

    Args:
        uris, format, settings: as for :class:`standpipe.Dataset`: ``columns``, ``on_error``, ``compression``,
            ``shuffle`` (of each task's records), ``manifest``, ``endpoint_url``, ... The tasks are the ranks, so
            there is no ``rank``, and one epoch; nor are there ``attributes``.
        override_num_blocks: how many read tasks; at most as many as there are objects, or row groups.
        concurrency, ray_remote_args: as for ``ray.data.read_datasource``.

    Columns are, by format: ``parquet``: the file's; ``jsonl``: the objects' members; ``lines``: ``text``; ``tar``:
    ``__key__``, ``__url__``, and the files by their endings, as binary; ``recordio-protobuf``: ``features.<name>``
    and ``label.<name>``, as lists; all others: ``bytes``.

    ::

        data = standpipe.ray.read("s3://bucket/train-{000..146}.tar")
        for batch in data.map_batches(decode).iter_torch_batches(batch_size=256):
            ...
    """
    source = StandpipeDatasource(uris, format, **settings)
    return ray.data.read_datasource(
        source, override_num_blocks=override_num_blocks, concurrency=concurrency, ray_remote_args=ray_remote_args
    )


class StandpipeDatasource(_Datasource):
    """What ``ray.data.read_datasource`` takes; :func:`read` makes one."""

    def __init__(
        self, uris: _api.Uris | Sequence[_standpipe.ObjectInfo], format: str | None = None, **settings: Any
    ) -> None:
        super().__init__()
        for name in _NOT_HERE:
            if name in settings:
                raise ConfigError(f"{name}: each task reads its share once: leave it out")
        if "attributes" in settings:
            raise ConfigError("attributes: lines of augmented manifests are not read here: use standpipe.Dataset")
        # A manifest is read on the driver.
        self._settings = {name: value for name, value in settings.items() if name != "manifest"}
        # Listed, and footers read, on the driver: tasks get what is theirs.
        self._dataset = Dataset(uris, format, **settings, rank=0, world_size=1, worker=0, workers=1)

    def get_name(self) -> str:
        """What Ray's own displays call it."""
        return "Standpipe"

    def estimate_inmemory_data_size(self) -> int | None:
        """The objects' sizes: a lower limit where they are compressed."""
        return sum(info.size for info in self._dataset.objects)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[Any]:
        """One task for each share."""
        dataset = self._dataset
        whole = dataset.row_groups if dataset.format == "parquet" else dataset.objects
        count = max(1, min(parallelism, len(whole)))
        return [self._task(share, count, per_task_row_limit) for share in range(count)] if whole else []

    def _task(self, share: int, count: int, row_limit: int | None) -> Any:
        dataset = self._dataset
        own: Dataset | list[_standpipe.ObjectInfo]
        if dataset.format == "parquet":
            own, rank = dataset, (share, count)
            groups = dataset.row_groups[share::count]
            files = list(dict.fromkeys(group[0] for group in groups))
            rows: int | None = sum(group[3] for group in groups)
            size = None
        else:
            # In turn, as ranks get them; so a task carries no listing but its own.
            objects = dataset.objects[share::count]
            own, rank = objects, (0, 1)
            files, rows, size = [info.uri for info in objects], None, sum(info.size for info in objects)
        metadata = BlockMetadata(num_rows=rows, size_bytes=size, exec_stats=None, input_files=files)
        read = _Read(own, dataset.format, rank, self._settings)
        return ReadTask(read, metadata, per_task_row_limit=row_limit)


class _Read:
    """A task's work, where it is done."""

    def __init__(
        self,
        own: Dataset | list[_standpipe.ObjectInfo],
        format: str,
        rank: tuple[int, int],
        settings: dict[str, Any],
    ) -> None:
        self._own, self._format, self._rank, self._settings = own, format, rank, settings

    def __call__(self) -> Iterator[Any]:
        rank, world_size = self._rank
        who: dict[str, Any] = {"rank": rank, "world_size": world_size, "worker": 0, "workers": 1}
        if isinstance(self._own, Dataset):
            groups = Dataset(self._own.objects, self._format, **who, batch_size=_TABLE_ROWS, **self._settings)
            groups._groups = self._own.row_groups
            yield from groups
            return
        for records in _blocks(Dataset(self._own, self._format, **who, **self._settings)):
            yield _table(self._format, records)


def _blocks(samples: Dataset) -> Iterator[list[Any]]:
    block: list[Any] = []
    size = 0
    for sample in samples:
        block.append(sample)
        size += _size(sample)
        if size >= _BLOCK_BYTES or len(block) >= _BLOCK_ROWS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _size(sample: Any) -> int:
    if isinstance(sample, dict):
        return sum(_size(value) for value in sample.values())
    return len(sample) if hasattr(sample, "__len__") else 8


def _table(format: str, records: list[Any]) -> Any:
    """Samples as a table of one type for each column, whatever they hold."""
    binary = pyarrow.large_binary()
    if format == "lines":
        return pyarrow.table({"text": pyarrow.array([line.decode() for line in records], pyarrow.large_string())})
    if format == "jsonl":
        rows = [line if isinstance(line, dict) else {"value": line} for line in records]
        return pyarrow.Table.from_pylist([{name: row.get(name) for name in _names(rows)} for row in rows])
    if format == "tar":
        text = pyarrow.large_string()
        return pyarrow.table(
            {
                name: pyarrow.array(
                    [_file(row.get(name)) for row in records], text if name.startswith("__") else binary
                )
                for name in _names(records)
            }
        )
    if format == "recordio-protobuf":
        rows = [_flat(record) for record in records]
        return pyarrow.Table.from_pylist([{name: row.get(name) for name in _names(rows)} for row in rows])
    return pyarrow.table({"bytes": pyarrow.array([bytes(record) for record in records], binary)})


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _file(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else bytes(value)


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for part in ("features", "label"):
        for name, value in record[part].items():
            if isinstance(value, SparseTensor):
                row[f"{part}.{name}"] = {
                    "values": value.values.tolist(),
                    "keys": list(value.keys),
                    "shape": list(value.shape),
                }
            else:
                row[f"{part}.{name}"] = value if isinstance(value, bytes) else value.reshape(-1).tolist()
    return row
