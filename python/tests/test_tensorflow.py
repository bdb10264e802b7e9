"""`standpipe.tensorflow`, with tensorflow itself."""

import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import standpipe
import standpipe.tensorflow
import tensorflow as tf
from conftest import Server, content
from standpipe import Options
from test_dataset import recordio, tarred
from test_pipe import served


def tfrecords(records: list[bytes], folder: Path) -> bytes:
    """By TensorFlow's own writer."""
    path = folder / "written.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path.read_bytes()


def example(number: int) -> bytes:
    """A point and its class, of which a model can learn."""
    x = [float(number % 7), float(number % 3)]
    features = {
        "x": tf.train.Feature(float_list=tf.train.FloatList(value=x)),
        "y": tf.train.Feature(float_list=tf.train.FloatList(value=[x[0] - 2 * x[1]])),
        "n": tf.train.Feature(int64_list=tf.train.Int64List(value=[number])),
    }
    return bytes(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def parse(record: Any) -> tuple[Any, Any]:
    spec = {"x": tf.io.FixedLenFeature([2], tf.float32), "y": tf.io.FixedLenFeature([1], tf.float32)}
    found = tf.io.parse_single_example(record, spec)
    return found["x"], found["y"]


def number(record: Any) -> Any:
    return tf.io.parse_single_example(record, {"n": tf.io.FixedLenFeature([], tf.int64)})["n"]


def model() -> Any:
    made = tf.keras.Sequential([tf.keras.Input([2]), tf.keras.layers.Dense(1)])
    made.compile(optimizer=tf.keras.optimizers.Adam(0.05), loss="mse")
    return made


@pytest.fixture
def shards(server: Server, tmp_path: Path) -> str:
    """Examples 0 to 599, in objects of different sizes."""
    first = 0
    for index, size in enumerate([200, 7, 0, 250, 43, 100]):
        body = tfrecords([example(number) for number in range(first, first + size)], tmp_path)
        server.put(f"tf/{index}.tfrecord", body)
        first += size
    return "s3://data/tf/"


def test_a_model_fits_for_two_epochs(shards: str, options: Options) -> None:
    data = standpipe.tensorflow.dataset(shards, "tfrecord", shuffle=100, seed=3, **options)
    assert isinstance(data, tf.data.Dataset) and data.element_spec == tf.TensorSpec([], tf.string)
    made = model()
    seen: list[int] = []
    history = made.fit(data.map(parse).batch(16), epochs=2, verbose=0)
    losses = history.history["loss"]
    assert len(losses) == 2 and losses[1] < losses[0]
    for _ in range(2):
        seen.append(sum(1 for _ in data))
    assert seen == [600, 600]


def test_each_iteration_is_an_epoch_in_another_order(shards: str, options: Options) -> None:
    data = standpipe.tensorflow.dataset(shards, "tfrecord", shuffle=100, seed=3, epoch=4, **options)
    orders = [[int(found) for found in data.map(number)] for _ in range(2)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(600))
    for epoch, order in zip((4, 5), orders, strict=True):
        same = standpipe.Dataset(shards, "tfrecord", shuffle=100, seed=3, epoch=epoch, **options)
        assert [int(number(bytes(record))) for record in same] == order
    both = standpipe.tensorflow.dataset(shards, "tfrecord", shuffle=100, seed=3, epoch=4, epochs=2, **options)
    assert [int(found) for found in both.map(number)] == orders[0] + orders[1]
    assert [int(found) for found in both.map(number)] != orders[0] + orders[1], "epochs 6 and 7"


KINDS: dict[str, tuple[bytes, list[bytes]]] = {
    "lines": (b"one\n\0two\0\n", [b"one", b"\0two\0"]),
    "jsonl": (b'{"a": 1}\n[2]\n', [b'{"a": 1}', b"[2]"]),
    "recordio": (recordio(b"one") + recordio(b"ends in zeros\0\0"), [b"one", b"ends in zeros\0\0"]),
    "raw": (b"all of it", [b"all of it"]),
    "fixed:3": (b"onetwo", [b"one", b"two"]),
}


@pytest.mark.parametrize("format_", KINDS)
def test_formats(format_: str, server: Server, options: Options) -> None:
    body, expected = KINDS[format_]
    uri = server.put(f"tf-kinds/{format_.replace(':', '')}", body)
    data = standpipe.tensorflow.dataset(uri, format_, **options)
    assert data.element_spec == tf.TensorSpec([], tf.string)
    assert [found.numpy() for found in data] == expected


def test_a_manifest_of_lines_of_json(server: Server, options: Options) -> None:
    server.put("tf-manifest/a.jsonl", b'{"a": 1}\n')
    uri = server.put("tf-manifest-of/a.manifest", b'[{"prefix": "s3://data/tf-manifest/"}, "a.jsonl"]')
    data = standpipe.tensorflow.dataset(uri, manifest=True, **options)
    assert [found.numpy() for found in data] == [b'{"a": 1}']


def test_tar_samples_are_dicts_of_the_fields(server: Server, options: Options) -> None:
    samples = {f"{at:03}": {"bin": content(3000, at), "cls": b"%d" % at, "json": b"{}"} for at in range(100)}
    uri = server.put("tf-tar/a.tar", tarred(samples))
    data = standpipe.tensorflow.dataset(uri, fields=("bin", "cls", "__key__"), **options)
    spec = tf.TensorSpec([], tf.string)
    assert data.element_spec == {"bin": spec, "cls": spec, "__key__": spec}
    found = [(one["__key__"].numpy().decode(), one["cls"].numpy(), one["bin"].numpy()) for one in data]
    assert found == [(key, files["cls"], files["bin"]) for key, files in samples.items()]
    with pytest.raises(tf.errors.InvalidArgumentError, match="has no 'jpg'"):
        list(standpipe.tensorflow.dataset(uri, fields=["jpg"], **options))


def test_transforms_have_the_spec_that_is_given(server: Server, options: Options) -> None:
    uri = server.put("tf-transform/a.jsonl", b"".join(b'{"x": [%d, 1], "y": "s"}\n' % at for at in range(50)))
    signature = (tf.TensorSpec([2], tf.float32), tf.TensorSpec([], tf.string))
    data = standpipe.tensorflow.dataset(
        uri, transform=lambda line: (numpy.float32(line["x"]), line["y"]), output_signature=signature, **options
    )
    assert data.element_spec == signature
    assert [[float(value) for value in x] for x, _ in data] == [[at, 1] for at in range(50)]


def test_ranks_share_an_epoch(shards: str, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    for rank in range(3):
        data = standpipe.tensorflow.dataset(shards, "tfrecord", rank=rank, world_size=3, **options)
        seen += [int(found) for found in data.map(number)]
    assert sorted(seen) == list(range(600))
    seen = []
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"], "ps": ["d:1"]}
    for role, index in (("chief", 0), ("worker", 0), ("worker", 1)):
        task = {"type": role, "index": index}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
        data = standpipe.tensorflow.dataset(shards, "tfrecord", **options)
        assert data.options().experimental_distribute.auto_shard_policy == tf.data.experimental.AutoShardPolicy.OFF
        seen += [int(found) for found in data.map(number)]
    assert sorted(seen) == list(range(600))


def test_a_failure_is_no_end(server: Server, options: Options) -> None:
    uri = server.put("tf-bad/a.rec", recordio(b"one") + b"no record at all")
    found = []
    with pytest.raises(tf.errors.OpError, match=r"tf-bad/a\.rec"):
        for record in standpipe.tensorflow.dataset(uri, **options):
            found.append(record.numpy())
    assert found in ([], [b"one"])


def test_unusable_settings_are_told_at_once(options: Options) -> None:
    wrong: list[tuple[str, Callable[[], Any]]] = [
        ("batch_size", lambda: standpipe.tensorflow.dataset("s3://data/x", "lines", batch_size=3)),
        ("fields", lambda: standpipe.tensorflow.dataset("s3://data/x", "tar")),
        ("output_signature", lambda: standpipe.tensorflow.dataset("s3://data/x", "lines", transform=len)),
        ("static", lambda: standpipe.tensorflow.dataset("s3://data/x", "recordio-protobuf")),
        ("record_format", lambda: standpipe.tensorflow.PipeModeDataset("train", "Parquet")),
    ]
    for told, make in wrong:
        with pytest.raises(standpipe.ConfigError, match=told):
            make()


def test_pipe_mode_fits_for_two_epochs(server: Server, tmp_path: Path) -> None:
    server.put("tf-pipe/a", tfrecords([example(number) for number in range(300)], tmp_path))
    with served(server, tmp_path / "fifos", "train=s3://data/tf-pipe/", epochs=2) as process:
        data = standpipe.tensorflow.PipeModeDataset("train", "TFRecord", pipe_dir=tmp_path / "fifos", timeout=30)
        assert data.element_spec == tf.TensorSpec([], tf.string)
        history = model().fit(data.map(parse).batch(16), epochs=2, verbose=0)
        assert len(history.history["loss"]) == 2
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("record_format", "body"),
    [("RecordIO", recordio(b"one") + recordio(b"two\0")), ("TextLine", b"one\ntwo\0\n"), ("fixed:2", b"onetwo")],
)
def test_pipe_mode_formats(record_format: str, body: bytes, tmp_path: Path) -> None:
    def serve() -> None:
        for epoch in range(2):
            os.mkfifo(tmp_path / f"train_{epoch}")
            with open(tmp_path / f"train_{epoch}", "wb") as fifo:
                fifo.write(body)

    writer = threading.Thread(target=serve)
    writer.start()
    data = standpipe.tensorflow.PipeModeDataset("train", record_format, pipe_dir=tmp_path, timeout=30)
    expected = [b"on", b"et", b"wo"] if record_format == "fixed:2" else [b"one", b"two\0"]
    for _ in range(2):
        assert [found.numpy() for found in data] == expected
    writer.join(20)


def test_a_cut_off_fifo_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train_0")
    cut = subprocess.Popen(["sh", "-c", f"printf '{'x' * 3}' > {tmp_path}/train_0"])
    with pytest.raises(tf.errors.OpError, match="train_0"):
        list(standpipe.tensorflow.PipeModeDataset("train", pipe_dir=tmp_path, timeout=30))
    assert cut.wait(20) == 0
