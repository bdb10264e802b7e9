"""`standpipe.FastFiles`."""

import os
import pickle
import threading

import pytest
import standpipe
from conftest import Server, content
from standpipe import Options


@pytest.fixture
def bodies(server: Server) -> dict[str, bytes]:
    made = {
        f"{animal}/{number}.jpg": content(50_000 + number, number) for animal in ("cats", "dogs") for number in range(5)
    }
    for path, body in made.items():
        server.put(f"fast/{path}", body)
    return made


def test_names_and_bytes(bodies: dict[str, bytes], options: Options) -> None:
    files = standpipe.FastFiles("s3://data/fast/", **options)
    assert [(entry.path, entry.is_dir) for entry in files.list()] == [("cats", True), ("dogs", True)]
    assert [entry.path for entry in files.list("cats")] == [path for path in bodies if path.startswith("cats")]
    assert [entry.path for entry in files.walk() if not entry.is_dir] == list(bodies)
    entry = files.stat("dogs/3.jpg")
    assert (entry.size, entry.uri, entry.is_dir) == (50_003, "s3://data/fast/dogs/3.jpg", False)
    assert files.stat("dogs").is_dir
    for path, body in bodies.items():
        assert files.read(path) == body
    with files.open("cats/1.jpg") as file:
        file.seek(100)
        assert file.read(50) == bodies["cats/1.jpg"][100:150]
        assert file.key == "fast/cats/1.jpg"
    assert repr(files) == "FastFiles('s3://data/fast/')"


def test_what_is_told_is_fetched_before_it_is_opened(
    server: Server, bodies: dict[str, bytes], options: Options
) -> None:
    files = standpipe.FastFiles("s3://data/fast/", **options)
    order = ["dogs/4.jpg", "cats/2.jpg", "dogs/0.jpg"]
    server.request("POST", "/_fake/log/clear")
    files.prefetch(order)
    deadline = threading.Event()
    for _ in range(200):
        gets = {entry["key"] for entry in server.log() if entry["operation"] == "get"}
        if len(gets) == 3:
            break
        deadline.wait(0.02)
    assert gets == {f"fast/{path}" for path in order}
    assert [files.read(path) for path in order] == [bodies[path] for path in order]


def test_whole_files_on_the_local_disk(bodies: dict[str, bytes], options: Options, tmp_path) -> None:  # type: ignore[no-untyped-def]
    files = standpipe.FastFiles("s3://data/fast/", cache=tmp_path, **options)
    local = files.local("cats/0.jpg")
    with open(local, "rb") as file:
        assert file.read() == bodies["cats/0.jpg"]
    assert os.fspath(local).startswith(str(tmp_path)) and os.fspath(local) == str(local.path)
    without = standpipe.FastFiles("s3://data/fast/", **options)
    with pytest.raises(standpipe.ConfigError, match="cache"):
        without.local("cats/0.jpg")


def test_what_is_not_there(bodies: dict[str, bytes], options: Options) -> None:
    files = standpipe.FastFiles("s3://data/fast/", **options)
    for look in (files.stat, files.open, files.list, files.read):
        with pytest.raises(FileNotFoundError) as failed:
            look("birds")
        assert isinstance(failed.value, standpipe.NotFoundError)
    with pytest.raises(standpipe.ConfigError, match="folder"):
        files.open("cats")
    with pytest.raises(standpipe.ConfigError, match="is a file"):
        files.list("cats/0.jpg")


def test_it_pickles_before_and_after_use(bodies: dict[str, bytes], options: Options) -> None:
    files = standpipe.FastFiles("s3://data/fast/", **options)
    for _ in range(2):
        again = pickle.loads(pickle.dumps(files))
        assert again.uri == files.uri
        assert again.read("cats/1.jpg") == bodies["cats/1.jpg"]
        files.read("cats/0.jpg")
