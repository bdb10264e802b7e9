"""A trainer that knows SageMaker's contract and nothing of Standpipe.

It reads every Pipe channel for some epochs (hyperparameter `epochs`), counts bytes for a model, saves its state after
each epoch, goes on from a saved state, and saves once more when it is asked to end.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

BASE = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
STATE = BASE / "checkpoints" / "state.json"


def load(name: str) -> Any:
    return json.loads((BASE / "input" / "config" / name).read_text())


def save(state: dict[str, int]) -> None:
    """Under another name first: a checkpoint is whole or it is the old one."""
    STATE.parent.mkdir(exist_ok=True)
    draft = STATE.with_suffix(".tmp")
    draft.write_text(json.dumps(state))
    draft.rename(STATE)


def main() -> int:
    epochs = int(load("hyperparameters.json").get("epochs", "1"))
    channels = [name for name, config in load("inputdataconfig.json").items() if config["TrainingInputMode"] == "Pipe"]
    state = json.loads(STATE.read_text()) if STATE.exists() else {"epoch": 0, "bytes": 0}

    def end(*_: object) -> None:
        save(state)
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    first = state["epoch"]
    for epoch in range(first, epochs):
        taken = 0
        for channel in channels:
            # Of this run's: FIFOs are numbered from 0 in every run.
            path = BASE / "input" / "data" / f"{channel}_{epoch - first}"
            with path.open("rb", buffering=0) as fifo:
                while piece := fifo.read(1 << 20):
                    taken += len(piece)
        # Both at once, and not before: an epoch that is cut short is repeated as a whole.
        state.update(epoch=epoch + 1, bytes=state["bytes"] + taken)
        save(state)
    (BASE / "model" / "model.json").write_text(json.dumps(state))
    print(f"trained on {state['bytes']} bytes in {state['epoch']} epochs")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as error:  # The platform shows what stands in this file.
        (BASE / "output" / "failure").write_text(f"{type(error).__name__}: {error}")
        raise
