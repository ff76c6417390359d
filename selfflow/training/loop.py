"""The training loop: a state, a step, and a stream of batches."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from selfflow.errors import Interrupted, UserError, check_at_least
from selfflow.progress import Progress
from selfflow.training.checkpoints import Checkpoints
from selfflow.training.metrics import MetricsLog
from selfflow.training.profile import Trace
from selfflow.training.signals import Interruption
from selfflow.training.state import State
from selfflow.training.watchdog import dump_stacks_when_stalled


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
    evaluate_every: int | None = None
    """Steps between evaluations of samples of the EMA (`evaluation`); none for never."""

    def __post_init__(self):
        check_at_least(self, "cadence.", log_every=1, checkpoint_every=1, keep_last=1, evaluate_every=1)
        if self.keep_every is not None and self.keep_every % self.checkpoint_every:
            raise UserError(
                f"cadence.keep_every is {self.keep_every}: give a multiple of checkpoint_every {self.checkpoint_every}"
            )


@dataclass(frozen=True)
class Limits:
    """What a run bears before it stops, or says where it stands still; may change while it runs."""

    max_skipped_steps: int = 10
    """Steps in a row whose loss or gradient is not finite: the run skips their updates, and stops after these many."""
    hang_timeout: float = 1800.0
    """Seconds without the end of a step, compilation included, after which the stacks of all threads are printed."""

    def __post_init__(self):
        check_at_least(self, "limits.", max_skipped_steps=1)
        if not 0 < self.hang_timeout < 1e6:
            raise UserError(f"limits.hang_timeout is {self.hang_timeout}: give seconds, above 0 and below a million")


def train(
    state: State,
    step: Callable[[State, Any], tuple[State, dict[str, jax.Array]]],
    batches: Iterator[tuple[Any, dict[str, Any]]],
    *,
    start: int,
    steps: int,
    cadence: Cadence,
    limits: Limits,
    log: MetricsLog | None,
    checkpoints: Checkpoints,
    trace: Trace,
    interruption: Interruption,
    summarise: Callable[[dict[str, Any]], dict[str, float]],
    diagnose: Callable[[State], dict[str, jax.Array]],
    ids: Callable[[int], list[str]],
    evaluate: Callable[[State], dict[str, float]] | None = None,
) -> State:
    """Runs from step `start` to `steps`.

    Metrics are fetched one step late, so that the device always has work waiting. A checkpoint is
    written only after the metrics up to its step are on disk. Where its step was skipped it waits for one
    that was not: the state is finite and yet may be what makes losses infinite. Only the last step is
    saved in any case.

    Args:
      state: the state after `start` steps.
      step: compiled update; it may reuse the memory of the state it is given. It skips an update that is not finite.
      batches: yields the batch that follows step `start`, then the later ones, each with facts for its row: `set`,
        `tokens` and whatever else is to be logged.
      start, steps: finished and wanted number of steps.
      cadence: how often to diagnose and to save.
      limits: when to stop for too many skipped steps, and when to speak up.
      log, checkpoints: where to; only one of several processes has a log.
      trace: of which steps.
      interruption: is asked after every step whether to stop.
      summarise: fetched metrics -> the numbers of a row, with `loss` and `skipped`.
      diagnose: compiled diagnostics of the state that a step starts from.
      ids: the samples of a step's batch, counted from 0; asked for skipped steps alone.
      evaluate: looks at samples of the state after a step, and draws nothing that training draws.

    Raises:
      UserError: if too many steps in a row were skipped.
      Interrupted: if the process was asked to stop; what was done is saved.
    """
    pending: tuple[int, dict[str, Any], float, dict[str, jax.Array]] | None = None
    last = time.monotonic()
    skipped = in_a_row = 0
    due = stop = False

    def fetch() -> str:
        nonlocal pending, last, skipped, in_a_row
        if pending is None:
            return ""
        number, facts, waited, metrics = pending
        pending = None
        values = summarise(jax.device_get(metrics))
        now = time.monotonic()
        seconds, last = now - last, now
        tokens = facts.pop("tokens")
        row = {"step": number, **facts, **values, "seconds": seconds, "tokens_per_second": tokens / seconds}
        row["waiting"] = waited
        if log is not None:
            log.write(row)
        if values["skipped"]:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            if log is not None:
                log.skip({"step": number, "component": facts["component"], "ids": ids(number - 1)})
            if in_a_row == limits.max_skipped_steps:
                raise UserError(_too_many(number, in_a_row, checkpoints.path.parent, checkpoints.latest()))
        else:
            in_a_row = 0
        return f"{facts['component']} loss {values['loss']:.3f}" + (f", {skipped} skipped" if skipped else "")

    try:
        with (
            Progress("train", steps, done=start, unit="step") as shown,
            dump_stacks_when_stalled(limits.hang_timeout) as alive,
        ):
            for number in range(start + 1, steps + 1):
                trace.before(number)
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    asked = time.monotonic()
                    batch, facts = next(batches)
                    waited = time.monotonic() - asked
                    # Before the step, whose donated state is gone after it.
                    extra = diagnose(state) if number % cadence.log_every == 0 or number == steps else {}
                    state, metrics = step(state, batch)
                    checkpoints.check()
                    note = fetch()
                trace.after(number, state)
                pending = number, dict(facts), waited, {**metrics, **extra}
                if evaluate and cadence.evaluate_every and number % cadence.evaluate_every == 0:
                    jax.block_until_ready(state)  # so that the time of the step is not counted as the evaluation's
                    asked = time.monotonic()
                    found = evaluate(state)
                    last += time.monotonic() - asked
                    pending = number, facts | found, *pending[2:]
                stop = interruption.reached()
                due = due or number % cadence.checkpoint_every == 0
                if due or stop or number == steps:
                    note = fetch()
                    if log is not None:
                        log.flush()
                    if not in_a_row or number == steps:
                        checkpoints.save(state, number)
                        due = False
                shown.advance(note=note)
                alive()
                if stop:
                    break
            checkpoints.wait()
    finally:
        trace.close()
        if log is not None:
            log.flush()
    if stop:
        cause, saved = interruption.cause, checkpoints.latest()
        again = f"goes on from step {saved}, which is saved" if saved else "begins again, for nothing is saved yet"
        raise Interrupted(f"stopped by {cause.name} after step {number}: the same command {again}", 128 + cause)
    return state


def _too_many(number: int, count: int, folder: Path, saved: int | None) -> str:
    good = f"the last good checkpoint is step {saved}" if saved else "there is no checkpoint yet"
    return (
        f"loss or gradient was not finite in {count} steps in a row (limits.max_skipped_steps), the last of them step "
        f"{number}; {good}. The samples of these steps stand in {folder / 'skipped.jsonl'}: leave out those that are "
        "damaged (--exclude), or lower optimizer.learning_rate or optimizer.clip in another --workdir"
    )
