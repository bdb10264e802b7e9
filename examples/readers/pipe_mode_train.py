#!/usr/bin/env python3
"""An ordinary Pipe mode training script, as people write them for SageMaker: it knows nothing of Standpipe.

It waits for the FIFO of each epoch, reads it to its end without a buffer of Python's own, and treats the bytes as tar
archives back to back. It prints a line of JSON per epoch.
"""

import argparse
import io
import os
import sys
import time
from pathlib import Path

from samples import Model, Tally, images

# The training toolkit's name for the root of the tree that a container sees.
BASE = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))


class Fifo:
    """The read end of one epoch's FIFO."""

    def __init__(self, path: Path, tally: Tally) -> None:
        self.raw: io.FileIO = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by `close`
        self.tally = tally
        self.buffer = bytearray(1 << 20)

    def read(self, size: int, /) -> bytes:
        with memoryview(self.buffer) as whole:
            count = self.raw.readinto(whole[:size])
            self.tally.add(whole[: count or 0])
            return bytes(whole[: count or 0])

    def drain(self) -> None:
        """Reads what follows the last archive, up to the end of the epoch."""
        while self.read(len(self.buffer)):
            pass

    def close(self) -> None:
        self.raw.close()


def wait_for(path: Path, patience_s: float) -> None:
    """The platform makes a FIFO when it is ready to; until then the script looks again."""
    deadline = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > deadline:
            sys.exit(f"{path}: not there after {patience_s} s")
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--channel", default="train")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--step-ms", type=float, default=0.0, help="time that a training step takes per sample")
    parser.add_argument("--patience-s", type=float, default=60.0, help="how long to wait for a FIFO")
    args = parser.parse_args()

    for epoch in range(args.epochs):
        path = BASE / "input" / "data" / f"{args.channel}_{epoch}"
        tally = Tally(time.monotonic())
        model = Model(args.step_ms)
        wait_for(path, args.patience_s)
        fifo = Fifo(path, tally)
        for label, png in images(fifo):
            model.step(label, png)
        fifo.drain()
        fifo.close()
        print(model.report(epoch, tally), flush=True)


if __name__ == "__main__":
    main()
