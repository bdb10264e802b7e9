"""Forks, spawns, signals, and how processes end. Each program runs in a process of its own, with a limit."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest
from conftest import Server, content, environment, run

# What programs below begin with: a child's result, with a limit.
CHILD = """
import os, signal, sys, time
import standpipe

def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            code = work() or 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            code = 99
        sys.stdout.flush()
        os._exit(code)
    deadline = time.monotonic() + 10
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, f"the child ended with {status:#x}"
            return
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError("the child hangs")
        time.sleep(0.01)
"""


def program(text: str) -> str:
    return CHILD + textwrap.dedent(text)


def test_importing_starts_nothing_and_brings_no_framework(server: Server) -> None:
    run(
        """
        import os, sys
        before = set(os.listdir("/proc/self/task"))
        import standpipe
        standpipe.FastFiles("s3://data/x/")
        assert set(os.listdir("/proc/self/task")) == before
        heavy = {"torch", "tensorflow", "numpy", "fsspec", "pyarrow", "ray", "webdataset"} & set(sys.modules)
        assert not heavy, heavy
        """,
        server,
    )


def test_fork_before_the_first_use(server: Server) -> None:
    uri = server.put("fork/before", content(500_000, 1))
    run(
        program(f"""
        read = lambda: sum(map(len, standpipe.stream({uri!r})))
        child(lambda: int(read() != 500_000))
        assert read() == 500_000
        """),
        server,
    )


def test_fork_after_use_children_read_on_their_own(server: Server) -> None:
    uri = server.put("fork/after", content(500_000, 2))
    run(
        program(f"""
        read = lambda: sum(map(len, standpipe.stream({uri!r})))
        whole = lambda: len(standpipe.open({uri!r}).read())
        assert read() == whole() == 500_000
        for _ in range(5):
            child(lambda: int(read() != 500_000 or whole() != 500_000))
        def nested():
            assert read() == 500_000
            child(lambda: int(read() != 500_000))
        child(nested)
        assert read() == 500_000
        """),
        server,
        timeout=40,
    )


def test_fork_with_a_live_stream_the_childs_copy_refuses_and_the_parents_goes_on(server: Server) -> None:
    uri = server.put("fork/live", content(4_000_000, 3))
    done = run(
        program(f"""
        import gc
        stream = standpipe.stream({uri!r}, part_size="64KiB", memory="1MiB")
        chunk = next(stream)
        view = memoryview(chunk)
        file = standpipe.open({uri!r})
        file.read(10)
        listing = standpipe.list("s3://data/fork/")
        seen = bytes(chunk)

        def look():
            global stream, chunk, file, view, listing
            for use in (lambda: next(stream), lambda: file.read(1 << 20), lambda: next(listing), stream.close):
                try:
                    use()
                except standpipe.ForkedError as error:
                    assert "forked child" in str(error) and str(os.getppid()) in str(error), error
                else:
                    raise AssertionError("it was used in the child")
            # What was delivered is the child's to read.
            assert bytes(chunk) == bytes(view) == seen
            view.release()
            chunk.release()
            # Nor does letting go of it all touch what is the parent's.
            stream = chunk = file = listing = None
            gc.collect()
            return int(sum(map(len, standpipe.stream({uri!r}))) != 4_000_000)

        child(look)
        rest = len(chunk)
        view.release()
        for chunk in stream:
            rest += len(chunk)
        assert rest == 4_000_000
        assert file.read(10) and len(list(listing)) >= 1
        print("all of it")
        """),
        server,
        timeout=30,
    )
    assert "all of it" in done.stdout


def test_fork_while_other_threads_read(server: Server) -> None:
    uri = server.put("fork/threads", content(3_000_000, 4))
    run(
        program(f"""
        import threading
        stop = threading.Event()
        def work():
            while not stop.is_set():
                for chunk in standpipe.stream({uri!r}, part_size="64KiB"):
                    pass
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads: thread.start()
        time.sleep(0.2)
        for _ in range(15):
            child(lambda: int(sum(map(len, standpipe.stream({uri!r}, part_size="64KiB"))) != 3_000_000))
        stop.set()
        for thread in threads: thread.join()
        """),
        server,
        timeout=50,
        flags=("-W", "ignore"),
    )


def test_files_of_a_prefix_reopen_in_the_child(server: Server) -> None:
    server.put("fork-files/a", b"of a")
    run(
        program("""
        files = standpipe.FastFiles("s3://data/fork-files/")
        assert files.read("a") == b"of a"
        child(lambda: int(files.read("a") != b"of a" or [e.path for e in files.list()] != ["a"]))
        assert files.read("a") == b"of a"
        """),
        server,
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_every_start_method(method: str, server: Server, tmp_path) -> None:  # type: ignore[no-untyped-def]
    for number in range(4):
        server.put(f"workers/{number}", content(100_000 + number, number))
    script = tmp_path / "workers.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing, standpipe

        files = standpipe.FastFiles("s3://data/workers/")

        def size(args):
            files, number = args
            return len(files.read(str(number))) + sum(map(len, standpipe.stream(f"s3://data/workers/{{number}}")))

        if __name__ == "__main__":
            assert len(files.read("0")) == 100_000
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                sizes = pool.map(size, [(files, number) for number in range(4)])
            assert sizes == [2 * (100_000 + number) for number in range(4)], sizes
        """)
    )
    subprocess.run([sys.executable, script], env=environment(server), timeout=40, check=True)


WAITS = {
    "stream": "next(standpipe.stream('s3://data/slow/object'))",
    "open": "standpipe.open('s3://data/slow/object', endpoint_url=ENDPOINT).read()",
    "list": "list(standpipe.list('s3://data/slow-list/'))",
    "download": "standpipe.download('s3://data/slow/object', TARGET)",
    "files": "standpipe.FastFiles('s3://data/slow/').read('object')",
    "async": "asyncio.run(anext_of('s3://data/slow/object'))",
    "async read": "asyncio.run(standpipe.aio.read('s3://data/slow/object'))",
    "async list": "asyncio.run(anext_of_list('s3://data/slow-list/'))",
    "fsspec": "fsspec.filesystem('standpipe').cat(['data/slow/object', 'data/slow/other'])",
}


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_works_within_a_fifth_of_a_second(wait: str, server: Server, tmp_path) -> None:  # type: ignore[no-untyped-def]
    server.put("slow/object", content(100_000))
    server.put("slow/other", content(100_000))
    server.put("slow-list/object", b"x")
    server.script(
        {"prefix": "data/slow/", "effect": "latency", "first_byte_ms": 4000, "operations": ["get"]},
        {"prefix": "data/slow-list/", "effect": "latency", "first_byte_ms": 4000, "operations": ["list"]},
    )
    text = f"""
    import asyncio, os, sys, time
    import standpipe
    ENDPOINT, TARGET = os.environ["STANDPIPE_ENDPOINT_URL"], {str(tmp_path / "d")!r}
    async def anext_of(uri):
        async for chunk in standpipe.aio.stream(uri):
            return chunk
    async def anext_of_list(uri):
        async for info in standpipe.aio.list(uri):
            return info
    if {wait!r} == "fsspec":
        import fsspec, standpipe.fsspec
    print("ready", flush=True)
    try:
        {WAITS[wait]}
    except KeyboardInterrupt:
        print("interrupted", time.monotonic(), flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text)], env=environment(server), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        operation = "list" if "list" in wait else "get"
        deadline = time.monotonic() + 20
        while not any(
            entry["operation"] == operation and "slow" in entry["path"] + entry["query"] for entry in server.log()
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.1)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        word, when = process.stdout.readline().split()
        assert word == "interrupted"
        assert float(when) - sent < 0.2
        assert process.wait(5) == 0
    assert time.monotonic() - sent < 3, "nothing is waited for at the end"


ENDS = {
    "a live stream": "stream = standpipe.stream(URI); next(stream)",
    "a live stream nobody reads": "stream = standpipe.stream(URI)",
    "a view": "view = memoryview(next(standpipe.stream(URI)))",
    "an open file": "file = standpipe.open(URI); file.read(10)",
    "an open listing": "listing = standpipe.list('s3://data/end/'); next(listing)",
    "a daemon thread that waits": (
        "threading.Thread(target=lambda: list(standpipe.stream('s3://data/end-slow/object')), daemon=True).start();"
        " time.sleep(0.4)"
    ),
    "a cycle": "a = [standpipe.stream(URI)]; a.append(a); next(a[0])",
    "an error": "stream = standpipe.stream(URI); next(stream); sys.exit(0)",
    "a loop that was left": "asyncio.run(left(URI))",
}


@pytest.mark.parametrize("what", ENDS)
def test_an_interpreter_ends_at_once_with(what: str, server: Server) -> None:
    uri = server.put("end/object", content(3_000_000, 5))
    server.put("end-slow/object", b"x")
    server.script({"prefix": "data/end-slow/", "effect": "latency", "first_byte_ms": 20_000, "operations": ["get"]})
    begun = time.monotonic()
    done = run(
        f"""
        import asyncio, sys, threading, time
        import standpipe
        URI = {uri!r}
        async def left(uri):
            async for chunk in standpipe.aio.stream(uri, part_size="64KiB"):
                return chunk
        {ENDS[what]}
        """,
        server,
    )
    assert time.monotonic() - begun < 5
    assert done.stderr == ""


def test_a_process_that_is_killed_leaves_its_children_unharmed(server: Server) -> None:
    uri = server.put("orphan/object", content(1_000_000, 6))
    done = run(
        program(f"""
        assert sum(map(len, standpipe.stream({uri!r}))) == 1_000_000
        reader, writer = os.pipe()
        if os.fork() == 0:
            parent = os.getppid()
            stream = standpipe.stream({uri!r}, part_size="64KiB")
            total = len(next(stream))
            if os.fork() == 0:
                os.kill(parent, 0)
                os._exit(0)
            total += sum(map(len, stream))
            os.write(writer, str(total).encode())
            os._exit(0)
        print(os.read(reader, 100).decode(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """),
        server,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.strip() == "1000000"
