"""Lets webdataset open ``s3://`` URLs by this package: no ``pipe:`` and no other program.

::

    import standpipe.webdataset
    import webdataset

    standpipe.webdataset.register(memory="512MiB")
    dataset = webdataset.WebDataset("s3://bucket/train-{000000..000146}.tar", shardshuffle=False)
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from . import _standpipe
from ._sequential import sequential

if TYPE_CHECKING:
    from typing import Unpack

    from .options import Options

__all__ = ["opener", "register"]


class Opener:
    """Opens URLs for webdataset. It pickles, for workers that are spawned."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def __call__(self, url: str, mode: str = "rb", bufsize: int = 8192, **_: Any) -> io.BufferedReader:
        """Opens one URL."""
        if mode not in ("r", "rb"):
            raise ValueError(f"mode {mode!r}: objects can be read only")
        # A shard that is missing is no beginning of other keys.
        return sequential(_standpipe.open_stream(_standpipe.Config(**self.options), [url], True))


def opener(**options: Unpack[Options]) -> Opener:
    """What webdataset's ``gopen`` calls for each URL of a scheme."""
    return Opener(options)


def register(*schemes: str, **options: Unpack[Options]) -> None:
    """Has webdataset open these schemes (by default ``s3``) by this package, in this process and those it forks."""
    from webdataset.gopen import gopen_schemes

    for scheme in schemes or ("s3",):
        gopen_schemes[scheme] = opener(**options)
