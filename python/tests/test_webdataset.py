"""`standpipe.webdataset`, with webdataset itself."""

import io
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import standpipe
from conftest import Server, content, environment
from standpipe._sequential import sequential


def shard(first: int, count: int) -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        for number in range(first, first + count):
            for extension, data in (("jpg", content(30_000 + number, number)), ("cls", str(number).encode())):
                entry = tarfile.TarInfo(f"{number:06}.{extension}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return body.getvalue()


@pytest.fixture
def shards(server: Server) -> Iterator[str]:
    for number in range(3):
        server.put(f"wds/train-{number:03}.tar", shard(number * 10, 10))
    yield "s3://data/wds/train-{000..002}.tar"


def test_a_stream_is_a_file_for_tar_readers(server: Server, shards: str) -> None:
    stream = standpipe.stream("s3://data/wds/train-000.tar", part_size="64KiB", **server.options)
    with sequential(stream) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        names = [entry.name for entry in tar]
    assert len(names) == 20 and names[0] == "000000.jpg"
    assert file.closed


def test_samples_come_through_webdataset(server: Server, shards: str) -> None:
    # A process of its own: webdataset keeps its schemes in a global.
    program = f"""
    import webdataset
    import standpipe.webdataset

    standpipe.webdataset.register(part_size="64KiB")
    dataset = webdataset.WebDataset({shards!r}, shardshuffle=False, empty_check=False)
    samples = list(dataset)
    assert [sample["__key__"] for sample in samples] == [f"{{n:06}}" for n in range(30)]
    assert [int(sample["cls"]) for sample in samples] == list(range(30))
    assert [len(sample["jpg"]) for sample in samples] == [30_000 + n for n in range(30)]
    assert samples[0]["__url__"] == "s3://data/wds/train-000.tar"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment(server), timeout=60, check=True)


def test_a_missing_shard_is_an_error(server: Server) -> None:
    from standpipe.webdataset import opener

    with pytest.raises(standpipe.NotFoundError):
        opener(**server.options)("s3://data/wds/none.tar").read()
    with pytest.raises(ValueError, match="read only"):
        opener(**server.options)("s3://data/wds/none.tar", "wb")


@pytest.mark.parametrize("cached", [False, True])
def test_a_missing_shard_is_no_beginning_of_others(cached: bool, server: Server, tmp_path: Path) -> None:
    from standpipe.webdataset import opener

    opened = opener(**server.options, cache=tmp_path if cached else None)
    server.put("wds-missing/a.tar.idx", b"no archive")
    with pytest.raises(FileNotFoundError):
        opened("s3://data/wds-missing/a.tar").read()
    assert opened("s3://data/wds-missing/a.tar.idx").read() == b"no archive"
