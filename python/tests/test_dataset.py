"""`standpipe.Dataset`: formats, order, exactly once, and going on."""

import gzip
import io
import itertools
import json
import pickle
import random
import struct
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import pytest
import standpipe
from conftest import Server, content, run
from standpipe import Dataset, Options


def recordio(payload: bytes) -> bytes:
    return struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4)


def tarred(samples: dict[str, dict[str, bytes]]) -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        for key, files in samples.items():
            for ending, data in files.items():
                entry = tarfile.TarInfo(f"{key}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return body.getvalue()


def lines(first: int, count: int) -> bytes:
    return b"".join(b"%d %s\n" % (number, b"x" * (number % 50)) for number in range(first, first + count))


def jsonl(first: int, count: int) -> bytes:
    return b"".join(json.dumps({"n": number}).encode() + b"\n" for number in range(first, first + count))


def tar(first: int, count: int) -> bytes:
    return tarred(
        {f"{number:06}": {"cls": b"%d" % number, "jpg": content(500, number)} for number in range(first, first + count)}
    )


def rec(first: int, count: int) -> bytes:
    return b"".join(recordio(b"%d" % number) for number in range(first, first + count))


def fixed(first: int, count: int) -> bytes:
    return b"".join(b"%08d" % number for number in range(first, first + count))


def parquet(first: int, count: int) -> bytes:
    body = io.BytesIO()
    table = pyarrow.table({"n": pyarrow.array(range(first, first + count), pyarrow.int64())})
    pyarrow.parquet.write_table(table, body, row_group_size=9)
    return body.getvalue()


# A format's writer, and which number a sample holds.
FORMATS: dict[str, tuple[Callable[[int, int], bytes], Callable[[Any], int]]] = {
    "lines": (lines, lambda sample: int(sample.split()[0])),
    "jsonl": (jsonl, lambda sample: sample["n"]),
    "tar": (tar, lambda sample: int(bytes(sample["cls"]))),
    "recordio": (rec, lambda sample: int(bytes(sample))),
    "fixed:8": (fixed, lambda sample: int(bytes(sample))),
    "parquet": (parquet, lambda sample: sample["n"]),
}


def put_shards(server: Server, format_: str, sizes: list[int], compress: bool = False) -> tuple[str, int]:
    folder = f"set-{format_.replace(':', '')}-{'-'.join(map(str, sizes))}{'-gz' * compress}"
    first = 0
    for index, size in enumerate(sizes):
        body = FORMATS[format_][0](first, size)
        server.put(f"{folder}/{index:03}" + ".gz" * compress, gzip.compress(body) if compress else body)
        first += size
    return f"s3://data/{folder}/", first


UNEVEN = [40, 1, 0, 77, 13, 30, 5]


@pytest.mark.parametrize("format_", FORMATS)
def test_each_sample_once_whatever_the_numbers(format_: str, server: Server, options: Options) -> None:
    uri, total = put_shards(server, format_, UNEVEN)
    number = FORMATS[format_][1]
    in_order = [number(sample) for sample in Dataset(uri, format_, **options)]
    assert in_order == list(range(total))
    for ranks, workers, shuffle in [(1, 1, 16), (3, 1, None), (2, 2, 8), (5, 3, 1000)]:
        seen = []
        for rank, worker in itertools.product(range(ranks), range(workers)):
            who: dict[str, Any] = {"rank": rank, "world_size": ranks, "worker": worker, "workers": workers}
            seen += [number(sample) for sample in Dataset(uri, format_, shuffle=shuffle, seed=3, **who, **options)]
        assert sorted(seen) == list(range(total))
        assert shuffle is None or seen != sorted(seen)


def test_the_order_is_a_function_of_seed_and_epoch(server: Server, options: Options) -> None:
    uri, total = put_shards(server, "lines", UNEVEN)

    def order(**settings: Any) -> list[bytes]:
        return list(Dataset(uri, "lines", shuffle=20, **{**settings, **options}))

    assert order(seed=1) == order(seed=1) == order(seed=1, threads=3)
    assert order(seed=1) != order(seed=2)
    assert order(seed=1, epoch=1) != order(seed=1)
    assert order(seed=1, epochs=2) == order(seed=1) + order(seed=1, epoch=1)
    dataset = Dataset(uri, "lines", shuffle=20, seed=1, **options)
    dataset.set_epoch(1)
    assert list(dataset) == order(seed=1, epoch=1)
    assert order(seed=1, skip=10) == order(seed=1)[10:]
    assert total == len(order())


@pytest.mark.parametrize(
    ("format_", "compress"), [case for case in itertools.product(FORMATS, [False, True]) if case != ("parquet", True)]
)
def test_it_goes_on_where_it_was(format_: str, compress: bool, server: Server, options: Options) -> None:
    uri, total = put_shards(server, format_, [30, 50, 7], compress)
    number = FORMATS[format_][1]
    chance = random.Random(5)
    settings: dict[str, Any] = {"shuffle": 12, "seed": 9, "epochs": 2}
    whole = [number(sample) for sample in Dataset(uri, format_, **settings, **options)]
    assert sorted(whole) == sorted([*range(total)] * 2)
    for stop in sorted(chance.sample(range(2 * total), 6)):
        dataset = Dataset(uri, format_, **settings, **options)
        before = [number(sample) for sample in itertools.islice(dataset, stop)]
        state = json.loads(json.dumps(dataset.state_dict()))
        assert len(json.dumps(state)) < 2000
        again = Dataset(uri, format_, **settings, **options)
        again.load_state_dict(state)
        assert before + [number(sample) for sample in again] == whole


def test_it_goes_on_by_seeking(server: Server, options: Options) -> None:
    body = lines(0, 200_000)
    uri = server.put("seek/large.txt", body)
    dataset = Dataset(uri, "lines", part_size="256KiB", **options)
    for _ in itertools.islice(dataset, 190_000):
        pass
    state = dataset.state_dict()
    server.request("POST", "/_fake/log/clear")
    again = Dataset(uri, "lines", part_size="256KiB", **options)
    again.load_state_dict(state)
    assert len(list(again)) == 10_000
    assert sum(entry["bytes_sent"] for entry in server.log() if entry["operation"] == "get") < len(body) // 8


@pytest.mark.parametrize(("before", "after"), [((2, 1), (3, 1)), ((3, 2), (1, 1)), ((1, 2), (2, 2))])
def test_others_go_on_with_what_is_left(
    before: tuple[int, int], after: tuple[int, int], server: Server, options: Options
) -> None:
    uri, total = put_shards(server, "recordio", UNEVEN)
    settings: dict[str, Any] = {"shuffle": 10, "seed": 4}

    def consumers(ranks: int, workers: int) -> Iterator[Dataset]:
        for rank, worker in itertools.product(range(ranks), range(workers)):
            yield Dataset(
                uri, "recordio", rank=rank, world_size=ranks, worker=worker, workers=workers, **settings, **options
            )

    seen, states = [], []
    for index, dataset in enumerate(consumers(*before)):
        seen += [int(bytes(sample)) for sample in itertools.islice(dataset, 7 * index + 3)]
        states.append(dataset.state_dict())
    merged = standpipe.merge_states(states)
    for dataset in consumers(*after):
        dataset.load_state_dict(merged)
        seen += [int(bytes(sample)) for sample in dataset]
    assert sorted(seen) == list(range(total))
    with pytest.raises(standpipe.ConfigError, match="missing"):
        standpipe.merge_states(states[:-1])


def test_a_state_of_other_inputs_is_refused(server: Server, options: Options) -> None:
    uri, _ = put_shards(server, "lines", [5, 5])
    state = Dataset(uri, "lines", **options).state_dict()
    other, _ = put_shards(server, "lines", [5, 6])
    dataset = Dataset(other, "lines", **options)
    for wrong in (state, {"version": 99}, {}):
        dataset.load_state_dict(wrong)
        with pytest.raises(standpipe.ConfigError, match="state"):
            next(iter(dataset))


def test_what_samples_are(server: Server, options: Options) -> None:
    server.put("kinds/a.tar", tarred({"dir/one": {"JPG": b"pixels", "json": b"{}"}}))
    (sample,) = Dataset("s3://data/kinds/a.tar", **options)
    assert sample["__key__"] == "dir/one" and sample["__url__"] == "s3://data/kinds/a.tar"
    assert bytes(sample["jpg"]) == b"pixels" and memoryview(sample["json"]) == b"{}"
    server.put("kinds/b.jsonl.gz", gzip.compress(b'{"a": [1, null]}\n"text"\n'))
    assert list(Dataset("s3://data/kinds/b.jsonl.gz", **options)) == [{"a": [1, None]}, "text"]
    (chunk,) = Dataset("s3://data/kinds/a.tar", "raw", **options)
    assert isinstance(chunk, standpipe.Chunk) and (chunk.key, chunk.offset) == ("kinds/a.tar", 0)
    assert list(Dataset(server.put("kinds/c.txt", b"one\r\ntwo"), **options)) == [b"one", b"two"]
    with pytest.raises(standpipe.ConfigError, match="format"):
        iter(Dataset(server.put("kinds/d.bin", b"?"), **options))


def tensor(field: int, values: bytes, shape: list[int]) -> bytes:
    inner = b"\x0a" + bytes([len(values)]) + values + b"\x1a" + bytes([len(shape)]) + bytes(shape)
    value = bytes([field << 3 | 2, len(inner)]) + inner
    entry = b"\x0a\x06values\x12" + bytes([len(value)]) + value
    return bytes([len(entry)]) + entry


def test_tensors_are_numpy_arrays(server: Server, options: Options) -> None:
    image = numpy.arange(6, dtype="<f4")
    message = b"\x0a" + tensor(2, image.tobytes(), [2, 3]) + b"\x12" + tensor(7, struct.pack("<b", 5), [1])
    uri = server.put("tensors/a.pbr", recordio(message))
    (record,) = Dataset(uri, **options)
    array = record["features"]["values"]
    assert array.dtype == numpy.float32 and (array == image.reshape(2, 3)).all() and not array.flags.owndata
    assert record["label"]["values"].tolist() == [5]


def test_a_sparse_tensor_of_zeros_is_sparse(server: Server, options: Options) -> None:
    empty = b"\x0a" + tensor(2, b"", [6]) + b"\x12" + tensor(2, b"", [0])
    (record,) = Dataset(server.put("tensors/empty.pbr", recordio(empty)), **options)
    sparse, dense = record["features"]["values"], record["label"]["values"]
    assert isinstance(sparse, standpipe.SparseTensor)
    assert (sparse.values.tolist(), sparse.keys, sparse.shape) == ([], [], [6])
    assert isinstance(dense, numpy.ndarray) and dense.shape == (0,)


def test_batches(server: Server, options: Options) -> None:
    uri, _ = put_shards(server, "lines", [10, 13])
    batches = list(Dataset(uri, "lines", batch_size=5, **options))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert [len(batch) for batch in Dataset(uri, "lines", batch_size=5, drop_last=True, **options)] == [5] * 4
    assert list(itertools.chain(*batches)) == list(Dataset(uri, "lines", **options))
    dataset = Dataset(uri, "lines", batch_size=5, **options)
    next(iter(dataset))
    again = Dataset(uri, "lines", batch_size=5, **options)
    again.load_state_dict(dataset.state_dict())
    assert list(again) == batches[1:]


def test_equal_numbers_for_all(server: Server, options: Options) -> None:
    for number in range(7):
        server.put(f"even/{number}", b"%d" % number)

    def counts(even: Any) -> list[int]:
        return [
            len(list(Dataset("s3://data/even/", "raw", rank=rank, world_size=3, even=even, **options)))
            for rank in range(3)
        ]

    assert (sorted(counts("none")), counts("drop"), counts("pad")) == ([2, 2, 3], [2] * 3, [3] * 3)


def test_corrupt_records(server: Server, options: Options) -> None:
    good = [recordio(b"%d" % number) for number in range(4)]
    uri = server.put("corrupt/a.rec", good[0] + b"\0" * 8 + good[1])
    server.put("corrupt/b.rec", good[2] + good[3])
    with pytest.raises(standpipe.CorruptError) as failed:
        list(Dataset(uri, **options))
    assert (failed.value.key, failed.value.offset) == ("corrupt/a.rec", len(good[0]))
    dataset = Dataset("s3://data/corrupt/", on_error="skip", format="recordio", **options)
    assert [int(bytes(sample)) for sample in dataset] == [0, 2, 3]
    stats = dataset.stats()
    assert (stats["samples"], stats["skipped_objects"]) == (3, 1)
    assert "corrupt/a.rec" in stats["skipped"][0]


def test_unusable_settings_are_told_at_once() -> None:
    for name, settings in {
        "format": {"format": "feather"},
        "rank": {"rank": 3, "world_size": 3},
        "threads": {"threads": 0},
        "batch": {"batch_size": 0},
        "on_error": {"on_error": "ignore"},
        "compression": {"compression": "rar"},
    }.items():
        with pytest.raises(standpipe.ConfigError, match=name):
            dataset = Dataset("s3://data/x", **settings)  # type: ignore[arg-type]
            iter(dataset)
    with pytest.raises(standpipe.ConfigError, match="together"):
        Dataset("s3://data/x", rank=1)


def test_who_keeps_everything_is_not_held_up(server: Server, options: Options) -> None:
    body = b"".join(recordio(content(10_000, number)) for number in range(600))
    uri = server.put("keep-set/a.rec", body)
    dataset = Dataset(uri, memory="2MiB", part_size="256KiB", **options)
    kept = list(dataset)
    assert [bytes(sample) for sample in kept] == [content(10_000, number) for number in range(600)]
    assert dataset.stats()["copied_bytes"] > len(body) // 2


def test_ranks_come_from_the_environment(server: Server, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, total = put_shards(server, "lines", UNEVEN)
    seen = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        seen += list(Dataset(uri, "lines", **options))
    assert len(seen) == len(set(seen)) == total
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE"):
        iter(Dataset(uri, "lines", **options))


def test_it_pickles_with_the_state_that_was_loaded_and_no_other_place(server: Server, options: Options) -> None:
    uri, _ = put_shards(server, "lines", UNEVEN)
    dataset = Dataset(uri, "lines", shuffle=10, **options)
    whole = list(dataset)
    assert list(pickle.loads(pickle.dumps(dataset))) == whole
    half = list(itertools.islice(dataset, 50))
    assert list(pickle.loads(pickle.dumps(dataset))) == whole, "its parent has looked at some"
    dataset.load_state_dict(dataset.state_dict())
    again = pickle.loads(pickle.dumps(dataset))
    assert half + list(again) == whole


def test_a_state_is_used_once(server: Server, options: Options) -> None:
    uri, _ = put_shards(server, "lines", UNEVEN)
    dataset = Dataset(uri, "lines", shuffle=10, **options)
    whole = list(dataset)
    next(iter(dataset))
    dataset.load_state_dict(dataset.state_dict())
    assert [list(dataset) for _ in range(3)] == [whole[1:], whole, whole]
    # One that is refused is not lost: else the next try would begin anew in silence.
    dataset.load_state_dict({"version": 99})
    for _ in range(2):
        with pytest.raises(standpipe.ConfigError, match="state"):
            iter(dataset)


def test_a_state_is_kept_on_closing(server: Server, options: Options) -> None:
    uri, _ = put_shards(server, "lines", UNEVEN)
    dataset = Dataset(uri, "lines", shuffle=10, **options)
    with iter(dataset) as samples:
        first = [next(samples) for _ in range(5)]
        state = dataset.state_dict()
    samples.close()
    assert dataset.state_dict() == samples.state_dict() == state
    whole = list(pickle.loads(pickle.dumps(dataset)))
    dataset.load_state_dict(state)
    assert first + list(dataset) == whole


def test_the_usual_set_epoch_does_not_undo_loading(server: Server, options: Options) -> None:
    uri, _ = put_shards(server, "lines", UNEVEN)

    def dataset(**settings: Any) -> Dataset:
        return Dataset(uri, "lines", shuffle=10, **{**settings, **options})

    orders = [list(dataset(epoch=epoch)) for epoch in range(4)]
    before = dataset(epoch=2)
    list(itertools.islice(before, 30))
    middle = before.state_dict()
    list(before)
    end = before.state_dict()
    for state, epoch, expected in [
        (middle, 2, orders[2][30:]),
        (middle, 3, orders[3]),
        (middle, 1, orders[1]),
        # Others may still be in the epoch that this one has ended.
        (end, 2, []),
        (end, 3, orders[3]),
    ]:
        again = dataset()
        again.load_state_dict(state)
        again.set_epoch(epoch)
        assert list(again) == expected, epoch
        again.set_epoch(epoch)
        assert list(again) == orders[epoch], "anew, as ever"
    several = dataset(epochs=3)
    list(itertools.islice(several, len(orders[0]) + 9))
    again = dataset(epochs=3)
    again.load_state_dict(several.state_dict())
    again.set_epoch(1)
    assert list(again) == orders[1][9:] + orders[2]
    again.load_state_dict({"version": 99})
    again.set_epoch(1)
    with pytest.raises(standpipe.ConfigError, match="state"):
        iter(again)


def test_what_is_to_be_skipped_is_in_the_state(server: Server, options: Options) -> None:
    uri, _ = put_shards(server, "lines", UNEVEN)
    dataset = Dataset(uri, "lines", shuffle=10, skip=45, **options)
    whole = list(dataset)
    again = Dataset(uri, "lines", shuffle=10, **options)
    again.load_state_dict(Dataset(uri, "lines", shuffle=10, skip=45, **options).state_dict())
    assert list(again) == whole


def test_an_unforked_worker_reads_its_ranks_share(server: Server, options: Options) -> None:
    uri, total = put_shards(server, "lines", UNEVEN)
    done = run(
        f"""
        import multiprocessing, sys, types
        import standpipe
        from standpipe.compat.s3torchconnector import S3IterableDataset

        # What the parent knows, and a child that is not forked does not.
        torch = types.SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True)
        torch.get_rank, torch.get_world_size = lambda: RANK, lambda: 2
        sys.modules["torch.distributed"] = torch
        seen, named = [], []
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            for RANK in range(2):
                dataset = standpipe.Dataset({uri!r}, "lines")
                mixed = standpipe.Mixture({{"only": standpipe.Dataset({uri!r}, "lines")}})
                objects = S3IterableDataset.from_prefix({uri!r}, region=None, transform=repr, enable_sharding=True)
                seen.append(pool.apply(list, (dataset,)))
                assert pool.apply(list, (mixed,)) == seen[-1] == list(dataset)
                named.append(len(pool.apply(list, (objects,))))
        assert all(seen) and sorted(seen[0] + seen[1], key=lambda line: int(line.split()[0])) == list(
            standpipe.Dataset({uri!r}, "lines", rank=0, world_size=1)
        )
        assert named == [4, 3], named
        """,
        server,
        timeout=60,
    )
    assert not done.stderr and total


def test_a_forked_child_reads_on_its_own(server: Server) -> None:
    uri, total = put_shards(server, "lines", UNEVEN)
    run(
        f"""
        import os, standpipe
        dataset = standpipe.Dataset({uri!r}, "lines")
        assert len(list(dataset)) == {total}
        iterator = iter(dataset)
        first = next(iterator)
        pid = os.fork()
        if pid == 0:
            try:
                next(iterator)
            except standpipe.ForkedError:
                os._exit(int(len(list(dataset)) != {total}))
            os._exit(9)
        assert os.waitpid(pid, 0)[1] == 0
        assert [first, *iterator] == list(standpipe.Dataset({uri!r}, "lines"))
        """,
        server,
    )


def test_ctrl_c_and_the_end_of_the_interpreter(server: Server) -> None:
    server.put("slow-set/a.txt", b"x\n" * 1000)
    server.script({"prefix": "data/slow-set/", "effect": "latency", "first_byte_ms": 5000, "operations": ["get"]})
    run(
        """
        import signal, threading, time, os, standpipe
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        dataset = standpipe.Dataset("s3://data/slow-set/a.txt")
        samples = iter(dataset)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        begun = time.monotonic()
        try:
            next(samples)
        except KeyboardInterrupt:
            assert time.monotonic() - begun < 0.55
        else:
            raise AssertionError
        """,
        server,
        timeout=10,
    )


def test_mixtures_draw_by_weight_and_go_on(server: Server, options: Options) -> None:
    uri, _ = put_shards(server, "lines", [400])
    other, _ = put_shards(server, "fixed:8", [400])

    def mixture(seed: int = 3, weight: float = 3) -> standpipe.Mixture:
        parts = {"lines": Dataset(uri, "lines", **options), "fixed": Dataset(other, "fixed:8", **options)}
        return standpipe.Mixture(parts, {"lines": weight, "fixed": 1}, seed=seed)

    def kinds(samples: Iterator[Any]) -> list[Any]:
        return [sample if isinstance(sample, bytes) else bytes(sample) for sample in samples]

    whole = kinds(iter(mixture()))
    assert len(whole) == 800
    drawn = sum(len(sample) != 8 or b" " in sample for sample in whole[:400])
    assert 260 < drawn < 340, "three in four"
    assert kinds(iter(mixture())) == whole != kinds(iter(mixture(4)))
    for stop in (0, 1, 250, 790, 800):
        first = mixture()
        before = kinds(itertools.islice(first, stop))
        state = json.loads(json.dumps(first.state_dict()))
        again = mixture()
        again.load_state_dict(state)
        assert before + kinds(iter(again)) == whole
    with pytest.raises(standpipe.ConfigError, match="seed"):
        mixture(5).load_state_dict(state)
    with pytest.raises(standpipe.ConfigError, match="weights"):
        standpipe.Mixture({"a": Dataset(uri, "lines", **options)}, {"a": 0})
    with pytest.raises(standpipe.ConfigError, match="weights"):
        standpipe.Mixture({"a": Dataset(uri, "lines", **options)}, {})

    again = mixture()
    next(iter(again))
    assert kinds(iter(pickle.loads(pickle.dumps(again)))) == whole, "its parent has looked at one"
    again.load_state_dict(again.state_dict())
    again.set_epoch(0)
    assert kinds(iter(pickle.loads(pickle.dumps(again)))) == whole[1:]
    assert [kinds(iter(again)) for _ in range(2)] == [whole[1:], whole], "a state is used once"
    again.load_state_dict(state)
    again.set_epoch(1)
    assert len(kinds(iter(again))) == 800
    with pytest.raises(standpipe.ConfigError, match="weights"):
        mixture(weight=2).load_state_dict(state)


def test_states_of_mixtures_are_merged(server: Server, options: Options) -> None:
    uri, total = put_shards(server, "lines", UNEVEN)
    other, more = put_shards(server, "fixed:8", UNEVEN)

    def mixture(rank: int, world_size: int, seed: int = 1) -> standpipe.Mixture:
        who: dict[str, Any] = {"rank": rank, "world_size": world_size, **options}
        return standpipe.Mixture(
            {"lines": Dataset(uri, "lines", **who), "8": Dataset(other, "fixed:8", **who)}, seed=seed
        )

    seen, states = [], []
    for rank, stop in enumerate([3, 500, 41]):
        one = mixture(rank, 3)
        seen += [bytes(sample) for sample in itertools.islice(one, stop)]
        states.append(one.state_dict())
    merged = json.loads(json.dumps(standpipe.merge_states(states)))
    for rank in range(2):
        one = mixture(rank, 2)
        one.load_state_dict(merged)
        seen += [bytes(sample) for sample in one]
    assert sorted(seen) == sorted(bytes(sample) for sample in mixture(0, 1)) and len(seen) == total + more
    with pytest.raises(standpipe.ConfigError, match="missing"):
        standpipe.merge_states(states[:2])
    with pytest.raises(standpipe.ConfigError, match="seed"):
        standpipe.merge_states([*states[:2], mixture(2, 3, seed=2).state_dict()])
    with pytest.raises(standpipe.ConfigError, match="different"):
        standpipe.merge_states([*states[:2], Dataset(uri, "lines", rank=2, world_size=3, **options).state_dict()])


def test_workers_share_one_memory_if_asked(server: Server, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        server.put(f"share-set/{number}.rec", b"".join(recordio(content(10_000, at)) for at in range(800)))

    def held(share: bool, workers: int) -> int:
        """Bytes that a worker keeps of the engine's memory before it gets copies."""
        who: dict[str, Any] = {"worker": 0, "workers": workers, "share_memory": share}
        dataset = Dataset("s3://data/share-set/", part_size="64KiB", memory="8MiB", **who, **options)
        kept = list(dataset)
        stats = dataset.stats()
        assert len(kept) == 3200 // workers
        return stats["bytes"] - stats["copied_bytes"]

    assert 3_000_000 < held(False, 4) < 6_000_000
    assert 700_000 < held(True, 4) < 1_700_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert 300_000 < held(True, 4) < 900_000
    many = Dataset("s3://data/share-set/", worker=0, workers=64, share_memory=True, memory="8MiB", **options)
    assert len(list(many)) == 800, "parts are smaller, but there are some"


@pytest.mark.parametrize("format_", ["lines", "tar", "recordio", "fixed:8", "parquet"])
def test_each_sample_once_by_chance(format_: str, server: Server, options: Options) -> None:
    """Ranks, workers, sizes, windows and interruptions as they come, in every format; each failure tells its seed."""
    writer, number = FORMATS[format_]
    for seed in range(6):
        chance = random.Random(seed)
        sizes = [chance.choice([0, 1, chance.randrange(60)]) for _ in range(chance.randrange(1, 9))]
        folder, first = f"chance-{format_.replace(':', '')}-{seed}", 0
        for index, size in enumerate(sizes):
            server.put(f"{folder}/{index:03}", writer(first, size))
            first += size
        settings: dict[str, Any] = {"shuffle": chance.choice([None, 1, 7, 500]), "seed": seed, **options}

        def consumers(
            count: tuple[int, int], folder: str = folder, settings: dict[str, Any] = settings
        ) -> list[Dataset]:
            return [
                Dataset(
                    f"s3://data/{folder}/",
                    format_,
                    rank=rank,
                    world_size=count[0],
                    worker=worker,
                    workers=count[1],
                    **settings,
                )
                for rank, worker in itertools.product(range(count[0]), range(count[1]))
            ]

        seen: list[int] = []
        merged = None
        going = consumers((chance.randrange(1, 4), chance.randrange(1, 3)))
        for _ in range(chance.randrange(1, 4)):
            states = []
            for dataset in going:
                if merged is not None:
                    dataset.load_state_dict(merged)
                seen += [number(sample) for sample in itertools.islice(dataset, chance.randrange(15))]
                states.append(dataset.state_dict())
            merged = json.loads(json.dumps(standpipe.merge_states(states)))
            going = consumers((chance.randrange(1, 4), chance.randrange(1, 3)))
        for dataset in going:
            dataset.load_state_dict(merged)
            seen += [number(sample) for sample in dataset]
        assert sorted(seen) == list(range(first)), f"seed {seed}: sizes {sizes}"


def test_other_threads_ask_and_close_while_one_waits(server: Server, options: Options) -> None:
    uri, _ = put_shards(server, "lines", [50])
    server.script({"prefix": "data/set-lines-50/", "effect": "latency", "first_byte_ms": 8000, "operations": ["get"]})
    dataset = Dataset(uri, "lines", **options)
    samples = iter(dataset)
    before = dataset.state_dict()
    found: list[Any] = []
    reading = threading.Thread(target=lambda: found.append(list(samples)))
    reading.start()
    while dataset.stats()["waited_seconds"] < 0.3:
        assert dataset.state_dict() == before and samples.epoch == 0
    samples.close()
    reading.join(4)
    assert found == [[]] and samples.epoch is None
    elapsed = dataset.stats()["elapsed_seconds"]
    time.sleep(0.1)
    assert dataset.stats()["elapsed_seconds"] == elapsed, "it has ended"
    assert dataset.state_dict() == before


def test_dropping_an_iterator_leaves_other_threads_their_turn(server: Server) -> None:
    server.put("slow-drop/a.txt", b"x\n" * 1000)
    server.script({"prefix": "data/slow-drop/", "effect": "latency", "first_byte_ms": 5000, "operations": ["get"]})
    run(
        """
        import threading, time, standpipe
        ticks = 0
        def tick():
            global ticks
            while True:
                ticks += 1
                time.sleep(0.001)
        threading.Thread(target=tick, daemon=True).start()
        samples = iter(standpipe.Dataset("s3://data/slow-drop/a.txt", threads=2))
        time.sleep(0.3)
        # Its threads look whether they are wanted ten times a second, at times of their own: some drops wait.
        gone = 0
        for _ in range(5):
            before = ticks
            begun = time.monotonic()
            del samples
            took, ticked = time.monotonic() - begun, ticks - before
            gone += took > 0.02 and ticked > 2
            samples = iter(standpipe.Dataset("s3://data/slow-drop/a.txt", threads=2))
            time.sleep(0.03)
        assert gone, "every drop held the interpreter"
        """,
        server,
    )
