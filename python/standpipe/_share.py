"""Which share of the work is this process's: of ranks times workers."""

from __future__ import annotations

import os
import sys

__all__ = ["known_rank", "local_readers", "rank_and_size", "share", "worker_and_count"]


def known_rank() -> tuple[int, int] | None:
    """What ``torch.distributed`` says, where it is initialised. Imports nothing."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return None


def rank_and_size(told: tuple[int, int] | None = None) -> tuple[int, int]:
    """From ``torch.distributed`` where it is initialised, else ``told``, else from ``RANK`` and ``WORLD_SIZE``.

    ``told`` is what :func:`known_rank` said where a dataset was pickled: a worker that was not forked has the
    environment of the process that trains, but not its ``torch.distributed``.
    """
    known = known_rank() or told
    if known is not None:
        return known
    rank, size = int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)
    if not 0 <= rank < size:
        raise ValueError(f"RANK={rank} and WORLD_SIZE={size}: a rank is at least 0 and below the world's size")
    return rank, size


def worker_and_count() -> tuple[int, int]:
    """Of a ``DataLoader``'s workers; one outside of them."""
    data = sys.modules.get("torch.utils.data")
    info = data.get_worker_info() if data is not None else None
    return (0, 1) if info is None else (info.id, info.num_workers)


def local_readers(workers: int | None = None) -> int:
    """How many processes of this job read on this host, as far as this one can know: the workers of each of its ranks.

    ``torchrun`` tells how many ranks there are on a host (``LOCAL_WORLD_SIZE``).
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(ranks, 1) * (worker_and_count()[1] if workers is None else workers)


def share(told: tuple[int, int] | None = None) -> tuple[int, int]:
    """This process's number among all workers of all ranks, and how many these are.

    >>> share()
    (0, 1)
    """
    rank, ranks = rank_and_size(told)
    worker, workers = worker_and_count()
    return rank * workers + worker, ranks * workers
