"""The `standpipe` command of the wheel."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import standpipe
from conftest import Server, content, environment

COMMAND = str(Path(sys.executable).parent / "standpipe")
WAYS = [[COMMAND], [sys.executable, "-m", "standpipe"]]


@pytest.mark.parametrize("way", WAYS, ids=["command", "module"])
def test_it_is_the_whole_command(way: list[str], server: Server, tmp_path: Path) -> None:
    body = content(3_000_000)
    uri = server.put("command/object", body)

    def run(*args: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*way, *args], env=environment(server), capture_output=True, timeout=30)

    cat = run("cat", uri)
    assert (cat.returncode, cat.stdout) == (0, body)
    version = run("--version")
    assert version.stdout.decode().split() == ["standpipe", standpipe.__version__]
    assert run("download", "s3://data/command/", str(tmp_path / "d"), "--json").returncode == 0
    assert (tmp_path / "d" / "object").read_bytes() == body
    missing = run("cat", "s3://data/command/none")
    assert missing.returncode == 3
    assert b"command/none" in missing.stderr and b"Traceback" not in missing.stderr
    assert run("cat").returncode == 2
    listed = json.loads(run("ls", "s3://data/command/", "--json").stdout)
    assert listed["objects"] == 1


def test_what_it_prints_without_a_line_break_arrives(server: Server) -> None:
    uri = server.put("command/short", b"no line break")
    done = subprocess.run([COMMAND, "cat", uri], env=environment(server), capture_output=True, timeout=30)
    assert done.stdout == b"no line break"


def test_a_reader_that_goes_away_is_no_error(server: Server) -> None:
    uri = server.put("command/large", bytes(8 << 20))
    with subprocess.Popen(
        [COMMAND, "cat", uri], env=environment(server), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_commands_that_clean_up_end_by_a_signal_with_its_code(
    stop: signal.Signals, code: int, server: Server, tmp_path: Path
) -> None:
    server.script({"prefix": "data/command-slow/", "effect": "latency", "first_byte_ms": 20_000, "operations": ["get"]})
    uri = server.put("command-slow/object", bytes(1000))
    with subprocess.Popen(
        [COMMAND, "download", uri, str(tmp_path / "d")], env=environment(server), stderr=subprocess.PIPE
    ) as process:
        _until_asked(server, "command-slow/object")
        begun = time.monotonic()
        process.send_signal(stop)
        assert process.wait(10) == code
        assert time.monotonic() - begun < 2
    assert not (tmp_path / "d").exists()


def test_ctrl_c_ends_the_others_as_it_ends_programs(server: Server) -> None:
    server.script({"prefix": "data/command-cat/", "effect": "latency", "first_byte_ms": 20_000, "operations": ["get"]})
    uri = server.put("command-cat/object", bytes(1000))
    with subprocess.Popen([COMMAND, "cat", uri], env=environment(server), stderr=subprocess.PIPE) as process:
        _until_asked(server, "command-cat/object")
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == -signal.SIGINT
        assert process.stderr is not None and b"Traceback" not in process.stderr.read()


def _until_asked(server: Server, key: str) -> None:
    """Waits until the server has a GET for it."""
    deadline = time.monotonic() + 20
    while not any(entry["key"] == key and entry["method"] == "GET" for entry in server.log()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
