#!/usr/bin/env python3
"""Trains a small network on images in tar shards, straight from where they lie.

    python classify.py s3://bucket/train/      # or a folder, or "s3://bucket/train-{000000..000005}.tar"
    python classify.py                         # makes synthetic images in a temporary folder first

Settings come from the environment: AWS_PROFILE, STANDPIPE_MEMORY=512MiB, ... The numbers at the end say whether the
loader or the training was the slow part.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy
import shards
import standpipe.torch
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader


def decode(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """From bytes to what the network takes; runs in the loader's workers."""
    picture = Image.open(io.BytesIO(sample["jpg"]))
    pixels = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)
    return pixels.float() / 255, int(bytes(sample["cls"]))


def network() -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    layers = [*block(3, 16), *block(16, 32), *block(32, 32), nn.Flatten(), nn.Linear(32 * 16, len(shards.CLASSES))]
    return nn.Sequential(*layers)


def train(uris: str, epochs: int, workers: int) -> float:
    """Returns the share of the last epoch's images that were classified rightly, as they were trained on."""
    torch.manual_seed(0)
    dataset = standpipe.torch.StreamingDataset(uris, "tar", shuffle=500, seed=1, transform=decode)
    loader = DataLoader(dataset, batch_size=32, num_workers=workers, persistent_workers=workers > 0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    right = seen = 0
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        right = seen = 0
        for images, labels in loader:
            guesses = model(images)
            optimizer.zero_grad()
            nn.functional.cross_entropy(guesses, labels).backward()
            optimizer.step()
            right += int((guesses.argmax(1) == labels).sum())
            seen += len(labels)
        print(f"epoch {epoch}: {seen} images, {right / seen:.0%} right", flush=True)
    if workers == 0:
        stats = dataset.stats()
        print(f"waited {stats['waited_seconds']:.2f} of {stats['elapsed_seconds']:.2f} s: {stats['verdict']['advice']}")
    return right / seen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("uris", nargs="?")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.uris is None:
            shards.make(Path(folder))
        train(arguments.uris or f"{folder}/", arguments.epochs, arguments.workers)


if __name__ == "__main__":
    main()
