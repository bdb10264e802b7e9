"""Objects as samples: decoded, shuffled and dealt out in Rust, and resumed by seeking."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, cast

from . import _api, _standpipe
from ._share import known_rank, local_readers, rank_and_size, worker_and_count
from ._stats import Verdict
from .exceptions import ConfigError, _keywords

if TYPE_CHECKING:
    from typing import Self, Unpack

    from ._augmented import Manifest
    from ._parquet import Group
    from .options import Options

__all__ = ["Dataset", "DatasetStats", "Samples", "SparseTensor", "merge_states"]

Format = str
"""``tar``, ``tfrecord``, ``recordio``, ``recordio:dmlc``, ``recordio-protobuf``, ``lines``, ``jsonl``, ``raw``,
``fixed:N``, ``parquet``."""

_SUFFIXES = {
    "tar": "tar",
    "tgz": "tar",
    "tfrecord": "tfrecord",
    "tfrecords": "tfrecord",
    "rec": "recordio",
    "recordio": "recordio",
    "pbr": "recordio-protobuf",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "txt": "lines",
    "csv": "lines",
    "tsv": "lines",
    "parquet": "parquet",
}


class DatasetStats(TypedDict):
    """What an iterator gave out so far."""

    samples: int
    bytes: int
    skipped_records: int
    """Corrupt records that were left out (``on_error="skip"``)."""
    skipped_objects: int
    """Objects of which the rest was, because the next record could not be found."""
    skipped: list[str]
    """The first hundred of those, each with object, offset and reason."""
    copied_bytes: int
    """Bytes that were copied, because half of the engine's memory was held."""
    elapsed_seconds: float
    """From the first sample that was asked for to the end, or to now."""
    waited_seconds: float
    decoding_seconds: float
    """Time that the decoding threads worked, added up."""
    verdict: Verdict


class Dataset:
    """Samples of an input, each once, among all ranks and workers; deterministic, shuffled, and resumable.

    Args:
        uris: as for :func:`standpipe.stream`, or what :func:`standpipe.list` gave.
        format: how objects are cut into records: ``tar`` (files that share a name are one sample), ``tfrecord``,
            ``recordio``, ``recordio-protobuf``, ``lines``, ``jsonl``, ``raw`` (the whole object), ``fixed:N``,
            ``parquet`` (rows; needs pyarrow). By default what the first key's suffix says.
        columns: of ``parquet``: which ones; nothing else is fetched. By default all.
        manifest: ``uris`` is one, and a SageMaker manifest (``ManifestFile``): its objects are read, in its order.
        attributes: ``uris`` is one, and an augmented manifest (``AugmentedManifestFile``): a sample is a line's
            attributes of these names, as a dict; of those that end in ``-ref``, the bytes of the object. It has no
            ``format``.
        compression: ``auto`` (by suffix and first bytes), ``none``, ``gzip``, ``zstd``.
        shuffle: records that are mixed with each other (a window of so many; they are in memory); objects are permuted
            in any case. ``None`` or 0: the listing's order.
        seed: what the orders depend on, beside the epoch and the listing. Nothing else does: neither time nor hosts.
        epochs: how many; ``None``: no end.
        epoch: the first one.
        rank, world_size, worker, workers: who reads. By default as ``torch.distributed`` says if it is initialised,
            else ``RANK`` and ``WORLD_SIZE``, and the ``DataLoader``'s worker: everything is dealt out among all of
            them, each sample once, in whatever numbers. They may get different numbers of samples: see ``even``.
        even: ``none``; ``drop``, ``pad``: all get as many as the one with the fewest, or the most; needs ``counts``
            unless samples are whole objects.
        counts: how many records each object holds, where an index tells.
        batch_size: samples are given as lists of so many; ``None``: one by one.
        drop_last: leaves an epoch's last batch out if it is smaller.
        skip: samples that each consumer (every worker of every rank) leaves out at its start, whenever it is iterated
            anew: with 2 ranks of 4 workers eight times as many. They are read; a state that is loaded saves that.
        on_error: ``raise``, or ``skip``: corrupt records are left out, counted and named.
        threads: that read and decode.
        max_record_size: what one record may hold at most; default 1 GiB.
        share_memory: ``memory`` and ``concurrency`` are for all processes that read on this host, the workers of all
            of its ranks (``LOCAL_WORLD_SIZE``), and each takes its equal part. By default they are for each process.
        options: see :class:`standpipe.Options`.

    Iterating gives, by format: ``tar``: a dict of file names' endings to views, with ``__key__`` and ``__url__``;
    ``jsonl``: what the line says (strict JSON: ``NaN`` is corrupt); ``lines``: bytes; ``recordio-protobuf``: a dict
    with ``features`` and ``label``, dicts of numpy arrays (and of :class:`SparseTensor`); ``parquet``: a dict of the
    row's values, or with ``batch_size`` a ``pyarrow.Table``; else a :class:`standpipe.Chunk`. Views are without a copy,
    and lend the engine's memory.

    Of ``parquet``, row groups are what objects are elsewhere: they are permuted and dealt out, and a state is in groups
    and rows. Groups are in memory whole: the one at hand, the next one, and those that the shuffle's window reaches
    into.

    It pickles and may cross a fork; the process that iterates reads on its own, from the beginning or from the state
    that was loaded: where an iterator of this process is does not go along. The rank that ``torch.distributed`` tells
    does. ``state_dict()`` says how far the last iterator is, and ``load_state_dict()`` lets the next one go on there,
    by seeking; those after it begin anew. With another number of ranks or workers, merge all their states first:
    :func:`merge_states`.

    >>> import standpipe
    >>> dataset = standpipe.Dataset(uri, "fixed:4", seed=7, shuffle=100)
    >>> samples = iter(dataset)
    >>> first = bytes(next(samples))
    >>> state = dataset.state_dict()
    >>> again = standpipe.Dataset(uri, "fixed:4", seed=7, shuffle=100)
    >>> again.load_state_dict(state)
    >>> [bytes(sample) for sample in samples] == [bytes(sample) for sample in again]
    True
    """

    def __init__(
        self,
        uris: _api.Uris | Sequence[_standpipe.ObjectInfo],
        format: Format | None = None,
        *,
        compression: Literal["auto", "none", "gzip", "zstd"] = "auto",
        shuffle: int | None = None,
        seed: int = 0,
        epochs: int | None = 1,
        epoch: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        worker: int | None = None,
        workers: int | None = None,
        even: Literal["none", "drop", "pad"] = "none",
        counts: Sequence[int] | None = None,
        batch_size: int | None = None,
        drop_last: bool = False,
        skip: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        threads: int = 1,
        max_record_size: int | str | None = None,
        columns: Sequence[str] | None = None,
        manifest: bool = False,
        attributes: Sequence[str] | None = None,
        share_memory: bool = False,
        **options: Unpack[Options],
    ) -> None:
        self._shares_memory = share_memory
        self._config = _standpipe.Config(**options)
        self._uris: list[str] = []
        self._objects: list[_standpipe.ObjectInfo] | None = None
        if not isinstance(uris, str) and isinstance(uris, Sequence) and uris and all(map(_is_listed, uris)):
            self._objects = list(cast("Sequence[_standpipe.ObjectInfo]", uris))
        else:
            self._uris = _api._uris(cast("_api.Uris", uris))
        self._batched = batch_size is not None
        for name, one, count in (("rank", rank, world_size), ("worker", worker, workers)):
            if (one is None) != (count is None):
                raise ConfigError(f"{name}: give it together with how many there are, or neither")
        self._who = (rank, world_size, worker, workers)
        self._told_rank: tuple[int, int] | None = None
        self._format = format
        self._columns = None if columns is None else list(columns)
        self._groups: list[Group] | None = None
        self._is_manifest = manifest
        self._attributes = None if attributes is None else list(attributes)
        self._augmented: Manifest | None = None
        if (manifest or attributes is not None) and len(self._uris) != 1:
            raise ConfigError("manifest: name one, as the only URI")
        if attributes is not None and (manifest or format is not None or not attributes):
            raise ConfigError("attributes: name one or more, and neither format nor manifest")
        self._settings: dict[str, Any] = {
            "compression": compression,
            "max_record_size": max_record_size,
            "shuffle": shuffle or None,
            "seed": seed,
            "epoch": epoch,
            "epochs": epochs,
            "skip": skip,
            "on_error": on_error,
            "even": even,
            "counts": None if counts is None else list(counts),
            "batch_size": 1 if batch_size is None else batch_size,
            "drop_last": drop_last,
            "threads": threads,
        }
        self._state: dict[str, Any] | None = None
        self._last: Samples | None = None
        given = {name: value for name, value in zip(_ALONE, self._who, strict=True) if value is not None}
        rows = {**self._settings, **_AS_ROWS}
        checked = rows if format == "parquet" else {**self._settings, "format": format or "raw"}
        _standpipe.check_settings({**checked, **_ALONE, **given})

    @property
    def objects(self) -> list[_standpipe.ObjectInfo]:
        """The objects, in their unshuffled order; listed when they are first needed."""
        if self._objects is None:
            if self._is_manifest:
                self._objects = list(_standpipe.list_manifest(self._config, self._uris[0]))
            else:
                self._objects = list(_standpipe.list_objects(self._config, self._uris, True))
        return self._objects

    @property
    def row_groups(self) -> list[Group]:
        """Of ``parquet``: all groups, as (address, version, number in the file, rows). Their files' footers are read
        when they are first needed."""
        if self._groups is None:
            from ._parquet import row_groups

            self._groups = row_groups(self._config, self.objects)
        return self._groups

    @property
    def format(self) -> str:
        """How objects are cut into records."""
        if self._attributes is not None:
            return "augmented"
        if self._format is None:
            self._format = _format_of(self.objects[0].key if self.objects else "")
        return self._format

    def __iter__(self) -> Samples:
        rank, world_size, worker, workers = self._who
        if rank is None or world_size is None:
            rank, world_size = rank_and_size(self._told_rank)
        if worker is None or workers is None:
            worker, workers = worker_and_count()
        who = {"rank": rank, "world_size": world_size, "worker": worker, "workers": workers}
        config = self._config.divided(local_readers(workers)) if self._shares_memory else self._config
        settings = {**self._settings, "format": self.format, **who}
        state = None if self._state is None else json.dumps(self._state)
        if self.format in ("parquet", "augmented"):
            for name, default in (("compression", "auto"), ("counts", None), ("max_record_size", None)):
                if settings[name] != default:
                    raise ConfigError(f"{name}: rows and lines are known without: leave it out")
        last: Samples
        if self._attributes is not None:
            from ._augmented import Lines, Manifest

            if self._augmented is None:
                self._augmented = Manifest(self._config, self._uris[0], self._attributes)
            last = Lines(config, self._augmented, {**settings, **_AS_ROWS}, state, self._batched)
        elif self.format == "parquet":
            from ._parquet import Rows

            tables = (config, self.objects, self.row_groups, self._columns)
            last = Rows(tables, {**settings, **_AS_ROWS}, state, self._batched)
        else:
            last = Samples(_standpipe.open_samples(config, self.objects, settings, state), self.format, self._batched)
        # Used up, unless it was refused: the next iterator begins anew.
        self._state = None
        self._last = last
        return last

    def set_epoch(self, epoch: int) -> None:
        """Begins anew at this epoch, when it is next iterated; a state of this epoch that was just loaded stays."""
        self._settings["epoch"] = epoch
        self._last = None
        if self._state is not None and _epoch_of(self._state, self._settings["epochs"]) not in (None, epoch):
            self._state = None

    def state_dict(self) -> dict[str, Any]:
        """How far the last iterator is: small, and JSON all through. What was loaded, if there is none since."""
        if self._last is not None:
            return self._last.state_dict()
        if self._state is not None:
            return self._state
        # The state of an iterator that has given nothing.
        iterator = iter(self)
        state = iterator.state_dict()
        iterator.close()
        self._last = None
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iterator goes on from a state: this consumer's own, or :func:`merge_states` of all."""
        self._state, self._last = state, None

    def _forget_state(self) -> None:
        self._state = None

    @property
    def _loaded_state(self) -> dict[str, Any] | None:
        return self._state

    @property
    def _next_epoch(self) -> int:
        return int(self._settings["epoch"])

    def _list(self) -> tuple[list[_standpipe.ObjectInfo], list[Group] | None] | None:
        # An augmented manifest is the listing, and is read where its lines are.
        if self._attributes is not None:
            return None
        return self.objects, self.row_groups if self.format == "parquet" else None

    def _take_listing(self, found: tuple[list[_standpipe.ObjectInfo], list[Group] | None] | None) -> None:
        if found is not None:
            self._objects, self._groups = found

    def stats(self) -> DatasetStats:
        """What the last iterator did, and why it is slow."""
        if self._last is None:
            raise ValueError("the dataset has not been iterated yet")
        return self._last.stats()

    def __getstate__(self) -> dict[str, Any]:
        # An iterator's place stays with it: a DataLoader's workers would leave out what their parent had looked at. And
        # those that are not forked cannot ask torch.distributed.
        return {**self.__dict__, "_last": None, "_told_rank": known_rank() or self._told_rank}


class Samples(Iterator[Any]):
    """The samples of one consumer. Closing or dropping it stops what reads ahead."""

    def __init__(self, inner: _standpipe.Samples, format: str, batched: bool) -> None:
        self._inner = inner
        self._batched = batched
        self._finish = _FINISH.get(format, _as_it_is)

    def __next__(self) -> Any:
        batch = next(self._inner)
        if self._batched:
            return [self._finish(sample) for sample in batch]
        return self._finish(batch[0])

    @property
    def epoch(self) -> int | None:
        """The epoch of the next sample; None once it was closed."""
        return self._inner.epoch

    def state_dict(self) -> dict[str, Any]:
        """How far it is, or was when it was closed: exactly what it gave out. Any thread may ask."""
        state: dict[str, Any] = json.loads(self._inner.state())
        return state

    def stats(self) -> DatasetStats:
        """What it did, and why it is slow. Any thread may ask."""
        stats: DatasetStats = json.loads(self._inner.stats())
        stats["verdict"]["advice"] = _keywords(stats["verdict"]["advice"])
        return stats

    def close(self) -> None:
        """Stops reading; also a thread that waits for a sample."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Placed(Samples):
    """Samples whose order is made in Rust, as places; what is there is fetched here. They were given out when all of it
    is there: until then neither the iteration nor its state goes on."""

    def __init__(self, inner: _standpipe.Samples, format: str, batched: bool) -> None:
        super().__init__(inner, format, batched)
        self._in_hand: list[tuple[int, int]] | None = None
        self._closed = False

    def __next__(self) -> Any:
        if self._in_hand is None or self._closed:
            self._in_hand = next(self._inner)
        made = self._made(self._in_hand)
        self._in_hand = None
        return made

    def _made(self, places: list[tuple[int, int]]) -> Any:
        """The sample, or the batch. After an error it is asked for the same ones again."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._inner.state(self._in_hand is not None))
        return state

    def close(self) -> None:
        """Stops reading; also a thread that waits for a sample."""
        self._closed = True
        super().close()


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One state of all consumers' (every worker of every rank), with which any number of them can go on.

    Those of a :class:`standpipe.Mixture` are merged dataset by dataset; the draws go on behind the furthest one's.
    """
    if any("datasets" in state for state in states):
        return _merge_mixtures(states)
    merged: dict[str, Any] = json.loads(_standpipe.merge_states([json.dumps(state) for state in states]))
    return merged


def _merge_mixtures(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = states[0]
    for name in ("version", "seed", "weights"):
        if any(state.get(name) != first.get(name) for state in states):
            raise ConfigError(f"state: the states are of different mixtures: they differ in {name}")
    parts = [state.get("datasets", {}) for state in states]
    if any(part.keys() != parts[0].keys() for part in parts):
        raise ConfigError("state: the states are of mixtures of different datasets")
    merged = {name: merge_states([part[name] for part in parts]) for name in parts[0]}
    # One that ended for some may not have for others; who finds that it has leaves it out.
    return {**first, "draws": max(state["draws"] for state in states), "ended": [], "datasets": merged}


def _epoch_of(state: dict[str, Any], epochs: int | None) -> int | None:
    """The epoch that a state is in; the last one, if it is at the end. None if that is no state: iterating tells."""
    try:
        first = int(state["first_epoch"])
        epoch = min((int(place["epoch"]) for place in state["generations"][-1]["positions"].values()), default=first)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None
    return epoch if epochs is None else min(epoch, first + epochs - 1)


# Rows are dealt out as records of one byte are; see the crate's `dataset::rows`.
_AS_ROWS = {"format": "fixed:1", "compression": "none"}
_ALONE = {"rank": 0, "world_size": 1, "worker": 0, "workers": 1}


def _is_listed(thing: object) -> bool:
    return isinstance(thing, _standpipe.ObjectInfo)


def _format_of(key: str) -> str:
    name = key.rsplit("/", 1)[-1].lower()
    for suffix in (".gz", ".gzip", ".zst", ".zstd"):
        name = name.removesuffix(suffix)
    found = _SUFFIXES.get(name.rsplit(".", 1)[-1]) if "." in name else None
    if found is None:
        raise ConfigError(f"format: the key {key!r} does not tell: name one, such as tar, tfrecord, lines or raw")
    return found


def _as_it_is(sample: Any) -> Any:
    return sample


def _arrays(record: dict[str, Any]) -> dict[str, Any]:
    """Tensors become numpy arrays, without a copy."""
    for part in ("features", "label"):
        record[part] = {
            name: _array(*value) if isinstance(value, tuple) else value for name, value in record[part].items()
        }
    return record


class SparseTensor(NamedTuple):
    """A tensor of which few elements are not zero."""

    values: Any
    """Those elements: a numpy array of one dimension."""
    keys: list[int]
    """Where each stands in the flattened tensor."""
    shape: list[int]
    """The tensor's dimensions, as the writer claims them."""


def _array(dtype: str, values: Any, keys: list[int], shape: list[int]) -> Any:
    import numpy

    array = numpy.frombuffer(values, dtype)
    # A sparse tensor may have no element but zeros; then it has no keys, either.
    if keys or (shape and not array.size and all(shape)):
        return SparseTensor(array, keys, shape)
    return array.reshape(shape) if shape else array


_FINISH = {"lines": bytes, "jsonl": lambda line: json.loads(bytes(line)), "recordio-protobuf": _arrays}
