"""`standpipe.torch`, with torch itself."""

import pickle
import time

import pytest
import standpipe
import torch
from conftest import Server, content
from standpipe import Options
from standpipe.torch import MapDataset
from torch.utils.data import DataLoader
from transforms import digest


@pytest.fixture
def bodies(server: Server) -> list[bytes]:
    made = [content(30_000 + number, number) for number in range(40)]
    for number, body in enumerate(made):
        server.put(f"torch/{number:03}", body)
    return made


def test_objects_by_number(server: Server, bodies: list[bytes], options: Options) -> None:
    dataset = MapDataset("s3://data/torch/", **options)
    assert len(dataset) == 40
    assert dataset[7] == bodies[7] and dataset[-1] == bodies[-1]
    assert dataset.__getitems__([3, 1, 1, 39]) == [bodies[3], bodies[1], bodies[1], bodies[39]]
    assert dataset.__getitems__([]) == []
    for index in (40, -41):
        with pytest.raises(IndexError):
            dataset[index]
    assert isinstance(dataset, torch.utils.data.Dataset)


def test_a_batch_is_fetched_side_by_side(server: Server, bodies: list[bytes], options: Options) -> None:
    dataset = MapDataset("s3://data/torch/", **options)
    len(dataset)
    server.script({"prefix": "data/torch/", "effect": "latency", "first_byte_ms": 100, "operations": ["get"]})
    begun = time.monotonic()
    assert dataset.__getitems__(list(range(24))) == bodies[:24]
    assert time.monotonic() - begun < 1.2, "one after another they take 2.4 s"


def test_large_objects_come_in_one_piece(server: Server, options: Options) -> None:
    body = content(1_000_000, 5)
    server.put("torch-large/object", body)
    dataset = MapDataset(
        "s3://data/torch-large/", transform=lambda item: (item.key, bytes(item.data)), part_size="64KiB", **options
    )
    assert dataset[0] == ("torch-large/object", body)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_loader_gives_every_sample_once(
    workers: int, method: str, server: Server, bodies: list[bytes], options: Options
) -> None:
    dataset = MapDataset("s3://data/torch/", transform=digest, **options)
    assert dataset[0] == (0, sum(bodies[0]))
    loader = DataLoader(
        dataset,
        batch_size=8,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=method if workers else None,
        persistent_workers=workers > 0,
        timeout=30 if workers else 0,
    )
    for _epoch in range(2):
        seen = [
            (int(index), int(total)) for indices, totals in loader for index, total in zip(indices, totals, strict=True)
        ]
        assert sorted(seen) == [(number, sum(body)) for number, body in enumerate(bodies)]


def test_it_pickles_with_its_listing(server: Server, bodies: list[bytes], options: Options) -> None:
    dataset = MapDataset("s3://data/torch/", **options)
    assert pickle.loads(pickle.dumps(dataset))[2] == bodies[2]
    len(dataset)
    again = pickle.loads(pickle.dumps(dataset))
    server.request("POST", "/_fake/log/clear")
    assert again[2] == bodies[2]
    assert not [entry for entry in server.log() if entry["operation"] == "list"]
    listed = list(standpipe.list("s3://data/torch/{005,003}", **options))
    assert [bytes(sample) for sample in MapDataset(listed, **options).__getitems__([0, 1])] == [bodies[5], bodies[3]]


def test_tensors_see_a_chunk_without_a_copy(server: Server, bodies: list[bytes], options: Options) -> None:
    (chunk,) = standpipe.stream("s3://data/torch/000", **options)
    with pytest.warns(UserWarning, match="not writable"):
        tensor = torch.frombuffer(chunk, dtype=torch.uint8)
    assert int(tensor.sum()) == sum(bodies[0]) and len(tensor) == len(bodies[0])
