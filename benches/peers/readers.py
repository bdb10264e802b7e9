"""The readers, each as its own documentation would have a user write it, tuned where it can be.

A reader imports what it needs and returns the function that starts reading: the clock runs from there on. Nobody signs:
signatures would cost some of them more than others.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from job import BUCKET, LARGE, SMALL, TAR, Job, Piece, Reader, Start

PIECE_BYTES = 8 << 20
REGION = "us-east-1"


def identity(thing: Any) -> Any:
    return thing


# Ours.


def standpipe_stream(job: Job) -> Start:
    import standpipe

    def start() -> Iterator[Piece]:
        for chunk in standpipe.stream(f"s3://{BUCKET}/{LARGE}"):
            yield (memoryview(chunk),)

    return start


def standpipe_file(job: Job) -> Start:
    import standpipe

    def start() -> Iterator[Piece]:
        buffer = memoryview(bytearray(PIECE_BYTES))
        with standpipe.open(f"s3://{BUCKET}/{LARGE}") as file:
            while count := file.readinto(buffer):
                yield (buffer[:count],)

    return start


def bin_and_cls(sample: dict[str, Any]) -> Piece:
    return memoryview(sample["bin"]), memoryview(sample["cls"])


def copied(sample: dict[str, Any]) -> Piece:
    # What crosses from a worker's process is copied anyway.
    return bytes(sample["bin"]), bytes(sample["cls"])


def standpipe_tar(job: Job) -> Start:
    import standpipe.torch
    from torch.utils.data import DataLoader

    def start() -> Iterator[Piece]:
        dataset = standpipe.torch.StreamingDataset(
            f"s3://{BUCKET}/{TAR}", "tar", transform=copied if job.workers else bin_and_cls
        )
        # Without workers there is nothing to batch for: a crossing into Python is a batch of its own in Rust.
        loader = DataLoader(
            dataset, num_workers=job.workers, batch_size=16 if job.workers else None, collate_fn=identity
        )
        yield from itertools.chain.from_iterable(loader) if job.workers else loader

    return start


def standpipe_dataset(job: Job) -> Start:
    """Without PyTorch, whose DataLoader has costs of its own."""
    import standpipe

    return lambda: map(bin_and_cls, standpipe.Dataset(f"s3://{BUCKET}/{TAR}", "tar"))


def standpipe_map(job: Job) -> Start:
    import standpipe.torch
    from torch.utils.data import DataLoader

    options: Any = {} if job.flight is None else {"concurrency": job.flight}
    dataset = standpipe.torch.MapDataset(f"s3://{BUCKET}/{SMALL}", **options)
    if job.first_only:
        len(dataset)  # whoever shuffles needs the listing before the first sample

    def start() -> Iterator[Piece]:
        sampler: Any = job.order if job.workers else dataset.ahead(job.order)
        loader = DataLoader(
            dataset, batch_size=job.batch, sampler=sampler, num_workers=job.workers, collate_fn=identity
        )
        for batch in loader:
            yield from ((body,) for body in batch)

    return start


def standpipe_map_batches(job: Job) -> Start:
    """Without look-ahead: what `shuffle=True` gives."""
    import standpipe.torch
    from torch.utils.data import DataLoader

    def start() -> Iterator[Piece]:
        dataset = standpipe.torch.MapDataset(f"s3://{BUCKET}/{SMALL}")
        for batch in DataLoader(dataset, batch_size=job.batch, sampler=job.order, collate_fn=identity):
            yield from ((body,) for body in batch)

    return start


# boto3.


def boto3_client(job: Job, connections: int = 10) -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        signature_version=UNSIGNED,
        s3={"addressing_style": "path"},
        max_pool_connections=connections,
        region_name=REGION,
    )
    return boto3.client("s3", endpoint_url=job.endpoint, verify=job.ca_file, config=config)


def boto3_object(job: Job) -> Start:
    import boto3  # noqa: F401

    def start() -> Iterator[Piece]:
        body = boto3_client(job).get_object(Bucket=BUCKET, Key=LARGE)["Body"]
        while piece := body.read(1 << 20):
            yield (piece,)

    return start


def boto3_threads(job: Job) -> Start:
    import boto3  # noqa: F401

    threads = job.flight or 16

    def start() -> Iterator[Piece]:
        client = boto3_client(job, threads)
        keys = job.small_keys

        def get(number: int) -> bytes:
            body: bytes = client.get_object(Bucket=BUCKET, Key=keys[number])["Body"].read()
            return body

        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for body in pool.map(get, job.order):
                yield (body,)

    return start


# s3torchconnector.


def connector_config() -> Any:
    from s3torchconnector import S3ClientConfig

    return S3ClientConfig(unsigned=True, force_path_style=True)


def connector_large(job: Job) -> Start:
    from s3torchconnector import S3IterableDataset

    def start() -> Iterator[Piece]:
        dataset = S3IterableDataset.from_objects(
            f"s3://{BUCKET}/{LARGE}", region=REGION, endpoint=job.endpoint, s3client_config=connector_config()
        )
        for reader in dataset:
            while piece := reader.read(PIECE_BYTES):
                yield (piece,)

    return start


def connector_client(job: Job) -> Start:
    """The client below the datasets, without their reader."""
    from s3torchconnector._s3client import S3Client

    def start() -> Iterator[Piece]:
        client = S3Client(REGION, endpoint=job.endpoint, s3client_config=connector_config())
        for piece in client._get_object_stream(BUCKET, LARGE):
            yield (piece,)

    return start


def tar_of(reader: Any) -> Iterator[Piece]:
    """A shard as pairs of files, as everybody writes it who has a stream and tarfile."""
    with tarfile.open(fileobj=reader, mode="r|") as archive:
        found: dict[str, bytes] = {}
        for member in archive:
            file = archive.extractfile(member)
            if file is None:
                continue
            found[member.name.rsplit(".", 1)[-1]] = file.read()
            if len(found) == 2:
                yield found["bin"], found["cls"]
                found = {}


def connector_tar(job: Job) -> Start:
    from s3torchconnector import S3IterableDataset
    from torch.utils.data import DataLoader, IterableDataset

    class Samples(IterableDataset):  # type: ignore[misc]
        def __iter__(self) -> Iterator[Piece]:
            shards = S3IterableDataset.from_prefix(
                f"s3://{BUCKET}/{TAR}",
                region=REGION,
                endpoint=job.endpoint,
                enable_sharding=True,
                s3client_config=connector_config(),
            )
            return itertools.chain.from_iterable(map(tar_of, shards))

    def start() -> Iterator[Piece]:
        loader = DataLoader(
            Samples(), num_workers=job.workers, batch_size=16 if job.workers else None, collate_fn=identity
        )
        yield from itertools.chain.from_iterable(loader) if job.workers else loader

    return start


def read_all(reader: Any) -> bytes:
    body: bytes = reader.read()
    return body


def connector_map(job: Job) -> Start:
    from s3torchconnector import S3MapDataset
    from torch.utils.data import DataLoader

    dataset = S3MapDataset.from_prefix(
        f"s3://{BUCKET}/{SMALL}",
        region=REGION,
        endpoint=job.endpoint,
        transform=read_all,
        s3client_config=connector_config(),
    )
    if job.first_only:
        len(dataset)

    def start() -> Iterator[Piece]:
        loader = DataLoader(
            dataset, batch_size=job.batch, sampler=job.order, num_workers=job.workers, collate_fn=identity
        )
        for batch in loader:
            yield from ((body,) for body in batch)

    return start


# obstore.


def obstore_store(job: Job) -> Any:
    from obstore.store import S3Store

    options: Any = {"allow_http": True}
    if job.ca_file:
        options["root_certificate"] = Path(job.ca_file).read_text()
    return S3Store(
        BUCKET,
        endpoint=job.endpoint,
        region=REGION,
        skip_signature=True,
        virtual_hosted_style_request=False,
        client_options=options,
    )


def obstore_stream(job: Job) -> Start:
    import obstore

    def start() -> Iterator[Piece]:
        for piece in obstore.get(obstore_store(job), LARGE).stream(min_chunk_size=PIECE_BYTES):
            yield (memoryview(piece),)

    return start


def in_order(jobs: Iterator[Any], flight: int) -> Iterator[Piece]:
    """Results of awaitable `jobs` in their order, with `flight` of them under way, without another thread."""
    loop = asyncio.new_event_loop()
    under_way: deque[asyncio.Future[Any]] = deque()

    async def some() -> list[Any]:
        while len(under_way) < flight and (job := next(jobs, None)) is not None:
            under_way.append(asyncio.ensure_future(job))
        ready = [await under_way.popleft()] if under_way else []
        while under_way and under_way[0].done() and len(ready) < flight // 4:
            ready.append(under_way.popleft().result())
        return ready

    while results := loop.run_until_complete(some()):
        yield from ((memoryview(result),) for result in results)
    loop.close()


def obstore_ranges(job: Job) -> Start:
    import obstore

    def start() -> Iterator[Piece]:
        store = obstore_store(job)
        size = obstore.head(store, LARGE)["size"]
        ranges = (
            obstore.get_range_async(store, LARGE, start=at, end=min(at + PIECE_BYTES, size))
            for at in range(0, size, PIECE_BYTES)
        )
        return in_order(ranges, job.flight or 16)

    return start


def obstore_objects(job: Job) -> Start:
    import obstore

    def start() -> Iterator[Piece]:
        store = obstore_store(job)
        keys = job.small_keys

        async def get(number: int) -> Any:
            return await (await obstore.get_async(store, keys[number])).bytes_async()

        return in_order(map(get, job.order), job.flight or 64)

    return start


# s3fs.


def s3fs_system(job: Job) -> Any:
    import s3fs

    return s3fs.S3FileSystem(
        anon=True,
        endpoint_url=job.endpoint,
        client_kwargs={"verify": job.ca_file, "region_name": REGION} if job.ca_file else {"region_name": REGION},
    )


def s3fs_large(job: Job) -> Start:
    import s3fs  # noqa: F401

    def start() -> Iterator[Piece]:
        with s3fs_system(job).open(f"{BUCKET}/{LARGE}", "rb", block_size=PIECE_BYTES) as file:
            while piece := file.read(PIECE_BYTES):
                yield (piece,)

    return start


def s3fs_objects(job: Job) -> Start:
    import s3fs  # noqa: F401

    def start() -> Iterator[Piece]:
        system = s3fs_system(job)
        order = [f"{BUCKET}/{job.small_keys[number]}" for number in job.order]
        for at in range(0, len(order), job.batch):
            keys = order[at : at + job.batch]
            found = system.cat(keys, batch_size=job.flight or 64)
            yield from ((found[key],) for key in keys)

    return start


# Other programs.


def curl_command(job: Job, key: str) -> list[str]:
    trust = ["--cacert", job.ca_file] if job.ca_file else []
    return ["curl", "--silent", "--fail", "--show-error", *trust, f"{job.endpoint}/{BUCKET}/{key}"]


def s5cmd_command(job: Job, *arguments: str) -> list[str]:
    return [job.program("s5cmd"), "--endpoint-url", job.endpoint, "--no-sign-request", *arguments]


def of_command(command: list[str]) -> Iterator[Piece]:
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while piece := process.stdout.read(1 << 20):
            yield (piece,)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")


def curl_large(job: Job) -> Start:
    return lambda: of_command(curl_command(job, LARGE))


def s5cmd_large(job: Job) -> Start:
    return lambda: of_command(s5cmd_command(job, "cat", "--concurrency", "16", f"s3://{BUCKET}/{LARGE}"))


def webdataset_over(command: Any) -> Reader:
    def reader(job: Job) -> Start:
        import shlex

        import webdataset
        from torch.utils.data import DataLoader

        def start() -> Iterator[Piece]:
            urls = [f"pipe:{shlex.join(command(job, key))}" for key in job.tar_keys]
            dataset = webdataset.WebDataset(
                urls, shardshuffle=False, nodesplitter=identity, empty_check=False
            ).to_tuple("bin", "cls")
            loader = DataLoader(
                dataset, num_workers=job.workers, batch_size=16 if job.workers else None, collate_fn=identity
            )
            yield from itertools.chain.from_iterable(loader) if job.workers else loader

        return start

    return reader


def s5cmd_cat(job: Job, key: str) -> list[str]:
    return s5cmd_command(job, "cat", f"s3://{BUCKET}/{key}")


class Files:
    """A folder, map style: what tutorials show."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> bytes:
        return self._paths[index].read_bytes()


def file_mode(job: Job) -> Start:
    """Downloads everything, then reads files: the download is in the time, as it is in File mode's."""
    from torch.utils.data import DataLoader

    def start() -> Iterator[Piece]:
        folder = tempfile.mkdtemp(dir=os.environ.get("TMPDIR"))
        try:
            copy = s5cmd_command(job, "--numworkers", "64", "cp", f"s3://{BUCKET}/{SMALL}*", f"{folder}/")
            subprocess.run(copy, check=True, stdout=subprocess.DEVNULL)
            files: Any = Files(sorted(Path(folder).iterdir()))
            for batch in DataLoader(
                files, batch_size=job.batch, sampler=job.order, num_workers=job.workers, collate_fn=identity
            ):
                yield from ((body,) for body in batch)
        finally:
            shutil.rmtree(folder)

    return start


READERS: dict[str, Reader] = {
    "standpipe stream": standpipe_stream,
    "standpipe open": standpipe_file,
    "standpipe tar": standpipe_tar,
    "standpipe dataset": standpipe_dataset,
    "standpipe map": standpipe_map,
    "standpipe map, no look-ahead": standpipe_map_batches,
    "boto3 get_object": boto3_object,
    "boto3 threads": boto3_threads,
    "s3torchconnector": connector_large,
    "s3torchconnector client": connector_client,
    "s3torchconnector tarfile": connector_tar,
    "s3torchconnector map": connector_map,
    "obstore stream": obstore_stream,
    "obstore ranges": obstore_ranges,
    "obstore objects": obstore_objects,
    "s3fs open": s3fs_large,
    "s3fs cat": s3fs_objects,
    "curl": curl_large,
    "s5cmd cat": s5cmd_large,
    "webdataset curl": webdataset_over(curl_command),
    "webdataset s5cmd": webdataset_over(s5cmd_cat),
    "File mode": file_mode,
}
