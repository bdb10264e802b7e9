"""What a reader is told to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BUCKET = "bench"
LARGE = "large/object"
SMALL = "small/"
TAR = "tar/"


@dataclass(frozen=True)
class Job:
    """One reading: by whom, of what, and how."""

    reader: str
    endpoint: str
    ca_file: str | None = None
    workers: int = 0
    batch: int = 64
    # Small objects: how many of them there are, and the order in which those to read are read.
    objects: int = 0
    order_seed: int = 1
    limit: int | None = None
    shards: int = 0
    # Requests in flight, for readers that are told.
    flight: int | None = None
    # Of the consumer, in bytes a second; none: as fast as it can.
    pace: float | None = None
    first_only: bool = False
    check: bool = True
    # The command that some readers run.
    programs: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> Job:
        known: dict[str, Any] = json.loads(text)
        return cls(**known)

    @property
    def order(self) -> list[int]:
        """The numbers of the small objects to read: a permutation, or its beginning."""
        import random

        numbers = list(range(self.objects))
        random.Random(self.order_seed).shuffle(numbers)
        return numbers[: self.limit]

    @property
    def small_keys(self) -> list[str]:
        return [f"{SMALL}o-{number:06}" for number in range(self.objects)]

    @property
    def tar_keys(self) -> list[str]:
        return [f"{TAR}shard-{number:04}.tar" for number in range(self.shards)]

    def program(self, name: str) -> str:
        """Of the environment that this runs in."""
        return str(Path(self.programs) / name)


# A sample, or a piece of the large object: its files or bytes, one after another.
Piece = tuple[Any, ...]
Start = Callable[[], Iterator[Piece]]
Reader = Callable[[Job], Start]
