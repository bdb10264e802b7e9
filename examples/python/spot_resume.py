#!/usr/bin/env python3
"""Kills a training process (`kill -9`), resumes it, again and again, and proves that nothing was lost or doubled.

    python spot_resume.py s3://bucket/train/      # or a folder; without arguments it makes one
    python spot_resume.py --kills 5

The trainer saves the loader's state together with the model's, in one file, by rename. Whatever it did after the last
save is gone with the process, model and place alike; so what counts is what the saved model has seen.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import standpipe

SAVE_EACH = 16


def save(path: Path, place: dict[str, Any], seen: list[str]) -> None:
    """Both or neither: a reader sees the old file or the new one."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"place": place, "seen": seen}))
    os.replace(draft, path)


def train(uris: str, checkpoint: Path) -> None:
    """One life of the trainer. Its model is the list of what it was trained on."""
    dataset = standpipe.Dataset(uris, "tar", shuffle=100, seed=1)
    seen: list[str] = []
    if checkpoint.exists():
        saved = json.loads(checkpoint.read_text())
        dataset.load_state_dict(saved["place"])
        seen = saved["seen"]
    for sample in dataset:
        seen.append(f"{sample['__url__']} {sample['__key__']}")
        time.sleep(0.002)  # the work
        if len(seen) % SAVE_EACH == 0:
            save(checkpoint, dataset.state_dict(), seen)
    save(checkpoint, dataset.state_dict(), seen)


def saved_count(checkpoint: Path) -> int:
    return len(json.loads(checkpoint.read_text())["seen"]) if checkpoint.exists() else 0


def run_and_kill(uris: str, checkpoint: Path, chance: random.Random) -> int | None:
    """Starts the trainer and kills it some saves later; its exit code if it was done before that."""
    wanted = saved_count(checkpoint) + SAVE_EACH * chance.randrange(1, 6)
    trainer = subprocess.Popen([sys.executable, __file__, uris, "--train", str(checkpoint)])
    while trainer.poll() is None and saved_count(checkpoint) < wanted:
        time.sleep(0.001)
    time.sleep(chance.random() * 0.03)  # somewhere between two saves
    if trainer.poll() is not None:
        return trainer.returncode
    trainer.kill()
    trainer.wait()
    return None


def demonstrate(uris: str, kills: int) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.json"
        chance = random.Random(7)
        done: int | None = None
        for number in range(kills):
            done = run_and_kill(uris, checkpoint, chance)
            if done is not None:
                break
            print(f"kill {number + 1}: {saved_count(checkpoint)} samples are in the saved model", flush=True)
        if done is None:
            subprocess.run([sys.executable, __file__, uris, "--train", str(checkpoint)], check=True)
        seen = json.loads(checkpoint.read_text())["seen"]
    everything = {f"{sample['__url__']} {sample['__key__']}" for sample in standpipe.Dataset(uris, "tar")}
    doubled = [name for name, count in collections.Counter(seen).items() if count > 1]
    missing = everything - set(seen)
    print(f"{len(everything)} samples: {len(seen)} seen, {len(doubled)} doubled, {len(missing)} missing")
    return not doubled and not missing and len(seen) == len(everything)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("uris", nargs="?")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--train", type=Path, metavar="CHECKPOINT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train is not None:
        train(arguments.uris, arguments.train)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if arguments.uris is None:
            import shards

            shards.make(Path(folder))
        return 0 if demonstrate(arguments.uris or f"{folder}/", arguments.kills) else 1


if __name__ == "__main__":
    sys.exit(main())
