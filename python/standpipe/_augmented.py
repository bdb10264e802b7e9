"""Lines of a SageMaker augmented manifest (``AugmentedManifestFile``) as samples, with the objects that they refer to.

Which lines come when is decided where it is for all formats: the manifest is cut into groups of lines, and a group is
to lines what an object is to records (``open_rows``). The same order is computed a second time, some hundred lines
ahead, and what those lines refer to is streamed by the engine, back to back: many requests in flight, whatever the
objects' sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from . import _standpipe
from ._parquet import Group
from .dataset import Placed
from .exceptions import ConfigError

__all__ = ["Lines", "Manifest"]

# Lines whose objects are one stream; the next such stream is open while one is read.
_LINES_AHEAD = 256
# Groups are of one line in manifests of up to so many lines, and grow with longer ones: so shares stay even, and
# nothing is kept for each line.
_GROUPS = 4096


class Manifest:
    """The lines, each found good for these attributes."""

    def __init__(self, config: _standpipe.Config, uri: str, attributes: Sequence[str]) -> None:
        handle = _standpipe.open_object(config, uri)
        self.uri, self.etag = handle.uri, handle.etag
        self.attributes = list(attributes)
        self.lines: list[bytes] = []
        for number, line in enumerate(handle.read_at(0, handle.size).split(b"\n"), 1):
            if line.strip():
                self._check(number, line)
                self.lines.append(line)

    def _check(self, number: int, line: bytes) -> None:
        where = f"line {number} of {self.uri}"
        try:
            told = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{where}: no JSON: {error}") from None
        if not isinstance(told, dict):
            raise ConfigError(f"{where}: an augmented manifest has one JSON object per line")
        for name in self.attributes:
            if name not in told:
                raise ConfigError(f"{where}: no attribute {name!r} (names are case-sensitive)")
            if name.endswith("-ref") and not isinstance(told[name], str):
                raise ConfigError(f"{where}: {name!r} is no address")

    def groups(self) -> list[Group]:
        """As of a file of rows."""
        size = self._size()
        starts = range(0, len(self.lines), size)
        return [(self.uri, self.etag, at, min(size, len(self.lines) - start)) for at, start in enumerate(starts)]

    def _size(self) -> int:
        return -(-len(self.lines) // _GROUPS) or 1

    def sample(self, group: int, row: int) -> dict[str, Any]:
        """A line's attributes; references are still addresses."""
        told = json.loads(self.lines[group * self._size() + row])
        return {name: told[name] for name in self.attributes}


class Lines(Placed):
    """The lines of one consumer."""

    def __init__(
        self,
        config: _standpipe.Config,
        manifest: Manifest,
        settings: dict[str, Any],
        state: str | None,
        batched: bool,
    ) -> None:
        super().__init__(_standpipe.open_rows(manifest.groups(), settings, state), "augmented", batched)
        self._config = config
        self._manifest = manifest
        # A batch that is left out, because it is small, is ahead all the same.
        self._settings = {**settings, "batch_size": _LINES_AHEAD, "drop_last": False}
        self._ahead: _standpipe.Samples | None = self._look_ahead(state)
        self._streams: list[tuple[_standpipe.Stream | None, Iterator[tuple[int, int]]]] = []

    def _look_ahead(self, state: str | None) -> _standpipe.Samples:
        return _standpipe.open_rows(self._manifest.groups(), self._settings, state)

    def _made(self, places: list[tuple[int, int]]) -> Any:
        try:
            ahead = self._ahead or self._look_ahead(self._inner.state(True))
            self._ahead = ahead
            samples = [self._sample(ahead, place) for place in places]
        except BaseException as error:
            # Where in the streams this was, nobody knows: if these lines are asked for again, they are opened anew.
            self._let_go()
            if self._closed and isinstance(error, Exception):
                raise StopIteration from None
            raise
        return samples if self._batched else samples[0]

    def _sample(self, ahead: _standpipe.Samples, place: tuple[int, int]) -> dict[str, Any]:
        while True:
            while len(self._streams) < 2 and (places := next(ahead, None)) is not None:
                self._streams.append((self._open(places), iter(places)))
            if self._closed:
                # Perhaps one was opened when another thread had closed them all.
                raise StopIteration
            stream, rest = self._streams[0]
            found = next(rest, None)
            if found is None:
                self._streams.pop(0)
                if stream is not None:
                    stream.close()
                continue
            sample = self._manifest.sample(*found)
            for name in self._references():
                sample[name] = _whole(stream)
            # Those of an epoch's last batch, if it was left out.
            if found == place:
                return sample

    def _references(self) -> list[str]:
        return [name for name in self._manifest.attributes if name.endswith("-ref")]

    def _open(self, places: list[tuple[int, int]]) -> _standpipe.Stream | None:
        names = self._references()
        uris = [self._manifest.sample(*place)[name] for place in places for name in names]
        return _standpipe.open_unlisted(self._config, uris) if uris else None

    def close(self) -> None:
        """Stops reading; also a thread that waits for a sample."""
        super().close()
        self._let_go()

    def _let_go(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None
        for stream, _ in self._streams:
            if stream is not None:
                stream.close()
        self._streams = []


def _whole(stream: _standpipe.Stream | None) -> Any:
    """The next object: a chunk where it came in one, else bytes."""
    pieces: list[_standpipe.Chunk] = []
    assert stream is not None, "lines with references have a stream"
    for chunk in stream:
        pieces.append(chunk)
        if chunk.ends_object:
            return chunk if len(pieces) == 1 else b"".join(pieces)
    raise AssertionError("a stream has an object for each reference")
