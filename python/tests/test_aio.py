"""`standpipe.aio`."""

import asyncio
import os
import time

import pytest
import standpipe
from conftest import Server, content
from standpipe import Options


def test_a_stream_is_read_by_async_for(server: Server, options: Options) -> None:
    body = content(2_000_000, 1)
    uri = server.put("aio/object", body)

    async def read() -> bytes:
        stream = standpipe.aio.stream(uri, **options, part_size="64KiB")
        found = b"".join([bytes(chunk) async for chunk in stream])
        assert stream.stats()["bytes"] == len(body)
        return found

    assert asyncio.run(read()) == body


def test_the_loop_goes_on_while_streams_wait(server: Server, options: Options) -> None:
    server.script({"prefix": "data/aio-slow/", "effect": "latency", "first_byte_ms": 500, "operations": ["get"]})
    uris = [server.put(f"aio-slow/{number}", content(1000, number)) for number in range(8)]

    async def read(uri: str) -> bytes:
        return b"".join([bytes(chunk) async for chunk in standpipe.aio.stream(uri, **options)])

    async def main() -> tuple[list[bytes], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        found = await asyncio.gather(*map(read, uris))
        ticking.cancel()
        return found, ticks

    begun = time.monotonic()
    found, ticks = asyncio.run(main())
    assert found == [content(1000, number) for number in range(8)]
    assert time.monotonic() - begun < 2.5, "they are read side by side"
    assert ticks > 20


def test_a_cancelled_wait_loses_nothing(server: Server, options: Options) -> None:
    body = content(300_000, 2)
    uri = server.put("aio-cancel/object", body)
    server.script({"prefix": "data/aio-cancel/", "effect": "latency", "first_byte_ms": 400, "operations": ["get"]})

    async def main() -> tuple[bytes, int]:
        stream = standpipe.aio.stream(uri, **options, part_size="64KiB", concurrency=1)
        found, cancelled = [], 0
        while True:
            try:
                found.append(bytes(await asyncio.wait_for(anext(stream), 0.15)))
            except TimeoutError:
                cancelled += 1
            except StopAsyncIteration:
                return b"".join(found), cancelled

    found, cancelled = asyncio.run(main())
    assert found == body
    assert cancelled > 2


def test_errors_and_the_end(server: Server, options: Options) -> None:
    async def main() -> None:
        with pytest.raises(standpipe.NotFoundError):
            async for _ in standpipe.aio.stream("s3://data/aio-none", **options):
                pass
        async with standpipe.aio.stream(server.put("aio/end", b"x"), **options) as stream:
            assert bytes(await anext(stream)) == b"x"
            for _ in range(2):
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)

    asyncio.run(main())


def test_no_descriptor_is_left(server: Server, options: Options) -> None:
    uri = server.put("aio/descriptors", content(100_000))

    async def main() -> None:
        for _ in range(50):
            async for _chunk in standpipe.aio.stream(uri, **options):
                break

    asyncio.run(main())
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) < before + 25


def test_the_other_functions(server: Server, options: Options, tmp_path) -> None:  # type: ignore[no-untyped-def]
    body = content(100_000, 3)
    uri = server.put("aio-more/object", body)

    async def main() -> None:
        assert await standpipe.aio.read(uri, **options) == body
        assert await standpipe.aio.read(uri, 10, 20, **options) == body[10:30]
        assert (await standpipe.aio.stat(uri, **options)).size == len(body)
        assert [info.key async for info in standpipe.aio.list("s3://data/aio-more/", **options)] == ["aio-more/object"]
        with await standpipe.aio.open(uri, **options) as file:
            assert await asyncio.to_thread(file.read) == body
        done = await standpipe.aio.download(uri, tmp_path, **options)
        assert done["files_written"] == 1

    asyncio.run(main())
    assert (tmp_path / "object").read_bytes() == body


def test_a_cancelled_download_stops(server: Server, options: Options, tmp_path) -> None:  # type: ignore[no-untyped-def]
    uri = server.put("aio-down/object", content(100_000))
    server.script({"prefix": "data/aio-down/", "effect": "latency", "first_byte_ms": 4000, "operations": ["get"]})

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(standpipe.aio.download(uri, tmp_path / "d", **options), 0.5)

    begun = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - begun < 3, "asyncio.run waits for its threads: the download must have stopped"
    assert not (tmp_path / "d" / "object").exists()


def test_closing_ends_the_wait_of_another_task(server: Server, options: Options) -> None:
    uri = server.put("aio-close/object", content(100_000))
    server.script({"prefix": "data/aio-close/", "effect": "latency", "first_byte_ms": 8000, "operations": ["get"]})

    async def main() -> None:
        stream = standpipe.aio.stream(uri, **options)
        waiting = asyncio.create_task(anext(stream))
        while not [entry for entry in server.log() if entry["operation"] == "get"]:
            await asyncio.sleep(0.02)
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(waiting, 4)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        unread = standpipe.aio.stream(uri, **options)
        await unread.aclose()
        assert [chunk async for chunk in unread] == []

    asyncio.run(main())


def test_tasks_share_a_stream(server: Server, options: Options) -> None:
    bodies = [content(1000, number) for number in range(6)]
    for number, body in enumerate(bodies):
        server.put(f"aio-shared/{number}", body)
    server.script({"prefix": "data/aio-shared/", "effect": "latency", "first_byte_ms": 200, "operations": ["get"]})

    async def main() -> list[bytes]:
        stream = standpipe.aio.stream("s3://data/aio-shared/", **options)
        found = []

        async def read() -> None:
            async for chunk in stream:
                found.append(bytes(chunk))

        await asyncio.wait_for(asyncio.gather(read(), read(), read()), 20)
        return found

    assert b"".join(asyncio.run(main())) == b"".join(bodies)


def test_a_cancelled_read_frees_its_thread(server: Server, options: Options) -> None:
    uri = server.put("aio-slow-read/object", content(100_000))
    server.script(
        {
            "prefix": "data/aio-slow-read/",
            "effect": "latency",
            "first_byte_ms": 8000,
            "operations": ["get", "head"],
        }
    )

    async def main() -> None:
        for work in (standpipe.aio.read(uri, **options), standpipe.aio.stat(uri, **options)):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(work, 0.3)

    begun = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - begun < 4, "asyncio.run waits for its threads"
