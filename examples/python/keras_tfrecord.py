#!/usr/bin/env python3
"""Trains a Keras model on TFRecord shards, straight from where they lie; TensorFlow's own S3 support is not needed.

    python keras_tfrecord.py s3://bucket/train/      # or a folder, or "s3://bucket/part-{000..146}.tfrecord"
    python keras_tfrecord.py                         # makes shards in a temporary folder first

Each epoch is in another order; with `TF_CONFIG` or `RANK` and `WORLD_SIZE` each host reads its share.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

import standpipe.tensorflow
import tensorflow as tf

FEATURES = {
    "point": tf.io.FixedLenFeature([2], tf.float32),
    "inside": tf.io.FixedLenFeature([1], tf.float32),
}


def make(folder: Path, shards: int = 4, records: int = 500) -> list[Path]:
    """Points, and whether they are inside the unit circle."""
    made = []
    for shard in range(shards):
        chance = random.Random(shard)
        path = folder / f"part-{shard:03}.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _ in range(records):
                point = [chance.uniform(-1.5, 1.5), chance.uniform(-1.5, 1.5)]
                inside = float(point[0] ** 2 + point[1] ** 2 < 1)
                example = tf.train.Example(
                    features=tf.train.Features(
                        feature={
                            "point": tf.train.Feature(float_list=tf.train.FloatList(value=point)),
                            "inside": tf.train.Feature(float_list=tf.train.FloatList(value=[inside])),
                        }
                    )
                )
                writer.write(example.SerializeToString())
        made.append(path)
    return made


def parse(record: Any) -> Any:
    parsed = tf.io.parse_single_example(record, FEATURES)
    return parsed["point"], parsed["inside"]


def train(uris: str, epochs: int) -> float:
    """Returns the accuracy of the last epoch."""
    tf.keras.utils.set_random_seed(1)
    data = standpipe.tensorflow.dataset(uris, "tfrecord", shuffle=1000, seed=1).map(parse).batch(32)
    model = tf.keras.Sequential(
        [tf.keras.layers.Dense(32, "relu"), tf.keras.layers.Dense(32, "relu"), tf.keras.layers.Dense(1, "sigmoid")]
    )
    model.compile(tf.keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
    history = model.fit(data.prefetch(tf.data.AUTOTUNE), epochs=epochs, verbose=2)
    return float(history.history["accuracy"][-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("uris", nargs="?")
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.uris is None:
            make(Path(folder))
        accuracy = train(arguments.uris or f"{folder}/", arguments.epochs)
    print(f"{accuracy:.0%} right in the last epoch")


if __name__ == "__main__":
    main()
