"""`standpipe.open`: a file like any other."""

import io
import pickle
import random
import threading

import pytest
import standpipe
from conftest import Server, content
from standpipe import Options


def test_it_behaves_as_a_file_in_memory_does(server: Server, options: Options) -> None:
    body = content(3_000_000, 1)
    uri = server.put("file/model", body)
    chance = random.Random(11)
    model = io.BytesIO(body)
    with standpipe.open(uri, **options, part_size="256KiB") as file:
        for _ in range(400):
            match chance.randrange(6):
                case 0:
                    size = chance.choice([0, 1, 100, 5_000, 300_000, -1])
                    assert file.read(size) == model.read(size)
                case 1:
                    size = chance.randrange(200_000)
                    ours, theirs = bytearray(size), bytearray(size)
                    assert file.readinto(ours) == model.readinto(theirs)
                    assert ours == theirs
                case 2:
                    whence = chance.choice([0, 1, 2])
                    origin = [0, model.tell(), len(body)][whence]
                    target = chance.randrange(len(body) + 1000)
                    assert file.seek(target - origin, whence) == model.seek(target - origin, whence)
                case 3:
                    assert file.tell() == model.tell()
                case 4:
                    assert file.readline() == model.readline()
                case 5:
                    found = file.read1(1000)
                    assert found == model.read(len(found))
    assert file.closed


def test_its_facts(server: Server, options: Options) -> None:
    uri = server.put("file/facts", b"0123456789")
    with standpipe.open(uri, **options) as file:
        assert (file.uri, file.bucket, file.key, file.size) == (uri, "data", "file/facts", 10)
        assert (file.name, file.mode, file.readable(), file.seekable(), file.writable()) == (
            uri,
            "rb",
            True,
            True,
            False,
        )
        assert file.etag == '"781e5e245d69b566979b86e28d23f2c7"'
        assert file.last_modified is not None and file.last_modified.tzinfo is not None
        assert isinstance(file, io.BufferedIOBase)
    with pytest.raises(ValueError, match="closed"):
        file.read()
    with pytest.raises(ValueError, match="closed"):
        _ = file.size


def test_lines_and_text(server: Server, options: Options) -> None:
    lines = [f"line {number} {'x' * number}\n" for number in range(500)]
    uri = server.put("file/lines", "".join(lines).encode())
    with io.TextIOWrapper(standpipe.open(uri, **options)) as file:
        assert list(file) == lines


def test_reads_at_any_offset_from_many_threads(server: Server, options: Options) -> None:
    body = content(2_000_000, 2)
    uri = server.put("file/threads", body)
    wrong: list[int] = []
    with standpipe.open(uri, **options, part_size="128KiB") as file:

        def read(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(50):
                offset = chance.randrange(len(body))
                size = chance.randrange(100_000)
                into = bytearray(size)
                count = file.readinto_at(into, offset)
                if (
                    file.read_at(offset, size) != body[offset : offset + size]
                    or into[:count] != body[offset : offset + size]
                ):
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert file.tell() == 0


def test_hints_are_fetched_before_they_are_read(server: Server, options: Options) -> None:
    body = content(4 << 20, 3)
    uri = server.put("file/hints", body)
    with standpipe.open(uri, **options, part_size="256KiB") as file:
        file.prefetch([(3 << 20, (3 << 20) + 1000)])
        assert file.read_at(3 << 20, 1000) == body[3 << 20 : (3 << 20) + 1000]


def test_what_is_not_there(server: Server, options: Options) -> None:
    with pytest.raises(FileNotFoundError) as failed:
        standpipe.open("s3://data/file/none", **options)
    error = failed.value
    assert isinstance(error, standpipe.NotFoundError)
    assert (error.bucket, error.key, error.status, error.errno) == ("data", "file/none", 404, 2)


def test_a_replaced_object_is_never_mixed(server: Server, options: Options) -> None:
    uri = server.put("file/changed", content(2_000_000, 4))
    with standpipe.open(uri, **options, part_size="64KiB") as file:
        assert file.read(1000) == content(2_000_000, 4)[:1000]
        server.put("file/changed", content(2_000_000, 5))
        with pytest.raises(standpipe.ChangedError) as failed:
            file.read()
        assert failed.value.offset is not None
        assert failed.value.key == "file/changed"


def test_only_reading(server: Server, options: Options) -> None:
    uri = server.put("file/modes", b"x")
    for mode in ("r", "w", "wb", "ab", "r+b"):
        with pytest.raises(ValueError, match="rb"):
            standpipe.open(uri, mode, **options)
    with standpipe.open(uri, **options) as file:
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"y")
        with pytest.raises(TypeError, match="pickle its URI"):
            pickle.dumps(file)
        with pytest.raises((TypeError, BufferError)):
            file.readinto_at(bytes(3), 0)
        with pytest.raises(ValueError, match="negative"):
            file.raw.seek(-1)


def test_an_empty_object_and_reads_behind_the_end(server: Server, options: Options) -> None:
    with standpipe.open(server.put("file/empty", b""), **options) as file:
        assert (file.read(), file.read(10), file.size) == (b"", b"", 0)
    with standpipe.open(server.put("file/short", b"abc"), **options) as file:
        assert file.seek(100) == 100
        assert file.read() == b""
        assert file.read_at(2, 100) == b"c"


def test_local_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "f").write_bytes(b"local")
    with standpipe.open(tmp_path / "f") as file:
        assert (file.read(), file.bucket) == (b"local", "")
