"""`standpipe.download`."""

import pytest
import standpipe
from conftest import Server, content
from standpipe import Options


def test_a_prefix_becomes_files_and_a_second_run_fetches_nothing(server: Server, options: Options, tmp_path) -> None:  # type: ignore[no-untyped-def]
    bodies = {f"{index % 3}/{index}": content(index * 10_000, index) for index in range(20)}
    for name, body in bodies.items():
        server.put(f"down/{name}", body)
    done = standpipe.download("s3://data/down/", tmp_path / "there", **options)
    total = sum(map(len, bodies.values()))
    assert done == {"files_written": 20, "files_skipped": 0, "bytes_written": total, "bytes_resumed": 0}
    assert {name: (tmp_path / "there" / name).read_bytes() for name in bodies} == bodies
    again = standpipe.download("s3://data/down/", tmp_path / "there", **options)
    assert again == {"files_written": 0, "files_skipped": 20, "bytes_written": 0, "bytes_resumed": 0}


def test_progress_is_told_and_may_stop_it(server: Server, options: Options, tmp_path) -> None:  # type: ignore[no-untyped-def]
    uri = server.put("down-large/object", content(4 << 20))
    told: list[tuple[int, int]] = []
    standpipe.download(uri, tmp_path / "a", progress=lambda *now: told.append(now), **options)
    assert told[-1] == (4 << 20, 4 << 20)

    def stop(_written: int, _total: int) -> None:
        raise ZeroDivisionError

    server.script({"prefix": "data/down-large/", "effect": "latency", "first_byte_ms": 3000, "operations": ["get"]})
    with pytest.raises(ZeroDivisionError):
        standpipe.download(uri, tmp_path / "b", progress=stop, **options)
    assert not (tmp_path / "b" / "object").exists()


def test_a_failure_leaves_nothing(server: Server, options: Options, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(standpipe.NotFoundError):
        standpipe.download("s3://data/down-none/", tmp_path / "there", **options)
    assert list(tmp_path.iterdir()) == []
