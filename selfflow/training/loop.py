"""The training loop: a state, a step, and a stream of batches."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from selfflow.errors import UserError
from selfflow.progress import Progress
from selfflow.training.checkpoints import Checkpoints
from selfflow.training.metrics import MetricsLog
from selfflow.training.state import State


@dataclass(frozen=True)
class Cadence:
    """How often a run looks at itself; may change while it runs."""

    log_every: int = 50
    """Steps between diagnostics: ranks and cosines, which cost a forward pass."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    keep_last: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int | None = None
    """Checkpoints of multiples of this step are kept, too."""

    def __post_init__(self):
        for name in ("log_every", "checkpoint_every", "keep_last"):
            if getattr(self, name) < 1:
                raise UserError(f"cadence.{name} is {getattr(self, name)}: it must be at least 1")
        if self.keep_every is not None and self.keep_every % self.checkpoint_every:
            raise UserError(
                f"cadence.keep_every is {self.keep_every}: give a multiple of checkpoint_every {self.checkpoint_every}"
            )


def train(
    state: State,
    step: Callable[[State, Any], tuple[State, dict[str, jax.Array]]],
    batches: Iterator[tuple[Any, dict[str, Any]]],
    *,
    start: int,
    steps: int,
    cadence: Cadence,
    log: MetricsLog | None,
    checkpoints: Checkpoints,
    summarise: Callable[[dict[str, Any]], dict[str, float]],
    diagnose: Callable[[State], dict[str, jax.Array]],
) -> State:
    """Runs from step `start` to `steps`.

    Metrics are fetched one step late, so that the device always has work waiting. A checkpoint is
    written only after the metrics up to its step are on disk and were finite.

    Args:
      state: the state after `start` steps.
      step: compiled update; it may reuse the memory of the state it is given.
      batches: yields the batch that follows step `start`, then the later ones, each with facts for its row: `set`,
        `tokens` and whatever else is to be logged.
      start, steps: finished and wanted number of steps.
      cadence: how often to diagnose and to save.
      log, checkpoints: where to; only one of several processes has a log.
      summarise: fetched metrics -> the numbers of a row.
      diagnose: compiled diagnostics of the state that a step starts from.

    Raises:
      UserError: if the loss is no longer finite.
    """
    pending: tuple[int, dict[str, Any], float, dict[str, jax.Array]] | None = None
    last = time.monotonic()

    def fetch() -> str:
        nonlocal pending, last
        if pending is None:
            return ""
        number, facts, waited, metrics = pending
        pending = None
        values = summarise(jax.device_get(metrics))
        now = time.monotonic()
        seconds, last = now - last, now
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(values[name]):
                raise UserError(
                    f"the {name.replace('_', ' ')} is {values[name]} at step {number}: lower optimizer.learning_rate "
                    f"or optimizer.clip; the last good checkpoint is step {checkpoints.latest() or 0}"
                )
        tokens = facts.pop("tokens")
        row = {"step": number, **facts, **values, "seconds": seconds, "tokens_per_second": tokens / seconds}
        row["waiting"] = waited
        if log is not None:
            log.write(row)
        return f"{facts['set']} loss {values['loss']:.3f}"

    try:
        with Progress("train", steps, done=start, unit="step") as shown:
            for number in range(start + 1, steps + 1):
                asked = time.monotonic()
                batch, facts = next(batches)
                waited = time.monotonic() - asked
                # Before the step, whose donated state is gone after it.
                extra = diagnose(state) if number % cadence.log_every == 0 or number == steps else {}
                state, metrics = step(state, batch)
                checkpoints.check()
                note = fetch()
                pending = number, dict(facts), waited, {**metrics, **extra}
                if number % cadence.checkpoint_every == 0 or number == steps:
                    note = fetch()
                    if log is not None:
                        log.flush()
                    checkpoints.save(state, number)
                shown.advance(note=note)
        checkpoints.wait()
    finally:
        if log is not None:
            log.flush()
    return state
