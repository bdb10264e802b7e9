"""One reading in a process of its own: `case.py JOB` prints what it took, as one line of JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator

from digest import Digest, added
from readers import READERS

from job import Job, Piece

# Before that, connections are opened and windows grow.
WARM_UP = 0.1


def cpu_seconds() -> float:
    """Of this process and of those that it ran and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


class Consumer:
    """Sums what it gets, at its pace, and notes how long it waits."""

    def __init__(self, job: Job, total_bytes: int) -> None:
        self._job = job
        self._total_bytes = total_bytes
        self.bytes = self.samples = self.digest = 0
        self.first_seconds = 0.0
        # Since the end of the warm-up.
        self._warm_at: float | None = None
        self._waited = 0.0
        self._ended = 0.0

    def consume(self, pieces: Iterator[Piece], one_object: bool) -> None:
        begun = time.perf_counter()
        whole = Digest()
        while True:
            asked = time.perf_counter()
            piece = next(pieces, None)
            now = time.perf_counter()
            if self._warm_at is not None:
                self._waited += now - asked
            if piece is None:
                break
            self.first_seconds = self.first_seconds or now - begun
            size = sum(map(len, piece))
            if self._job.check:
                digest = whole if one_object else Digest()
                for part in piece:
                    digest.update(part)
                if not one_object:
                    self.digest = added(self.digest, digest.mixed())
            self.bytes += size
            self.samples += 1
            if self._job.first_only:
                break
            self._work(now, size)
        self._ended = time.perf_counter()
        if one_object:
            self.digest = whole.mixed()

    def _work(self, since: float, size: int) -> None:
        if self._job.pace is not None:
            time.sleep(max(0.0, size / self._job.pace - (time.perf_counter() - since)))
        if self._warm_at is None and self.bytes >= WARM_UP * self._total_bytes:
            self._warm_at = time.perf_counter()

    @property
    def waited_share(self) -> float:
        return self._waited / (self._ended - self._warm_at) if self._warm_at is not None else 0.0


def main() -> None:
    job = Job.of_json(sys.argv[1])
    total_bytes, one_object = int(sys.argv[2]), sys.argv[3] == "one"
    start = READERS[job.reader](job)
    consumer = Consumer(job, total_bytes)
    cpu, begun = cpu_seconds(), time.perf_counter()
    pieces = start()
    consumer.consume(pieces, one_object)
    seconds = time.perf_counter() - begun
    if not job.first_only:
        # Workers and programs count once they have ended.
        del pieces
    peak = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    told = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - cpu,
        "bytes": consumer.bytes,
        "samples": consumer.samples,
        "digest": consumer.digest,
        "first_seconds": consumer.first_seconds,
        "waited_share": consumer.waited_share,
        "peak_bytes": (peak[0] + peak[1] * max(job.workers, 1)) * 1024,
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
