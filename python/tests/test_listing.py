"""`standpipe.list` and `standpipe.stat`."""

from datetime import UTC, datetime

import pytest
import standpipe
from conftest import Server
from standpipe import Options


def test_everything_below_or_one_level(server: Server, options: Options) -> None:
    keys = ["list/a", "list/b/1", "list/b/2", "list/c/d/e"]
    for key in keys:
        server.put(key, key.encode())
    server.put("list/b/", b"")
    found = list(standpipe.list("s3://data/list/", **options))
    assert [(info.key, info.size) for info in found] == [(key, len(key)) for key in keys]
    one = found[0]
    assert (one.uri, one.bucket, one.is_prefix) == ("s3://data/list/a", "data", False)
    assert one.etag is not None and one.last_modified is not None
    assert abs((datetime.now(UTC) - one.last_modified).total_seconds()) < 3600
    level = list(standpipe.list("s3://data/list/", recursive=False, **options))
    assert sorted((info.key, info.is_prefix) for info in level) == [
        ("list/a", False),
        ("list/b/", True),
        ("list/c/", True),
    ]


def test_more_than_a_page(server: Server, options: Options) -> None:
    for number in range(1200):
        server.put(f"pages/{number:05}", b"x")
    keys = [info.key for info in standpipe.list("s3://data/pages/", **options)]
    assert keys == [f"pages/{number:05}" for number in range(1200)]
    some = standpipe.list("s3://data/pages/{00003,00001}", **options)
    assert [info.key for info in some] == ["pages/00003", "pages/00001"]


def test_what_is_not_there(server: Server, options: Options) -> None:
    with pytest.raises(standpipe.NotFoundError):
        list(standpipe.list("s3://data/nothing/here/", **options))
    with pytest.raises(standpipe.NotFoundError):
        standpipe.stat("s3://data/nothing", **options)
    with pytest.raises(standpipe.NotFoundError):
        list(standpipe.list("s3://no-such-bucket/", **options))


def test_one_object(server: Server, options: Options) -> None:
    info = standpipe.stat(server.put("stat/object", b"12345"), **options)
    assert (info.key, info.size, info.is_prefix) == ("stat/object", 5, False)
    assert repr(info) == "<ObjectInfo s3://data/stat/object 5 bytes>"
