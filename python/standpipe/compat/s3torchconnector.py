"""The datasets of ``s3torchconnector``, over Standpipe: an import line is all that changes. ::

    from standpipe.compat.s3torchconnector import S3IterableDataset, S3MapDataset

    dataset = S3MapDataset.from_prefix("s3://bucket/train/", region="us-east-1", transform=decode)

Differences: ``region`` may be ``None`` (it is found out), ``S3ClientConfig`` has fields that only the other needs
(they are accepted, and ignored where the comment says so), and ``reader_constructor`` is accepted and ignored: one
reader serves sequential and random reads. Checkpoints are written by the other package only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import _api
from .._file import ObjectFile

if TYPE_CHECKING:
    from typing import Self

    from ..options import Options

    class _MapBase:
        pass

    class _IterableBase:
        pass

else:
    try:
        from torch.utils.data import Dataset as _MapBase
        from torch.utils.data import IterableDataset as _IterableBase
    except ImportError:  # They work without, too: nothing of torch is needed but its classes.
        _MapBase = _IterableBase = object

__all__ = ["S3ClientConfig", "S3IterableDataset", "S3MapDataset", "S3Reader", "S3ReaderConstructor"]

S3Reader = ObjectFile
"""What a transform gets: a file with ``bucket`` and ``key``."""


def identity(reader: ObjectFile) -> ObjectFile:
    """The transform that does nothing."""
    return reader


class S3ReaderConstructor:
    """As that of ``s3torchconnector``, for code that says how it reads; there is one way here."""

    @staticmethod
    def sequential() -> object:
        """For ``reader_constructor``."""
        return S3Reader

    @staticmethod
    def range_based(buffer_size: int | None = None) -> object:
        """The same."""
        return S3Reader

    @staticmethod
    def default() -> object:
        """The same."""
        return S3Reader


@dataclass(frozen=True)
class S3ClientConfig:
    """As that of ``s3torchconnector``."""

    throughput_target_gbps: float = 10.0
    """Requests in flight are made for such a link."""
    part_size: int = 8 << 20
    unsigned: bool = False
    force_path_style: bool = False
    """Ignored: paths are used everywhere but at Amazon."""
    max_attempts: int = 10
    """Ignored: attempts are counted since the last progress."""
    profile: str | None = None

    def options(self) -> Options:
        """The keywords of this package."""
        # 30 ms to the first byte and 20 ms per MiB after it: what one connection of S3 gives.
        seconds = 0.030 + 0.020 * self.part_size / (1 << 20)
        in_flight = self.throughput_target_gbps * 1e9 / 8 * seconds / self.part_size
        return {
            "part_size": self.part_size,
            "concurrency": round(min(max(in_flight, 8), 256)),
            "no_sign_request": True if self.unsigned else None,
            "profile": self.profile,
        }


@dataclass(frozen=True)
class _Source:
    """Where the objects are, and how each becomes a sample. It pickles as it is."""

    uris: tuple[str, ...]
    is_prefix: bool
    options: Options
    transform: Callable[[ObjectFile], Any]

    def objects(self) -> Iterator[str]:
        if not self.is_prefix:
            yield from self.uris
            return
        for info in _api.list_objects(self.uris, **self.options):
            yield info.uri

    def sample(self, uri: str) -> Any:
        return self.transform(_api.open_object(uri, **self.options))


def _source(
    uris: Iterable[str],
    is_prefix: bool,
    region: str | None,
    endpoint: str | None,
    transform: Callable[[ObjectFile], Any],
    config: S3ClientConfig | None,
) -> _Source:
    options: Options = (config or S3ClientConfig()).options()
    options["region"] = region
    options["endpoint_url"] = endpoint
    return _Source(tuple(uris), is_prefix, options, transform)


class S3MapDataset(_MapBase):
    """Objects by number, in the order of the listing, which is read when it is first needed."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._uris: list[str] | None = None

    @classmethod
    def from_objects(
        cls,
        object_uris: str | Iterable[str],
        *,
        region: str | None,
        endpoint: str | None = None,
        transform: Callable[[ObjectFile], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: object = None,
    ) -> Self:
        """These objects."""
        uris = [object_uris] if isinstance(object_uris, str) else object_uris
        return cls(_source(uris, False, region, endpoint, transform, s3client_config))

    @classmethod
    def from_prefix(
        cls,
        s3_uri: str,
        *,
        region: str | None,
        endpoint: str | None = None,
        transform: Callable[[ObjectFile], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: object = None,
    ) -> Self:
        """All objects whose key starts with the prefix."""
        return cls(_source([s3_uri], True, region, endpoint, transform, s3client_config))

    @property
    def region(self) -> str | None:
        """The region that was given."""
        return self._source.options.get("region")

    @property
    def endpoint(self) -> str | None:
        """The endpoint that was given."""
        return self._source.options.get("endpoint_url")

    def _objects(self) -> list[str]:
        if self._uris is None:
            self._uris = list(self._source.objects())
        return self._uris

    def __getitem__(self, index: int) -> Any:
        return self._source.sample(self._objects()[index])

    def __len__(self) -> int:
        return len(self._objects())


class S3IterableDataset(_IterableBase):
    """Objects one after another; with ``enable_sharding``, this rank's and worker's share of them."""

    def __init__(self, source: _Source, enable_sharding: bool) -> None:
        self._source = source
        self._enable_sharding = enable_sharding
        self._told_rank: tuple[int, int] | None = None

    @classmethod
    def from_objects(
        cls,
        object_uris: str | Iterable[str],
        *,
        region: str | None,
        endpoint: str | None = None,
        transform: Callable[[ObjectFile], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,
        reader_constructor: object = None,
    ) -> Self:
        """These objects."""
        uris = [object_uris] if isinstance(object_uris, str) else object_uris
        return cls(_source(uris, False, region, endpoint, transform, s3client_config), enable_sharding)

    @classmethod
    def from_prefix(
        cls,
        s3_uri: str,
        *,
        region: str | None,
        endpoint: str | None = None,
        transform: Callable[[ObjectFile], Any] = identity,
        s3client_config: S3ClientConfig | None = None,
        enable_sharding: bool = False,
        reader_constructor: object = None,
    ) -> Self:
        """All objects whose key starts with the prefix."""
        return cls(_source([s3_uri], True, region, endpoint, transform, s3client_config), enable_sharding)

    def __iter__(self) -> Iterator[Any]:
        from .._share import share

        mine, of = share(self._told_rank) if self._enable_sharding else (0, 1)
        for index, uri in enumerate(self._source.objects()):
            if index % of == mine:
                yield self._source.sample(uri)

    def __getstate__(self) -> dict[str, Any]:
        from .._share import known_rank

        # A worker that was not forked cannot ask torch.distributed.
        return {**self.__dict__, "_told_rank": known_rank() or self._told_rank}
