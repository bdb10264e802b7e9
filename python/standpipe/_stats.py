"""From the counters' JSON to what users read."""

from __future__ import annotations

import json
from typing import Any, TypedDict, cast

from .exceptions import _keywords

__all__ = ["Stats", "Verdict", "parse"]

# What grows and shrinks is told as it is; everything else as the difference since the stream began.
_GAUGES = {
    "requests_in_flight",
    "reserved_bytes",
    "lent_bytes",
    "pool_mapped_bytes",
    "concurrency_target",
    "first_byte_p50_us",
    "first_byte_p99_us",
    "request_time_p99_us",
}


class Verdict(TypedDict):
    """Where the time went."""

    bottleneck: str
    """``network``, ``throttled``, ``consumer``, ``disk`` or, of a dataset, ``decoding``."""
    stall_share: float
    """The share of the time in which the consumer waited for bytes, 0 to 1."""
    advice: str
    """One sentence with the number behind it and the knob to turn."""


class Stats(TypedDict):
    """What a stream did so far. Times are seconds, sizes are bytes."""

    chunks: int
    bytes: int
    objects: int
    copied_bytes: int
    """Bytes that were handed out as copies, because half of the memory was held."""
    elapsed_seconds: float
    waited_seconds: float
    """The part of it in which the consumer waited."""
    verdict: Verdict
    engine: dict[str, int]
    """The engine's counters since the stream began; of all its streams, if there are several at once."""


def parse(text: str) -> Stats:
    stats: dict[str, Any] = json.loads(text)
    before = stats.pop("engine_before")
    stats["engine"] = {
        name: value if name in _GAUGES else value - before[name] for name, value in stats["engine"].items()
    }
    stats["verdict"]["advice"] = _keywords(stats["verdict"]["advice"])
    return cast(Stats, stats)
