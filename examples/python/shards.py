"""Synthetic images as tar shards: what the examples read when nobody names a bucket.

`python shards.py FOLDER` makes them; a folder's path is as good a URI as `s3://bucket/prefix/`.
"""

from __future__ import annotations

import io
import random
import sys
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw

CLASSES = ["circle", "square", "cross"]
SIDE = 32


def image(chance: random.Random, label: int) -> bytes:
    """A shape somewhere, in some colour, on some other."""
    dark, bright = [tuple(chance.randrange(low, low + 100) for _ in range(3)) for low in (0, 150)]
    picture = Image.new("RGB", (SIDE, SIDE), dark)
    draw = ImageDraw.Draw(picture)
    size = chance.randrange(14, 22)
    left, top = chance.randrange(SIDE - size), chance.randrange(SIDE - size)
    box = (left, top, left + size, top + size)
    if label == 0:
        draw.ellipse(box, fill=bright)
    elif label == 1:
        draw.rectangle(box, fill=bright)
    else:
        draw.line(box, fill=bright, width=4)
        draw.line((left, top + size, left + size, top), fill=bright, width=4)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def make(folder: Path, shards: int = 6, samples: int = 100) -> list[Path]:
    """Shards of `samples` pairs of a JPEG and its label each."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for shard in range(shards):
        chance = random.Random(shard)
        path = folder / f"train-{shard:06}.tar"
        with tarfile.open(path, "w") as archive:
            for number in range(samples):
                label = chance.randrange(len(CLASSES))
                for suffix, body in (("jpg", image(chance, label)), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{shard:03}{number:05}.{suffix}")
                    member.size = len(body)
                    archive.addfile(member, io.BytesIO(body))
        made.append(path)
    return made


if __name__ == "__main__":
    print(*make(Path(sys.argv[1])), sep="\n")
