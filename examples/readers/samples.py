"""What both training scripts do with their bytes: tar to labelled images, and a stand-in for a training step."""

import hashlib
import json
import struct
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any, Protocol, cast


class Readable(Protocol):
    """What `tarfile` needs of a stream."""

    def read(self, size: int, /) -> bytes: ...


class Tally:
    """Counts and hashes every byte that passes, and notes when the first one came."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.bytes = 0
        self.first_byte_s: float | None = None
        self.digest = hashlib.sha256()

    def add(self, data: bytes | memoryview) -> None:
        if data and self.first_byte_s is None:
            self.first_byte_s = time.monotonic() - self.started
        self.bytes += len(data)
        self.digest.update(data)


def images(stream: Readable) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yields label and PNG of each sample of one tar archive, or of several back to back (`ignore_zeros`)."""
    # A streaming archive calls nothing but `read`, whatever its annotation says.
    file = cast(IO[bytes], stream)
    with tarfile.open(fileobj=file, mode="r|", bufsize=1 << 20, ignore_zeros=True) as archive:
        label: dict[str, Any] = {}
        for member in archive:
            body = archive.extractfile(member)
            assert body is not None, member.name
            data = body.read()
            if member.name.endswith(".json"):
                label = json.loads(data)
            elif member.name.endswith(".png"):
                yield label, data


def brightness(png: bytes) -> float:
    """Decodes an 8-bit RGB image far enough to average it: as little work as a real decoder could get away with."""
    at, packed = 8, b""
    while at < len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        if kind == b"IDAT":
            packed += png[at + 8 : at + 8 + size]
        at += size + 12
    pixels = zlib.decompress(packed)
    return sum(pixels) / len(pixels)


class Model:
    """Learns the mean brightness of each class: enough to show that the right images met the right labels."""

    def __init__(self, step_ms: float) -> None:
        self.step_ms = step_ms
        self.seen: Counter[str] = Counter()
        self.total: Counter[str] = Counter()

    def step(self, label: dict[str, Any], png: bytes) -> None:
        self.seen[label["class"]] += 1
        self.total[label["class"]] += round(brightness(png))
        time.sleep(self.step_ms / 1000)

    def report(self, epoch: int, tally: Tally) -> str:
        """One line of JSON about an epoch."""
        summary = {
            "epoch": epoch,
            "samples": self.seen.total(),
            "classes": dict(sorted(self.seen.items())),
            "brightness": {name: round(self.total[name] / count) for name, count in sorted(self.seen.items())},
            "bytes": tally.bytes,
            "sha256": tally.digest.hexdigest(),
            "first_byte_s": tally.first_byte_s,
            "seconds": time.monotonic() - tally.started,
        }
        return json.dumps(summary)
