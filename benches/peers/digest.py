"""What every reader sums, so that none can leave bytes out; `examples/sum.rs` does the same."""

from __future__ import annotations

import numpy

BLOCK_BYTES = 1 << 20
ODD = 0x9E37_79B9_7F4A_7C15
_MASK = (1 << 64) - 1

Buffer = bytes | bytearray | memoryview


class Digest:
    """Of one object or sample: sums of little-endian words, folded block by block, whatever the pieces."""

    def __init__(self) -> None:
        self._filled = 0
        self._sum = 0
        self._folded = 0

    def update(self, data: Buffer) -> None:
        """Takes the next bytes."""
        size = len(data)
        if self._filled + size < BLOCK_BYTES:
            # What samples are: without slices.
            self._sum += _words(data, self._filled % 8)
            self._filled += size
            return
        view = memoryview(data)
        while len(view):
            now = view[: BLOCK_BYTES - self._filled]
            self._sum += _words(now, self._filled % 8)
            self._filled += len(now)
            view = view[len(now) :]
            if self._filled == BLOCK_BYTES:
                self._fold()

    def _fold(self) -> None:
        self._folded = (self._folded * ODD + self._sum) & _MASK
        self._filled = self._sum = 0

    def mixed(self) -> int:
        """The digest; those of several objects are added, in whatever order they came."""
        self._fold()
        return ((self._folded ^ (self._folded >> 31)) * ODD) & _MASK


def _words(data: Buffer, at: int) -> int:
    """The sum of bytes as words that began `at` bytes before them."""
    size = len(data)
    if at + size <= 8:
        return int.from_bytes(data, "little") << (8 * at)
    if at == 0 and size % 8 == 0:
        return int(numpy.frombuffer(data, "<u8").sum())
    head = min(size, -at % 8)
    body = (size - head) // 8 * 8
    total = int.from_bytes(data[:head], "little") << (8 * at)
    if body:
        total += int(numpy.frombuffer(data[head : head + body], "<u8").sum())
    return total + int.from_bytes(data[head + body :], "little")


def digest_of(data: Buffer) -> int:
    """Of a sample that is there in one piece."""
    digest = Digest()
    digest.update(data)
    return digest.mixed()


def added(digests: int, more: int) -> int:
    """The digest of both."""
    return (digests + more) & _MASK
