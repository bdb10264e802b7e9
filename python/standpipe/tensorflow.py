"""Datasets for TensorFlow: ``tf.data.Dataset`` with a static element spec, without an extension that is compiled for
it.

:func:`dataset` is over a :class:`standpipe.Dataset`; :func:`PipeModeDataset` reads the FIFOs of Pipe mode, where
sagemaker-tensorflow's class of this name did, on any version of TensorFlow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy
import tensorflow as tf

from ._share import known_rank
from .dataset import Dataset
from .exceptions import ConfigError
from .pipe import PipeChannel

if TYPE_CHECKING:
    from . import _api, _standpipe

__all__ = ["PipeModeDataset", "dataset"]

# Records that cross into TensorFlow at once: what a crossing costs, about 0.1 ms, is nothing beside them, and the first
# ones need not wait for many.
_TOGETHER = 64

_BYTES = ("tfrecord", "recordio", "recordio:dmlc", "lines", "jsonl", "raw")


def dataset(
    uris: _api.Uris | Sequence[_standpipe.ObjectInfo],
    format: str | None = None,
    *,
    fields: Sequence[str] | None = None,
    transform: Callable[[Any], Any] | None = None,
    output_signature: Any = None,
    **settings: Any,
) -> Any:
    """Samples of a :class:`standpipe.Dataset` as a ``tf.data.Dataset``.

    Args:
        uris, format, settings: as for :class:`standpipe.Dataset`: ``shuffle``, ``seed``, ``epochs``, ``rank``, ...
            Ranks come from ``TF_CONFIG`` too, where nothing else tells them; ``tf.distribute`` shards nothing on top.
        fields: of a ``tar`` dataset, which files of a sample: ``("jpg", "cls", "__key__")``. One that a sample lacks
            is an error.
        transform: makes an element of a sample, in Python; needs ``output_signature``.
        output_signature: the element spec of what ``transform`` gives, as for ``tf.data.Dataset.from_generator``.

    Without a transform elements are ``tf.string`` scalars (``lines`` without their ends, ``jsonl`` as text); of
    ``tar``, dicts of them. Decode them with TensorFlow's own: ``.map(tf.io.decode_jpeg)``,
    ``tf.io.parse_single_example``.

    Each iteration is the next epoch, in another order if shuffled: what ``model.fit(data, epochs=10)`` asks for. With
    ``epochs=None`` one iteration has no end; then say ``steps_per_epoch``. TensorFlow reads ahead of the model, so how
    far a model is cannot be told from here: start anew at an epoch (``epoch=n``), or use :class:`standpipe.Dataset`
    itself.

    Under a strategy of ``tf.distribute``, ``model.fit`` takes an iteration more, for a look at its first batch: the
    model's first epoch is the second one here.

    ::

        data = standpipe.tensorflow.dataset("s3://bucket/train-{000..146}.tfrecord", shuffle=5000)
        model.fit(data.map(parse).batch(256).prefetch(tf.data.AUTOTUNE), epochs=10)
    """
    for name in ("batch_size", "drop_last"):
        if name in settings:
            raise ConfigError(f"{name}: elements are single here: use .batch() of tf.data")
    if settings.get("rank") is None and (told := _rank_of_config()) is not None:
        settings["rank"], settings["world_size"] = told
    if transform is not None:
        samples = Dataset(uris, format, **settings)
        if output_signature is None:
            raise ConfigError("output_signature: needed with transform: the element spec of what it gives")
        make = transform
        return _unsharded(
            tf.data.Dataset.from_generator(
                _Epochs(samples, lambda epoch: map(make, epoch), settings), output_signature=output_signature
            )
        )
    samples = Dataset(uris, format, batch_size=_TOGETHER, **settings)
    found = samples.format
    # What a line of JSON says has no static type: its text has.
    if found == "jsonl":
        listed = {name: value for name, value in settings.items() if name != "manifest"}
        samples = Dataset(samples.objects, "lines", batch_size=_TOGETHER, **listed)
    if found == "tar":
        if not fields:
            raise ConfigError("fields: needed for tar: which files of a sample, such as ('jpg', 'cls')")
        names = tuple(fields)
        spec: Any = {name: tf.TensorSpec([None], tf.string) for name in names}
        return _elements(_Epochs(samples, lambda epoch: (_columns(batch, names) for batch in epoch), settings), spec)
    if found not in _BYTES and not found.startswith("fixed:"):
        raise ConfigError(f"format: {found} has no static element spec: give transform and output_signature")
    spec = tf.TensorSpec([None], tf.string)
    return _elements(_Epochs(samples, lambda epoch: map(_strings, epoch), settings), spec)


def PipeModeDataset(
    channel: str,
    record_format: str = "RecordIO",
    *,
    pipe_dir: str | os.PathLike[str] | None = None,
    epoch: int = 0,
    timeout: float | None = None,
) -> Any:
    """A channel of Pipe mode as a ``tf.data.Dataset`` of ``tf.string`` records; each iteration is the next epoch.

    It takes the place of ``sagemaker_tensorflow.PipeModeDataset``.

    Args:
        channel: its name.
        record_format: ``RecordIO``, ``TFRecord`` or ``TextLine``; also the formats of
            :class:`standpipe.pipe.PipeChannel` whose records are bytes, such as ``raw``.
        pipe_dir: where the FIFOs are; by default where SageMaker puts them.
        epoch: the first one.
        timeout: as for :class:`standpipe.pipe.PipeChannel`.

    Each iteration uses a FIFO up. Under a strategy of ``tf.distribute``, ``model.fit`` takes an iteration more, for a
    look at its first batch: serve one epoch more than it trains.

    ::

        data = standpipe.tensorflow.PipeModeDataset("train", "TFRecord").map(parse).batch(256)
        model.fit(data, epochs=10)
    """
    formats = {"recordio": "recordio", "tfrecord": "tfrecord", "textline": "lines"}
    found = formats.get(record_format.lower(), record_format)
    if found not in _BYTES and not found.startswith("fixed:"):
        raise ConfigError(f"record_format: {record_format!r} is none: use RecordIO, TFRecord or TextLine")
    # Text of JSON, again, and not what it says.
    found = "lines" if found == "jsonl" else found
    fifos = PipeChannel(channel, found, directory=pipe_dir, epoch=epoch, timeout=timeout)

    def epochs() -> Iterator[Any]:
        return map(_strings, iter(fifos).batches())

    return _elements(epochs, tf.TensorSpec([None], tf.string))


class _Epochs:
    """What TensorFlow calls for each iteration: the next epochs."""

    def __init__(
        self, samples: Dataset, convert: Callable[[Iterable[Any]], Iterator[Any]], settings: dict[str, Any]
    ) -> None:
        self._samples = samples
        self._convert = convert
        self._next = int(settings.get("epoch", 0))
        self._each = settings.get("epochs", 1) or 1
        self._is_first = True

    def __call__(self) -> Iterator[Any]:
        # The first iteration leaves settings as they were, so that what is to be skipped is.
        if not self._is_first:
            self._samples.set_epoch(self._next)
        self._is_first = False
        self._next += self._each
        return self._convert(iter(self._samples))


def _elements(batches: Callable[[], Iterator[Any]], spec: Any) -> Any:
    return _unsharded(tf.data.Dataset.from_generator(batches, output_signature=spec).unbatch())


def _unsharded(data: Any) -> Any:
    """Ranks have their shares already."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return data.with_options(options)


def _strings(batch: Iterable[Any]) -> Any:
    """Bytes as they are: NumPy's own type of strings would drop zeros at their end."""
    records = [bytes(record) for record in batch]
    array = numpy.empty(len(records), dtype=object)
    array[:] = records
    return array


def _columns(batch: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    columns: dict[str, list[bytes]] = {name: [] for name in names}
    for sample in batch:
        for name in names:
            if name not in sample:
                raise ValueError(
                    f"the sample {sample['__key__']!r} of {sample['__url__']} has no {name!r}: it has "
                    f"{', '.join(key for key in sample if not key.startswith('__'))}"
                )
            value = sample[name]
            columns[name].append(value.encode() if isinstance(value, str) else bytes(value))
    return {name: _strings(values) for name, values in columns.items()}


def _rank_of_config() -> tuple[int, int] | None:
    """The worker's number and how many there are, as for ``tf.distribute``; none where something else tells."""
    text = os.environ.get("TF_CONFIG")
    if not text or "RANK" in os.environ or known_rank() is not None:
        return None
    told = json.loads(text)
    cluster, task = told.get("cluster", {}), told.get("task", {})
    # The chief trains, too, and comes first.
    roles = [(role, index) for role in ("chief", "master", "worker") for index in range(len(cluster.get(role, ())))]
    own = (task.get("type"), int(task.get("index", 0)))
    return (roles.index(own), len(roles)) if own in roles else None
