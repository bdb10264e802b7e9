"""`standpipe.stream`: bytes, order, memory."""

import asyncio
import gc
import itertools
import pickle
import threading
import time

import numpy
import pytest
import standpipe
from conftest import Server, content
from standpipe import Options

SMALL_PARTS: Options = {"part_size": "64KiB"}


def joined(stream: standpipe.Stream) -> bytes:
    return b"".join(bytes(chunk) for chunk in stream)


def test_objects_come_back_to_back_in_the_order_given(server: Server, options: Options) -> None:
    bodies = {f"order/{name}": content(300_000 + index, index) for index, name in enumerate("bac")}
    uris = [server.put(key, body) for key, body in bodies.items()]
    assert joined(standpipe.stream(uris, **options, **SMALL_PARTS)) == b"".join(bodies.values())
    in_key_order = b"".join(bodies[key] for key in sorted(bodies))
    assert joined(standpipe.stream("s3://data/order/", **options, **SMALL_PARTS)) == in_key_order
    pattern = "s3://data/order/{c,a}"
    assert joined(standpipe.stream(pattern, **options)) == bodies["order/c"] + bodies["order/a"]


def test_chunks_say_where_they_are_from(server: Server, options: Options) -> None:
    body = content(200_000)
    uri = server.put("where/object", body)
    server.put("where/zero", b"")
    chunks = list(standpipe.stream("s3://data/where/", **options, **SMALL_PARTS))
    of_object = [chunk for chunk in chunks if chunk.key == "where/object"]
    assert len(of_object) > 2
    for chunk in of_object:
        assert (chunk.uri, chunk.bucket, chunk.object_size) == (uri, "data", len(body))
        assert chunk.etag is not None and chunk.etag.startswith('"')
        assert bytes(chunk) == body[chunk.offset : chunk.offset + len(chunk)]
    assert [chunk.ends_object for chunk in of_object] == [False] * (len(of_object) - 1) + [True]
    empty = chunks[-1]
    assert (empty.key, len(empty), bytes(empty), empty.ends_object) == ("where/zero", 0, b"", True)
    assert "where/object bytes 0.." in repr(of_object[0])


# What a stream's first request brings: an object of this size comes in one chunk.
SMALL = 4_000


def test_views_are_without_a_copy_and_read_only(server: Server, options: Options) -> None:
    uri = server.put("views/object", content(SMALL))
    (chunk,) = standpipe.stream(uri, **options)
    array = numpy.frombuffer(chunk, dtype=numpy.uint8)
    again = numpy.frombuffer(memoryview(chunk)[100:], dtype=numpy.uint8)
    assert array.ctypes.data + 100 == again.ctypes.data
    assert not array.flags.writeable
    view = memoryview(chunk)
    assert (view.readonly, view.format, view.shape, view.strides, view.contiguous) == (True, "B", (SMALL,), (1,), True)
    with pytest.raises((BufferError, TypeError)):
        view[0] = 1


def test_a_view_outlives_its_chunk_and_its_stream(server: Server, options: Options) -> None:
    body = content(SMALL, 3)
    stream = standpipe.stream(server.put("outlive/object", body), **options)
    view = memoryview(next(stream))
    stream.close()
    del stream
    gc.collect()
    assert bytes(view) == body


def test_a_chunk_is_released_when_no_view_needs_it(server: Server, options: Options) -> None:
    uri = server.put("release/object", content(SMALL))
    (chunk,) = standpipe.stream(uri, **options)
    view = memoryview(chunk)
    with pytest.raises(BufferError, match="1 views"):
        chunk.release()
    view.release()
    chunk.release()
    chunk.release()
    with pytest.raises(BufferError, match="released"):
        memoryview(chunk)
    with pytest.raises(BufferError, match="released"):
        bytes(chunk)
    assert len(chunk) == SMALL
    with next(standpipe.stream(uri, **options)) as other:
        assert len(bytes(other)) == SMALL
    with pytest.raises(BufferError):
        bytes(other)


def test_who_keeps_everything_is_not_held_up_and_gets_copies(server: Server, options: Options) -> None:
    body = content(8 << 20, 5)
    uri = server.put("keep/object", body)
    stream = standpipe.stream(uri, **options, memory="2MiB", part_size="256KiB")
    begun = time.monotonic()
    chunks = list(stream)
    assert time.monotonic() - begun < 20
    assert b"".join(map(bytes, chunks)) == body
    stats = standpipe.stats(stream)
    assert stats["copied_bytes"] >= len(body) // 2
    assert stats["bytes"] == len(body)
    # A quarter is lent; copies are nobody's.
    assert 0 < stats["engine"]["lent_bytes"] <= (2 << 20)
    del chunks
    assert standpipe.stats(stream)["engine"]["lent_bytes"] == 0


def test_who_lets_go_gets_no_copy(server: Server, options: Options) -> None:
    uri = server.put("letgo/object", content(8 << 20, 6))
    stream = standpipe.stream(uri, **options, memory="2MiB", part_size="256KiB")
    assert sum(len(chunk) for chunk in stream) == 8 << 20
    stats = standpipe.stats(stream)
    assert stats["copied_bytes"] == 0
    assert stats["engine"]["reserved_bytes"] == 0
    assert stats["engine"]["requests"] >= 32


def test_what_is_abandoned_gives_its_memory_back(server: Server, options: Options) -> None:
    uri = server.put("abandon/object", content(8 << 20, 7))
    mine: Options = {**options, "memory": "3MiB", "part_size": "256KiB"}

    def consume() -> None:
        for _chunk in standpipe.stream(uri, **mine):
            raise ZeroDivisionError

    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            consume()

    def generator():  # type: ignore[no-untyped-def]
        yield from standpipe.stream(uri, **mine)

    items = generator()
    assert len(next(items)) > 0
    del items
    gc.collect()
    watching = standpipe.stream(uri, **mine)
    watching.close()
    deadline = time.monotonic() + 10
    while standpipe.stats(watching)["engine"]["reserved_bytes"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert standpipe.stats(watching)["engine"]["reserved_bytes"] == 0
    assert list(watching) == []


def test_a_failed_stream_never_looks_ended(server: Server, options: Options) -> None:
    first = server.put("fail/1", content(100_000, 8))
    stream = standpipe.stream([first, "s3://data/fail/none"], **options)
    got = []
    with pytest.raises(standpipe.NotFoundError) as failed:
        got.extend(bytes(chunk) for chunk in stream)
    assert b"".join(got) == content(100_000, 8)
    assert failed.value.key == "fail/none"
    with pytest.raises(standpipe.NotFoundError):
        next(stream)


def test_one_thread_at_a_time(server: Server, options: Options) -> None:
    server.script({"prefix": "data/turns/", "effect": "latency", "first_byte_ms": 1500, "operations": ["get"]})
    stream = standpipe.stream(server.put("turns/object", content(1000)), **options)
    other: list[standpipe.Chunk] = []
    thread = threading.Thread(target=lambda: other.extend(stream))
    thread.start()
    time.sleep(0.4)
    with pytest.raises(RuntimeError, match="another thread"):
        next(stream)
    thread.join()
    assert len(other) == 1


def test_the_gil_is_free_while_a_stream_waits(server: Server, options: Options) -> None:
    server.script({"prefix": "data/gil/", "effect": "latency", "first_byte_ms": 700, "operations": ["get"]})
    stream = standpipe.stream(server.put("gil/object", content(1000)), **options)
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.005):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    list(stream)
    stop.set()
    thread.join()
    gaps = [later - earlier for earlier, later in itertools.pairwise(ticks)]
    assert len(ticks) > 40 and max(gaps) < 0.3


def test_the_verdict_says_who_was_waited_for(server: Server, options: Options) -> None:
    server.script({"prefix": "data/verdict/", "effect": "latency", "first_byte_ms": 300, "operations": ["get"]})
    uri = server.put("verdict/object", content(1000))
    slow_network = standpipe.stream(uri, **options)
    list(slow_network)
    verdict = standpipe.stats(slow_network)["verdict"]
    assert verdict["bottleneck"] == "network" and verdict["stall_share"] > 0.5
    assert "concurrency" in verdict["advice"] and "--" not in verdict["advice"]
    server.script()
    slow_consumer = standpipe.stream([uri] * 3, **options)
    for _ in slow_consumer:
        time.sleep(0.2)
    assert standpipe.stats(slow_consumer)["verdict"]["bottleneck"] == "consumer"


def test_faults_on_the_way_are_not_seen(server: Server, options: Options) -> None:
    body = content(2 << 20, 9)
    uri = server.put("faults/object", body)
    server.script(
        {"prefix": "data/faults/", "effect": "reset", "at_byte": 10_000, "probability": 0.3, "operations": ["get"]},
        {"prefix": "data/faults/", "effect": "status", "status": 503, "code": "SlowDown", "skip": 2, "times": 2},
    )
    assert joined(standpipe.stream(uri, **options, **SMALL_PARTS)) == body


def test_local_files_and_paths(tmp_path, options: Options) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "b").write_bytes(b"second")
    assert joined(standpipe.stream([tmp_path / "a", f"file://{tmp_path}/b"])) == b"firstsecond"
    assert joined(standpipe.stream(tmp_path)) == b"firstsecond"


def test_no_uri_is_an_error() -> None:
    with pytest.raises(standpipe.ConfigError, match="at least one"):
        standpipe.stream([])
    with pytest.raises(standpipe.ConfigError, match="memory"):
        standpipe.stream("memory://bucket/key")
    with pytest.raises(ValueError, match="unknown scheme"):
        standpipe.stream("gs://bucket/key")


def test_what_a_listing_told_is_read_without_another_look(server: Server, options: Options) -> None:
    bodies = {f"listed/{number}": content(SMALL + number, number) for number in range(6)}
    for key, body in bodies.items():
        server.put(key, body)
    infos = list(standpipe.list("s3://data/listed/", **options))
    server.request("POST", "/_fake/log/clear")
    backwards = pickle.loads(pickle.dumps(infos))[::-1]
    assert joined(standpipe.stream(backwards, **options)) == b"".join(list(bodies.values())[::-1])
    assert {entry["operation"] for entry in server.log()} <= {"get", "admin", "other"}
    server.put("listed/3", content(100_003, 99))
    with pytest.raises(standpipe.ChangedError):
        list(standpipe.stream(infos, **options))
    (prefix,) = [info for info in standpipe.list("s3://data/", recursive=False, **options) if info.key == "listed/"]
    with pytest.raises(standpipe.ConfigError, match="prefix"):
        standpipe.stream([prefix], **options)
    with pytest.raises(TypeError):
        standpipe.stream([infos[0], "s3://data/listed/1"], **options)  # type: ignore[list-item]


def operations(server: Server, about: str) -> list[str]:
    """What was asked about keys that begin so."""
    return [entry["operation"] for entry in server.log() if about in entry["path"] + entry["query"]]


def test_one_object_is_asked_for_at_once(server: Server, options: Options) -> None:
    uri = server.put("at-once/object", b"some bytes")
    server.put("at-once/object-2", b"others")
    server.request("POST", "/_fake/log/clear")
    assert joined(standpipe.stream(uri, **options)) == b"some bytes"
    assert operations(server, "at-once")[0] == "get" and "list" not in operations(server, "at-once")


def test_what_is_no_object_is_the_beginning_of_many(server: Server, options: Options) -> None:
    bodies = [b"aa", b"ab", b"b"]
    for body in bodies:
        server.put(f"beginning/{body.decode()}", body)
    server.request("POST", "/_fake/log/clear")
    stream = standpipe.stream("s3://data/beginning/a", **options)
    assert joined(stream) == b"".join(bodies[:2])
    # A HEAD for the checksum goes beside the first GET.
    assert [operation for operation in operations(server, "beginning") if operation != "head"][:2] == ["get", "list"]
    stats = standpipe.stats(stream)
    assert (stats["objects"], stats["bytes"]) == (2, 4)
    missing = standpipe.stream("s3://data/beginning/none", **options)
    with pytest.raises(standpipe.NotFoundError, match="beginning/none"):
        next(missing)
    with pytest.raises(standpipe.NotFoundError):
        asyncio.run(first("s3://data/beginning/none", options))


async def first(uri: str, options: Options) -> standpipe.Chunk:
    async for chunk in standpipe.aio.stream(uri, **options):
        return chunk
    raise AssertionError("nothing came")


def test_a_chunk_pickles_with_its_bytes(server: Server, options: Options) -> None:
    import copy
    import pickle

    body = content(100_000, 9)
    server.put("pickled/object", body)
    chunk, *_ = standpipe.stream("s3://data/pickled/object", **options)
    for again in (pickle.loads(pickle.dumps(chunk)), copy.deepcopy(chunk)):
        assert bytes(again) == body[: len(chunk)] and memoryview(again) == memoryview(chunk)
        for name in ("uri", "bucket", "key", "etag", "object_size", "offset", "ends_object"):
            assert getattr(again, name) == getattr(chunk, name), name
    chunk.release()
    with pytest.raises(BufferError):
        pickle.dumps(chunk)


def test_a_list_names_objects_and_a_missing_one_is_an_error(server: Server, options: Options) -> None:
    for number in (10, 11):
        server.put(f"listed/part-{number}", b"%d\n" % number)
    named = [f"s3://data/listed/part-{number}" for number in (1, 10, 11)]
    for read in (standpipe.stream, standpipe.list, lambda uris, **o: standpipe.Dataset(uris, "lines", **o)):
        with pytest.raises(standpipe.NotFoundError, match="part-1"):
            list(read(named, **options))
        assert len(list(read(named[1:], **options))) == 2
        assert len(list(read(named[:1], **options))) == 2, "alone it is the beginning of both"


def test_another_thread_closes_a_stream_that_waits(server: Server, options: Options) -> None:
    import threading

    server.put("slow-close/object", b"x" * 100)
    server.script({"prefix": "data/slow-close/", "effect": "latency", "first_byte_ms": 8000, "operations": ["get"]})
    stream = standpipe.stream("s3://data/slow-close/object", **options)
    found: list[object] = []
    reading = threading.Thread(target=lambda: found.append(list(stream)))
    reading.start()
    while not [entry for entry in server.log() if entry["operation"] == "get"]:
        assert standpipe.stats(stream)["bytes"] == 0, "counters are told meanwhile"
    stream.close()
    reading.join(4)
    assert found == [[]]
