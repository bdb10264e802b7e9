#!/usr/bin/env python3
"""Standpipe beside its peers: the same bytes, from the same server, in fresh processes, in interleaved rounds.

`make bench-peers ARGS="--quick --row tar"`. Every reading is checked by a digest of what was read; a peer that delivers
something else fails the run. Runs in the environment that has the peers, `.peers`; `--test` needs none of them and
makes one small pass of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from report import Measured, Report
from rows import ENGINE, Entry, Row, rows
from server import LATENCY, SAMPLE_BYTES, Server

from job import BUCKET, LARGE, TAR, Job

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# A reading that takes longer is hung.
LIMIT_SECONDS = 300
# Of the rows that `--test` makes: each kind of data, latency, pace and TLS once.
TESTED = ["large-tls", "tar", "small-latency", "first", "stall"]
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


class Bench:
    """The servers and how many objects they have."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._profile = ROOT / "target" / arguments.profile
        quick = arguments.quick or arguments.test
        self._sizes: dict[str, int] = {
            "large_bytes": (64 << 20) if arguments.test else (512 << 20) if quick else (2 << 30),
            "objects": 300 if arguments.test else 3000 if quick else 10_000,
            "shards": 2 if arguments.test else 8 if quick else 16,
            "shard_bytes": (4 << 20) if arguments.test else 64 << 20,
        }
        self._servers: dict[bool, Server] = {}
        self._digests: dict[tuple[bool, str, int], int] = {}

    def server(self, tls: bool) -> Server:
        if tls not in self._servers:
            self._servers[tls] = Server(self._profile / "fake-s3", tls=tls, **self._sizes)
        return self._servers[tls]

    def stop(self) -> None:
        for server in self._servers.values():
            server.stop()

    def expected(self, row: Row, server: Server, job: Job) -> tuple[int, int]:
        """Bytes and digest of what is to be read."""
        if row.data == "tar":
            return server.tar_bytes, server.tar_digest
        keys = [LARGE] if row.data == "large" else [job.small_keys[number] for number in job.order]
        known = (row.tls, row.data, len(keys))
        if known not in self._digests:
            server.shape()
            self._digests[known] = server.digest_of(keys)
            server.shape(**row.shape)
        size = server.large_bytes if row.data == "large" else len(keys) * SAMPLE_BYTES
        return size, self._digests[known]

    def read(self, row: Row, entry: Entry) -> Measured:
        """One reading, checked."""
        server = self.server(row.tls)
        job = Job(
            reader=entry.reader,
            endpoint=server.endpoint,
            ca_file=server.ca_file,
            objects=server.objects,
            shards=server.shards,
            programs=str(Path(sys.executable).parent),
            **{**row.settings, **entry.settings},
        )
        size, digest = (SAMPLE_BYTES, 0) if row.data == "first" else self.expected(row, server, job)
        if entry.reader == ENGINE:
            done = self._engine(row, job)
            size = done["bytes"] if row.data == "tar" else size
        else:
            done = self._python(row, job, size)
        if row.data != "first" and done["bytes"] != size:
            raise SystemExit(f"{row.name}: {entry.label} read {done['bytes']} bytes of {size}")
        if job.check and row.data != "first" and done["digest"] != digest:
            raise SystemExit(f"{row.name}: {entry.label} read other bytes than the server has")
        count = done["bytes"] / 1e9 if row.data == "large" else done["samples"]
        return {**done, "rate": count / done["seconds"]}

    def _python(self, row: Row, job: Job, size: int) -> Measured:
        one = "one" if row.data == "large" or "stream" in job.reader else "many"
        command = [sys.executable, str(HERE / "case.py"), job.to_json(), str(size), one]
        trust = row.tls and job.ca_file
        if trust and job.reader.startswith("s3torchconnector"):
            # It trusts the system's authorities and nobody else: they are others in a mount namespace of its own.
            swap = f'mount --bind "{job.ca_file}" "{BUNDLE}" && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", swap, "sh", *command]
        done = subprocess.run(
            command, env=environment(job), stdout=subprocess.PIPE, text=True, timeout=LIMIT_SECONDS, check=True
        )
        told: Measured = json.loads(done.stdout.splitlines()[-1])
        return told

    def _engine(self, row: Row, job: Job) -> Measured:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        uri = f"s3://{BUCKET}/{TAR if row.data == 'tar' else LARGE}"
        command = [str(self._profile / "examples" / "sum"), uri]
        done = subprocess.run(
            command, env=environment(job), stderr=subprocess.PIPE, text=True, timeout=LIMIT_SECONDS, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        told: Measured = json.loads(done.stderr.splitlines()[-1])
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        samples = self.server(row.tls).tar_samples if row.data == "tar" else 1
        nothing = {"first_seconds": 0.0, "waited_share": 0.0, "peak_bytes": 0, "samples": samples}
        return {**told, **nothing, "cpu_seconds": cpu}


def environment(job: Job) -> dict[str, str]:
    """Of a reader's process: nobody has settings of the one who measures, and all trust the server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "STANDPIPE_", "SSL_"))}
    ours = {
        "STANDPIPE_ENDPOINT_URL": job.endpoint,
        "STANDPIPE_NO_SIGN_REQUEST": "1",
        "AWS_ENDPOINT_URL": job.endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    if job.ca_file:
        names = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "STANDPIPE_CA_BUNDLE")
        ours |= dict.fromkeys(names, job.ca_file)
    return {**kept, **ours}


def for_test(row: Row) -> Row:
    """Ours alone, and no aims: on a busy machine a figure of a small pass means nothing."""
    ours = [entry for entry in row.entries if entry.reader.startswith(("standpipe", ENGINE))]
    ours = [entry for entry in ours if entry.settings.get("workers", 0) < 2]
    return replace(row, entries=ours, aims=[])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--row", action="append", help="only this one; repeatable (--list names them)")
    parser.add_argument("--list", action="store_true", help="names the rows")
    parser.add_argument("--quick", action="store_true", help="512 MiB instead of 2 GiB, 3,000 objects, 8 shards")
    parser.add_argument("--rounds", type=int, default=0, help="5, or 3 with --quick")
    parser.add_argument("--reader", action="append", help="only those whose name begins so, and the baseline")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-out", help="where peers.json and peers.svg go")
    parser.add_argument("--profile", default="release", help="the folder in target/ with fake-s3 and the example sum")
    parser.add_argument("--test", action="store_true", help="one small pass of ours, checked, in seconds")
    arguments = parser.parse_args()
    every = {row.name: row for row in rows(LATENCY)}
    if arguments.list:
        print("\n".join(f"{name:<20} {row.title}" for name, row in every.items()))
        return 0
    unknown = [name for name in arguments.row or [] if name not in every]
    if unknown:
        parser.error(f"no row is named {', '.join(unknown)}: see --list")
    chosen = [every[name] for name in arguments.row or (TESTED if arguments.test else every)]
    rounds = arguments.rounds or (1 if arguments.test else 3 if arguments.quick else 5)
    bench, report = Bench(arguments), Report()
    begun = time.time()
    try:
        for row in chosen:
            run_row(bench, report, for_test(row) if arguments.test else row, rounds, arguments.reader)
            # After each row: a long run that is broken off has shown something.
            report.write(arguments.out, {"rounds": rounds, "quick": arguments.quick, "began": begun})
    finally:
        bench.stop()
    print(f"\n{len(chosen)} rows, {report.missed} aims missed; {arguments.out}/peers.json, peers.svg")
    return 0


def run_row(bench: Bench, report: Report, row: Row, rounds: int, only: list[str] | None) -> None:
    entries = [
        entry
        for at, entry in enumerate(row.entries)
        if not only or at == 0 or any(entry.label.startswith(name) for name in only)
    ]
    server = bench.server(row.tls)
    server.shape(**row.shape)
    unit = server.first_byte_seconds() if row.data == "first" else 0.001
    measured: dict[str, list[Measured]] = {entry.label: [] for entry in entries}
    bench.read(row, entries[0])  # who is first finds cold pages, the server's and the kernel's
    for _ in range(rounds):
        for entry in entries:
            measured[entry.label].append(bench.read(row, entry))
    aims = [] if only else row.aims
    report.add(replace(row, aims=aims), measured, unit)


if __name__ == "__main__":
    sys.exit(main())
