"""A server of ours for every test, one of others for some, and programs in processes of their own.

What is tested is the installed package. The server is the workspace's `fake-s3`; STANDPIPE_FAKE_S3 names another build.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import standpipe
from standpipe import Options

ROOT = Path(__file__).resolve().parents[2]
FAKE_S3 = Path(os.environ.get("STANDPIPE_FAKE_S3") or ROOT / "target" / "debug" / "fake-s3")

if Path(standpipe.__file__).is_relative_to(ROOT / "python"):
    raise RuntimeError("the package's sources were imported: the tests are for the installed wheel")


class Server:
    """A running fake-s3."""

    def __init__(self, *flags: str) -> None:
        self._process = subprocess.Popen(
            [FAKE_S3, "--until-stdin-closes", "--log-limit", "100000", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        told = json.loads(self._process.stdout.readline())
        self.endpoint: str = told["endpoint"]
        self.ca_file: str | None = told["ca_file"]
        self.options: Options = {"endpoint_url": self.endpoint, "no_sign_request": True}

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.endpoint + path, method=method, data=body)
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: bytes = answer.read()
            return found

    def put(self, key: str, body: bytes, bucket: str = "data") -> str:
        self.request("PUT", f"/{bucket}/{quote(key)}", body)
        return f"s3://{bucket}/{key}"

    def script(self, *rules: dict[str, Any]) -> None:
        self.request("POST", "/_fake/script", json.dumps(rules).encode())

    def log(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = json.loads(self.request("GET", "/_fake/log"))
        return entries

    def stop(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def _server() -> Iterator[Server]:
    server = Server("--bucket", "data", "--bucket", "bucket")
    yield server
    server.stop()


@pytest.fixture
def server(_server: Server) -> Iterator[Server]:
    """A server without rules and with an empty log; what other tests have put is there."""
    _server.request("POST", "/_fake/script/clear")
    _server.request("POST", "/_fake/log/clear")
    yield _server
    _server.request("POST", "/_fake/script/clear")


@pytest.fixture
def options(server: Server) -> Options:
    """How to reach it."""
    return server.options


@pytest.fixture
def shards(server: Server) -> str:
    """Lines 0 to 499, in objects of different sizes."""
    first = 0
    for index, size in enumerate([100, 7, 0, 250, 43, 100]):
        server.put(f"numbers/{index}.txt", b"".join(b"%d\n" % number for number in range(first, first + size)))
        first += size
    return "s3://data/numbers/"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have settings; none of them is a test's."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "STANDPIPE_"))]:
        if name != "STANDPIPE_FAKE_S3":
            monkeypatch.delenv(name)


def run(
    program: str, server: Server, *, timeout: float = 20, check: bool = True, flags: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process of its own; one that hangs fails."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(program)],
        env=environment(server),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check:
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def environment(server: Server) -> dict[str, str]:
    ours = {"STANDPIPE_ENDPOINT_URL": server.endpoint, "STANDPIPE_NO_SIGN_REQUEST": "1"}
    return {**os.environ, **ours}


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that tell where they are from."""
    import random

    return random.Random(seed).randbytes(size)
