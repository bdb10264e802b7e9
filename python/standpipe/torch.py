"""Datasets for PyTorch.

:class:`MapDataset` is map-style: objects by number, for any sampler. A ``DataLoader`` asks it for a batch at once
(``__getitems__``), and the batch's objects are fetched side by side: one process needs no workers to have many
requests in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from . import _api, _standpipe

if TYPE_CHECKING:
    from typing import Unpack

    from .options import Options

    _T = TypeVar("_T", covariant=True)

    class _Dataset(Generic[_T]):
        pass

else:
    from torch.utils.data import Dataset as _Dataset

__all__ = ["Item", "MapDataset"]


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
