"""`standpipe.torchdata` and `StatefulDataLoader`, with torchdata itself."""

import itertools
import json
from typing import Any

import pytest
import standpipe
import torch
from standpipe import Options
from standpipe.torch import StreamingDataset
from standpipe.torchdata import SourceNode
from torchdata.nodes import Batcher, Loader, Mapper, Prefetcher
from torchdata.stateful_dataloader import StatefulDataLoader


def dataset(uri: str, options: Options, **settings: Any) -> standpipe.Dataset:
    return standpipe.Dataset(uri, "lines", **{"shuffle": 50, "seed": 2, **settings}, **options)


def test_a_node_gives_epochs_and_goes_on(shards: str, options: Options) -> None:
    node = SourceNode(dataset(shards, options))
    epochs = []
    for _ in range(2):
        node.reset()
        epochs.append([int(sample) for sample in node])
    assert epochs[0] == [int(sample) for sample in dataset(shards, options)]
    assert epochs[1] == [int(sample) for sample in dataset(shards, options, epoch=1)] != epochs[0]
    node.reset()
    node = SourceNode(dataset(shards, options))
    node.reset()
    for _ in node:
        pass
    node.reset()
    before = [int(node.next()) for _ in range(123)]
    state = json.loads(json.dumps(node.get_state()))
    again = SourceNode(dataset(shards, options))
    again.reset(state)
    assert before + [int(sample) for sample in again] == epochs[1]
    again.reset()
    assert [int(sample) for sample in again] == [int(sample) for sample in dataset(shards, options, epoch=2)]


def loader(uri: str, options: Options) -> Loader:
    numbers = Mapper(SourceNode(dataset(uri, options)), int)
    return Loader(Prefetcher(Batcher(numbers, 16, drop_last=False), prefetch_factor=3))


def test_a_graph_of_nodes_goes_on(shards: str, options: Options) -> None:
    whole = list(itertools.chain.from_iterable(loader(shards, options)))
    assert whole == [int(sample) for sample in dataset(shards, options)]
    first = loader(shards, options)
    before = [batch for batch, _ in zip(first, range(9), strict=False)]
    again = loader(shards, options)
    again.load_state_dict(first.state_dict())
    flat = list(itertools.chain.from_iterable(before))
    rest = list(itertools.chain.from_iterable(again))
    # `zip` has asked for one batch more than it gave.
    assert flat == whole[: 9 * 16] and rest in (whole[9 * 16 :], whole[10 * 16 :])


def test_a_mixture_is_a_source(shards: str, options: Options) -> None:
    def node() -> SourceNode:
        return SourceNode(standpipe.Mixture({"a": dataset(shards, options), "b": dataset(shards, options, seed=3)}))

    one, two = node(), node()
    one.reset()
    before = [one.next() for _ in range(300)]
    two.reset(json.loads(json.dumps(one.get_state())))
    assert sorted([*map(int, before), *map(int, two)]) == sorted([*range(500)] * 2)


@pytest.mark.parametrize(("workers", "method"), [(0, None), (1, "fork"), (2, "fork"), (2, "spawn")])
def test_a_stateful_loader_goes_on_in_the_middle(
    workers: int, method: str | None, shards: str, options: Options
) -> None:
    def loader() -> StatefulDataLoader:
        data = StreamingDataset(shards, "lines", shuffle=50, seed=2, transform=int, **options)
        return StatefulDataLoader(
            data, batch_size=16, num_workers=workers, multiprocessing_context=method, timeout=30 if workers else 0
        )

    whole = torch.cat(list(loader())).tolist()
    assert sorted(whole) == list(range(500))
    first = loader()
    batches = iter(first)
    before = [next(batches) for _ in range(11)]
    state = first.state_dict()
    again = loader()
    again.load_state_dict(state)
    assert torch.cat(before).tolist() + torch.cat(list(again)).tolist() == whole
    assert sorted(torch.cat(list(again)).tolist()) == list(range(500)), "and the next epoch is whole"
