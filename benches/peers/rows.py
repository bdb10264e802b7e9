"""What is compared with whom, and what is aimed at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

ENGINE = "the engine, in Rust"


@dataclass(frozen=True)
class Entry:
    """A reader with its settings; `name` tells the settings apart."""

    reader: str
    name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.name or self.reader


@dataclass(frozen=True)
class Figures:
    """Of one entry: medians of its rounds."""

    rate: float
    cpu_per_gb: float
    seconds: float
    first_seconds: float
    waited_share: float
    cpu_per_sample: float
    peak_bytes: float


@dataclass(frozen=True)
class Aim:
    """A quotient or figure, and what it should be at least or at most."""

    what: str
    measure: Callable[[dict[str, Figures]], float]
    least: float | None = None
    most: float | None = None

    def is_met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


@dataclass(frozen=True)
class Row:
    """One comparison: everything in it reads the same bytes from the same server."""

    name: str
    title: str
    # What is read: the large object, the tar shards, or small objects.
    data: str
    entries: list[Entry]
    aims: list[Aim]
    shape: dict[str, Any] = field(default_factory=dict)
    tls: bool = False
    # Objects of a row that one-by-one readers would take minutes for; rates are compared.
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        return "GB/s" if self.data == "large" else "samples/s"


def best(figures: dict[str, Figures], *beginnings: str) -> Figures:
    """The fastest of those whose names begin so."""
    found = [figure for name, figure in figures.items() if name.startswith(beginnings)]
    return max(found, key=lambda figure: figure.rate)


def rate_to(ours: str, *theirs: str) -> Callable[[dict[str, Figures]], float]:
    return lambda figures: best(figures, ours).rate / best(figures, *theirs).rate


def with_workers(reader: str, *counts: int) -> list[Entry]:
    return [Entry(reader, f"{reader}, workers={count}", {"workers": count}) for count in counts]


def in_flight(reader: str, *counts: int) -> list[Entry]:
    return [Entry(reader, f"{reader}, {count} in flight", {"flight": count}) for count in counts]


def rows(latency: dict[str, float]) -> list[Row]:
    """All rows; the slow readers of a row get a part of its objects."""
    plain = [_large(), _tar(), _small()]
    slow = [_slow(_large(), latency), _slow(_tar(), latency), _slow_small(latency)]
    tls = [replace(row, name=f"{row.name}-tls", title=f"{row.title}, over TLS", tls=True) for row in (*plain, *slow)]
    return [*plain, *slow, *tls, _first(latency), _stall(latency), _cpu()]


def _slow(row: Row, latency: dict[str, float]) -> Row:
    # The aims of these rows are for a server without latency.
    return replace(
        row, name=f"{row.name}-latency", title=f"{row.title}, at S3's latency", shape={"latency": latency}, aims=[]
    )


def _large() -> Row:
    return Row(
        "large",
        "one large object, in order",
        "large",
        [
            Entry(ENGINE),
            Entry("standpipe stream"),
            Entry("standpipe open"),
            Entry("boto3 get_object"),
            Entry("s3torchconnector"),
            Entry("s3torchconnector client"),
            Entry("obstore stream"),
            Entry("obstore ranges", "obstore ranges, 16 in flight", {"flight": 16}),
            Entry("s3fs open"),
            Entry("curl"),
            Entry("s5cmd cat"),
        ],
        [
            Aim("rate to the engine's", rate_to("standpipe stream", ENGINE), least=0.95),
            Aim("rate to s3torchconnector's", rate_to("standpipe stream", "s3torchconnector"), least=2),
            Aim(
                "CPU per GB to s3torchconnector's",
                lambda all: all["standpipe stream"].cpu_per_gb / best(all, "s3torchconnector").cpu_per_gb,
                most=0.6,
            ),
        ],
    )


def _tar() -> Row:
    return Row(
        "tar",
        "tar shards to samples of 100 KB",
        "tar",
        [
            *with_workers("standpipe tar", 0, 1, 2),
            *with_workers("webdataset curl", 0, 1, 2),
            *with_workers("webdataset s5cmd", 0),
            *with_workers("s3torchconnector tarfile", 0, 1, 2),
        ],
        [
            Aim(
                "without workers, to webdataset at its best", rate_to("standpipe tar, workers=0", "webdataset"), least=5
            ),
            Aim(
                "without workers, to ours with workers",
                rate_to("standpipe tar, workers=0", "standpipe tar, workers=1", "standpipe tar, workers=2"),
                least=1,
            ),
        ],
    )


def _small() -> Row:
    return Row(
        "small",
        "objects of 100 KB, map style, shuffled",
        "small",
        [
            *with_workers("standpipe map", 0, 1, 2),
            Entry("standpipe map, no look-ahead"),
            *in_flight("obstore objects", 16, 64, 128),
            *with_workers("s3torchconnector map", 0, 1, 2),
            *in_flight("boto3 threads", 16),
            *in_flight("s3fs cat", 64),
            *with_workers("File mode", 0),
        ],
        [Aim("to obstore at its best", rate_to("standpipe map, workers=0", "obstore"), least=2)],
    )


def _slow_small(latency: dict[str, float]) -> Row:
    few = {"limit": 150}
    slow = [
        Entry(entry.reader, entry.name, {**entry.settings, **few})
        for entry in with_workers("s3torchconnector map", 0, 1, 2)
    ]
    return Row(
        "small-latency",
        "objects of 100 KB, map style, shuffled, at S3's latency",
        "small",
        [
            *with_workers("standpipe map", 0, 1, 2),
            Entry("standpipe map, no look-ahead"),
            *in_flight("obstore objects", 64, 128, 256, 512),
            *slow,
            Entry("boto3 threads", "boto3 threads, 16 in flight", {"flight": 16, "limit": 2000}),
            *in_flight("s3fs cat", 64),
            *with_workers("File mode", 0),
        ],
        [
            Aim("to obstore at its best", rate_to("standpipe map, workers=0", "obstore"), least=1.3),
            Aim(
                "to s3torchconnector with one worker",
                rate_to("standpipe map, workers=0", "s3torchconnector map, workers=1"),
                least=30,
            ),
        ],
        shape={"latency": latency},
    )


def _first(latency: dict[str, float]) -> Row:
    ours = ["standpipe tar", "standpipe map", "standpipe stream"]
    return Row(
        "first",
        "the first sample, in first-byte latencies of one GET, since iteration began; map style with its listing read",
        "first",
        [
            *(Entry(name) for name in ours),
            Entry("webdataset curl"),
            Entry("s3torchconnector tarfile"),
            Entry("s3torchconnector map"),
        ],
        [Aim(f"{name}", lambda all, name=name: all[name].first_seconds, most=3) for name in ours],  # type: ignore[misc]
        shape={"latency": latency},
        settings={"first_only": True, "check": False, "batch": 1},
    )


def _stall(latency: dict[str, float]) -> Row:
    link = 250e6
    return Row(
        "stall",
        "share of the epoch in which a consumer waits that takes 80 % of a link of 250 MB/s, after warm-up",
        "tar",
        [
            *with_workers("standpipe tar", 0, 1),
            *with_workers("webdataset curl", 0, 2),
            *with_workers("s3torchconnector tarfile", 0, 2),
        ],
        [Aim("without workers", lambda all: all["standpipe tar, workers=0"].waited_share, most=0.01)],
        shape={"latency": latency, "total_bytes_per_second": int(link)},
        settings={"pace": 0.8 * link, "check": False},
    )


def _cpu() -> Row:
    return Row(
        "cpu",
        "CPU for each sample of 100 KB beyond the engine's own, without a look at its bytes",
        "tar",
        [Entry(ENGINE), Entry("standpipe dataset"), Entry("standpipe tar", "standpipe tar, by a DataLoader")],
        [
            Aim(
                "microseconds a sample",
                lambda all: 1e6 * (all["standpipe dataset"].cpu_per_sample - all[ENGINE].cpu_per_sample),
                most=5,
            )
        ],
        settings={"check": False},
    )
