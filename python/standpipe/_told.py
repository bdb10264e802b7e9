"""What a loader's processes tell each other of a dataset: memory that all of them see, made before they are.

The process that trains says which epoch is next and which state was loaded; workers say that they have used that state,
and what they have listed. Each writes its own slots, so nothing is locked: a worker that died holds nothing up.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import torch

from .exceptions import ConfigError

__all__ = ["Told"]

_WORKERS = 1024
# A merged state has some ten bytes, compressed, for each consumer.
_STATE_BYTES = 256 << 10

# Where the numbers stand.
_EPOCH, _LOADS, _IS_LOADED, _STATE_LEN, _WORKERS_READ, _USED_BY = range(6)
# Who has used a state: a run of workers (numbers from 0 on), the process that trains, nobody.
MAIN, _NOBODY = -1, -2


class Told:
    """Numbers, and the state that was loaded last."""

    def __init__(self, epoch: int) -> None:
        self._numbers = torch.zeros(6, dtype=torch.int64).share_memory_()
        # Of each worker, and of the process that trains: the load that it has used, its run of workers, its listing.
        self._slots = torch.zeros((_WORKERS + 1, 3), dtype=torch.int64).share_memory_()
        self._text = torch.zeros(_STATE_BYTES, dtype=torch.uint8).share_memory_()
        self._numbers[_USED_BY] = _NOBODY
        self.publish(epoch, None, loaded=False)

    def share(self) -> bool:
        """Makes it memory that workers see, if it is a copy that is not."""
        all_of_it = (self._numbers, self._slots, self._text)
        if all(tensor.is_shared() for tensor in all_of_it):
            return False
        for tensor in all_of_it:
            tensor.share_memory_()
        return True

    def _get(self, what: int) -> int:
        return int(self._numbers[what])

    def publish(self, epoch: int, state: dict[str, Any] | None, *, loaded: bool) -> None:
        """What the process that trains has set: the next epoch, and the state that the next pass goes on from."""
        packed = b"" if state is None else zlib.compress(json.dumps(state).encode())
        if 0 < len(packed) <= _STATE_BYTES:
            self._text[: len(packed)] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        self._numbers[_STATE_LEN] = len(packed)
        self._numbers[_EPOCH] = epoch
        self._numbers[_IS_LOADED] = int(state is not None)
        self._numbers[_WORKERS_READ] = 0
        if loaded:
            self._numbers[_USED_BY] = _NOBODY
            self._numbers[_LOADS] += 1

    @property
    def epoch(self) -> int:
        """The next one."""
        return self._get(_EPOCH)

    @property
    def loads(self) -> int:
        """How many states were loaded so far."""
        return self._get(_LOADS)

    def state(self) -> dict[str, Any]:
        """The last one."""
        length = self._get(_STATE_LEN)
        if length > _STATE_BYTES:
            raise ConfigError(
                f"state: {length} bytes, compressed, and workers that live on can be told {_STATE_BYTES}: "
                "load it before they start, or use persistent_workers=False"
            )
        state: dict[str, Any] = json.loads(zlib.decompress(self._text[:length].numpy().tobytes()))
        return state

    def is_due(self, worker: int | None, run: int) -> bool:
        """Whether a state was loaded that this pass goes on from: each worker of one run uses it, once."""
        if not self._get(_IS_LOADED) or self._get(_LOADS) == int(self._slots[_slot(worker), 0]):
            return False
        return self._get(_USED_BY) in (_NOBODY, run)

    def used(self, worker: int | None, run: int) -> None:
        """It was used."""
        self._numbers[_USED_BY] = run
        self._slots[_slot(worker), 0] = self._get(_LOADS)

    def is_used(self) -> bool:
        """Whether anybody has."""
        return self._get(_USED_BY) != _NOBODY

    def workers_read(self) -> bool:
        """Whether workers began to read since the process that trains set anything, or read itself."""
        return bool(self._get(_WORKERS_READ))

    def reads(self, worker: int | None) -> None:
        """A pass begins here."""
        self._numbers[_WORKERS_READ] = int(worker is not None)

    def compare(self, worker: int, workers: int, run: int, listing: int) -> None:
        """Refuses what differs from what another worker of the same run has listed: their shares would not fit
        together, so that samples came twice or never."""
        self._slots[_slot(worker), 1] = run
        self._slots[_slot(worker), 2] = listing
        others = self._slots[1 : workers + 1]
        same_run = others[:, 1] == run
        if bool((same_run & (others[:, 2] != listing)).any()):
            raise ConfigError(
                "uris: the workers of this loader have found different objects: something is being written there. "
                "Call list_once() before they start, or give what standpipe.list() found"
            )


def _slot(worker: int | None) -> int:
    if worker is None:
        return 0
    if worker >= _WORKERS:
        raise ConfigError(f"num_workers: at most {_WORKERS}")
    return worker + 1
