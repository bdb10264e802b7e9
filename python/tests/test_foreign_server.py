"""The same against a server that we did not write (moto), with signed requests."""

import io
from collections.abc import Iterator

import boto3
import numpy
import pytest
import standpipe
from conftest import content
from moto.server import ThreadedMotoServer
from standpipe import Options


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Options, dict[str, bytes]]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    client = boto3.client("s3", endpoint_url=moto, region_name="us-east-1")
    client.create_bucket(Bucket="foreign")
    bodies = {f"train/{number:02}.bin": content(number * 70_000, number) for number in range(8)}
    for key, body in bodies.items():
        client.put_object(Bucket="foreign", Key=key, Body=body)
    return {"endpoint_url": moto, "region": "us-east-1"}, bodies


def test_streams(bucket: tuple[Options, dict[str, bytes]]) -> None:
    options, bodies = bucket
    chunks = list(standpipe.stream("s3://foreign/train/", part_size="64KiB", **options))
    assert b"".join(map(bytes, chunks)) == b"".join(bodies.values())
    assert sum(int(numpy.frombuffer(chunk, numpy.uint8).sum()) for chunk in chunks) == sum(map(sum, bodies.values()))


def test_files(bucket: tuple[Options, dict[str, bytes]]) -> None:
    options, bodies = bucket
    body = bodies["train/07.bin"]
    with standpipe.open("s3://foreign/train/07.bin", part_size="64KiB", **options) as file:
        assert file.read(1000) == body[:1000]
        file.seek(-5000, io.SEEK_END)
        assert file.read() == body[-5000:]
        file.seek(0)
        assert file.read() == body
    files = standpipe.FastFiles("s3://foreign/", **options)
    assert {entry.path: files.read(entry.path) for entry in files.walk() if not entry.is_dir} == bodies


def test_lists_downloads_and_errors(bucket: tuple[Options, dict[str, bytes]], tmp_path) -> None:  # type: ignore[no-untyped-def]
    options, bodies = bucket
    listed = standpipe.list("s3://foreign/train/", **options)
    assert {info.key: info.size for info in listed} == {key: len(body) for key, body in bodies.items()}
    assert standpipe.download("s3://foreign/train/", tmp_path, **options)["files_written"] == 8
    assert (tmp_path / "07.bin").read_bytes() == bodies["train/07.bin"]
    with pytest.raises(FileNotFoundError) as failed:
        standpipe.open("s3://foreign/train/none", **options)
    assert isinstance(failed.value, standpipe.NotFoundError)
    with pytest.raises(FileNotFoundError):
        list(standpipe.stream("s3://no-such-bucket-at-all/x/", **options))
