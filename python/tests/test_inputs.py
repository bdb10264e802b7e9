"""What `standpipe.Dataset` can be given: patterns, lists, manifests, augmented manifests."""

import itertools
import json
import pickle
import threading
import time
from typing import Any

import pytest
import standpipe
from conftest import Server, content
from standpipe import Dataset, Options


def test_patterns_lists_and_listings(server: Server, options: Options) -> None:
    for number in range(12):
        server.put(f"inputs/part-{number:03}.txt", b"%d\n" % number)

    def read(uris: Any) -> list[int]:
        return [int(line) for line in Dataset(uris, **options)]

    assert read("s3://data/inputs/part-{003..005}.txt") == [3, 4, 5]
    assert read("s3://data/inputs/part-{007,001}.txt") == [7, 1]
    assert read(["s3://data/inputs/part-{010..011}.txt", "s3://data/inputs/part-000.txt"]) == [10, 11, 0]
    assert read("s3://data/inputs/part-00") == list(range(10))
    assert read(list(standpipe.list("s3://data/inputs/part-{002,009}.txt", **options))) == [2, 9]
    with pytest.raises(standpipe.NotFoundError, match="part-099"):
        read("s3://data/inputs/part-{000,099}.txt")


def test_a_manifest_in_its_order(server: Server, options: Options) -> None:
    for number in range(6):
        server.put(f"manifest/{number}.txt", b"%d\n" % number)
    entries = [{"prefix": "s3://data/manifest/"}, "4.txt", "0.txt", "4.txt", "2.txt"]
    uri = server.put("manifest-of/them.manifest", json.dumps(entries).encode())
    assert [int(line) for line in Dataset(uri, manifest=True, **options)] == [4, 0, 4, 2]
    seen: list[int] = []
    for rank in range(2):
        seen += map(int, Dataset(uri, manifest=True, shuffle=5, rank=rank, world_size=2, **options))
    assert sorted(seen) == [0, 2, 4, 4]
    uri = server.put("manifest-of/none.manifest", json.dumps([{"prefix": "s3://data/manifest/"}, "9.txt"]).encode())
    with pytest.raises(standpipe.NotFoundError, match=r"9\.txt"):
        list(Dataset(uri, "lines", manifest=True, **options))
    uri = server.put("manifest-of/bad.manifest", b"{}")
    with pytest.raises(standpipe.ConfigError, match=r"bad\.manifest"):
        list(Dataset(uri, "lines", manifest=True, **options))
    with pytest.raises(standpipe.ConfigError, match="one"):
        Dataset([uri, uri], manifest=True)


@pytest.fixture
def augmented(server: Server) -> tuple[str, list[tuple[int, bytes]]]:
    """A manifest of 700 lines, that refer to small objects and to three large ones."""
    bodies = [content(2_000_000 if number < 3 else 500 + number, number) for number in range(40)]
    for number, body in enumerate(bodies):
        server.put(f"augmented/{number}.bin", body)
    lines, expected = [], []
    for number in range(700):
        lines.append(
            json.dumps(
                {"n": number, "image-ref": f"s3://data/augmented/{number * 7 % 40}.bin", "note": {"a": [number]}}
            )
        )
        expected.append((number, bodies[number * 7 % 40]))
    return server.put("augmented-of/them.manifest", "\n".join([*lines, ""]).encode()), expected


def test_lines_of_an_augmented_manifest(augmented: tuple[str, list[tuple[int, bytes]]], options: Options) -> None:
    uri, expected = augmented
    samples = list(Dataset(uri, attributes=["image-ref", "n"], **options))
    assert [(sample["n"], bytes(sample["image-ref"])) for sample in samples] == expected
    assert list(samples[0]) == ["image-ref", "n"]
    texts = list(Dataset(uri, attributes=["note"], batch_size=300, **options))
    assert [len(batch) for batch in texts] == [300, 300, 100] and texts[1][5] == {"note": {"a": [305]}}
    dropped = Dataset(uri, attributes=["n", "image-ref"], batch_size=300, drop_last=True, epochs=2, **options)
    assert [len(batch) for batch in dropped] == [300] * 4


def test_they_come_once_and_go_on(augmented: tuple[str, list[tuple[int, bytes]]], options: Options) -> None:
    uri, expected = augmented

    def consumer(rank: int, ranks: int) -> Dataset:
        return Dataset(uri, attributes=["image-ref", "n"], shuffle=64, seed=2, rank=rank, world_size=ranks, **options)

    seen: list[tuple[int, bytes]] = []
    states = []
    for rank, stop in enumerate([10, 300, 0]):
        one = consumer(rank, 3)
        seen += [(sample["n"], bytes(sample["image-ref"])) for sample in itertools.islice(one, stop)]
        states.append(json.loads(json.dumps(one.state_dict())))
    merged = standpipe.merge_states(states)
    for rank in range(2):
        one = pickle.loads(pickle.dumps(consumer(rank, 2)))
        one.load_state_dict(merged)
        seen += [(sample["n"], bytes(sample["image-ref"])) for sample in one]
    assert sorted(seen) == expected and seen != expected


def test_objects_of_lines_are_fetched_side_by_side(server: Server, options: Options) -> None:
    for number in range(40):
        server.put(f"augmented-slow/{number}", b"%d" % number)
    lines = [json.dumps({"x-ref": f"s3://data/augmented-slow/{number}"}) for number in range(40)]
    uri = server.put("augmented-of/slow.manifest", "\n".join(lines).encode())
    server.script({"prefix": "data/augmented-slow/", "effect": "latency", "first_byte_ms": 100, "operations": ["get"]})
    samples = Dataset(uri, attributes=["x-ref"], **options)
    with iter(samples) as found:
        assert [int(bytes(sample["x-ref"])) for sample in found] == list(range(40))
        waited = samples.stats()["elapsed_seconds"]
    assert waited < 2.5, "one after another they take 4 s"


@pytest.mark.parametrize("batch_size", [None, 4])
def test_lines_that_could_not_be_read_come_next(batch_size: int | None, server: Server, options: Options) -> None:
    def name(number: int) -> str:
        return f"augmented-late-{batch_size}/{number}"

    for number in [*range(25), *range(26, 40)]:
        server.put(name(number), b"%d" % number)
    lines = [json.dumps({"n": number, "x-ref": f"s3://data/{name(number)}"}) for number in range(40)]
    uri = server.put("augmented-of/late.manifest", "\n".join(lines).encode())

    def dataset() -> Dataset:
        return Dataset(uri, attributes=["n", "x-ref"], shuffle=8, seed=1, epochs=2, batch_size=batch_size, **options)

    def flat(sample: Any) -> list[int]:
        samples = [sample] if batch_size is None else sample
        assert all(int(bytes(one["x-ref"])) == one["n"] for one in samples), "a line and its object"
        return [one["n"] for one in samples]

    one = dataset()
    samples = iter(one)
    seen: list[int] = []
    with pytest.raises(standpipe.NotFoundError):
        for sample in samples:
            seen += flat(sample)
    with pytest.raises(standpipe.NotFoundError):
        next(samples)
    server.put(name(25), b"25")
    again = dataset()
    again.load_state_dict(one.state_dict())
    whole = [number for sample in dataset() for number in flat(sample)]
    assert sorted(whole) == sorted([*range(40)] * 2)
    for rest in (samples, again):
        assert seen + [number for sample in rest for number in flat(sample)] == whole


def test_lines_are_closed_while_another_thread_waits(server: Server, options: Options) -> None:
    server.put("augmented-close/a", b"a")
    uri = server.put("augmented-of/close.manifest", b'{"x-ref": "s3://data/augmented-close/a"}\n')
    server.script({"prefix": "data/augmented-close/", "effect": "latency", "first_byte_ms": 8000})
    samples = iter(Dataset(uri, attributes=["x-ref"], **options))
    found: list[Any] = []
    reading = threading.Thread(target=lambda: found.append(list(samples)))
    reading.start()
    deadline = time.monotonic() + 20
    while samples.stats()["samples"] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    samples.close()
    reading.join(4)
    assert found == [[]]


def test_what_is_wrong_with_a_manifest_names_the_line(server: Server, options: Options) -> None:
    good = b'{"n": 1, "x-ref": "s3://data/none/at-all"}\n'
    for name, line, told in [
        ("json", b"{\n", "line 2.*no JSON"),
        ("list", b"[]\n", "line 2.*one JSON object"),
        ("lacks", b'{"n": 1}\n', "line 2.*x-ref"),
        ("number", b'{"n": 1, "x-ref": 5}\n', "line 2.*no address"),
    ]:
        uri = server.put(f"augmented-bad/{name}", good + line)
        with pytest.raises(standpipe.ConfigError, match=told):
            iter(Dataset(uri, attributes=["n", "x-ref"], **options))
    uri = server.put("augmented-bad/missing", good)
    with pytest.raises(standpipe.NotFoundError, match="none/at-all"):
        list(Dataset(uri, attributes=["x-ref"], **options))
    for wrong in (
        {"attributes": []},
        {"attributes": ["n"], "format": "lines"},
        {"attributes": ["n"], "manifest": True},
    ):
        with pytest.raises(standpipe.ConfigError, match="attributes"):
            Dataset(uri, **wrong, **options)  # type: ignore[arg-type]


def test_without_end_an_epoch_that_gives_nothing_is_an_error(server: Server, options: Options) -> None:
    server.put("barren/a.rec", b"no record at all")
    server.put("barren/b.rec", b"")
    dataset = Dataset("s3://data/barren/", "recordio", on_error="skip", epochs=None, **options)
    with pytest.raises(standpipe.ConfigError, match=r"(?s)epoch 0 gave this consumer no sample.*barren/a\.rec"):
        next(iter(dataset))
