"""Several datasets as one, mixed by weight."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .exceptions import ConfigError

if TYPE_CHECKING:
    from .dataset import Dataset, DatasetStats, Samples

__all__ = ["Mixture"]

_VERSION = 1
_MASK = (1 << 64) - 1


def _uniform(seed: int, draw: int) -> float:
    """The same number from 0 to 1 for the same seed and draw, on every host: SplitMix64."""
    state = (seed * 0x9E3779B97F4A7C15 + (draw + 1) * 0xD1B54A32D192ED03) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((state ^ (state >> 31)) >> 11) / (1 << 53)


class Mixture:
    """Draws each sample from one of several datasets, by weight.

    Which one a draw takes is a function of the seed and the draw's number, so that the order can be repeated, and
    resumed. A dataset that has ended is left out, and the others go on by their weights, until all have ended; those
    with ``epochs=None`` never do.

    It pickles as a :class:`standpipe.Dataset` does; states of all ranks and workers are merged by
    :func:`standpipe.merge_states`.

    Args:
        datasets: by name: the name identifies the dataset in the state.
        weights: by the same names; each more than 0. By default all are equal.
        seed: what the draws depend on.

    >>> import standpipe
    >>> tens = standpipe.Dataset(uri, "fixed:4", epochs=None)
    >>> mixture = standpipe.Mixture({"a": standpipe.Dataset(uri, "fixed:6"), "b": tens}, {"a": 1, "b": 3})
    >>> len([next(samples) for samples in [iter(mixture)] for _ in range(10)])
    10
    """

    def __init__(
        self, datasets: Mapping[str, Dataset], weights: Mapping[str, float] | None = None, *, seed: int = 0
    ) -> None:
        if not datasets:
            raise ConfigError("datasets: none given: name at least one")
        self._datasets = dict(datasets)
        given = dict.fromkeys(datasets, 1.0) if weights is None else weights
        self._weights = {name: float(weight) for name, weight in given.items()}
        if self._weights.keys() != self._datasets.keys():
            raise ConfigError(f"weights: of {sorted(self._weights)}, and the datasets are {sorted(self._datasets)}")
        for name, weight in self._weights.items():
            if not 0 < weight < float("inf"):
                raise ConfigError(f"weights: {weight} of {name!r}: use numbers above 0")
        self._seed = seed
        self._state: dict[str, Any] | None = None
        self._last: Mixed | None = None

    def __iter__(self) -> Mixed:
        state = self._state or {"draws": 0, "ended": []}
        for name, part in state.get("datasets", {}).items():
            self._datasets[name].load_state_dict(part)
        samples = {name: iter(dataset) for name, dataset in self._datasets.items()}
        # Used up, unless it was refused: the next iterator begins anew.
        self._state = None
        self._last = Mixed(samples, self._weights, self._seed, state["draws"], state["ended"])
        return self._last

    def set_epoch(self, epoch: int) -> None:
        """Begins anew at this epoch of all datasets, when it is next iterated.

        A state that was just loaded stays, if it is of a run that began at this epoch.
        """
        for dataset in self._datasets.values():
            dataset.set_epoch(epoch)
        self._last = None
        parts = () if self._state is None else self._state["datasets"].values()
        if any(part.get("first_epoch") != epoch for part in parts):
            self._state = None

    def state_dict(self) -> dict[str, Any]:
        """How far the last iterator is: small, and JSON all through."""
        if self._last is not None:
            return self._last.state_dict()
        if self._state is not None:
            return self._state
        states = {name: dataset.state_dict() for name, dataset in self._datasets.items()}
        return _state(self._seed, self._weights, 0, [], states)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iterator goes on from a state of this mixture: this consumer's own, or one merged of all."""
        if state.get("version") != _VERSION or state.get("datasets", {}).keys() != self._datasets.keys():
            raise ConfigError("state: not of a mixture of these datasets")
        if state["seed"] != self._seed:
            raise ConfigError(f"state: made with the seed {state['seed']}; this is {self._seed}")
        if state.get("weights") != self._weights:
            raise ConfigError(f"state: made with the weights {state.get('weights')}; these are {self._weights}")
        self._state, self._last = state, None

    def stats(self) -> dict[str, DatasetStats]:
        """What the last iterator did, by dataset, and why each is slow."""
        if self._last is None:
            raise ValueError("the mixture has not been iterated yet")
        return self._last.stats()

    def _forget_state(self) -> None:
        self._state = None

    @property
    def _loaded_state(self) -> dict[str, Any] | None:
        return self._state

    @property
    def _next_epoch(self) -> int:
        return next(iter(self._datasets.values()))._next_epoch

    def _list(self) -> Any:
        return {name: dataset._list() for name, dataset in self._datasets.items()}

    def _take_listing(self, found: Any) -> None:
        for name, dataset in self._datasets.items():
            dataset._take_listing(found[name])

    def __getstate__(self) -> dict[str, Any]:
        # As of a dataset: an iterator's place stays with it.
        return {**self.__dict__, "_last": None}


def _state(
    seed: int, weights: dict[str, float], draws: int, ended: list[str], states: dict[str, Any]
) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "seed": seed,
        "weights": dict(weights),
        "draws": draws,
        "ended": list(ended),
        "datasets": states,
    }


class Mixed(Iterator[Any]):
    """The samples of a mixture, for one consumer."""

    def __init__(
        self, samples: dict[str, Samples], weights: dict[str, float], seed: int, draws: int, ended: list[str]
    ) -> None:
        self._samples = samples
        self._weights = weights
        self._seed = seed
        self._draws = draws
        self._ended = list(ended)

    def __next__(self) -> Any:
        while name := self._draw():
            try:
                sample = next(self._samples[name])
            except StopIteration:
                self._ended.append(name)
                continue
            self._draws += 1
            return sample
        raise StopIteration

    def _draw(self) -> str | None:
        """Who is next; the same draw is made again without those that have ended."""
        names = [name for name in self._samples if name not in self._ended]
        if not names:
            return None
        sums = list(itertools.accumulate(self._weights[name] for name in names))
        point = _uniform(self._seed, self._draws) * sums[-1]
        return next((name for name, upto in zip(names, sums, strict=True) if point < upto), names[-1])

    def stats(self) -> dict[str, DatasetStats]:
        return {name: samples.stats() for name, samples in self._samples.items()}

    def state_dict(self) -> dict[str, Any]:
        states = {name: samples.state_dict() for name, samples in self._samples.items()}
        return _state(self._seed, self._weights, self._draws, self._ended, states)
