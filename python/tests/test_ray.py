"""`standpipe.ray`, on a Ray of this machine."""

import io
import os
import struct
from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import ray
import standpipe
import standpipe.ray
from conftest import Server, content
from standpipe import Options
from test_dataset import recordio, tarred, tensor

# Starting takes Ray ten seconds, more on a busy machine.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20, configure_logging=False
    )
    yield
    ray.shutdown()


def test_lines_come_once_whatever_the_tasks(cluster: None, server: Server, options: Options) -> None:
    first = 0
    for index, size in enumerate([100, 7, 0, 250, 43, 100]):
        server.put(f"ray-lines/{index}.txt", b"".join(b"%d\n" % number for number in range(first, first + size)))
        first += size
    for tasks in (1, 4, 100):
        data = standpipe.ray.read("s3://data/ray-lines/", override_num_blocks=tasks, **options)
        assert sorted(int(row["text"]) for row in data.take_all()) == list(range(500))
    assert data.schema().base_schema == pyarrow.schema([("text", pyarrow.large_string())])


def test_parquet_by_row_groups(cluster: None, server: Server, options: Options) -> None:
    first = 0
    for index, (count, group) in enumerate([(40, 7), (0, 5), (77, 30)]):
        table = pyarrow.table({"n": range(first, first + count), "text": ["x"] * count, "wide": [b"y" * 50] * count})
        body = io.BytesIO()
        schema = pyarrow.schema([("n", pyarrow.int64()), ("text", pyarrow.string()), ("wide", pyarrow.binary())])
        pyarrow.parquet.write_table(table.cast(schema), body, row_group_size=group)
        server.put(f"ray-parquet/{index}.parquet", body.getvalue())
        first += count
    data = standpipe.ray.read("s3://data/ray-parquet/", columns=["n", "text"], override_num_blocks=4, **options)
    assert data.count() == 117
    rows = data.map(lambda row: {"n": row["n"], "twice": 2 * row["n"]}).take_all()
    assert sorted((row["n"], row["twice"]) for row in rows) == [(number, 2 * number) for number in range(117)]


def test_a_manifest_is_read_by_the_driver(cluster: None, server: Server, options: Options) -> None:
    for number in range(4):
        server.put(f"ray-manifest/{number}.txt", b"%d\n" % number)
    text = b'[{"prefix": "s3://data/ray-manifest/"}, "3.txt", "1.txt"]'
    uri = server.put("ray-manifest-of/them.manifest", text)
    data = standpipe.ray.read(uri, manifest=True, override_num_blocks=2, **options)
    assert sorted(row["text"] for row in data.take_all()) == ["1", "3"]


def test_what_blocks_hold(cluster: None, server: Server, options: Options) -> None:
    def table(name: str, body: bytes) -> Any:
        uri = server.put(f"ray-kinds/{name}", body)
        blocks = ray.get(standpipe.ray.read(uri, override_num_blocks=1, **options).to_arrow_refs())
        return pyarrow.concat_tables(blocks)

    found = table("a.tar", tarred({"a": {"bin": b"\0\1", "cls": b"1"}, "b": {"cls": b"2"}}))
    assert found.to_pylist() == [
        {"__key__": "a", "__url__": "s3://data/ray-kinds/a.tar", "bin": b"\0\1", "cls": b"1"},
        {"__key__": "b", "__url__": "s3://data/ray-kinds/a.tar", "bin": None, "cls": b"2"},
    ]
    assert table("b.jsonl", b'{"a": 1}\n{"a": 2, "b": "x"}\n').to_pylist() == [
        {"a": 1, "b": None},
        {"a": 2, "b": "x"},
    ]
    assert table("c.rec", recordio(b"\0one") + recordio(b"two")).to_pylist() == [{"bytes": b"\0one"}, {"bytes": b"two"}]
    message = b"\x0a" + tensor(2, struct.pack("<3f", 1, 2, 3), [3]) + b"\x12" + tensor(7, struct.pack("<b", 5), [1])
    assert table("d.pbr", recordio(message)).to_pylist() == [{"features.values": [1.0, 2.0, 3.0], "label.values": [5]}]


def test_large_shares_come_in_several_blocks(cluster: None, server: Server, options: Options) -> None:
    server.put("ray-blocks/a.rec", b"".join(recordio(content(1 << 20, number)) for number in range(70)))
    (task,) = standpipe.ray.StandpipeDatasource("s3://data/ray-blocks/", **options).get_read_tasks(1)
    sizes = [len(block) for block in task()]
    assert sum(sizes) == 70 and len(sizes) == 3, "of 32 MiB each; Ray makes what it wants of them"
    assert standpipe.ray.read("s3://data/ray-blocks/", **options).count() == 70


def test_a_failure_of_a_task_is_the_readers(cluster: None, server: Server, options: Options) -> None:
    uri = server.put("ray-bad/a.rec", recordio(b"one") + b"no record at all")
    with pytest.raises(Exception, match=r"ray-bad/a\.rec"):
        standpipe.ray.read(uri, **options).take_all()
    assert standpipe.ray.read(uri, on_error="skip", **options).take_all() == [{"bytes": b"one"}]


def test_unusable_settings_are_told_at_once(options: Options) -> None:
    for name in ("rank", "epochs", "batch_size", "even", "counts", "attributes"):
        with pytest.raises(standpipe.ConfigError, match=name):
            standpipe.ray.StandpipeDatasource("s3://data/x", "lines", **{name: 1})
    with pytest.raises(standpipe.ConfigError, match="format"):
        standpipe.ray.StandpipeDatasource("s3://data/x", "none")
