"""Standpipe streams training data from S3: in order, ahead of its consumer, in bounded memory, without a copy.

* :func:`stream`: objects back to back, as chunks; :func:`open`: one object as a file.
* :class:`Dataset`: objects as samples, shuffled, dealt out among ranks and workers, and resumable.
* :func:`list`, :func:`stat`, :func:`download`; :class:`FastFiles`: a prefix as files that need no download.
* :mod:`standpipe.pipe`: the FIFOs of Pipe mode, as records.
* :mod:`standpipe.aio`: the same for ``asyncio``. :mod:`standpipe.torch`, :mod:`standpipe.tensorflow`,
  :mod:`standpipe.ray`, :mod:`standpipe.torchdata`, :mod:`standpipe.fsspec`, :mod:`standpipe.webdataset`,
  :mod:`standpipe.compat.s3torchconnector`: for what you have.

Importing this starts nothing and imports no framework. Streams and open files belong to the process that opened them;
in a forked child they raise :class:`ForkedError`. Settings, :class:`FastFiles` and datasets may cross a fork or a
pickle: the process that reads opens anew.
"""

from . import aio, exceptions, pipe
from ._api import DownloadSummary, FastFiles, stat, stats, stream
from ._api import download as download
from ._api import list_objects as list
from ._api import open_object as open
from ._file import ObjectFile
from ._standpipe import Chunk, Entry, LocalFile, ObjectInfo, Stream, __version__
from ._stats import Stats, Verdict
from .dataset import Dataset, DatasetStats, Samples, SparseTensor, merge_states
from .exceptions import (
    CancelledError,
    ChangedError,
    ConfigError,
    CorruptError,
    CredentialsError,
    ForkedError,
    InternalError,
    LocalIOError,
    NetworkError,
    NotFoundError,
    PermissionDeniedError,
    RangeError,
    RefusedError,
    ServerError,
    StalledError,
    StandpipeError,
    ThrottledError,
    TlsError,
    UnknownHostError,
)
from .mixture import Mixture
from .options import Options

__all__ = [
    "CancelledError",
    "ChangedError",
    "Chunk",
    "ConfigError",
    "CorruptError",
    "CredentialsError",
    "Dataset",
    "DatasetStats",
    "DownloadSummary",
    "Entry",
    "FastFiles",
    "ForkedError",
    "InternalError",
    "LocalFile",
    "LocalIOError",
    "Mixture",
    "NetworkError",
    "NotFoundError",
    "ObjectFile",
    "ObjectInfo",
    "Options",
    "PermissionDeniedError",
    "RangeError",
    "RefusedError",
    "Samples",
    "ServerError",
    "SparseTensor",
    "StalledError",
    "StandpipeError",
    "Stats",
    "Stream",
    "ThrottledError",
    "TlsError",
    "UnknownHostError",
    "Verdict",
    "__version__",
    "aio",
    "download",
    "exceptions",
    "list",
    "merge_states",
    "open",
    "pipe",
    "stat",
    "stats",
    "stream",
]
