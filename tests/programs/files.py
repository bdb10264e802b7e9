#!/usr/bin/env python3
"""Files as training jobs have them, and their readers: programs that know nothing of where files come from.

    files.py make DIR      makes the files
    files.py read DIR      reads them, and prints what was found as JSON

Whoever reads a copy of the same files must print the same.
"""

import hashlib
import json
import mmap
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROWS = 200_000


def make(root: Path) -> None:
    """A folder of images by class, a table, an array, a database."""
    chance = np.random.default_rng(7)
    for index in range(60):
        folder = root / "images" / ("cats", "dogs", "owls")[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = chance.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    table = pa.table({"id": np.arange(ROWS), "value": chance.random(ROWS), "label": chance.integers(0, 10, ROWS)})
    pq.write_table(table, root / "table.parquet", row_group_size=ROWS // 16)
    np.save(root / "array.npy", chance.random((4_000, 1_000), dtype=np.float32))
    with sqlite3.connect(root / "samples.sqlite") as base:
        base.execute("CREATE TABLE samples (id INTEGER PRIMARY KEY, body BLOB)")
        bodies = ((key, chance.bytes(1_000)) for key in range(5_000))
        base.executemany("INSERT INTO samples VALUES (?, ?)", bodies)


def image_folder(root: Path) -> dict[str, object]:
    """As torchvision's ImageFolder: classes are folders; every image is decoded, in an order that was shuffled."""
    classes = sorted(path.name for path in (root / "images").iterdir() if path.is_dir())
    samples = [(path, label) for label, name in enumerate(classes) for path in (root / "images" / name).iterdir()]
    samples.sort()
    np.random.default_rng(1).shuffle(samples)
    seen = hashlib.sha256()
    for path, label in samples:
        with Image.open(path) as image:
            seen.update(image.convert("RGB").tobytes() + bytes([int(label)]))
    return {"classes": classes, "images": len(samples), "sha256": seen.hexdigest()}


def parquet(root: Path) -> dict[str, object]:
    """The footer first, then some columns of some row groups, then the whole by memory map."""
    file = pq.ParquetFile(root / "table.parquet")
    some = file.read_row_groups([15, 3], columns=["value"])
    whole = pq.read_table(root / "table.parquet", memory_map=True)
    return {
        "rows": whole.num_rows,
        "some": float(np.sum(some["value"].to_numpy())),
        "whole": [float(np.sum(column.to_numpy())) for column in whole.columns],
    }


def array(root: Path) -> dict[str, object]:
    """Rows at random out of a mapped array, as an index-based dataset reads tokens."""
    mapped = np.load(root / "array.npy", mmap_mode="r")
    rows = np.random.default_rng(2).integers(0, mapped.shape[0], 200)
    return {"shape": list(mapped.shape), "sum": float(np.sum(np.stack([mapped[row] for row in rows])))}


def database(root: Path) -> dict[str, object]:
    """A read-only database: lookups by key, and a scan."""
    base = sqlite3.connect(f"file:{root / 'samples.sqlite'}?mode=ro&immutable=1", uri=True)
    keys = np.random.default_rng(3).integers(0, 5_000, 100).tolist()
    found = [base.execute("SELECT body FROM samples WHERE id = ?", (key,)).fetchone()[0] for key in keys]
    check = base.execute("PRAGMA integrity_check").fetchone()[0]
    total = base.execute("SELECT count(*), sum(length(body)) FROM samples").fetchone()
    return {"check": check, "found": hashlib.sha256(b"".join(found)).hexdigest(), "total": total}


def raw_map(root: Path) -> dict[str, object]:
    """A plain memory map, read backwards."""
    with (root / "array.npy").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        pages = [mapped[start : start + 4096] for start in range(len(mapped) - 4096, 0, -1_000_000)]
    return {"sha256": hashlib.sha256(b"".join(pages)).hexdigest()}


def read(root: Path) -> None:
    for reader in (image_folder, parquet, array, database, raw_map):
        print(json.dumps({reader.__name__: reader(root)}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", folder]:
            make(Path(folder))
        case ["read", folder]:
            read(Path(folder))
        case _:
            sys.exit(__doc__)
