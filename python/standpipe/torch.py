"""Datasets for PyTorch.

:class:`MapDataset` is map-style: objects by number, for any sampler. A ``DataLoader`` asks it for a batch at once
(``__getitems__``), and the batch's objects are fetched side by side: one process needs no workers to have many
requests in flight.

:class:`StreamingDataset` is iterable: records out of shards, decoded in Rust, each once among all ranks and workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch

from . import _api, _standpipe
from .dataset import Dataset, DatasetStats, Samples

if TYPE_CHECKING:
    from typing import Unpack

    from .options import Options

    _T = TypeVar("_T", covariant=True)

    class _Dataset(Generic[_T]):
        pass

    class _IterableDataset(Generic[_T]):
        pass

else:
    from torch.utils.data import Dataset as _Dataset
    from torch.utils.data import IterableDataset as _IterableDataset

__all__ = ["Item", "MapDataset", "StreamingDataset"]


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


class MapDataset(_Dataset[Any]):
    """Objects by number, in the order of the listing, which is read when it is first needed.

    Args:
        uris: as for :func:`standpipe.stream`, or what :func:`standpipe.list` gave.
        transform: makes a sample of an :class:`Item`, in the process that loads; by default, its bytes.
        options: see :class:`standpipe.Options`.

    It pickles, and may cross a fork: workers read on their own. A listing that was read goes along, so that it is read
    once. All samples are of the versions that it told of; an object that was replaced since raises ``ChangedError``.

    ::

        dataset = standpipe.torch.MapDataset("s3://bucket/imagenet/", transform=decode)
        loader = torch.utils.data.DataLoader(dataset, batch_size=256, shuffle=True)
    """

    def __init__(
        self,
        uris: _api.Uris | Sequence[_standpipe.ObjectInfo],
        *,
        transform: Callable[[Item], Any] = as_bytes,
        **options: Unpack[Options],
    ) -> None:
        self._config = _standpipe.Config(**options)
        self._transform = transform
        self._uris: list[str] = []
        self._objects: list[_standpipe.ObjectInfo] | None = None
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
        with _standpipe.open_listed(self._config, [objects[index] for index in wanted]) as stream:
            items = (Item(index, objects[index].uri, data) for index, data in zip(wanted, _whole(stream), strict=True))
            return [self._transform(item) for item in items]


class StreamingDataset(_IterableDataset[Any]):
    """Samples of a :class:`standpipe.Dataset`, for a ``DataLoader``.

    Args:
        uris, format, settings: as for :class:`standpipe.Dataset`. Ranks and workers are found out: by
            ``torch.distributed`` if it is initialised, else ``RANK`` and ``WORLD_SIZE``, and ``get_worker_info()``.
        transform: makes a sample of what the dataset gives, in the process that loads.

    Call :meth:`set_epoch` before each epoch but the first, as for a ``DistributedSampler``: each has another order.
    Workers that live on (``persistent_workers``) hear of it.

    With ``torchdata.stateful_dataloader.StatefulDataLoader`` the loader's own ``state_dict`` holds every worker's
    state; without workers, this dataset's does.

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
        self._dataset = Dataset(uris, format, **settings)
        self._transform = transform
        self._epoch = int(settings.get("epoch", 0))
        # Memory that workers see: what is set later reaches those that live on.
        self._told_epoch = torch.tensor(self._epoch).share_memory_()

    @property
    def dataset(self) -> Dataset:
        """What it reads."""
        return self._dataset

    def __iter__(self) -> _Transformed:
        told = int(self._told_epoch)
        if told != self._epoch:
            self._epoch = told
            self._dataset.set_epoch(told)
        return _Transformed(iter(self._dataset), self._transform)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that is iterated next: from its beginning, or from a state of this epoch that was just loaded."""
        self._told_epoch.fill_(epoch)
        self._epoch = epoch
        self._dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """How far the last iterator of this process is."""
        return self._dataset.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there, when it is next iterated."""
        self._dataset.load_state_dict(state)

    def stats(self) -> DatasetStats:
        """What the last iterator of this process did, and why it is slow."""
        return self._dataset.stats()


class _Transformed(Iterator[Any]):
    """Samples, each through the transform. It has the state that a stateful loader asks a worker's iterator for."""

    def __init__(self, samples: Samples, transform: Callable[[Any], Any] | None) -> None:
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
