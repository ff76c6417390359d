"""The mixture of training data: the component of each batch, and the component's records in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from selfflow.errors import UserError

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Component:
    """One entry of the mixture: modalities of one data set that are batched together."""

    modalities: tuple[str, ...] = ("image",)
    """Modalities in one sequence."""
    weight: float = 1.0
    """Share of the steps; the shares of all components sum to 1."""
    batch_size: int = 64
    """Samples in a batch."""
    data: str = ""
    """Name of the data set; optional if there is only one."""
    seconds: float | None = None
    """Length of its clips; longer records are cropped at a random place, or at their beginning if the autoencoder
    encodes the first frame of a video separately; shorter ones are padded. By default the clip length of the data
    set."""
    quality: float = 0.0
    """Minimum `quality` of its records."""
    shuffled: tuple[str, ...] = ()
    """Modalities taken from another record of the component, redrawn in each epoch: a control that keeps the
    distribution of each modality and removes the dependence between them."""
    delayed: dict[str, float] = field(default_factory=dict)
    """Delay of a modality in training, seconds; its end is moved to its beginning: a control that keeps the
    content of the modalities and removes their synchrony."""

    def length(self, rate: float, m: str, name: str) -> int:
        """Returns the number of frames or samples in the `seconds` of a modality's clips.

        Args:
          rate: frames or samples per second.
          m: the modality.
          name: name of the component.

        Raises:
          UserError: if it is not a whole number.
        """
        length = self.seconds * rate
        if abs(length - round(length)) > 1e-6 or length < 1:
            raise UserError(
                f"mixture.{name}.seconds {self.seconds} are {length:g} {m} frames or samples: give a whole number"
            )
        return round(length)


@dataclass(frozen=True)
class Stage:
    """A change of the mixture at a step: part of a curriculum."""

    step: int
    """Number of steps before it."""
    weights: dict[str, float] = field(default_factory=dict)
    """Shares of all components from then on; empty keeps the previous ones. Components that are not named get 0."""
    quality: dict[str, float] = field(default_factory=dict)
    """Minimum quality of the records of some components from that step on."""


def check_mixture(mixture: Mapping[str, Component], curriculum: tuple[Stage, ...]) -> None:
    """Raises `UserError`, naming the field, for invalid weights or stages."""
    if not mixture:
        raise UserError("mixture is empty: name at least one component")
    _check_weights({name: component.weight for name, component in mixture.items()}, "mixture.*.weight")
    last = 0
    for i, stage in enumerate(curriculum):
        where = f"curriculum[{i}]"
        if stage.step <= last:
            raise UserError(f"{where}.step is {stage.step}: steps must be above 0 and rise from stage to stage")
        last = stage.step
        for part in ("weights", "quality"):
            for name in getattr(stage, part):
                if name not in mixture:
                    raise UserError(
                        f"{where}.{part} names the component {name}, which the mixture lacks: {list(mixture)}"
                    )
        if stage.weights:
            _check_weights(stage.weights, f"{where}.weights")


def _check_weights(weights: Mapping[str, float], where: str) -> None:
    for name, weight in weights.items():
        if not weight >= 0:
            raise UserError(f"{where.replace('*', name)} of component {name} is {weight}: it must not be negative")
    total = sum(weights.values())
    if not abs(total - 1) <= 1e-6:
        shown = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
        raise UserError(f"{where} must sum to 1, not {total:g} ({shown})")


@dataclass(frozen=True)
class Pool:
    """The records of a component of at least some quality."""

    component: str
    quality: float


class MixturePlan:
    """Maps each step to a pool of records and to a batch of that pool.

    Step n draws from the component in whose interval of [0, 1) the fractional part of u + n / golden ratio falls.
    After any number of steps the count of each component is within a few of its exact share, and step n can be computed
    without the steps before it. A pool continues where it stopped, independently of changes of the weights, so that no
    record is skipped.

    Args:
      mixture: components by name.
      curriculum: changes of the mixture.
      steps: number of steps of the run; a longer run begins with the same steps.
      seed: `seed.data` of the experiment.

    Attributes:
      pools: all pools that any step draws from.
    """

    def __init__(self, mixture: Mapping[str, Component], curriculum: tuple[Stage, ...], steps: int, seed: int):
        weights = {name: component.weight for name, component in mixture.items()}
        quality = {name: component.quality for name, component in mixture.items()}
        # A low-discrepancy sequence: any part of it covers [0, 1) evenly.
        place = (np.random.default_rng(seed).random() + np.arange(steps) * _GOLDEN) % 1.0
        self.pools: list[Pool] = []
        self._pool = np.zeros(steps, np.int32)  # number of the pool, by step
        ends = [stage.step for stage in curriculum] + [steps]
        start = 0
        for end, stage in zip(ends, (None, *curriculum)):
            if stage is not None:
                quality = quality | stage.quality
                if stage.weights:
                    weights = {name: stage.weights.get(name, 0.0) for name in mixture}
            # Each component has an interval of [0, 1) whose length is its weight.
            numbers, shares = [], []
            for name in mixture:
                if weights[name] > 0:
                    numbers.append(self._number(Pool(name, quality[name])))
                    shares.append(weights[name])
            edges = np.cumsum(shares)[:-1]
            steps_of_stage = slice(start, min(end, steps))  # empty for stages after the end of the run
            intervals = np.searchsorted(edges, place[steps_of_stage], side="right")
            self._pool[steps_of_stage] = np.array(numbers)[intervals]
            start = end
        # Number of the batch within its pool, by step: how many earlier steps drew from the same pool.
        self._batch = np.zeros(steps, np.int64)
        for number in range(len(self.pools)):
            steps_of_pool = self._pool == number
            self._batch[steps_of_pool] = np.arange(steps_of_pool.sum())

    def _number(self, pool: Pool) -> int:
        if pool not in self.pools:
            self.pools.append(pool)
        return self.pools.index(pool)

    def batches(self, pool: int) -> int:
        """Returns the number of batches that all steps together draw from a pool."""
        return int((self._pool == pool).sum())

    def __len__(self) -> int:
        return len(self._pool)

    def __getitem__(self, step: int) -> tuple[int, int]:
        """Returns (number of the pool, number of the batch in the pool) of a step, counted from 0."""
        return int(self._pool[step]), int(self._batch[step])
