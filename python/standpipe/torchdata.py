"""Datasets as nodes of ``torchdata.nodes``.

``torchdata.stateful_dataloader.StatefulDataLoader`` needs nothing of this: :class:`standpipe.torch.StreamingDataset`
and its iterator have the states that it asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dataset import Dataset, Samples
    from .mixture import Mixture

    class _BaseNode(Iterator[Any]):
        def __init__(self) -> None: ...
        def reset(self, initial_state: dict[str, Any] | None = None) -> None: ...

else:
    from torchdata.nodes import BaseNode as _BaseNode

__all__ = ["SourceNode"]


class SourceNode(_BaseNode):
    """The samples of a dataset or a mixture, as the first node of a graph.

    Each ``reset()`` without a state but the first begins the next epoch, which has another order. ``reset(state)`` goes
    on where ``get_state()`` was taken, by seeking.

    ::

        node = torchdata.nodes.Batcher(SourceNode(standpipe.Dataset("s3://bucket/train/", "tar", shuffle=5000)), 256)
        loader = torchdata.nodes.Loader(node)

    Args:
        dataset: a :class:`standpipe.Dataset` or :class:`standpipe.Mixture`, of one epoch.
        epoch: the first one.
    """

    def __init__(self, dataset: Dataset | Mixture, epoch: int = 0) -> None:
        super().__init__()
        self._dataset = dataset
        self._first = epoch
        self._epoch: int | None = None
        self._samples: Samples | Any = None

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        """Begins the next epoch, or goes on from a state."""
        super().reset(initial_state)
        if initial_state is not None:
            self._epoch = int(initial_state["epoch"])
            self._dataset.load_state_dict(initial_state["dataset"])
        else:
            self._epoch = self._first if self._epoch is None else self._epoch + 1
            self._dataset.set_epoch(self._epoch)
        self._samples = iter(self._dataset)

    def next(self) -> Any:
        """The next sample."""
        return next(self._samples)

    def get_state(self) -> dict[str, Any]:
        """How far it is: small, and JSON all through."""
        return {"epoch": self._epoch, "dataset": self._samples.state_dict()}
