"""Datasets for PyTorch.

:class:`MapDataset` is map-style: objects by number, for any sampler. A ``DataLoader`` asks it for a batch at once
(``__getitems__``), and the batch's objects are fetched side by side: one process needs no workers to have many
requests in flight.

:class:`StreamingDataset` is iterable: records out of shards, decoded in Rust, each once among all ranks and workers.

:class:`PipeDataset` reads the FIFOs of Pipe mode, on SageMaker or elsewhere. :class:`Collate` puts samples straight
into a batch's tensors.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import Dataset as _Dataset
from torch.utils.data import IterableDataset as _IterableDataset
from torch.utils.data import Sampler as _Sampler

from . import _api, _standpipe
from ._share import known_rank, local_readers, worker_and_count
from ._told import MAIN, Told
from .dataset import Dataset, Samples
from .exceptions import ConfigError
from .mixture import Mixed, Mixture
from .pipe import PipeChannel, PipeEpoch

if TYPE_CHECKING:
    from collections.abc import Sized
    from typing import Self, Unpack

    from .options import Options

__all__ = ["Ahead", "Collate", "Field", "Item", "MapDataset", "PipeDataset", "StreamingDataset"]

# Numbers that a stream knows of ahead. It takes four times as many, and a batch may come on top.
_FED_AT_MOST = 16_384


@dataclass(frozen=True, slots=True)
class Item:
    """One object, as a transform gets it."""

    index: int
    """Its number in the dataset."""
    uri: str
    """Its address."""
    data: memoryview
    """Its bytes. Without a copy where it came in one piece; then the memory is the engine's until it is let go of, so a
    transform that keeps bytes copies them."""

    @property
    def key(self) -> str:
        """The address without scheme and bucket."""
        return self.uri.split("://", 1)[-1].split("/", 1)[-1]


def as_bytes(item: Item) -> bytes:
    """The default transform: the object's bytes, copied."""
    return bytes(item.data)


class MapDataset(_Dataset[Any]):  # type: ignore[misc]
    """Objects by number, in the order of the listing, which is read when it is first needed.

    Args:
        uris: as for :func:`standpipe.stream`, or what :func:`standpipe.list` gave.
        transform: makes a sample of an :class:`Item`, in the process that loads; by default, its bytes.
        share_memory: as for :class:`standpipe.Dataset`.
        options: see :class:`standpipe.Options`.

    It pickles, and may cross a fork: workers read on their own. A listing that was read goes along, so that it is read
    once. All samples are of the versions that it told of; an object that was replaced since raises ``ChangedError``.

    ::

        dataset = standpipe.torch.MapDataset("s3://bucket/imagenet/", transform=decode)
        loader = torch.utils.data.DataLoader(dataset, batch_size=256, shuffle=True)

    Between two batches nothing is fetched, unless the dataset knows what comes next: wrap the sampler, see
    :meth:`ahead`.
    """

    def __init__(
        self,
        uris: _api.Uris | Sequence[_standpipe.ObjectInfo],
        *,
        transform: Callable[[Item], Any] = as_bytes,
        share_memory: bool = False,
        **options: Unpack[Options],
    ) -> None:
        self._shares_memory = share_memory
        self._config = _standpipe.Config(**options)
        self._transform = transform
        self._uris: list[str] = []
        self._objects: list[_standpipe.ObjectInfo] | None = None
        self._fitting: _standpipe.Config | None = None
        self._ahead: Ahead | None = None
        self._pipeline: _Pipeline | None = None
        if not isinstance(uris, str) and isinstance(uris, Sequence) and all(map(_is_listed, uris)) and uris:
            self._objects = list(cast("Sequence[_standpipe.ObjectInfo]", uris))
        else:
            self._uris = _api._uris(cast("_api.Uris", uris))

    @property
    def objects(self) -> list[_standpipe.ObjectInfo]:
        """The objects, by number."""
        if self._objects is None:
            self._objects = list(_standpipe.list_objects(self._config, self._uris, True))
        return self._objects

    def _fitting_config(self) -> _standpipe.Config:
        """With as many requests in flight as objects of this size want."""
        if self._fitting is None:
            objects = self.objects
            mean = sum(info.size for info in objects) // max(len(objects), 1)
            self._fitting = self._config.for_objects(mean)
        return self._fitting.divided(local_readers()) if self._shares_memory else self._fitting

    def ahead(self, sampler: Iterable[Any], window: int = 1024) -> Ahead:
        """The sampler (or batch sampler), such that what it will ask for is fetched meanwhile.

        Args:
            sampler: gives numbers, or lists of numbers.
            window: how far it is looked ahead, in what the sampler gives. Memory is bounded by ``memory``, too.

        It is for ``num_workers=0``, where one process has all requests in flight; workers of a ``DataLoader`` don't
        hear of it and fetch batch by batch. The samples are the same, in the same order.

        ::

            sampler = dataset.ahead(torch.utils.data.RandomSampler(dataset))
            loader = torch.utils.data.DataLoader(dataset, batch_size=256, sampler=sampler)
        """
        self._ahead = Ahead(sampler, window)
        return self._ahead

    def __getstate__(self) -> dict[str, Any]:
        # Workers read on their own.
        return {**self.__dict__, "_ahead": None, "_pipeline": None}

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """The samples of a batch, fetched side by side; each is transformed while the next ones are on their way."""
        objects = self.objects
        wanted = [range(len(objects))[index] for index in indices]
        if not wanted:
            return []
        if self._ahead is not None and self._ahead.is_told_of(wanted):
            return self._of_pipeline(self._ahead, wanted)
        with _standpipe.open_listed(self._fitting_config(), [objects[index] for index in wanted]) as stream:
            items = (Item(index, objects[index].uri, data) for index, data in zip(wanted, _whole(stream), strict=True))
            return [self._transform(item) for item in items]

    def _of_pipeline(self, ahead: Ahead, wanted: list[int]) -> list[Any]:
        """The same from a stream that goes on behind them with what the sampler asks for next."""
        pipeline = self._pipeline
        if pipeline is not None and not pipeline.is_ours():
            # The parent's, whose stream a forked child must not touch.
            pipeline = None
        if pipeline is None or not pipeline.begins_with(wanted):
            if pipeline is not None:
                pipeline.close()
            pipeline = self._pipeline = _Pipeline(self._fitting_config(), self.objects)
        try:
            pipeline.feed(wanted, ahead)
            samples: list[Any] = []
            for index, uri, data in pipeline.take(len(wanted)):
                if not samples:
                    # Not before the first of all is there: hundreds of connections at once would delay it.
                    pipeline.feed([], ahead)
                samples.append(self._transform(Item(index, uri, data)))
            return samples
        except BaseException:
            # Where in the stream this was, nobody knows.
            self._pipeline = None
            pipeline.close()
            raise


class Ahead(_Sampler[Any]):  # type: ignore[misc]
    """A sampler whose next numbers are known before they are asked for; see :meth:`MapDataset.ahead`."""

    def __init__(self, sampler: Iterable[Any], window: int) -> None:
        if window < 1:
            raise ValueError(f"window {window}: at least 1")
        self._sampler = sampler
        self._window = window
        # Drawn and not yet given out, and how many of them from the left on were handed to the stream.
        self.upcoming: deque[Any] = deque()
        self.fed = 0
        self._pid = 0

    def __iter__(self) -> Iterator[Any]:
        numbers = iter(self._sampler)
        upcoming = self.upcoming = deque(itertools.islice(numbers, self._window))
        self.fed = 0
        self._pid = os.getpid()
        try:
            while upcoming:
                given = upcoming.popleft()
                if upcoming is self.upcoming:
                    self.fed = max(self.fed - 1, 0)
                upcoming.extend(itertools.islice(numbers, 1))
                yield given
        finally:
            # Whoever stops early wants no more of it fetched.
            upcoming.clear()

    def __len__(self) -> int:
        return len(cast("Sized", self._sampler))

    def __getattr__(self, name: str) -> Any:
        # `set_epoch` of a DistributedSampler, say.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def is_told_of(self, wanted: list[int]) -> bool:
        """Whether this process draws the numbers; workers that it forked don't."""
        return self._pid == os.getpid() and bool(wanted)

    def unfed(self, room: int) -> list[int]:
        """What comes next and was not yet asked for here, about so many numbers; counts as handed over."""
        numbers: list[int] = []
        for entry in itertools.islice(self.upcoming, self.fed, None):
            if len(numbers) >= room:
                break
            numbers += _numbers(entry)
            self.fed += 1
        return numbers


def _numbers(entry: Any) -> list[int]:
    """Of what samplers give: a number, or a batch of them; tensors of no dimension are numbers, too."""
    try:
        return [operator.index(entry)]
    except TypeError:
        return [operator.index(number) for number in entry]


class _Pipeline:
    """A stream of objects by number, to which more are added as it goes."""

    def __init__(self, config: _standpipe.Config, objects: list[_standpipe.ObjectInfo]) -> None:
        self._config = config
        self._objects = objects
        self._stream: _standpipe.Stream | None = None
        self._whole: Iterator[memoryview] = iter(())
        # The numbers that the stream was given and has not given out.
        self._coming: deque[int] = deque()
        self._pid = os.getpid()

    def is_ours(self) -> bool:
        """Whether this process made it."""
        return self._pid == os.getpid()

    def begins_with(self, wanted: list[int]) -> bool:
        """Whether these, as far as it knows, are what it gives next."""
        return all(a == b for a, b in zip(self._coming, wanted, strict=False))

    def feed(self, wanted: list[int], ahead: Ahead) -> None:
        """Makes sure that it has these, and behind them, once it runs, what comes next."""
        missing = wanted[len(self._coming) :]
        if missing:
            # Nothing behind them can be there.
            ahead.fed = 0
        count = len(self._objects)
        room = _FED_AT_MOST - len(self._coming) - len(missing)
        upcoming = ahead.unfed(room) if self._stream is not None else []
        more = [*missing, *(range(count)[number] for number in upcoming)]
        if not more:
            return
        infos = [self._objects[number] for number in more]
        if self._stream is None:
            ahead.fed = 0
            self._stream = _standpipe.open_listed(self._config, infos, True)
            self._whole = _whole(self._stream)
        else:
            self._stream.feed(infos)
        self._coming.extend(more)

    def take(self, count: int) -> Iterator[tuple[int, str, memoryview]]:
        for _ in range(count):
            data = next(self._whole)
            number = self._coming.popleft()
            yield number, self._objects[number].uri, data

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


class StreamingDataset(_IterableDataset[Any]):  # type: ignore[misc]
    """Samples of a :class:`standpipe.Dataset`, for a ``DataLoader``.

    Args:
        uris, format, settings: as for :class:`standpipe.Dataset`. Ranks and workers are found out: by
            ``torch.distributed`` if it is initialised, else ``RANK`` and ``WORLD_SIZE``, and ``get_worker_info()``.
        transform: makes a sample of what the dataset gives, in the process that loads.

    Call :meth:`set_epoch` before each epoch but the first, as for a ``DistributedSampler``: each has another order.
    Workers that live on (``persistent_workers``) hear of it, and of :meth:`load_state_dict`.

    With ``torchdata.stateful_dataloader.StatefulDataLoader`` the loader's own ``state_dict`` holds every worker's
    state; without workers, this dataset's does.

    Each worker lists the input. Workers that find different objects refuse to read; so that ranks find the same, too,
    and for one listing in place of many, call :meth:`list_once` first.

    ::

        dataset = standpipe.torch.StreamingDataset("s3://bucket/train-{000..146}.tar", shuffle=5000, transform=decode)
        loader = torch.utils.data.DataLoader(dataset, batch_size=256, num_workers=2)
    """

    def __init__(
        self,
        uris: _api.Uris | Sequence[_standpipe.ObjectInfo],
        format: str | None = None,
        *,
        transform: Callable[[Any], Any] | None = None,
        **settings: Any,
    ) -> None:
        self._begin(Dataset(uris, format, **settings), transform, int(settings.get("epoch", 0)))

    def _begin(self, dataset: Dataset | Mixture, transform: Callable[[Any], Any] | None, epoch: int) -> None:
        self._dataset = dataset
        self._transform = transform
        # Memory that workers see: what is set later reaches those that live on.
        self._told = Told(epoch)
        self._owner = os.getpid()
        self._unpickled_by = 0
        # What the copy of this process has heard.
        self._epoch = epoch
        self._loads = 0
        self._tell_loaded()

    def _tell_loaded(self) -> None:
        """Of a state that the dataset has: the next pass goes on from it."""
        if self._dataset._loaded_state is not None:
            self._told.publish(self._epoch, self._dataset._loaded_state, loaded=True)
            self._loads = self._told.loads

    @classmethod
    def of(cls, dataset: Dataset | Mixture, *, transform: Callable[[Any], Any] | None = None) -> Self:
        """The same of a dataset that is there, or of a :class:`standpipe.Mixture` of several."""
        made = cls.__new__(cls)
        made._begin(dataset, transform, dataset._next_epoch)
        return made

    @property
    def dataset(self) -> Dataset | Mixture:
        """What it reads. Epochs are set and states are loaded here, not there, for workers hear of it only so."""
        return self._dataset

    def list_once(self) -> Self:
        """Lists the input now, for all workers and epochs to come.

        Where ``torch.distributed`` is initialised the first rank lists for all: every rank must call it, then.
        """
        found: list[Any] = [None]
        if known_rank() is None:
            self._dataset._list()
            return self
        error: BaseException | None = None
        if torch.distributed.get_rank() == 0:
            try:
                found = [self._dataset._list()]
            except Exception as raised:
                error, found = raised, [raised]
        # Also of what went wrong: the others wait for it.
        torch.distributed.broadcast_object_list(found, src=0)
        if error is not None:
            raise error
        if isinstance(found[0], BaseException):
            raise found[0]
        self._dataset._take_listing(found[0])
        return self

    def __iter__(self) -> _Transformed:
        info = torch.utils.data.get_worker_info()
        # The loader draws a number for each set of workers that it starts.
        worker, run = (None, MAIN) if info is None else (info.id, info.seed - info.id)
        is_told = self._hears()
        due = self._catch_up(worker, run) if is_told else self._dataset._loaded_state is not None
        samples: Samples | Mixed = self._dataset.__iter__()
        if is_told and info is not None:
            self._told.compare(info.id, info.num_workers, run, _listing(samples.state_dict()))
        if is_told and due:
            self._told.used(worker, run)
        self._told.reads(worker)
        return _Transformed(samples, self._transform)

    def _catch_up(self, worker: int | None, run: int) -> bool:
        """Does what the process that trains has said, if this is a worker. Says whether a state is used: once."""
        told, heard = self._told, self._loads
        if told.epoch != self._epoch:
            self._epoch = told.epoch
            self._dataset.set_epoch(told.epoch)
        self._loads = told.loads
        if heard < 0:
            # Loaded by this worker itself, as stateful loaders do.
            return True
        due = told.is_due(worker, run)
        if not due:
            self._dataset._forget_state()
        elif heard != told.loads:
            self._dataset.load_state_dict(told.state())
        return due

    def _hears(self) -> bool:
        """Whether what is told is told by the process that trains and has started this worker. Ranks that were forked
        from one process have inherited one memory: each makes its own, but its workers may be forked before."""
        if torch.utils.data.get_worker_info() is not None:
            return os.getpid() == self._unpickled_by or os.getppid() == self._owner
        self._own()
        return True

    def _own(self) -> None:
        """In a process that trains: memory of its own."""
        if self._owner != os.getpid():
            self._owner = os.getpid()
            self._told = Told(self._epoch)
            self._loads = 0
            self._tell_loaded()

    def set_epoch(self, epoch: int) -> None:
        """The epoch that is iterated next: from its beginning, or from a state of this epoch that was just loaded."""
        self._own()
        if self._told.is_used():
            self._dataset._forget_state()
        self._epoch = epoch
        self._dataset.set_epoch(epoch)
        self._told.publish(epoch, self._dataset._loaded_state, loaded=False)

    def state_dict(self) -> dict[str, Any]:
        """How far the last iterator of this process is.

        Raises:
            RuntimeError: the workers of a loader have read since, and this process does not know how far they are.
        """
        if torch.utils.data.get_worker_info() is None and self._told.workers_read():
            raise RuntimeError(
                "the workers of a DataLoader read this dataset, and only they know how far they are: ask the "
                "state_dict() of a torchdata.stateful_dataloader.StatefulDataLoader, or read with num_workers=0"
            )
        return self._dataset.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there, when it is next iterated: here, or by the workers of a loader, once."""
        self._dataset.load_state_dict(state)
        if torch.utils.data.get_worker_info() is not None:
            self._loads = -1
            return
        self._own()
        self._told.publish(self._epoch, state, loaded=True)
        self._loads = self._told.loads

    def stats(self) -> Any:
        """What the last iterator of this process did, and why it is slow; of a mixture, by dataset."""
        return self._dataset.stats()

    def __getstate__(self) -> dict[str, Any]:
        # For workers that are started, not for who stores it: one listing in place of one for each of them.
        if get_spawning_popen() is not None:
            self._own()
            self._dataset._list()
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._unpickled_by = os.getpid()
        if self._told.share():
            # Stored and read again, not passed to a worker.
            self._owner = os.getpid()


def _listing(state: dict[str, Any]) -> int:
    """A number for what was listed."""
    parts = state.get("datasets", {"": state})
    names = json.dumps({name: part["inputs"] for name, part in parts.items()}, sort_keys=True)
    return int.from_bytes(hashlib.sha256(names.encode()).digest()[:8], "big", signed=True)


class PipeDataset(_IterableDataset[Any]):  # type: ignore[misc]
    """A channel of Pipe mode, for a ``DataLoader``: each iteration reads the next epoch's FIFO.

    It needs no access to S3: on SageMaker the channel is served by its agent, elsewhere by ``standpipe pipe`` or
    ``standpipe run``.

    Args:
        channel, format, settings: as for :class:`standpipe.pipe.PipeChannel`.
        transform: makes a sample of a record, in the process that loads.

    A FIFO has one reader: use ``num_workers`` 0 or 1, and a channel of its own for each process that trains on a
    host. The epoch's number is known to all processes, so a worker reads on where the one before it ended.

    ::

        dataset = standpipe.torch.PipeDataset("train", "recordio-protobuf", transform=features)
        for epoch in range(10):
            for batch in torch.utils.data.DataLoader(dataset, batch_size=256, num_workers=1):
                ...
    """

    def __init__(
        self,
        channel: str,
        format: str = "recordio",
        *,
        transform: Callable[[Any], Any] | None = None,
        **settings: Any,
    ) -> None:
        self._channel = PipeChannel(channel, format, **settings)
        self._transform = transform
        # Memory that all processes see: whoever opens a FIFO tells the others.
        self._next = torch.tensor(self._channel.next_epoch).share_memory_()

    @property
    def next_epoch(self) -> int:
        """The epoch that the next iteration reads."""
        return int(self._next)

    def __iter__(self) -> Iterator[Any]:
        workers = worker_and_count()[1]
        if workers > 1:
            raise ConfigError(f"num_workers: {workers}: a FIFO has one reader: use 0 or 1")
        # Others may have read some since.
        self._channel.skip_to(int(self._next))
        return self._records(iter(self._channel))

    def _records(self, epoch: PipeEpoch) -> Iterator[Any]:
        # One that is left is closed, for the next one's reader may be another process.
        with epoch:
            for record in epoch:
                self._next.fill_(epoch.epoch + 1)
                yield record if self._transform is None else self._transform(record)
            self._next.fill_(epoch.epoch + 1)


@dataclass(frozen=True, slots=True)
class Field:
    """What one tensor of a batch holds for each sample."""

    dtype: torch.dtype
    """The type of an element; bytes are taken as they are, in the machine's order."""
    shape: tuple[int, ...] = ()
    """Of one sample; the batch's is ``(samples, *shape)``."""


class Collate:
    """A ``collate_fn`` that copies each sample's bytes once: from where the engine put them into the batch's tensor.

    Args:
        fields: a :class:`Field` for samples that are bytes (chunks, ``bytes``, arrays), or one for each key of
            samples that are dicts; other keys are left out. Sizes must fit exactly.
        pin_memory: put the batch into pinned memory, from which a GPU copies by itself, beside other work; needs one.
            ``None``: if there is one. Not in a ``DataLoader``'s workers: let the loader pin what they send.

    ::

        collate = Collate({"image.raw": Field(torch.uint8, (3, 224, 224)), "label.raw": Field(torch.int64)})
        loader = torch.utils.data.DataLoader(dataset, batch_size=256, collate_fn=collate)

    >>> collate = Collate(Field(torch.int16, (2,)))
    >>> collate([b"\\x01\\x00\\x02\\x00", b"\\x03\\x00\\x04\\x00"]).tolist()
    [[1, 2], [3, 4]]
    """

    def __init__(self, fields: Field | Mapping[str, Field], *, pin_memory: bool | None = False) -> None:
        self._fields = fields if isinstance(fields, Field) else dict(fields)
        self._pin = pin_memory

    def __call__(self, batch: Sequence[Any]) -> Any:
        if isinstance(self._fields, Field):
            return self._tensor(self._fields, batch, "samples")
        return {
            name: self._tensor(field, [sample[name] for sample in batch], repr(name))
            for name, field in self._fields.items()
        }

    def _tensor(self, field: Field, values: Sequence[Any], what: str) -> torch.Tensor:
        pin = torch.cuda.is_available() if self._pin is None else self._pin
        tensor = torch.empty((len(values), *field.shape), dtype=field.dtype, pin_memory=pin)
        # Types that NumPy lacks (bfloat16) have bytes, too.
        into = memoryview(tensor.view(-1).view(torch.uint8).numpy())
        size = len(into) // max(len(values), 1)
        for number, value in enumerate(values):
            with memoryview(value).cast("B") as view:
                if len(view) != size:
                    raise ValueError(
                        f"{what}: {len(view)} bytes, and {field.dtype} of shape {field.shape} are {size}: "
                        "decode what is not as large"
                    )
                into[number * size : (number + 1) * size] = view
        return tensor


class _Transformed(Iterator[Any]):
    """Samples, each through the transform. It has the state that a stateful loader asks a worker's iterator for."""

    def __init__(self, samples: Samples | Mixed, transform: Callable[[Any], Any] | None) -> None:
        self._samples = samples
        self._transform = transform

    def __next__(self) -> Any:
        sample = next(self._samples)
        return sample if self._transform is None else self._transform(sample)

    def state_dict(self) -> dict[str, Any]:
        return self._samples.state_dict()


def _is_listed(thing: object) -> bool:
    return isinstance(thing, _standpipe.ObjectInfo)


def _whole(stream: _standpipe.Stream) -> Iterator[memoryview]:
    """Objects, of the chunks that they came in."""
    pieces: list[_standpipe.Chunk] = []
    for chunk in stream:
        pieces.append(chunk)
        if chunk.ends_object:
            yield memoryview(pieces[0]) if len(pieces) == 1 else memoryview(b"".join(pieces))
            pieces = []
