"""`standpipe.pipe`: channels of the wheel's own `standpipe pipe` and `standpipe run`, and of writers that fail."""

import itertools
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import standpipe
from conftest import Server, content, environment
from standpipe.pipe import PipeChannel
from test_dataset import recordio, tarred, tensor

COMMAND = str(Path(sys.executable).parent / "standpipe")


@contextmanager
def served(server: Server, folder: Path, *channels: str, epochs: int = 3) -> Iterator[subprocess.Popen[bytes]]:
    """`standpipe pipe`, which has to end by itself when all epochs were read."""
    wanted = itertools.chain.from_iterable(("--channel", channel) for channel in channels)
    command = [COMMAND, "pipe", *wanted, "--dir", str(folder), "--epochs", str(epochs)]
    process = subprocess.Popen(command, env=environment(server), stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_epochs_of_records_in_every_format(server: Server, tmp_path: Path) -> None:
    kinds = {
        "recordio": recordio(b"one") + recordio(b"three"),
        "lines": b"one\nthree\n",
        "tar": tarred({"a": {"txt": b"one"}, "b": {"txt": b"three"}}),
        "jsonl": b'"one"\n"three"\n',
        "fixed:4": b"one three   "[:8],
        "raw": content(3_000_000),
    }
    channels = []
    for format_, body in kinds.items():
        name = format_.replace(":", "-")
        server.put(f"pipe-kinds/{name}/0", body)
        channels.append(f"{name}=s3://data/pipe-kinds/{name}/")
    with served(server, tmp_path, *channels, epochs=2) as process:
        for format_, body in kinds.items():
            channel = PipeChannel(format_.replace(":", "-"), format_, directory=tmp_path, timeout=30)
            for epoch in range(2):
                assert channel.next_epoch == epoch
                found = list(channel)
                if format_ == "raw":
                    assert b"".join(found) == body
                elif format_ == "tar":
                    assert [bytes(sample["txt"]) for sample in found] == [b"one", b"three"]
                elif format_ == "jsonl":
                    assert found == ["one", "three"]
                else:
                    expected = [body[:4], body[4:]] if format_ == "fixed:4" else [b"one", b"three"]
                    assert [bytes(record) for record in found] == expected
        assert process.wait(30) == 0


def test_the_record_wrapper_and_tensors(server: Server, tmp_path: Path) -> None:
    bodies = [content(70_000 + number, number) for number in range(30)]
    for number, body in enumerate(bodies):
        server.put(f"pipe-wrapped/{number:03}", body)
    message = b"\x0a" + tensor(2, struct.pack("<3f", 1, 2, 3), [3]) + b"\x12" + tensor(7, struct.pack("<b", 5), [1])
    server.put("pipe-tensors/a", recordio(message) * 3)
    wrapped = "wrapped=s3://data/pipe-wrapped/,record-wrapper=recordio"
    with served(server, tmp_path, wrapped, "tensors=s3://data/pipe-tensors/", epochs=1):
        channel = PipeChannel("wrapped", directory=tmp_path, timeout=30)
        with iter(channel) as records:
            assert [bytes(record) for batch in records.batches() for record in batch] == bodies
            assert records.received_bytes > sum(map(len, bodies)) and records.path == str(tmp_path / "wrapped_0")
        found = list(PipeChannel("tensors", "recordio-protobuf", directory=tmp_path, timeout=30))
        assert [record["features"]["values"].tolist() for record in found] == [[1.0, 2.0, 3.0]] * 3


def test_an_epoch_that_is_left_makes_room_for_the_next(server: Server, tmp_path: Path) -> None:
    server.put("pipe-left/a", b"".join(b"%d\n" % number for number in range(400_000)))
    with served(server, tmp_path, "train=s3://data/pipe-left/", epochs=3) as process:
        channel = PipeChannel("train", "lines", directory=tmp_path, timeout=30)
        assert channel.next_epoch == 0 and repr(channel).startswith("PipeChannel('train', 'lines'")
        never = iter(channel)
        assert channel.next_epoch == 0, "nothing was opened"
        records = iter(channel)
        never.close()
        assert [next(records) for _ in range(3)] == [b"0", b"1", b"2"]
        assert (records.epoch, channel.next_epoch) == (0, 1)
        assert len(list(channel)) == 400_000
        assert list(itertools.islice(records, 1)) == [], "it was closed"
        assert len(list(channel)) == 400_000
        assert process.wait(30) == 0


def test_the_next_fifo_is_not_opened_before_the_one_at_hand_has_ended(tmp_path: Path) -> None:
    for epoch in range(2):
        os.mkfifo(tmp_path / f"train_{epoch}")
    opened = []

    def serve() -> None:
        for epoch in range(2):
            with open(tmp_path / f"train_{epoch}", "wb") as fifo:
                opened.append(epoch)
                fifo.write(b"a\nb\n")
                fifo.flush()
                until = time.monotonic() + 0.3
                # A reader of the next one would let this succeed.
                while epoch == 0 and time.monotonic() < until:
                    with pytest.raises(OSError):
                        os.close(os.open(tmp_path / "train_1", os.O_WRONLY | os.O_NONBLOCK))
                    time.sleep(0.01)

    server = threading.Thread(target=serve)
    server.start()
    channel = PipeChannel("train", "lines", directory=tmp_path, timeout=20)
    assert list(channel) == [b"a", b"b"] and opened == [0]
    assert list(channel) == [b"a", b"b"] and opened == [0, 1]
    server.join(20)


def test_a_record_that_is_cut_off_names_fifo_and_offset(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train_0")
    good = recordio(b"whole")
    writer = threading.Thread(target=lambda: (tmp_path / "train_0").write_bytes(good + recordio(b"cut off")[:-3]))
    writer.start()
    records = iter(PipeChannel("train", directory=tmp_path, timeout=20))
    assert bytes(next(records)) == b"whole"
    for _ in range(2):
        with pytest.raises(standpipe.CorruptError) as failed:
            next(records)
        assert failed.value.offset == len(good) and "train_0" in str(failed.value)
    writer.join(20)


def test_what_the_server_says_of_its_failure_is_raised(server: Server, tmp_path: Path) -> None:
    server.put("pipe-failure/a", b"one\n")
    server.put("pipe-failure/b", b"two\n")
    server.script({"prefix": "data/pipe-failure/b", "effect": "status", "status": 403, "operations": ["get"]})
    with served(server, tmp_path, "train=s3://data/pipe-failure/", epochs=1):
        records = iter(PipeChannel("train", "lines", directory=tmp_path, timeout=30))
        assert next(records) == b"one"
        with pytest.raises(standpipe.LocalIOError, match=r"(?s)cut off after 4 bytes.*pipe-failure/b"):
            next(records)


def test_it_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    channel = PipeChannel("train", "lines", directory=tmp_path, timeout=0.3)
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="train_0"):
        next(iter(channel))
    assert 0.2 < time.monotonic() - begun < 5
    (tmp_path / "val_0").write_text("a file")
    with pytest.raises(standpipe.ConfigError, match="no FIFO"):
        next(iter(PipeChannel("val", directory=tmp_path)))


def test_a_large_record_is_no_silence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train_0")

    def write() -> None:
        with open(tmp_path / "train_0", "wb", buffering=0) as fifo:
            for _ in range(12):
                fifo.write(b"x" * 10)
                time.sleep(0.1)
            fifo.write(b"\n")

    writer = threading.Thread(target=write)
    writer.start()
    assert list(PipeChannel("train", "lines", directory=tmp_path, timeout=0.8)) == [b"x" * 120]
    writer.join(20)


def test_others_ask_and_close_while_a_thread_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train_0")
    channel = PipeChannel("train", "lines", directory=tmp_path)
    records = iter(channel)
    found: list[list[bytes]] = []
    reading = threading.Thread(target=lambda: found.append(list(records)))
    reading.start()
    deadline = time.monotonic() + 20
    while not records.opened and time.monotonic() < deadline:
        assert records.received_bytes == 0 and records.path == str(tmp_path / "train_0")
    assert channel.next_epoch == 1
    records.close()
    reading.join(4)
    assert found == [[]]


def test_a_childs_channel_goes_on_behind_its_parents(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train_0")
    channel = PipeChannel("train", "lines", directory=tmp_path, timeout=20)
    writer = threading.Thread(target=lambda: (tmp_path / "train_0").write_bytes(b"one\n"))
    writer.start()
    assert channel.next_epoch == 0 and list(channel) == [b"one"]
    writer.join(20)
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if channel.next_epoch == 1 and iter(channel).path.endswith("train_1") else 3)
        except BaseException:
            os._exit(4)
    assert os.waitpid(pid, 0)[1] == 0


def test_unusable_settings_are_told_at_once(tmp_path: Path) -> None:
    for bad in (
        {"format": "parquet"},
        {"channel": "no/name"},
        {"epoch": -1},
        {"compression": "rar"},
        {"timeout": -1.0},
    ):
        with pytest.raises(standpipe.ConfigError):
            PipeChannel(**{"channel": "train", "directory": tmp_path, **bad})


def test_where_channels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def path() -> str:
        return iter(PipeChannel("train")).path

    assert path() == "/opt/ml/input/data/train_0"
    monkeypatch.setenv("SM_INPUT_DIR", "/job/input")
    assert path() == "/job/input/data/train_0"
    monkeypatch.setenv("SM_CHANNEL_TRAIN", "/else/train")
    assert path() == "/else/train_0"


@pytest.mark.parametrize("is_there", [False, True])
def test_ctrl_c_while_waiting_for_the_writer(is_there: bool, tmp_path: Path) -> None:
    if is_there:
        os.mkfifo(tmp_path / "train_0")
    text = f"""
    import signal, time
    from standpipe.pipe import PipeChannel
    signal.signal(signal.SIGINT, signal.default_int_handler)
    records = iter(PipeChannel("train", directory={str(tmp_path)!r}))
    print("ready", flush=True)
    try:
        next(records)
    except KeyboardInterrupt:
        print("interrupted", time.monotonic(), flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        word, when = process.stdout.readline().split()
        assert word == "interrupted" and float(when) - sent < 0.2
        assert process.wait(5) == 0


def test_a_forked_childs_copy_refuses(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train_0")
    channel = PipeChannel("train", "lines", directory=tmp_path, timeout=20)
    records = iter(channel)
    pid = os.fork()
    if pid == 0:
        try:
            next(records)
        except standpipe.ForkedError:
            os._exit(0)
        except BaseException:
            os._exit(3)
        os._exit(4)
    assert os.waitpid(pid, 0)[1] == 0
    writer = threading.Thread(target=lambda: (tmp_path / "train_0").write_bytes(b"mine\n"))
    writer.start()
    assert list(records) == [b"mine"]
    writer.join(20)


def test_a_job_of_standpipe_run(server: Server, tmp_path: Path) -> None:
    server.put("pipe-job/a", b"".join(recordio(b"%d" % number) for number in range(1000)))
    trainer = tmp_path / "train.py"
    trainer.write_text(
        textwrap.dedent("""
        from standpipe.pipe import PipeChannel
        channel = PipeChannel("train", timeout=30)
        for epoch in range(2):
            assert sorted(int(bytes(record)) for record in channel) == list(range(1000)), epoch
        """)
    )
    job = ["--base-dir", str(tmp_path / "job"), "--channel", "train=s3://data/pipe-job/,mode=pipe", "--sm-env"]
    done = subprocess.run(
        [COMMAND, "run", *job, "--", sys.executable, str(trainer)],
        env=environment(server),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
