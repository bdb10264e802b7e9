"""The server that all readers read from, and what lies on it."""

from __future__ import annotations

import http.client
import io
import json
import random
import ssl
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from digest import Digest, added

from job import BUCKET, LARGE, SMALL, Job

SAMPLE_BYTES = 100_000
# S3's own: 30 ms to the first byte, and 20 ms for each MiB behind it.
LATENCY = {"first_byte_ms": 30.0, "per_mib_ms": 20.0}


class Server:
    """fake-s3 in a process of its own, with all data of the benchmark."""

    def __init__(
        self, program: Path, *, tls: bool, large_bytes: int, objects: int, shards: int, shard_bytes: int
    ) -> None:
        flags = [
            "--log-limit=0",
            f"--synthetic={BUCKET}/{LARGE}={large_bytes},7",
            f"--synthetic={BUCKET}/{SMALL}o={SAMPLE_BYTES},1,{objects}",
        ]
        self._process = subprocess.Popen(
            [program, "--until-stdin-closes", *flags, *(["--tls"] if tls else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        self.tls = tls
        self.endpoint: str = told["endpoint"]
        self.ca_file: str | None = told["ca_file"]
        self.objects, self.shards = objects, shards
        self.large_bytes = large_bytes
        self._connection = self._connect()
        self.tar_bytes = self.tar_samples = self.tar_digest = 0
        for number, key in enumerate(Job("", "", shards=shards).tar_keys):
            body = self._shard(number, shard_bytes)
            self._request("PUT", f"/{BUCKET}/{key}", body)

    def _connect(self) -> http.client.HTTPConnection:
        address = urlsplit(self.endpoint)
        if not self.tls:
            return http.client.HTTPConnection(address.netloc, timeout=60)
        return http.client.HTTPSConnection(
            address.netloc, timeout=60, context=ssl.create_default_context(cafile=self.ca_file)
        )

    def _request(self, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        self._connection.request(method, path, body)
        answer = self._connection.getresponse()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.read(300)!r}")
        if method != "GET":
            answer.read()
        return answer

    def shape(self, **shape: Any) -> None:
        """How slow it is from now on."""
        self._request("POST", "/_fake/shape", json.dumps(shape).encode())

    def _shard(self, number: int, size: int) -> bytes:
        """A tar archive of samples; notes what a reader of it will have summed."""
        chance = random.Random(number)
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            while file.tell() < size:
                name = f"{number:04}{self.tar_samples:07}"
                digest = Digest()
                for suffix, body in (("bin", chance.randbytes(SAMPLE_BYTES)), ("cls", str(number).encode())):
                    member = tarfile.TarInfo(f"{name}.{suffix}")
                    member.size = len(body)
                    archive.addfile(member, io.BytesIO(body))
                    digest.update(body)
                    self.tar_bytes += len(body)
                self.tar_samples += 1
                self.tar_digest = added(self.tar_digest, digest.mixed())
        return file.getvalue()

    def digest_of(self, keys: list[str]) -> int:
        """What a reader of these objects will have summed, by a client of nobody's."""
        total = 0
        for key in keys:
            answer = self._request("GET", f"/{BUCKET}/{key}")
            digest = Digest()
            while piece := answer.read(1 << 20):
                digest.update(piece)
            total = added(total, digest.mixed())
        return total

    def first_byte_seconds(self) -> float:
        """What one GET of a new connection takes to its first byte: the unit of the row `first`."""
        taken = []
        for _ in range(5):
            connection = self._connect()
            begun = time.perf_counter()
            connection.request("GET", f"/{BUCKET}/{SMALL}o-000000")
            connection.getresponse().read(1)
            taken.append(time.perf_counter() - begun)
            connection.close()
        return sorted(taken)[2]

    def stop(self) -> None:
        self._connection.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
