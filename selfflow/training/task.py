"""Protocol of training tasks, which provide batches, update and evaluation for the training loop."""

from collections.abc import Generator
from typing import Any, Protocol

import jax

from selfflow.training.state import State


class Task(Protocol):
    """Protocol of a training task: batches, a compiled update, diagnostics and evaluation."""

    def batches(self, start: int) -> Generator[tuple[Any, dict[str, Any]]]:
        """Yields batches for all steps after `start`, on the devices of the run, with values for the metrics.

        The values include `component`, the component of the mixture, and `tokens`, the number of tokens in the batch.
        """
        ...

    def ids(self, step: int) -> list[str]:
        """Returns the ids of the samples in the batch of a step, counted from 0. Called only for skipped steps."""
        ...

    def step(self, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        """Returns the updated state, and metrics with `loss` and `skipped`, see `training.step.make_step`.

        The memory of `state` may be donated.
        """
        ...

    def diagnose(self, state: State) -> dict[str, jax.Array]:
        """Returns metrics that require an additional forward pass, such as ranks of features."""
        ...

    def summarise(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Converts metrics and diagnostics of a step, as arrays on the host, to scalars for a row of the metrics."""
        ...

    def evaluate(self, state: State) -> dict[str, float]:
        """Returns metrics of samples of a state. The random numbers of the training must not depend on it."""
        ...
