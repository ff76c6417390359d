"""The protocol of a task: batches, update and evaluation for the training loop."""

from collections.abc import Generator
from typing import Any, Protocol

import jax

from selfflow.training.state import State


class Task(Protocol):
    """Batches, a compiled update, and the metrics of both."""

    def batches(self, start: int) -> Generator[tuple[Any, dict[str, Any]]]:
        """Yields the batch of every step after `start`, on the devices of the run.

        Each comes with values for its row of the metrics: `component`, its entry in the mixture, `tokens`, the number
        of tokens in it, and any others.
        """
        ...

    def ids(self, step: int) -> list[str]:
        """The ids of the samples in the batch of a step, counted from 0; called for skipped steps alone."""
        ...

    def step(self, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        """The update and its metrics, among them `loss` and `skipped`, 1 where the update was not finite and skipped.

        It may reuse the memory of the state.
        """
        ...

    def diagnose(self, state: State) -> dict[str, jax.Array]:
        """Metrics of a state that cost a forward pass, such as ranks of features."""
        ...

    def summarise(self, metrics: dict[str, Any]) -> dict[str, float]:
        """The numbers of a row, from the metrics of a step and diagnostics once they are on the host."""
        ...

    def evaluate(self, state: State) -> dict[str, float]:
        """Metrics of samples of a state. It must not change what training draws."""
        ...
