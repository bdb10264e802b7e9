"""A file system for fsspec, and so for pandas, pyarrow, Dask, Hugging Face datasets and whatever else speaks it.

It has a protocol of its own, which fsspec finds by itself once this package is installed::

    pandas.read_csv("standpipe://bucket/key.csv")
    fsspec.filesystem("standpipe", endpoint_url="http://127.0.0.1:9000")

``s3://`` stays whoever's it is until you call :func:`register`. The file system only reads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from . import _api, _standpipe
from ._file import ObjectFile, RawObject
from .exceptions import ConfigError, NotFoundError

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["StandpipeFileSystem", "register"]

_PREFIXES = ("standpipe://", "s3://", "s3a://")

# Reads of many paths or ranges at once: each waits for a first byte, and none of these threads computes.
_AT_ONCE = 32

# What is copied at once: a part of the engine's.
_PIECE_BYTES = 8 << 20


class StandpipeFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """S3, read-only. Keyword arguments are those of :class:`standpipe.Options`, and fsspec's own."""

    protocol = "standpipe"
    root_marker = ""
    # Listings are cached by fsspec's own rules (`use_listings_cache`, `refresh=True`, `invalidate_cache`).

    def __init__(self, **kwargs: Any) -> None:
        kwargs = _translated(kwargs)
        options = {name: kwargs.pop(name) for name in _OPTIONS & set(kwargs)}
        super().__init__(**options, **kwargs)
        self._options = options

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        path = stringify_path(path)
        for prefix in _PREFIXES:
            if path.startswith(prefix):
                path = path[len(prefix) :]
                break
        return path.strip("/") if not path.strip("/").count("/") else path.lstrip("/").rstrip("/")

    def unstrip_protocol(self, name: str) -> str:
        return f"{self.protocol}://{self._strip_protocol(name)}"

    def _uri(self, path: str) -> str:
        return f"s3://{self._strip_protocol(path)}"

    @property
    def fsid(self) -> str:
        return f"standpipe-{self._options.get('endpoint_url') or 'aws'}"

    def invalidate_cache(self, path: str | None = None) -> None:
        # Whoever writes one key may change what is in every directory above it.
        self.dircache.clear()
        super().invalidate_cache(path)

    def ls(self, path: str, detail: bool = True, refresh: bool = False, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path)
        if not path:
            raise NotImplementedError("listing buckets: name one")
        found = None if refresh else self._known(path)
        if found is None:
            found = self._listed(path)
            self.dircache[path] = found
        return found if detail else sorted(entry["name"] for entry in found)

    def _known(self, path: str) -> list[dict[str, Any]] | None:
        """What is known to be in a directory. fsspec's own look takes a directory's entry for what is in it."""
        try:
            found: list[dict[str, Any]] = self.dircache[path]
        except KeyError:
            return None
        return found

    def _listed(self, path: str) -> list[dict[str, Any]]:
        entries = _api.list_objects(self._uri(path) + "/", recursive=False, **self._options)
        # A marker of the directory itself is not in it.
        found = [entry for entry in map(_entry, entries) if entry["name"] != path]
        if found:
            return found
        if "/" not in path:
            # An empty bucket was listed, or the listing above has failed.
            return []
        return [self._file(path)]

    def _file(self, path: str) -> dict[str, Any]:
        if "/" not in path:
            raise FileNotFoundError(path)
        return _entry(_api.stat(self._uri(path), **self._options))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        for entry in self._known(self._parent(path)) or []:
            if entry["name"] == path:
                return dict(entry)
        if self._known(path):
            return _directory(path)
        if "/" in path:
            try:
                return self._file(path)
            except NotFoundError:
                pass
        below = _api.list_objects(self._uri(path) + ("/" if path else ""), recursive=False, **self._options)
        if next(iter(below), None) is not None or (path and "/" not in path):
            return _directory(path)
        raise FileNotFoundError(path)

    def exists(self, path: str, **kwargs: Any) -> bool:
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        if maxdepth is not None or withdirs:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **kwargs)
        path = self._strip_protocol(path)
        try:
            # One request for a thousand objects, however many directories they are in.
            listed = [_entry(info) for info in _api.list_objects(self._uri(path) + "/", **self._options)]
        except NotFoundError:
            listed = []
        if not listed and self.exists(path) and self.isfile(path):
            listed = [self.info(path)]
        found = {entry["name"]: entry for entry in sorted(listed, key=lambda entry: str(entry["name"]))}
        return found if detail else list(found)

    def created(self, path: str) -> datetime:
        return self.modified(path)

    def modified(self, path: str) -> datetime:
        when: datetime = self.info(path)["LastModified"]
        return when

    def checksum(self, path: str) -> int:
        return hash(self.info(path).get("ETag"))

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, autocommit: bool = True, **kwargs: Any
    ) -> ObjectFile:
        if mode != "rb":
            raise NotImplementedError(f"mode {mode!r}: this file system only reads")
        return _api.open_object(self._uri(path), mode, **self._options)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        config = _standpipe.Config(**self._options)
        handle = _standpipe.open_object(config, self._uri(path))
        first, last, _ = slice(start, end).indices(handle.size)
        raw = RawObject(handle)
        if first == 0 and last == handle.size:
            return raw.readall()
        return handle.read_at(first, max(last - first, 0))

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        paths = self.expand_path(path, recursive=recursive)
        if len(paths) == 1 and not isinstance(path, list) and paths[0] == self._strip_protocol(path):
            return self.cat_file(paths[0], **kwargs)
        if recursive:
            paths = [one for one in paths if not self.isdir(one)]
        results = self._all([(one, None, None) for one in paths], on_error)
        return {one: found for one, found in zip(paths, results, strict=True) if found is not None}

    def cat_ranges(
        self,
        paths: Sequence[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        starts = starts if isinstance(starts, Sequence) else [starts] * len(paths)
        ends = ends if isinstance(ends, Sequence) else [ends] * len(paths)
        return self._all(list(zip(paths, starts, ends, strict=True)), on_error)

    def _all(self, wanted: list[tuple[str, int | None, int | None]], on_error: str) -> list[Any]:
        cancel = _standpipe.Cancel()

        def one(path: str, start: int | None, end: int | None) -> Any:
            try:
                with cancel:
                    return self.cat_file(path, start, end)
            except Exception as error:
                if on_error == "raise":
                    raise
                return error if on_error == "return" else None

        with ThreadPoolExecutor(max(1, min(_AT_ONCE, len(wanted)))) as threads:
            try:
                return list(threads.map(lambda what: one(*what), wanted))
            except BaseException:
                # Ctrl-C, or one that failed: the pool waits for its threads.
                cancel.set()
                raise

    def get_file(self, rpath: str, lpath: Any, callback: Any = None, outfile: Any = None, **kwargs: Any) -> None:
        if outfile is None and self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        with self._open(rpath) as source, contextlib.ExitStack() as opened:
            if callback is not None:
                callback.set_size(source.size)
            target = outfile if outfile is not None else opened.enter_context(open(_made(lpath), "wb"))
            while piece := source.read(_PIECE_BYTES):
                target.write(piece)
                if callback is not None:
                    callback.relative_update(len(piece))


def _made(path: Any) -> Any:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    return path


def _directory(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}


def _entry(info: _standpipe.ObjectInfo) -> dict[str, Any]:
    name = f"{info.bucket}/{info.key}"
    if info.is_prefix:
        return _directory(name.rstrip("/"))
    return {
        "name": name.rstrip("/"),
        "size": info.size,
        "type": "file",
        "ETag": info.etag,
        "LastModified": info.last_modified,
    }


_OPTIONS = frozenset(
    {
        "endpoint_url",
        "region",
        "profile",
        "no_sign_request",
        "request_payer",
        "sse_c_key",
        "ca_bundle",
        "transport",
        "memory",
        "part_size",
        "concurrency",
        "checksums",
        "cache",
        "cache_size",
    }
)


# How s3fs, which may have served the protocol before, is told the same things.
_OF_S3FS = {"anon": "no_sign_request", "requester_pays": "request_payer"}
_OF_S3FS_CLIENT = {"endpoint_url": "endpoint_url", "region_name": "region", "verify": "ca_bundle"}
_REFUSED = {
    "key": "set AWS_ACCESS_KEY_ID, or name a profile",
    "username": "set AWS_ACCESS_KEY_ID, or name a profile",
    "secret": "set AWS_SECRET_ACCESS_KEY, or name a profile",
    "password": "set AWS_SECRET_ACCESS_KEY, or name a profile",
    "token": "set AWS_SESSION_TOKEN, or name a profile",
    "session": "name a profile",
    "config_kwargs": "use the keywords of standpipe.Options",
    "s3_additional_kwargs": "use the keywords of standpipe.Options, such as sse_c_key",
}


def _translated(given: dict[str, Any]) -> dict[str, Any]:
    """The keywords of s3fs in ours. Those that have no meaning here are refused: else another identity would read."""
    made = dict(given)
    for name, fix in _REFUSED.items():
        if made.pop(name, None):
            raise ConfigError(f"{name}: this file system has no such keyword: {fix}")
    for name, ours in _OF_S3FS.items():
        if name in made:
            made.setdefault(ours, made.pop(name))
    for name, value in (made.pop("client_kwargs", None) or {}).items():
        if name not in _OF_S3FS_CLIENT or isinstance(value, bool):
            raise ConfigError(f"client_kwargs: {name!r} is unknown here: use the keywords of standpipe.Options")
        made.setdefault(_OF_S3FS_CLIENT[name], value)
    return made


def register(*protocols: str) -> None:
    """Lets this file system serve other protocols in this process: ``register("s3", "s3a")``; without any, ``s3``."""
    for protocol in protocols or ("s3",):
        fsspec.register_implementation(protocol, StandpipeFileSystem, clobber=True)
