"""`standpipe.torch`, with torch itself."""

import gc
import itertools
import os
import pickle
import re
import struct
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import numpy
import pytest
import standpipe
import torch
from conftest import Server, content, environment
from guide import SECTIONS, needs_torch, run_section
from standpipe import Options
from standpipe.torch import Collate, Field, MapDataset, PipeDataset, StreamingDataset
from test_dataset import tarred
from test_pipe import served
from test_python_examples import EXAMPLES, put_shards
from torch.utils.data import DataLoader
from transforms import digest


@pytest.fixture
def bodies(server: Server) -> list[bytes]:
    made = [content(30_000 + number, number) for number in range(40)]
    for number, body in enumerate(made):
        server.put(f"torch/{number:03}", body)
    return made


def test_objects_by_number(server: Server, bodies: list[bytes], options: Options) -> None:
    dataset = MapDataset("s3://data/torch/", **options)
    assert len(dataset) == 40
    assert dataset[7] == bodies[7] and dataset[-1] == bodies[-1]
    assert dataset.__getitems__([3, 1, 1, 39]) == [bodies[3], bodies[1], bodies[1], bodies[39]]
    assert dataset.__getitems__([]) == []
    for index in (40, -41):
        with pytest.raises(IndexError):
            dataset[index]
    assert isinstance(dataset, torch.utils.data.Dataset)


def test_a_batch_is_fetched_side_by_side(server: Server, bodies: list[bytes], options: Options) -> None:
    dataset = MapDataset("s3://data/torch/", **options)
    len(dataset)
    server.script({"prefix": "data/torch/", "effect": "latency", "first_byte_ms": 100, "operations": ["get"]})
    begun = time.monotonic()
    assert dataset.__getitems__(list(range(24))) == bodies[:24]
    assert time.monotonic() - begun < 1.2, "one after another they take 2.4 s"


def test_large_objects_come_in_one_piece(server: Server, options: Options) -> None:
    body = content(1_000_000, 5)
    server.put("torch-large/object", body)
    dataset = MapDataset(
        "s3://data/torch-large/", transform=lambda item: (item.key, bytes(item.data)), part_size="64KiB", **options
    )
    assert dataset[0] == ("torch-large/object", body)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_loader_gives_every_sample_once(
    workers: int, method: str, server: Server, bodies: list[bytes], options: Options
) -> None:
    dataset = MapDataset("s3://data/torch/", transform=digest, **options)
    assert dataset[0] == (0, sum(bodies[0]))
    loader = DataLoader(
        dataset,
        batch_size=8,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=method if workers else None,
        persistent_workers=workers > 0,
        timeout=30 if workers else 0,
    )
    for _epoch in range(2):
        seen = [
            (int(index), int(total)) for indices, totals in loader for index, total in zip(indices, totals, strict=True)
        ]
        assert sorted(seen) == [(number, sum(body)) for number, body in enumerate(bodies)]


def test_it_pickles_with_its_listing(server: Server, bodies: list[bytes], options: Options) -> None:
    dataset = MapDataset("s3://data/torch/", **options)
    assert pickle.loads(pickle.dumps(dataset))[2] == bodies[2]
    len(dataset)
    again = pickle.loads(pickle.dumps(dataset))
    server.request("POST", "/_fake/log/clear")
    assert again[2] == bodies[2]
    assert not [entry for entry in server.log() if entry["operation"] == "list"]
    listed = list(standpipe.list("s3://data/torch/{005,003}", **options))
    assert [bytes(sample) for sample in MapDataset(listed, **options).__getitems__([0, 1])] == [bodies[5], bodies[3]]


def test_tensors_see_a_chunk_without_a_copy(server: Server, bodies: list[bytes], options: Options) -> None:
    chunk = next(standpipe.stream("s3://data/torch/000", **options))
    body = bodies[0][: len(chunk)]
    with pytest.warns(UserWarning, match="not writable"):
        tensor = torch.frombuffer(chunk, dtype=torch.uint8)
    assert int(tensor.sum()) == sum(body) and len(tensor) == len(body) > 0


@pytest.mark.parametrize(("workers", "method"), [(0, "fork"), (2, "fork"), (2, "spawn")])
def test_a_loader_streams_every_sample_once(workers: int, method: str, shards: str, options: Options) -> None:
    dataset = StreamingDataset(shards, "lines", shuffle=50, seed=2, transform=int, **options)
    loader = DataLoader(
        dataset,
        batch_size=16,
        num_workers=workers,
        multiprocessing_context=method if workers else None,
        persistent_workers=workers > 0,
        timeout=30 if workers else 0,
    )
    orders = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        orders.append(torch.cat(list(loader)).tolist())
        assert sorted(orders[-1]) == list(range(500))
    assert orders[0] != orders[1], "workers that live on hear of the epoch"


def test_it_goes_on_where_it_was(shards: str, options: Options) -> None:
    def dataset() -> StreamingDataset:
        return StreamingDataset(shards, "lines", shuffle=50, seed=2, transform=int, **options)

    whole = list(dataset())
    first = dataset()
    before = list(itertools.islice(iter(first), 123))
    again = pickle.loads(pickle.dumps(dataset()))
    again.load_state_dict(first.state_dict())
    assert before + list(again) == whole
    assert first.stats()["samples"] == 123


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_all_of_what_their_parent_has_looked_at(method: str, shards: str, options: Options) -> None:
    dataset = StreamingDataset(shards, "lines", shuffle=50, transform=int, **options)
    first = next(iter(dataset))
    loader = DataLoader(dataset, batch_size=16, num_workers=1, multiprocessing_context=method, timeout=30)
    numbers = torch.cat(list(loader)).tolist()
    assert numbers[0] == first and sorted(numbers) == list(range(500))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_usual_set_epoch_does_not_undo_loading(workers: int, shards: str, options: Options) -> None:
    def dataset() -> StreamingDataset:
        return StreamingDataset(shards, "lines", shuffle=50, transform=int, **options)

    orders, first, again = [], dataset(), dataset()
    for epoch in (1, 2):
        first.set_epoch(epoch)
        orders.append(list(first))
    first.set_epoch(1)
    list(itertools.islice(first, 123))
    again.load_state_dict(first.state_dict())
    loader = DataLoader(
        again, batch_size=None, num_workers=workers, multiprocessing_context="spawn" if workers else None
    )
    found = []
    for epoch in (1, 2):
        again.set_epoch(epoch)
        found.append(list(loader))
    assert found == [orders[0][123:], orders[1]]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_two_ranks_share_an_epoch(method: str, shards: str, server: Server, tmp_path) -> None:  # type: ignore[no-untyped-def]
    script = tmp_path / "ranks.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        import torch.distributed as dist
        from torch.utils.data import DataLoader
        from standpipe.torch import StreamingDataset

        if __name__ == "__main__":
            rank = int(sys.argv[1])
            dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=rank, world_size=2)
            dataset = StreamingDataset({shards!r}, "lines", shuffle=20, transform=int)
            loader = DataLoader(dataset, batch_size=8, num_workers=1, multiprocessing_context={method!r})
            seen = [int(number) for batch in loader for number in batch]
            all_seen = [None, None]
            dist.all_gather_object(all_seen, seen)
            assert sorted(all_seen[0] + all_seen[1]) == list(range(500))
            assert all_seen[0] and all_seen[1]
            dist.destroy_process_group()
        """)
    )
    ranks = [subprocess.Popen([sys.executable, str(script), str(rank)], env=environment(server)) for rank in range(2)]
    assert [rank.wait(100) for rank in ranks] == [0, 0]


def test_dlpack_sees_a_chunk_without_a_copy(bodies: list[bytes], options: Options) -> None:
    chunk = next(standpipe.stream("s3://data/torch/000", **options))
    # Torch has no tensors that can't be written to, and warns once.
    warnings.simplefilter("ignore")
    assert chunk.__dlpack_device__() == (1, 0)
    array = numpy.from_dlpack(chunk)
    assert not array.flags.writeable and array.tobytes() == bodies[0][: len(chunk)]
    tensor, by_buffer = torch.from_dlpack(chunk), torch.frombuffer(chunk, dtype=torch.uint8)
    assert tensor.data_ptr() == by_buffer.data_ptr() == array.ctypes.data
    with pytest.raises(BufferError):
        chunk.release()
    del array, tensor, by_buffer
    chunk.release()


@pytest.fixture
def raw_samples(server: Server) -> list[tuple[bytes, int]]:
    made = [(content(12, number), number) for number in range(60)]
    server.put("torch-raw/a.tar", tarred({f"{y:03}": {"x.raw": x, "y.raw": struct.pack("<q", y)} for x, y in made}))
    return made


@pytest.mark.parametrize("workers", [0, 1])
def test_collate_fills_tensors(workers: int, raw_samples: list[tuple[bytes, int]], options: Options) -> None:
    collate = Collate({"x.raw": Field(torch.uint8, (3, 4)), "y.raw": Field(torch.int64)})
    dataset = StreamingDataset("s3://data/torch-raw/a.tar", **options)
    loader = DataLoader(dataset, batch_size=16, num_workers=workers, collate_fn=collate)
    batches = list(loader)
    assert [tuple(batch["x.raw"].shape) for batch in batches] == [(16, 3, 4)] * 3 + [(12, 3, 4)]
    assert torch.cat([batch["y.raw"] for batch in batches]).tolist() == [y for _, y in raw_samples]
    assert torch.cat([batch["x.raw"] for batch in batches]).numpy().tobytes() == b"".join(x for x, _ in raw_samples)
    alone = Collate(Field(torch.bfloat16, (2,)))([torch.ones(2, dtype=torch.bfloat16).view(torch.uint8).numpy()] * 3)
    assert alone.dtype == torch.bfloat16 and alone.tolist() == [[1.0, 1.0]] * 3
    with pytest.raises(ValueError, match="5 bytes"):
        Collate(Field(torch.int16, (2,)))([b"12345"])
    assert Collate(Field(torch.int16), pin_memory=None)([b"12"]).is_pinned() == torch.cuda.is_available()


def test_examples_of_the_docstrings() -> None:
    import doctest

    import standpipe.torch as module

    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted >= 2


@pytest.mark.parametrize(
    ("workers", "method", "persistent"),
    [(0, "fork", False), (1, "fork", False), (1, "fork", True), (1, "spawn", False)],
)
def test_pipe_mode_epoch_by_epoch(workers: int, method: str, persistent: bool, server: Server, tmp_path: Path) -> None:
    server.put("torch-pipe/a", b"".join(b"%d\n" % number for number in range(1000)))
    with served(server, tmp_path, "train=s3://data/torch-pipe/", epochs=3) as process:
        dataset = PipeDataset("train", "lines", transform=int, directory=tmp_path, timeout=30)
        loader = DataLoader(
            dataset,
            batch_size=16,
            num_workers=workers,
            multiprocessing_context=method if workers else None,
            persistent_workers=bool(workers) and persistent,
            timeout=30 if workers else 0,
        )
        for epoch in range(3):
            assert dataset.next_epoch == epoch
            assert torch.cat(list(loader)).tolist() == list(range(1000))
        assert process.wait(30) == 0
        assert dataset.next_epoch == 3


def test_a_worker_reads_on_behind_its_parent(server: Server, tmp_path: Path) -> None:
    server.put("torch-pipe-on/a", b"".join(b"%d\n" % number for number in range(100_000)))
    with served(server, tmp_path, "train=s3://data/torch-pipe-on/", epochs=3):
        dataset = PipeDataset("train", "lines", transform=int, directory=tmp_path, timeout=30)
        assert next(iter(dataset)) == 0, "a look at it"
        loader = DataLoader(dataset, batch_size=1000, num_workers=1, multiprocessing_context="fork", timeout=30)
        for epoch in (1, 2):
            assert dataset.next_epoch == epoch
            assert torch.cat(list(loader)).tolist() == list(range(100_000))


def test_a_fifo_has_one_reader(tmp_path: Path) -> None:
    loader = DataLoader(PipeDataset("train", directory=tmp_path), num_workers=2)
    with pytest.raises(standpipe.ConfigError, match="one reader"):
        next(iter(loader))
    # The traceback keeps the workers, and forked ones keep the server.
    gc.collect()


def test_ranks_train_one_model(server: Server, shards: str, tmp_path: Path) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        import torch
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel
        from torch.utils.data import DataLoader
        from standpipe.torch import StreamingDataset

        def point(line):
            return torch.tensor([int(line) / 500.0])

        if __name__ == "__main__":
            rank = int(sys.argv[1])
            dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=rank, world_size=2)
            model = DistributedDataParallel(torch.nn.Linear(1, 1))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            counts = [100, 7, 0, 250, 43, 100]
            dataset = StreamingDataset({shards!r}, "lines", transform=point, counts=counts, even="pad", shuffle=20)
            loader = DataLoader(dataset, batch_size=8)
            steps = 0
            for epoch in range(2):
                dataset.set_epoch(epoch)
                # Unequal numbers of steps would hang here: each waits for the other's gradients.
                for batch in loader:
                    optimizer.zero_grad()
                    (model(batch) - 3 * batch).square().mean().backward()
                    optimizer.step()
                    steps += 1
            told = [None, None]
            dist.all_gather_object(told, (steps, [float(value) for value in model.parameters()]))
            assert told[0] == told[1] and steps > 2 * 250 // 8, told
            dist.destroy_process_group()
        """)
    )
    ranks = [subprocess.Popen([sys.executable, str(script), str(rank)], env=environment(server)) for rank in range(2)]
    assert [rank.wait(100) for rank in ranks] == [0, 0]


class Module:
    """What a LightningModule and its DataModule come to for a loader."""

    def __init__(self, uri: str, options: Options) -> None:
        self.data = StreamingDataset(uri, "lines", shuffle=50, seed=2, transform=int, **options)

    def train_dataloader(self) -> DataLoader[int]:
        return DataLoader(self.data, batch_size=16)

    def state_dict(self) -> dict[str, object]:
        return self.data.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.data.load_state_dict(state)


def fit(module: Module, epochs: int, first: int = 0, stop_after: int | None = None) -> list[list[int]]:
    """As a trainer does: a loader for all epochs, `set_epoch` before each, and a checkpoint when it is told to stop."""
    loader, seen = module.train_dataloader(), []
    steps = 0
    for epoch in range(first, epochs):
        loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        seen.append([])
        for batch in loader:
            seen[-1] += batch.tolist()
            steps += 1
            if steps == stop_after:
                return seen
    return seen


def test_a_trainers_loop_goes_on_from_its_checkpoint(shards: str, options: Options, tmp_path: Path) -> None:
    whole = fit(Module(shards, options), 3)
    assert all(sorted(epoch) == list(range(500)) for epoch in whole) and whole[0] != whole[1]
    module = Module(shards, options)
    before = fit(module, 3, stop_after=40)
    torch.save({"datamodule": module.state_dict(), "epoch": len(before) - 1}, tmp_path / "checkpoint")
    checkpoint = torch.load(tmp_path / "checkpoint")
    again = Module(shards, options)
    again.load_state_dict(checkpoint["datamodule"])
    after = fit(again, 3, first=checkpoint["epoch"])
    assert [*before[:-1], before[-1] + after[0], *after[1:]] == whole


def gets(server: Server) -> list[str]:
    return [entry["key"] for entry in server.log() if entry["operation"] == "get"]


@pytest.mark.parametrize("window", [1, 7, 1000])
@pytest.mark.parametrize("batched", [False, True])
def test_a_sampler_that_is_looked_ahead_of_gives_the_same(
    window: int, batched: bool, bodies: list[bytes], options: Options
) -> None:
    dataset = MapDataset("s3://data/torch/", **options)
    order = [7, 0, 39, 39, 3, *range(20, 30), -1, 5]
    if batched:
        batches = [order[at : at + 4] for at in range(0, len(order), 4)]
        loader = DataLoader(dataset, batch_sampler=dataset.ahead(batches, window), collate_fn=list)
    else:
        loader = DataLoader(dataset, sampler=dataset.ahead(order, window), batch_size=4, collate_fn=list)
    for _epoch in range(3):
        seen = [body for batch in loader for body in batch]
        assert seen == [bodies[number] for number in order]


def test_samplers_of_many_numbers_and_of_tensors_are_looked_ahead_of(bodies: list[bytes], options: Options) -> None:
    dataset = MapDataset("s3://data/torch/", transform=lambda item: item.index, **options)
    order = [number % 40 for number in range(90_000)]
    many = [order[at : at + 300] for at in range(0, len(order), 300)]
    loader = DataLoader(dataset, batch_sampler=dataset.ahead(many), collate_fn=list)
    assert list(itertools.islice(loader, 3)) == many[:3]
    for tensors in (torch.tensor([5, 3, 3]), [torch.tensor([5]), torch.tensor([3, 3])]):
        batched = isinstance(tensors, list)
        sampler = dataset.ahead(tensors, 2)
        loader = DataLoader(dataset, collate_fn=list, **{"batch_sampler" if batched else "sampler": sampler})
        assert [number for batch in loader for number in batch] == [5, 3, 3]


def test_what_comes_next_is_fetched_while_a_batch_is_worked_on(
    server: Server, bodies: list[bytes], options: Options
) -> None:
    dataset = MapDataset("s3://data/torch/", **options)
    loader = DataLoader(dataset, sampler=dataset.ahead(range(40)), batch_size=4, collate_fn=list)
    batches = iter(loader)
    assert next(batches) == bodies[:4]
    deadline = time.monotonic() + 20
    while len(set(gets(server))) < 40 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(set(gets(server))) == 40, "nobody asked for the others yet, but they are known"
    assert [body for batch in batches for body in batch] == bodies[4:]
    assert len(gets(server)) <= 41, "none is fetched twice (the first comes in two parts)"


def test_look_ahead_survives_other_reads_early_ends_and_errors(
    server: Server, bodies: list[bytes], options: Options
) -> None:
    def picky(item: standpipe.torch.Item) -> bytes:
        if item.index == 13:
            raise ValueError("thirteen")
        return bytes(item.data)

    dataset = MapDataset("s3://data/torch/", transform=picky, **options)
    loader = DataLoader(dataset, sampler=dataset.ahead(range(40)), batch_size=5, collate_fn=list)
    batches = iter(loader)
    assert next(batches) == bodies[:5]
    assert dataset[20] == bodies[20], "one that the sampler did not ask for"
    assert next(batches) == bodies[5:10]
    with pytest.raises(ValueError, match="thirteen"):
        next(batches)
    assert next(batches) == bodies[15:20]
    del batches
    for workers in (0, 2):
        good = DataLoader(
            dataset, sampler=dataset.ahead(range(14, 40)), batch_size=5, collate_fn=list, num_workers=workers
        )
        assert [body for batch in good for body in batch] == bodies[14:]
    assert len(pickle.loads(pickle.dumps(MapDataset("s3://data/torch/", **options)))) == 40


def test_a_forked_child_looks_ahead_on_its_own(bodies: list[bytes], options: Options) -> None:
    dataset = MapDataset("s3://data/torch/", **options)
    loader = DataLoader(dataset, sampler=dataset.ahead(range(40)), batch_size=4, collate_fn=list)
    batches = iter(loader)
    assert next(batches) == bodies[:4]
    child = os.fork()
    if child == 0:
        seen = [body for batch in loader for body in batch]
        os._exit(0 if seen == bodies else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert [body for batch in batches for body in batch] == bodies[4:]


@pytest.mark.parametrize("title", [title for title in SECTIONS if needs_torch(title)])
def test_a_recipe_of_the_guide(title: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    run_section(
        title,
        server,
        monkeypatch.setenv,
        decode=lambda data: torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(8, 8),
    )


@pytest.mark.timeout(180)
def test_the_example_learns_its_images(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_shards(server, tmp_path, monkeypatch)
    command = [sys.executable, str(EXAMPLES / "classify.py"), "s3://data/examples-python/", "--epochs", "4"]
    done = subprocess.run(command, env=environment(server), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    epochs = re.findall(r"epoch \d: (\d+) images, (\d+)% right", done.stdout)
    assert [int(seen) for seen, _ in epochs] == [240] * 4
    assert int(epochs[-1][1]) > 80, done.stdout


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_chunks_leave_workers(method: str, server: Server, options: Options) -> None:
    for number in range(4):
        server.put(f"torch-fixed/{number}", b"".join(b"%08d" % (number * 100 + record) for record in range(100)))
    dataset = StreamingDataset("s3://data/torch-fixed/", "fixed:8", batch_size=10, **options)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=method, timeout=30)
    assert [int(bytes(sample)) for batch in loader for sample in batch] == list(range(400))


def test_the_process_that_trains_does_not_know_how_far_workers_are(shards: str, options: Options) -> None:
    dataset = StreamingDataset(shards, "lines", transform=int, **options)
    fresh = dataset.state_dict()
    loader = DataLoader(dataset, batch_size=16, num_workers=2, timeout=30)
    batches = iter(loader)
    # One of each worker: one that begins later takes what is set meanwhile.
    next(batches), next(batches)
    with pytest.raises(RuntimeError, match="StatefulDataLoader"):
        dataset.state_dict()
    dataset.set_epoch(1)
    assert dataset.state_dict() != fresh, "of the next epoch it knows that nothing was given"
    del batches
    assert next(iter(dataset)) is not None and dataset.state_dict()


@pytest.mark.parametrize(
    ("workers", "method", "persistent"),
    [
        (0, None, False),
        (1, "fork", False),
        (2, "fork", False),
        (2, "fork", True),
        (1, "spawn", False),
        (2, "spawn", True),
    ],
)
def test_a_loaded_state_is_used_once(
    workers: int, method: str | None, persistent: bool, shards: str, options: Options
) -> None:
    states = []
    for worker in range(max(workers, 1)):
        who = {"rank": 0, "world_size": 1, "worker": worker, "workers": max(workers, 1)}
        part = standpipe.Dataset(shards, "lines", shuffle=50, **who, **options)
        list(itertools.islice(part, 40))
        states.append(part.state_dict())
    dataset = StreamingDataset(shards, "lines", shuffle=50, transform=int, **options)
    dataset.load_state_dict(standpipe.merge_states(states))
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=method,
        persistent_workers=persistent,
        timeout=30 if workers else 0,
    )
    left = 500 - 40 * len(states)
    assert [len(list(loader)) for _ in range(2)] == [left, 500]
    if method == "spawn" and not persistent:
        return  # Each further pass starts interpreters.
    assert len(list(loader)) == 500
    dataset.load_state_dict(standpipe.merge_states(states))
    assert [len(list(loader)) for _ in range(2)] == [left, 500], "workers that live on hear of it"
    dataset.load_state_dict(standpipe.merge_states(states))
    dataset.set_epoch(0)
    assert len(list(loader)) == left
    dataset.set_epoch(0)
    assert len(list(loader)) == 500
    dataset.load_state_dict(standpipe.merge_states(states))
    dataset.set_epoch(3)
    assert len(list(loader)) == 500, "a state of another epoch is not that of this one"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_that_was_loaded_before_goes_on(workers: int, shards: str, options: Options) -> None:
    def rank() -> standpipe.Dataset:
        return standpipe.Dataset(shards, "lines", shuffle=20, **options)

    first = rank()
    before = [int(line) for line in itertools.islice(first, 100)]
    second = rank()
    second.load_state_dict(standpipe.merge_states([first.state_dict()]))
    loader = DataLoader(StreamingDataset.of(second, transform=int), num_workers=workers, timeout=30 if workers else 0)
    after = torch.cat(list(loader)).tolist()
    assert sorted(before + after) == list(range(500))
    assert len(list(loader)) == 500, "once"


def test_a_refused_state_is_not_lost(shards: str, options: Options) -> None:
    dataset = StreamingDataset(shards, "lines", **options)
    dataset.load_state_dict({"version": 99})
    for _ in range(2):
        with pytest.raises(standpipe.ConfigError, match="state"):
            iter(dataset)


def lists(server: Server) -> int:
    return sum(entry["operation"] == "list" for entry in server.log())


def test_workers_that_find_different_objects_refuse_to_read(server: Server, options: Options) -> None:
    for number in range(8):
        server.put(f"torch-grows/{number}.txt", b"%d\n" % number)

    def begin(worker: int) -> None:
        # The second one lists when the first has, and something was written meanwhile.
        if worker == 1:
            while not lists(server):
                time.sleep(0.02)
            server.put("torch-grows/0a.txt", b"9\n")

    def loader(dataset: StreamingDataset) -> DataLoader[int]:
        return DataLoader(
            dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", worker_init_fn=begin, timeout=30
        )

    dataset = StreamingDataset("s3://data/torch-grows/", "lines", transform=int, **options)
    try:
        with pytest.raises(standpipe.ConfigError, match="list_once"):
            list(loader(dataset))
        server.request("DELETE", "/data/torch-grows/0a.txt")
        assert sorted(loader(dataset.list_once())) == list(range(8))
    finally:
        server.request("DELETE", "/data/torch-grows/0a.txt")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_input_is_listed_once(method: str, shards: str, server: Server, options: Options) -> None:
    dataset = StreamingDataset(shards, "lines", transform=int, **options)
    if method == "fork":
        dataset.list_once()
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=method, timeout=30)
    # Each epoch of spawned workers starts interpreters.
    for _epoch in range(2 if method == "fork" else 1):
        assert sorted(loader) == list(range(500))
    assert lists(server) == 1


def test_footers_are_read_once(server: Server, options: Options) -> None:
    import pyarrow
    import pyarrow.parquet

    body = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"n": range(10)}), body, row_group_size=5)
    uri = server.put("torch-footers/a.parquet", body.getvalue().to_pybytes())
    dataset = StreamingDataset(uri, **options).list_once()
    server.request("POST", "/_fake/log/clear")
    again = pickle.loads(pickle.dumps(dataset.dataset))
    assert len(again.row_groups) == 2 and not gets(server)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixture_in_a_loader(workers: int, shards: str, server: Server, options: Options) -> None:
    server.put("torch-other/x.txt", b"".join(b"%d\n" % number for number in range(1000, 1200)))
    mixture = standpipe.Mixture(
        {
            "many": standpipe.Dataset(shards, "lines", shuffle=20, **options),
            "few": standpipe.Dataset("s3://data/torch-other/", "lines", shuffle=20, **options),
        },
        {"many": 3, "few": 1},
    )
    dataset = StreamingDataset.of(mixture, transform=int)
    loader = DataLoader(
        dataset, batch_size=10, num_workers=workers, persistent_workers=workers > 0, timeout=30 if workers else 0
    )
    orders = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        orders.append(torch.cat(list(loader)).tolist())
        assert sorted(orders[-1]) == [*range(500), *range(1000, 1200)]
    assert orders[0] != orders[1], "workers that live on hear of the epoch"
    if not workers:
        assert dataset.stats()["few"]["samples"] == 200
        first = StreamingDataset.of(mixture, transform=int)
        first.set_epoch(0)
        before = list(itertools.islice(first, 77))
        dataset.load_state_dict(first.state_dict())
        dataset.set_epoch(0)
        assert before + list(dataset) == orders[0]


def test_the_first_rank_lists_for_all(shards: str, server: Server, tmp_path) -> None:  # type: ignore[no-untyped-def]
    script = tmp_path / "ranks.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        import torch.distributed as dist
        import standpipe
        from torch.utils.data import DataLoader
        from standpipe.torch import StreamingDataset

        rank = int(sys.argv[1])
        dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=rank, world_size=2)
        try:
            StreamingDataset("s3://data/torch-none/", "lines").list_once()
        except standpipe.NotFoundError:
            pass
        else:
            raise AssertionError("both are told what went wrong")
        dataset = StreamingDataset({shards!r}, "lines", transform=int).list_once()
        seen = list(DataLoader(dataset, batch_size=None, num_workers=1))
        all_seen = [None, None]
        dist.all_gather_object(all_seen, seen)
        assert sorted(all_seen[0] + all_seen[1]) == list(range(500))
        dist.destroy_process_group()
        """)
    )
    ranks = [subprocess.Popen([sys.executable, str(script), str(rank)], env=environment(server)) for rank in range(2)]
    assert [rank.wait(100) for rank in ranks] == [0, 0]
    assert lists(server) == 2, "of what is missing and of what is there"
