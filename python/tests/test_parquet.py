"""`standpipe.Dataset(format="parquet")`: rows of row groups, by pyarrow over our ranges."""

import io
import itertools
import json
import pickle
from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import standpipe
from conftest import Server, content, run
from standpipe import Dataset, Options

# Rows of each file, and of its row groups.
UNEVEN = [(40, 7), (1, 5), (0, 5), (77, 30), (13, 13), (30, 4)]


def table(first: int, count: int, wide: int = 40) -> pyarrow.Table:
    numbers = range(first, first + count)
    return pyarrow.table(
        {
            "n": pyarrow.array(numbers, pyarrow.int64()),
            "text": pyarrow.array([f"row {number}" for number in numbers], pyarrow.string()),
            "wide": pyarrow.array([content(wide, number) for number in numbers], pyarrow.binary()),
            "nested": pyarrow.array(
                [{"a": [number], "b": None} for number in numbers],
                pyarrow.struct([("a", pyarrow.list_(pyarrow.int64())), ("b", pyarrow.int8())]),
            ),
        }
    )


def written(data: pyarrow.Table, group: int, **how: Any) -> bytes:
    body = io.BytesIO()
    pyarrow.parquet.write_table(data, body, row_group_size=group, **how)
    return body.getvalue()


@pytest.fixture
def files(server: Server) -> tuple[str, int]:
    first = 0
    for index, (count, group) in enumerate(UNEVEN):
        server.put(f"parquet/{index}.parquet", written(table(first, count), group))
        first += count
    return "s3://data/parquet/", first


def numbers(rows: Any) -> list[int]:
    return [row["n"] for row in rows]


def test_rows_are_dicts(files: tuple[str, int], options: Options) -> None:
    uri, total = files
    rows = list(Dataset(uri, **options))
    assert rows == table(0, total).to_pylist()
    some = list(Dataset(uri, "parquet", columns=["nested", "n"], **options))
    assert some[5] == {"n": 5, "nested": {"a": [5], "b": None}} and len(some) == total


def test_batches_are_tables(files: tuple[str, int], options: Options) -> None:
    uri, total = files
    tables = list(Dataset(uri, batch_size=50, columns=["n", "text"], **options))
    assert [len(one) for one in tables] == [50, 50, 50, 11]
    assert pyarrow.concat_tables(tables).equals(table(0, total).select(["n", "text"]))
    shuffled = Dataset(uri, batch_size=8, shuffle=30, seed=1, drop_last=True, **options)
    one_by_one = Dataset(uri, shuffle=30, seed=1, **options)
    rows = list(itertools.chain.from_iterable(one.to_pylist() for one in shuffled))
    assert rows == list(one_by_one)[:160] and sorted(numbers(rows)) != numbers(rows)


def consumers(uri: str, ranks: int, workers: int, **settings: Any) -> Iterator[Dataset]:
    for rank, worker in itertools.product(range(ranks), range(workers)):
        yield Dataset(uri, "parquet", rank=rank, world_size=ranks, worker=worker, workers=workers, **settings)


@pytest.mark.parametrize("shuffle", [None, 8, 1000])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (3, 1), (2, 2), (5, 3)])
def test_each_row_once_whatever_the_numbers(
    ranks: int, workers: int, shuffle: int | None, files: tuple[str, int], options: Options
) -> None:
    uri, total = files
    settings: dict[str, Any] = {"shuffle": shuffle, "seed": 3, "columns": ["n"], **options}
    seen: list[int] = []
    for dataset in consumers(uri, ranks, workers, **settings):
        seen += numbers(dataset)
    assert sorted(seen) == list(range(total))
    assert shuffle is None or seen != sorted(seen)


@pytest.mark.parametrize(("before", "after"), [((1, 1), (1, 1)), ((2, 1), (3, 1)), ((3, 2), (1, 1)), ((1, 2), (2, 2))])
@pytest.mark.parametrize("shuffle", [None, 10])
def test_others_go_on_with_what_is_left(
    before: tuple[int, int], after: tuple[int, int], shuffle: int | None, files: tuple[str, int], options: Options
) -> None:
    uri, total = files
    settings: dict[str, Any] = {"shuffle": shuffle, "seed": 4, "columns": ["n"], **options}
    seen: list[int] = []
    states = []
    for index, dataset in enumerate(consumers(uri, *before, **settings)):
        seen += numbers(itertools.islice(dataset, 7 * index + 3))
        states.append(json.loads(json.dumps(dataset.state_dict())))
    merged = standpipe.merge_states(states)
    for dataset in consumers(uri, *after, **settings):
        dataset.load_state_dict(merged)
        seen += numbers(dataset)
    assert sorted(seen) == list(range(total))


@pytest.mark.parametrize("batch_size", [None, 7])
def test_it_goes_on_where_it_was(batch_size: int | None, files: tuple[str, int], options: Options) -> None:
    uri, total = files

    def dataset() -> Dataset:
        return Dataset(uri, "parquet", shuffle=12, seed=9, epochs=2, batch_size=batch_size, columns=["n"], **options)

    def flat(samples: Any) -> list[int]:
        rows = samples if batch_size is None else itertools.chain.from_iterable(one.to_pylist() for one in samples)
        return numbers(rows)

    whole = flat(dataset())
    assert sorted(whole) == sorted([*range(total)] * 2) and whole[:total] != whole[total:]
    for stop in (0, 1, 20, 30):
        one = dataset()
        before = flat(itertools.islice(one, stop))
        state = json.loads(json.dumps(one.state_dict()))
        again = pickle.loads(pickle.dumps(dataset()))
        again.load_state_dict(state)
        assert before + flat(again) == whole


def test_only_what_is_wanted_is_fetched(server: Server, options: Options) -> None:
    body = written(table(0, 4000, wide=2000), 500, compression="none")
    uri = server.put("parquet-wide/a.parquet", body)
    dataset = Dataset(uri, columns=["n"], **options)
    it = iter(dataset)
    assert [next(it)["n"] for _ in range(3100)] == list(range(3100))
    state = dataset.state_dict()
    sent = sum(entry["bytes_sent"] for entry in server.log() if entry["operation"] == "get")
    # Small reads are fetched in blocks of 128 KiB.
    assert sent < len(body) / 2
    stats = dataset.stats()
    assert stats["samples"] == 3100 and 0 < stats["bytes"] < len(body) / 10
    assert stats["verdict"]["bottleneck"] in ("network", "consumer")
    server.request("POST", "/_fake/log/clear")
    again = Dataset(uri, **options)
    again.load_state_dict(state)
    assert numbers(again) == list(range(3100, 4000))
    gets = [entry for entry in server.log() if entry["operation"] == "get"]
    assert sum(entry["bytes_sent"] for entry in gets) < len(body) * 0.45, "two row groups of eight, and the footer"


def test_equal_numbers_for_all(files: tuple[str, int], options: Options) -> None:
    uri, total = files
    for even, kind in (("drop", min), ("pad", max)):
        none = [len(list(one)) for one in consumers(uri, 3, 1, columns=["n"], **options)]
        counts = [len(list(one)) for one in consumers(uri, 3, 1, columns=["n"], even=even, **options)]
        assert counts == [kind(none)] * 3 and sum(none) == total


def test_what_is_no_parquet_is_an_error_that_names_it(server: Server, options: Options) -> None:
    good = written(table(0, 100), 50, compression="none")
    for name, body in {
        "short": b"PAR1",
        "empty": b"",
        "other": b"x" * 1000,
        "cut": good[:-100],
        "lie": good[:-8] + b"\xff\xff\xff\x7fPAR1",
        "footer": good[:-200] + b"\xff" * 150 + good[-50:],
    }.items():
        uri = server.put(f"parquet-bad/{name}.parquet", body)
        with pytest.raises(standpipe.CorruptError, match=f"parquet-bad/{name}"):
            list(Dataset(uri, **options))
    uri = server.put("parquet-bad/data.parquet", good[:4] + b"\xff" * 400 + good[404:])
    rows = iter(Dataset(uri, columns=["n"], **options))
    with pytest.raises(standpipe.CorruptError, match="row group 0"):
        next(rows)


def test_a_file_that_is_replaced_is_an_error(server: Server, options: Options) -> None:
    uri = server.put("parquet-changed/a.parquet", written(table(0, 100), 50))
    dataset = Dataset(uri, **options)
    assert len(dataset.row_groups) == 2
    server.put("parquet-changed/a.parquet", written(table(1, 100), 50))
    with pytest.raises(standpipe.ChangedError):
        list(dataset)


@pytest.mark.parametrize("batch_size", [None, 10])
def test_what_could_not_be_read_comes_next(batch_size: int | None, server: Server, options: Options) -> None:
    uri = server.put("parquet-late/a.parquet", written(table(0, 100), 20))

    def dataset() -> Dataset:
        return Dataset(uri, shuffle=4, seed=3, columns=["n"], batch_size=batch_size, **options)

    def flat(sample: Any) -> list[int]:
        return numbers([sample] if batch_size is None else sample.to_pylist())

    whole = [number for sample in dataset() for number in flat(sample)]
    one = dataset()
    samples = iter(one)
    seen = flat(next(samples))
    server.script({"prefix": "data/parquet-late/", "effect": "status", "status": 403, "operations": ["get"]})
    with pytest.raises(standpipe.StandpipeError):
        for sample in samples:
            seen += flat(sample)
    assert len(seen) < 100
    with pytest.raises(standpipe.StandpipeError):
        next(samples)
    server.request("POST", "/_fake/script/clear")
    again = dataset()
    again.load_state_dict(one.state_dict())
    for rest in (samples, again):
        assert seen + [number for sample in rest for number in flat(sample)] == whole


def test_unusable_settings(files: tuple[str, int], options: Options) -> None:
    for wrong in ({"compression": "gzip"}, {"counts": [1]}, {"max_record_size": 5}):
        with pytest.raises(standpipe.ConfigError):
            iter(Dataset(files[0], "parquet", **wrong, **options))
    with pytest.raises(standpipe.ConfigError, match="rank"):
        Dataset(files[0], "parquet", rank=3, world_size=3, **options)


def test_mixtures_and_processes(files: tuple[str, int], server: Server, options: Options) -> None:
    uri, total = files
    mixed = standpipe.Mixture({"a": Dataset(uri, **options), "b": Dataset(uri, shuffle=5, **options)})
    assert sorted(numbers(mixed)) == sorted([*range(total)] * 2)
    run(
        f"""
        import multiprocessing, os, standpipe

        dataset = standpipe.Dataset({uri!r}, columns=["n"])
        rows = iter(dataset)
        first = next(rows)
        pid = os.fork()
        if pid == 0:
            try:
                next(rows)
            except standpipe.ForkedError:
                os._exit(int(len(list(dataset)) != {total}))
            os._exit(9)
        assert os.waitpid(pid, 0)[1] == 0
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(list, (dataset,)) == [first, *rows]
        iter(dataset)
        next(iter(standpipe.Dataset({uri!r})))
        """,
        server,
        timeout=60,
    )
