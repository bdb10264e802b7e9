#!/usr/bin/env python3
"""An ordinary File mode training script: the whole channel lies in a directory before it starts.

It does with the files what pipe_mode_train.py does with its FIFO, so that the two compare. It prints a line of JSON
per epoch.
"""

import argparse
import os
import time
from pathlib import Path
from typing import BinaryIO

from samples import Model, Tally, images

# The training toolkit's name for the root of the tree that a container sees.
BASE = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))


class Counted:
    """A file whose bytes are tallied as they are read."""

    def __init__(self, file: BinaryIO, tally: Tally) -> None:
        self.file = file
        self.tally = tally

    def read(self, size: int, /) -> bytes:
        data = self.file.read(size)
        self.tally.add(data)
        return data


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--channel", default="train")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--step-ms", type=float, default=0.0, help="time that a training step takes per sample")
    args = parser.parse_args()

    files = sorted(path for path in (BASE / "input" / "data" / args.channel).rglob("*.tar"))
    for epoch in range(args.epochs):
        tally = Tally(time.monotonic())
        model = Model(args.step_ms)
        for path in files:
            with open(path, "rb") as file:
                counted = Counted(file, tally)
                for label, png in images(counted):
                    model.step(label, png)
                while counted.read(1 << 20):
                    pass
        print(model.report(epoch, tally), flush=True)


if __name__ == "__main__":
    main()
