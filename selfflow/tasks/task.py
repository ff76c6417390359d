"""What an experiment of either kind brings to `selfflow train`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from selfflow.training.state import State


class Task(NamedTuple):
    """A run's data, and what is computed and told of it.

    Attributes:
      feed: `feed.batches(start, steps, rows)` are its batches.
      data_hash: identity of all that it reads.
      sets: what is known of each data set, as JSON data.
      autoencoders: file of each modality's, of which the run keeps a copy.
      evaluate: (state, run folder) -> numbers, every `cadence.evaluate_every` steps; or None.
      functions: (mesh, where the state lies) -> what the loop calls: `step`, `diagnose`, `summarise`.
      say: (run folder, first step, state); tells what begins.
      prove: (run folder, state) -> the summary; shows what was learned.
      begin: fresh state -> that which training begins with, where data has a say in it; or None.
    """

    feed: Any
    data_hash: str
    datasets: dict[str, Any]
    autoencoders: dict[str, Path]
    evaluate: Callable[[State, Path], dict[str, float]] | None
    functions: Callable[[Mesh, State], dict[str, Any]]
    say: Callable[[Path, int, State], None]
    prove: Callable[[Path, State], dict[str, Any]]
    begin: Callable[[State], State] | None = None


def scalar_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """The fetched metrics that are one number each."""
    return {name: float(value) for name, value in metrics.items() if value.ndim == 0}
