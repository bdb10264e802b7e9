"""`standpipe.compat.s3torchconnector`: what its users wrote works."""

import io
import pickle

import pytest
from conftest import Server, content
from standpipe.compat.s3torchconnector import (
    S3ClientConfig,
    S3IterableDataset,
    S3MapDataset,
    S3ReaderConstructor,
)


@pytest.fixture
def bodies(server: Server) -> dict[str, bytes]:
    made = {f"compat/{number}": content(20_000 + number, number) for number in range(7)}
    for key, body in made.items():
        server.put(key, body)
    return made


UNSIGNED = S3ClientConfig(unsigned=True, part_size=1 << 20, throughput_target_gbps=25)


def pair(reader: io.BufferedIOBase) -> tuple[str, bytes]:
    return reader.key, reader.read()  # type: ignore[attr-defined]


def test_objects_by_number(server: Server, bodies: dict[str, bytes]) -> None:
    dataset = S3MapDataset.from_prefix(
        "s3://data/compat/", region="us-east-1", endpoint=server.endpoint, transform=pair, s3client_config=UNSIGNED
    )
    assert len(dataset) == 7
    assert [dataset[index] for index in range(7)] == list(bodies.items())
    assert (dataset.region, dataset.endpoint) == ("us-east-1", server.endpoint)
    again = pickle.loads(pickle.dumps(dataset))
    assert again[3] == ("compat/3", bodies["compat/3"])
    with pytest.raises(IndexError):
        dataset[7]


def test_objects_one_after_another(server: Server, bodies: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    uris = [f"s3://data/{key}" for key in bodies]
    dataset = S3IterableDataset.from_objects(uris, region=None, endpoint=server.endpoint, s3client_config=UNSIGNED)
    readers = list(dataset)
    assert [(reader.bucket, reader.key, reader.read()) for reader in readers] == [
        ("data", key, body) for key, body in bodies.items()
    ]
    assert isinstance(readers[0], io.BufferedIOBase) and readers[0].seek(3) == 3
    seen = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        sharded = S3IterableDataset.from_prefix(
            "s3://data/compat/",
            region=None,
            endpoint=server.endpoint,
            transform=pair,
            s3client_config=UNSIGNED,
            enable_sharding=True,
            reader_constructor=S3ReaderConstructor.range_based(buffer_size=0),
        )
        seen += list(sharded)
        assert len(list(dataset)) == 7, "without sharding everybody reads all"
    assert sorted(seen) == list(bodies.items())
