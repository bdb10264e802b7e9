"""The settings that every reader takes: the command line's flags, as keywords.

What is not given comes from ``STANDPIPE_*`` variables (``STANDPIPE_MEMORY=256MiB``), then from where the AWS tools
take it: ``AWS_*`` variables (``AWS_ENDPOINT_URL_S3``, ``AWS_PROFILE``, ``AWS_CA_BUNDLE``, ...), profiles, SSO, web
identity, containers and instances.
"""

from __future__ import annotations

import os
from typing import Literal, TypedDict

__all__ = ["Options"]


class Options(TypedDict, total=False):
    """The keywords. Sizes are bytes, or text such as ``"64MiB"`` (of 1024) or ``"64MB"`` (of 1000)."""

    endpoint_url: str | None
    """Another server than Amazon's, such as ``http://127.0.0.1:9000``."""
    region: str | None
    """The bucket's region; found out if not given."""
    profile: str | None
    """The profile of ``~/.aws`` to use."""
    no_sign_request: bool | None
    """Send unsigned requests, for public data."""
    request_payer: bool | None
    """Agree to pay for requests (requester-pays buckets)."""
    sse_c_key: bytes | None
    """The 32 bytes of the key of objects that are encrypted with one of yours (SSE-C)."""
    ca_bundle: str | os.PathLike[str] | None
    """PEM file of certificates to trust, in place of the system's."""
    transport: Literal["direct", "stock"] | None
    """How bodies are received: by Standpipe itself, or by the AWS SDK."""
    memory: int | str | None
    """Memory for data, at most, for all streams of a process with the same settings, and as much again for its open
    files. Default: enough for 10 Gb/s (336 MiB), at most a quarter of the RAM."""
    part_size: int | str | None
    """Size of a ranged request; default 8 MiB."""
    concurrency: int | None
    """Requests in flight, at most; default: enough for 10 Gb/s."""
    checksums: Literal["off", "when-possible", "require"] | None
    """Whether checksums are compared; default ``"when-possible"``."""
    cache: str | os.PathLike[str] | None
    """Directory in which what was read is kept, for the next epoch, other processes and the next start."""
    cache_size: int | str | None
    """Disk that the cache may take; default: all but 5 % of it."""
