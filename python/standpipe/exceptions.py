"""What can go wrong.

Every class has two parents: :class:`StandpipeError`, and the built-in that programs catch already
(:class:`FileNotFoundError`, :class:`PermissionError`, :class:`ConnectionError`, :class:`TimeoutError`,
:class:`ValueError`, :class:`OSError`). All of them pickle, so they come back from worker processes as what they are.

>>> import pickle
>>> error = NotFoundError("s3://b/k: not found", uri="s3://b/k", status=404, request_id="R1")
>>> isinstance(error, FileNotFoundError), error.bucket, error.key
(True, 'b', 'k')
>>> pickle.loads(pickle.dumps(error)).request_id
'R1'
"""

from __future__ import annotations

import re
from typing import Any

__all__ = [
    "CancelledError",
    "ChangedError",
    "ConfigError",
    "CorruptError",
    "CredentialsError",
    "ForkedError",
    "InternalError",
    "LocalIOError",
    "NetworkError",
    "NotFoundError",
    "PermissionDeniedError",
    "RangeError",
    "RefusedError",
    "ServerError",
    "StalledError",
    "StandpipeError",
    "ThrottledError",
    "TlsError",
    "UnknownHostError",
]

# The library's hints name the command line's flags, which are the keywords with dashes.
_FLAG = re.compile(r"--([a-z][a-z0-9-]*[a-z0-9])")


def _keywords(text: str) -> str:
    return _FLAG.sub(lambda flag: flag[1].replace("-", "_"), text)


class StandpipeError(Exception):
    """The parent of all errors of this package.

    Attributes:
        message: one line that says what failed, and why.
        uri: the object or prefix, if there is one; ``bucket`` and ``key`` are its parts.
        offset: the first byte that is missing, in bytes from the object's start, of a request that was for bytes.
        status, code, request_id: what the server said: the HTTP status, S3's code, and the id that its support asks
            for.
        fix: what to do about it, if that is known; it is shown below the traceback.
    """

    def __init__(
        self,
        message: str = "",
        *,
        uri: str | None = None,
        offset: int | None = None,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        errno: int | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = _keywords(message)
        self.uri = uri
        self.offset = offset
        self.status = status
        self.code = code
        self.request_id = request_id
        self.errno = errno
        self.fix = None if fix is None else _keywords(fix)
        if self.fix is not None:
            self.add_note(f"fix: {self.fix}")

    @property
    def bucket(self) -> str | None:
        """The object's bucket."""
        return None if self.uri is None else _split(self.uri)[0]

    @property
    def key(self) -> str | None:
        """The object's key, or the path of a local file."""
        return None if self.uri is None else _split(self.uri)[1]

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {
            name: getattr(self, name)
            for name in ("uri", "offset", "status", "code", "request_id", "errno", "fix")
            if getattr(self, name) is not None
        }
        return _rebuilt, (type(self), self.message, facts)


def _split(uri: str) -> tuple[str, str]:
    scheme, found, rest = uri.partition("://")
    if not found:
        return "", uri
    if scheme == "file":
        return "", rest
    # The slash or colon within an access point's ARN is not the one before the key.
    start = rest.find("accesspoint/") + len("accesspoint/") if rest.startswith("arn:") and "accesspoint/" in rest else 0
    end = rest.find("/", start)
    return (rest, "") if end < 0 else (rest[:end], rest[end + 1 :])


def _rebuilt(cls: type[StandpipeError], message: str, facts: dict[str, Any]) -> StandpipeError:
    return cls(message, **facts)


class NotFoundError(StandpipeError, FileNotFoundError):
    """There is no such bucket, key, version or file."""


class PermissionDeniedError(StandpipeError, PermissionError):
    """The credentials, or their absence, do not allow the read."""


class CredentialsError(PermissionDeniedError):
    """No usable credentials were found."""


class ChangedError(StandpipeError, OSError):
    """The object was replaced while it was read; no byte of the new version was delivered."""


class RangeError(StandpipeError, OSError):
    """The object is shorter than it was said to be."""


class CorruptError(StandpipeError, OSError):
    """The bytes are not what they claim to be: a checksum or a length lies."""


class RefusedError(StandpipeError, OSError):
    """The service refused the request for a reason that asking again does not change."""


class NetworkError(StandpipeError, ConnectionError):
    """The connection failed or broke, and retries did not help."""


class ServerError(NetworkError):
    """The service failed (5xx), and retries did not help."""


class ThrottledError(NetworkError):
    """The service asked for fewer requests (503 SlowDown, 429), and waiting did not help."""


class UnknownHostError(NetworkError):
    """The endpoint's name has no address."""


class TlsError(NetworkError):
    """The server's certificate was not accepted, or TLS failed."""


class StalledError(StandpipeError, TimeoutError):
    """Nothing came for the time allowed."""


class ConfigError(StandpipeError, ValueError):
    """A setting or an argument is not usable."""


class LocalIOError(StandpipeError, OSError):
    """A local file or directory failed; ``errno`` is the system's."""


class CancelledError(StandpipeError):
    """The reader was closed."""


class InternalError(StandpipeError, RuntimeError):
    """A bug in Standpipe: please report it."""


class ForkedError(StandpipeError, RuntimeError):
    """Something that is alive in one process was used in its forked child."""
