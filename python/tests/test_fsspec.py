"""`standpipe.fsspec`: fsspec's own abstract tests for reading, and those of what stands on it."""

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
import standpipe
from conftest import Server, content, run
from fsspec.implementations.local import LocalFileSystem, make_path_posix
from fsspec.tests import abstract
from standpipe.fsspec import StandpipeFileSystem


class Seeded(StandpipeFileSystem):  # type: ignore[misc]
    """Writes as much as the abstract tests need to make what they read; the server keeps no directories."""

    protocol = "seeded"
    server: Server

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        self.pipe_file(path, b"")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        bucket, _, key = self._strip_protocol(path).partition("/")
        self.server.put(key, value, bucket)
        self.invalidate_cache()

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        pass

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        for one in [path] if isinstance(path, str) else path:
            for name in self.find(one) if self.exists(one) else []:
                bucket, _, key = name.partition("/")
                self.server.request("DELETE", f"/{bucket}/{key}")
        self.invalidate_cache()


class ReadFixtures(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self, server: Server) -> Iterator[Seeded]:
        Seeded.server = server
        yield Seeded(use_listings_cache=False, skip_instance_cache=True, **server.options)

    @pytest.fixture
    def fs_path(self) -> str:
        return "data/fsspec-abstract"

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False

    @pytest.fixture
    def local_fs(self) -> LocalFileSystem:
        return LocalFileSystem(auto_mkdir=True)

    @pytest.fixture
    def local_path(self, tmpdir: Any) -> str:
        return str(make_path_posix(str(tmpdir)))


class TestGet(abstract.AbstractGetTests, ReadFixtures):
    pass


class TestOpen(abstract.AbstractOpenTests, ReadFixtures):
    @pytest.mark.skip(reason="this file system only reads")
    def test_open_exclusive(self) -> None:  # type: ignore[override]
        pass


@pytest.fixture
def files(server: Server) -> dict[str, bytes]:
    made = {f"fs/{name}": content(1000 * (index + 1), index) for index, name in enumerate(["a", "b/1", "b/2", "c/d/e"])}
    for key, body in made.items():
        server.put(key, body)
    return made


@pytest.fixture
def fs(server: Server) -> StandpipeFileSystem:
    return fsspec.filesystem("standpipe", skip_instance_cache=True, **server.options)


def test_fsspec_finds_it_by_itself(fs: StandpipeFileSystem) -> None:
    assert type(fs) is StandpipeFileSystem
    assert fsspec.get_filesystem_class("standpipe") is StandpipeFileSystem


def test_looking_around(fs: StandpipeFileSystem, files: dict[str, bytes]) -> None:
    assert fs.ls("data/fs", detail=False) == ["data/fs/a", "data/fs/b", "data/fs/c"]
    assert fs.ls("standpipe://data/fs/", detail=False) == fs.ls("s3://data/fs", detail=False)
    assert [entry["type"] for entry in sorted(fs.ls("data/fs"), key=lambda entry: str(entry["name"]))] == [
        "file",
        "directory",
        "directory",
    ]
    assert fs.find("data/fs") == [f"data/{key}" for key in files]
    assert fs.glob("data/fs/**/e") == ["data/fs/c/d/e"]
    assert fs.du("data/fs") == sum(map(len, files.values()))
    assert [(dirs, names) for _, dirs, names in fs.walk("data/fs")] == [
        (["b", "c"], ["a"]),
        ([], ["1", "2"]),
        (["d"], []),
        ([], ["e"]),
    ]
    info = fs.info("data/fs/b/1")
    assert (info["size"], info["type"]) == (2000, "file")
    assert fs.modified("data/fs/b/1").year >= 2020
    assert fs.isdir("data/fs/b") and fs.isfile("data/fs/a") and not fs.exists("data/fs/none") and fs.isdir("data")
    for path in ("data/fs/none", "data/fs/none/"):
        with pytest.raises(FileNotFoundError):
            fs.info(path)
        with pytest.raises(FileNotFoundError):
            fs.ls(path)


def test_reading(fs: StandpipeFileSystem, files: dict[str, bytes], tmp_path: Any) -> None:
    paths = [f"data/{key}" for key in files]
    assert fs.cat("data/fs/a") == files["fs/a"]
    assert fs.cat(paths) == {f"data/{key}": body for key, body in files.items()}
    assert fs.cat("data/fs", recursive=True) == fs.cat(paths)
    assert fs.cat_file("data/fs/a", start=10, end=-10) == files["fs/a"][10:-10]
    assert fs.cat_ranges(paths, [0, 1, 2, 3], [10, 11, 12, 13]) == [
        body[index : index + 10] for index, body in enumerate(files.values())
    ]
    missing = fs.cat_ranges(["data/fs/none"], 0, 10)
    assert isinstance(missing[0], FileNotFoundError)
    assert fs.cat(["data/fs/a", "data/fs/none"], on_error="omit") == {"data/fs/a": files["fs/a"]}
    with fs.open("data/fs/b/2") as file:
        assert isinstance(file, standpipe.ObjectFile)
        file.seek(5)
        assert file.read(5) == files["fs/b/2"][5:10]
    fs.get("data/fs/", str(tmp_path / "there"), recursive=True)
    assert (tmp_path / "there" / "c" / "d" / "e").read_bytes() == files["fs/c/d/e"]
    for write in (lambda: fs.open("data/fs/new", "wb"), lambda: fs.pipe("data/fs/new", b"x")):
        with pytest.raises(NotImplementedError):
            write()


def test_what_is_written_is_seen_after_the_cache_is_invalidated(
    fs: StandpipeFileSystem, server: Server, files: dict[str, bytes]
) -> None:
    assert not fs.exists("data/fs/b/3") and fs.ls("data/fs/b", detail=False) == ["data/fs/b/1", "data/fs/b/2"]
    server.put("fs/b/3", b"new")
    try:
        fs.invalidate_cache("data/fs/b")
        assert fs.ls("data/fs/b", detail=False)[-1] == "data/fs/b/3" and fs.info("data/fs/b/3")["size"] == 3
    finally:
        server.request("DELETE", "/data/fs/b/3")


def test_the_keywords_of_s3fs_are_understood_or_refused(server: Server, files: dict[str, bytes]) -> None:
    fs = StandpipeFileSystem(anon=True, client_kwargs={"endpoint_url": server.endpoint}, skip_instance_cache=True)
    assert fs.cat("data/fs/a") == files["fs/a"]
    for refused in ({"key": "AKIA"}, {"secret": "x"}, {"client_kwargs": {"verify": False}}):
        with pytest.raises(standpipe.ConfigError, match=next(iter(refused))):
            StandpipeFileSystem(skip_instance_cache=True, **refused)


def test_compression_and_text(server: Server) -> None:
    import gzip

    server.put("fs-text/lines.gz", gzip.compress(b"one\ntwo\n"))
    with fsspec.open("standpipe://data/fs-text/lines.gz", "rt", compression="infer", **server.options) as file:
        assert file.read() == "one\ntwo\n"


def test_it_serves_s3_only_when_asked(server: Server) -> None:
    uri = server.put("fs-s3/x.json", b"[1, 2]")
    # fsspec keeps its protocols in a global.
    run(
        f"""
        import json
        import fsspec
        import standpipe.fsspec
        from fsspec.registry import known_implementations

        before = dict(known_implementations)
        assert fsspec.get_filesystem_class("standpipe") is standpipe.fsspec.StandpipeFileSystem
        assert known_implementations["s3"] == before["s3"]
        standpipe.fsspec.register()
        with fsspec.open({uri!r}) as file:
            assert json.load(file) == [1, 2]
            assert isinstance(file, standpipe.ObjectFile)
        """,
        server,
    )


def test_it_pickles_and_crosses_processes(fs: StandpipeFileSystem, files: dict[str, bytes]) -> None:
    import pickle

    again = pickle.loads(pickle.dumps(fs))
    assert again.cat_file("data/fs/a") == files["fs/a"]


def test_pyarrow_reads_parquet_through_it(fs: StandpipeFileSystem, server: Server, tmp_path: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"number": list(range(10_000)), "text": [str(number) for number in range(10_000)]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=1000)
    server.put("fs-parquet/t.parquet", (tmp_path / "t.parquet").read_bytes())
    assert pyarrow.parquet.read_table("data/fs-parquet/t.parquet", filesystem=fs) == table
    column = pyarrow.parquet.read_table("data/fs-parquet", filesystem=fs, columns=["number"])
    assert column["number"].to_pylist() == list(range(10_000))
